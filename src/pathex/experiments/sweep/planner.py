"""From the options of a sweep to its runs, all of them checked before the first one starts."""

import argparse
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser

from pathex.errors import InvalidInput, UnknownName, check_name, refusing
from pathex.experiments.runs import RunConfig, allowed_values, check_config, run_name
from pathex.experiments.sweep.config import EXECUTORS, SweepConfig
from pathex.files import read

_MOST_ENTRIES = 100_000
_FIELDS = {field.name: field for field in dataclasses.fields(RunConfig) if field.name != "out"}
_WITH_OPTIONS = [name for name, field in _FIELDS.items() if field.default_factory is dict]


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep by the name of their folders, and how many entries were the same as one of these."""

    runs: Mapping[str, RunConfig]
    duplicates: int


def plan(config: SweepConfig) -> Plan:
    """Expand the grids and lists of a sweep, and check the settings of every run; an error names the entry."""
    _check_options(config)
    typed = _Types()
    common = _over(typed.base(config.base), config.settings, "settings")
    runs: dict[str, RunConfig] = {}
    entries = 0
    for place, entry in _entries(config):
        values = _over(common, entry, place)
        run = RunConfig(**{name: typed(name, value, place) for name, value in values.items()}, out=config.out)
        entries += 1
        if (name := run_name(run)) not in runs:
            if run.devices != 1:
                raise InvalidInput(f"{place}: devices is {run.devices}; allowed in a sweep: 1, one device for each run")
            with refusing(f"{place}: {{}}", InvalidInput):
                check_config(run)
            runs[name] = run
    return Plan(runs, entries - len(runs))


def _check_options(config: SweepConfig) -> None:
    check_name("executor", config.executor, EXECUTORS)
    for name, least in (("concurrent", 1), ("threads", 1), ("retries", 0)):
        if (value := getattr(config, name)) is not None and value < least:
            raise InvalidInput(f"{name} is {value!r}; allowed: a whole number of at least {least}")
    if config.address is not None and config.executor != "ray":
        raise InvalidInput(f"address is {config.address!r} with executor {config.executor!r}; allowed: executor 'ray'")


def _entries(config: SweepConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings of each run beyond the common ones, with their place in the sweep file."""
    # An empty grid alone is none; one of several is a mistake.
    if isinstance(config.grid, Mapping):
        grids: dict[str, Any] = {"grid": config.grid} if config.grid else {}
    else:
        grids = {f"grid {number}": grid for number, grid in enumerate(config.grid, 1)}
    if not grids and not config.list:
        raise InvalidInput("the sweep has no runs; allowed: a grid, a list, or both")
    entries = len(config.list) + sum(_size(place, grid) for place, grid in grids.items())
    if entries > _MOST_ENTRIES:
        raise InvalidInput(f"the sweep has {entries:,} entries; allowed: at most {_MOST_ENTRIES:,}")
    for place, grid in grids.items():
        for values in itertools.product(*grid.values()):
            entry = dict(zip(grid, values, strict=True))
            shown = ", ".join(f"{name}: {value}" for name, value in entry.items())
            yield f"{place} at {{{shown}}}", entry
    for number, entry in enumerate(config.list, 1):
        yield f"list entry {number}", entry


def _size(place: str, grid: Any) -> int:
    """How many combinations a grid has."""
    if not isinstance(grid, Mapping) or not grid:
        raise InvalidInput(f"{place} is {grid!r}; allowed: a mapping of settings to lists of values")
    for name, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            hint = "a list of values (what all runs share belongs in settings)"
            raise InvalidInput(f"{place}: {name} is {values!r}; allowed: {hint}")
    return math.prod(len(values) for values in grid.values())


def _over(below: Mapping[str, Any], above: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The settings of ``below`` with those of ``above`` in their place."""
    if not isinstance(above, Mapping):
        raise InvalidInput(f"{place} is {above!r}; allowed: a mapping of settings")
    values = dict(below)
    for dotted, value in above.items():
        name, *options = str(dotted).split(".")
        if name == "out":
            raise InvalidInput(f"{place}: out is an option of the sweep, not of one of its runs")
        if name not in _FIELDS:
            raise InvalidInput(f"{place}: {UnknownName('setting', name, _FIELDS)}")
        if options and name not in _WITH_OPTIONS:
            raise InvalidInput(f"{place}: {name} has no options; those that have: {', '.join(_WITH_OPTIONS)}")
        values[name] = _replaced(values.get(name, {}), options, value, f"{place}: {dotted}")
    return values


def _replaced(whole: Any, options: Sequence[str], value: Any, place: str) -> Any:
    """A mapping with one value, at the end of a path of names, in place of what was there."""
    if not options:
        return value
    if not isinstance(whole, Mapping):
        raise InvalidInput(f"{place}: {whole!r} below it is no mapping, so it has no option {options[0]!r}")
    return {**whole, options[0]: _replaced(whole.get(options[0], {}), options[1:], value, place)}


class _Types:
    """Settings with the types of ``pathex run``, so that a sweep names its runs as that command does."""

    def __init__(self) -> None:
        self._parser = ArgumentParser(exit_on_error=False)
        self._parser.add_class_arguments(RunConfig, None, as_group=False)
        self._types = get_type_hints(RunConfig, include_extras=True)
        self._known: dict[tuple[str, str], Any] = {}

    def base(self, base: str | os.PathLike[str] | dict[str, Any] | None) -> dict[str, Any]:
        """The settings to begin with; where they are to be written is for the sweep to say."""
        if base is None or isinstance(base, dict):
            return _over({}, {name: value for name, value in (base or {}).items() if name != "out"}, "base")
        path = Path(base)
        if not path.is_file():
            raise InvalidInput(f"base: {os.fspath(base)!r} is no file; allowed: a file of settings of pathex run")
        read(path, f"base: {str(path)!r}", kind=".yaml")
        try:
            values = self._parser.parse_path(str(path), defaults=False).as_dict()
        except argparse.ArgumentError as error:
            raise InvalidInput(f"base {path}: {' '.join(str(error).split())}") from None
        return {name: value for name, value in values.items() if name in _FIELDS}

    def __call__(self, name: str, value: Any, place: str) -> Any:
        # Reading is slow beside the rest, and a grid has few values.
        key = (name, repr(value))
        if key not in self._known:
            kind = self._types[name]
            try:
                if value is None and type(None) not in get_args(kind):  # the parser takes it as a value left out
                    raise TypeError
                self._known[key] = self._parser.parse_object({name: value}).as_dict()[name]
            except (argparse.ArgumentError, TypeError):
                raise InvalidInput(f"{place}: {name} is {value!r}; allowed: {allowed_values(kind)}") from None
        return self._known[key]
