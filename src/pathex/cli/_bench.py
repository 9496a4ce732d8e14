"""``pathex bench``: seconds and memory, measured here."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any

import yaml

from pathex.cli._arguments import parse, separated
from pathex.errors import InvalidInput

if TYPE_CHECKING:
    from pathex.bench import Bench, Outcome, Suite

__all__ = ["BenchConfig", "execute"]

ALL = "all"
_FAILED = 1
_DESCRIPTION = """Measures seconds and memory on this machine, and writes rows with their environment and plots. Without
a suite, lists them; pathex bench SUITE --help shows the options of one; all carries out every suite."""


@dataclass(frozen=True)
class BenchConfig:
    """Options of ``pathex bench``.

    Attributes:
        suite: Name of a suite, or ``all``; null lists them.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: Threads of PyTorch; null is its own choice.
        repeats: Alternating repeats; medians and quartiles are reported.
        seed: Seed of weights and images.
        out: Folder of ``SUITE.csv``, ``SUITE.json``, ``SUITE.png`` and ``SUITE.svg``.
    """

    suite: str | None = None
    device: str = "auto"
    threads: int | None = None
    repeats: int = 3
    seed: int = 0
    out: str = "bench"


def execute(words: Sequence[str]) -> None:
    """Carries out the command.

    Args:
        words: What follows ``pathex bench``.

    Raises:
        SystemExit: With 1 if a case failed.
    """
    name = _suite_named(words)
    if name in {None, ALL}:
        config = parse("bench", BenchConfig, words, _DESCRIPTION, positional=("suite", 1))
        if name is None:
            _list()
            return
        options: dict[str, Any] = {}
    else:
        from pathex.bench import find

        suite = find(str(name))
        given = parse("bench", _options_of(suite), words, f"Measures {suite.title}.", positional=("suite", 1))
        config = BenchConfig(**{field.name: getattr(given, field.name) for field in dataclasses.fields(BenchConfig)})
        options = {option: getattr(given, option) for option in suite.defaults}
    if not _carry_out(config, options):
        raise SystemExit(_FAILED)


def _suite_named(words: Sequence[str]) -> str | None:
    """The suite that the words, or the file they name, are about: its options are part of the grammar."""
    named, free = separated(words)
    if free:
        return free[0]
    given = dict(itertools.pairwise([*named, ""]))
    if "--suite" in given:
        return given["--suite"]
    try:
        content = yaml.safe_load(Path(given["--config"]).read_text(encoding="utf-8")) if "--config" in given else None
    except (OSError, ValueError, yaml.YAMLError):
        return None  # what is wrong with the file, the parser says
    suite = content.get("suite") if isinstance(content, dict) else None
    return suite if isinstance(suite, str) else None


def _options_of(suite: "Suite") -> type[BenchConfig]:
    """The options that all suites share, and those of this one."""
    fields: list[tuple[str, Any, Any]] = [("suite", str, suite.name)]
    lines = [(BenchConfig.__doc__ or "").rstrip()]
    for name, default in suite.defaults.items():
        fields.append((name, _kind(default), default))
        lines.append(f"        {name}: {suite.help.get(name, 'See the guide to benchmarks.')}")
    documented = {"__doc__": "\n".join(lines) + "\n    "}
    return dataclasses.make_dataclass("BenchConfig", fields, bases=(BenchConfig,), frozen=True, namespace=documented)


def _kind(default: object) -> Any:
    """The type of an option with this default: one entry of a tuple may stand alone, and null says little."""
    if default is None:
        return int | float | str | None
    if isinstance(default, tuple):
        entry = type(default[0])
        return GenericAlias(tuple, (entry, ...)) | entry
    return type(default)


def _list() -> None:
    from pathex.bench import find, names
    from pathex.cli._listing import show

    show("suite", [(name, find(name).title) for name in names()])


def _carry_out(config: BenchConfig, options: dict[str, Any]) -> bool:
    """Whether every case of every suite ended well."""
    from pathex.bench import find, measure, names

    bench = _bench(config)
    well = True
    for name in names() if config.suite == ALL else [str(config.suite)]:
        print(f"{name}: {find(name).title}", file=sys.stderr)
        outcome = measure(find(name), bench, Path(config.out), options)
        _show(outcome)
        well = well and not outcome.failed
    return well


def _bench(config: BenchConfig) -> "Bench":
    import torch

    from pathex.bench import Bench
    from pathex.train import check_machine

    threads = torch.get_num_threads() if config.threads is None else config.threads
    for name, value, least in (("threads", threads, 1), ("repeats", config.repeats, 1), ("seed", config.seed, 0)):
        if value < least:
            raise InvalidInput(f"--{name} must be at least {least}, got {value}")
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InvalidInput(f"--out {config.out!r} is a file; it must name a folder")
    device = torch.device(check_machine(config.device))
    return Bench(device, threads, config.seed, config.repeats, lambda line: print(line, file=sys.stderr, flush=True))


def _show(outcome: "Outcome") -> None:
    """The rows; what is the same in all of them stands above."""
    frame = outcome.rows
    same = [column for column in frame if len(frame) > 1 and frame[column].nunique(dropna=False) == 1]
    if same:
        print(", ".join(f"{column} {frame[column].iloc[0]}" for column in same))
    if not frame.empty:
        shown = frame.drop(columns=same).convert_dtypes()
        print(shown.to_string(index=False, na_rep="", max_colwidth=60))
    for line in outcome.summary:
        print(line)
    for path in outcome.files:
        print(path)
