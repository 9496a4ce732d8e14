"""The settings of runs: what tells their series apart, what they share, and the commands that repeat them."""

import json
import shlex
from collections.abc import Mapping, Sequence, Set
from itertools import product
from types import MappingProxyType
from typing import Any

from pathex.experiments.report.records import RunRecord
from pathex.experiments.runs import PLACE, WITHOUT_EFFECT, RunConfig, settings

DEFAULTS: Mapping[str, Any] = MappingProxyType(settings(RunConfig()))
"""What settings that a folder does not hold stand for, as in those of earlier versions; no series is named by them."""

_COLUMNS = frozenset({"model", "data", "method", "sparsity", "seed", "weights", "task", "dynamic"})
_WITHOUT_EFFECT = frozenset({*PLACE, "devices", "strategy", "memory", "strict", "kernel_every", "kernel_images"})
OF_METHOD = frozenset({"rounds", "narrow", "min_per_output", "method_options", "dynamic_options", "from"})
"""Groups of settings that belong to a method."""


def series_settings(records: Sequence[RunRecord], without: Set[str] = frozenset()) -> list[str]:
    """What tells each run's series from others of its method in the experiment, without some groups of settings."""
    names = {name for record in records for name in (*record.config, "from", *record.code)}
    first: dict[tuple[Any, ...], Any] = {}
    differing = set()
    for record, name in product(records, names):
        if _counts(name, record):
            value = _value(record, name)
            panels = ((record.experiment, name), (record.experiment, name, record.method))
            differing |= {panel for panel in panels if first.setdefault(panel, value) != value}
    series = []
    for record in records:
        shown = []
        for name in names:
            value, group = _value(record, name), _group(name, record)
            panel = (record.experiment, name, *([record.method] if group in OF_METHOD else []))
            if value != DEFAULTS.get(name) and panel in differing and group not in without and _counts(name, record):
                shown.append(f"{name.removeprefix('method_options.').removeprefix('dynamic_options.')}={_text(value)}")
        series.append(", ".join(sorted(shown)))
    return series


def _group(name: str, record: RunRecord | None = None) -> str:
    if record and name in record.code and ":" in record.method and name != f"module {_module(record)!r}":
        return "method_options"  # the code of a scorer is its method's
    return name.partition(".")[0]


def _module(record: RunRecord) -> str:
    return str(record.config["model"]).partition(":")[0]


def _counts(name: str, record: RunRecord) -> bool:
    """Whether a setting decides numbers of the run and is no column of the tables by itself."""
    if name.startswith("module "):
        return name in record.code
    without = WITHOUT_EFFECT.get(record.method, ())
    return _group(name) not in _COLUMNS | _WITHOUT_EFFECT | {*without}


def _value(record: RunRecord, name: str) -> Any:
    if name == "from":  # the scorer whose mask a dynamic method starts from
        return record.config["method"] if record.dynamic else None
    if name in record.code:
        return record.code[name][:8]
    return record.config.get(name, DEFAULTS.get(name))


def short(text: str) -> str:
    """A name without the folders of the path in it."""
    prefix, colon, rest = text.rpartition(":")
    return prefix + colon + rest.rstrip("/").rpartition("/")[2]


def shared_settings(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The settings with one value in all runs, where they are run being left out."""
    first, rest = records[0].config, records[1:]
    return {
        name: value
        for name, value in first.items()
        if _group(name) not in PLACE and all(name in r.config and r.config[name] == value for r in rest)
    }


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a configuration file has them."""
    tree = {name: value for name, value in settings.items() if "." not in name}
    for name in settings.keys() - tree.keys():
        group, _, option = name.partition(".")
        tree.setdefault(group, {})[option] = settings[name]
    return tree


def commands(records: Sequence[RunRecord], shared: Mapping[str, Any], settings_file: str) -> list[str]:
    """The command line of each run."""
    lines = []
    for record in records:
        words = ["pathex", "run", "--config", settings_file]
        for name, value in record.config.items():
            if name not in shared and _group(name) not in PLACE:
                group, dot, option = name.partition(".")
                words += [f"--{group.replace('_', '-')}{dot}{option}", _text(value)]
        lines.append(shlex.join(words))
    return lines


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
