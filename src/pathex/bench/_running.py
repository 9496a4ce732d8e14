"""From a suite to its files: rows, environment, plot."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch

from pathex.bench._suite import ERROR, Bench, Row, Suite
from pathex.errors import InvalidInput, UnknownName
from pathex.runs.environment import environment
from pathex.train import replacing

__all__ = ["Outcome", "checked", "measure"]

_WORDS = MappingProxyType({bool: "true or false", int: "a whole number", float: "a number", str: "text"})


@dataclass(frozen=True)
class Outcome:
    """What a suite measured.

    Attributes:
        rows: The table.
        summary: A few lines about it.
        failed: Rows of cases that failed.
        files: The files that were written.
    """

    rows: pd.DataFrame
    summary: list[str]
    failed: list[Row]
    files: list[Path]


def checked(suite: Suite, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a suite, of the types of their defaults.

    Args:
        suite: The suite.
        options: Those that are not the default.

    Returns:
        Every option.

    Raises:
        UnknownName: If the suite has no such option.
        InvalidInput: If a value is not of the type of the default.
    """
    for name in options:
        if name not in suite.defaults:
            raise UnknownName(f"option of pathex bench {suite.name}:", name, suite.defaults)
    return {
        name: _typed(name, options[name], default) if name in options else default
        for name, default in suite.defaults.items()
    }


def _typed(name: str, value: Any, default: Any) -> Any:
    """The value as an option with this default takes it; None as a default says nothing about the type."""
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)):
            value = [value]
        return tuple(_typed(name, entry, default[0]) for entry in value)
    kind = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not None and (not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)):
        raise InvalidInput(f"--{name.replace('_', '-')} must be {_WORDS[kind]}, got {value!r}")
    return value


def measure(
    suite: Suite,
    bench: Bench,
    out: Path,
    options: Mapping[str, Any] = MappingProxyType({}),
    on_row: Callable[[Row], object] | None = None,
) -> Outcome:
    """Carry out a suite. Its rows are on disk as soon as they are measured, also if it is interrupted.

    Args:
        suite: The suite.
        bench: Where and how thoroughly.
        out: Folder that gets ``NAME.csv`` (the rows), ``NAME.json`` (settings and environment), ``NAME.png`` and
            ``NAME.svg``, which take the place of older ones.
        options: Options of the suite that are not the default.
        on_row: Called with each row.

    Returns:
        Rows, summary and files.

    Raises:
        KeyboardInterrupt: When interrupted; what was measured is on disk.
    """
    given = checked(suite, options)
    path = out / suite.name
    about = {"suite": suite.name, "date": datetime.now(timezone.utc).date().isoformat(), "finished": False}
    about |= {"settings": {"seed": bench.seed, "repeats": bench.repeats, **given}, "load_before": _load()}
    rows: list[Row] = []
    with _threads(bench.threads):
        surroundings = {"cpu": _cpu(), **environment(bench.device)}
        where = {"device": surroundings["device"], "threads": bench.threads}
        try:
            for row in suite.rows(bench, given):
                rows.append({**row, **where})
                _write(path, rows, {**about, "environment": surroundings})
                if on_row is not None:
                    on_row(row)
            about["finished"] = True
        finally:
            outcome = _finish(suite, path, rows, {**about, "environment": surroundings})
    return outcome


def _finish(suite: Suite, path: Path, rows: list[Row], about: Mapping[str, Any]) -> Outcome:
    failed = [row for row in rows if row.get(ERROR)]
    frame = pd.DataFrame(rows)
    well = frame if not failed else frame[frame[ERROR].isna()].dropna(axis="columns", how="all")
    if well.empty:
        return Outcome(frame, [], failed, [])
    summary = suite.summary(well)
    _write(path, rows, {**about, "summary": summary})
    suite.plot(well, path)
    return Outcome(
        frame, summary, failed, [path.with_name(path.name + end) for end in (".csv", ".json", ".png", ".svg")]
    )


def _write(path: Path, rows: list[Row], about: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        # Whole numbers stay whole in a column that not every row has.
        (".csv", pd.DataFrame(rows).convert_dtypes().to_csv(index=False)),
        (".json", json.dumps(about, indent=2) + "\n"),
    ):
        with replacing(path.with_name(path.name + suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu() -> str | None:
    """What the system calls its processors; None where it does not tell (it does on Linux)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _load() -> list[float] | None:
    """How busy the machine is, over 1, 5 and 15 minutes; None where the system does not tell."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None
