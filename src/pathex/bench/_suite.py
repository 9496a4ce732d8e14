"""What a suite of benchmarks is, and the suites by name."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from pathex.errors import UnknownName

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ERROR", "Bench", "Row", "Suite", "find", "names"]

Row = dict[str, Any]

ERROR = "error"
"""Column of a row whose case failed: why, in one line. Rows of cases that ended well lack it."""

# A suite lies in the constant SUITE of its module.
_MODULES = MappingProxyType(
    {
        "rounds": "pathex.bench._rounds",
        "scale": "pathex.bench._scale",
        "training": "pathex.bench._training",
        "input": "pathex.bench._input",
    }
)


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Bench:
    """Where and how thoroughly is measured.

    Attributes:
        device: The device.
        threads: Threads of PyTorch.
        seed: Seed of weights and images.
        repeats: Alternating repeats; medians and quartiles are reported.
        say: Gets a line now and then about what is going on.
    """

    device: torch.device
    threads: int
    seed: int
    repeats: int
    say: Callable[[str], object] = _silent


def _no_summary(_: "pd.DataFrame") -> list[str]:
    return []


@dataclass(frozen=True)
class Suite:
    """One benchmark.

    Attributes:
        name: Its name, which its files get too.
        title: What it measures, in one line.
        defaults: Its own options with their defaults, which say of which type they are (a tuple: any number of its
            first entry's type).
        rows: From place and options to rows, one for each case, as they are measured. A case that fails gives a row
            with ``error``. Ratios are against a baseline of the same run. After Ctrl-C it may yield what is left to
            tell before it lets the interrupt through.
        plot: Draws the rows into a PNG and an SVG file: the path has no suffix.
        help: One line on each option.
        summary: From the rows to a few lines for people.
    """

    name: str
    title: str
    defaults: Mapping[str, Any]
    rows: Callable[[Bench, Mapping[str, Any]], Iterator[Row]]
    plot: Callable[["pd.DataFrame", Path], None]
    help: Mapping[str, str] = field(default_factory=dict)
    summary: Callable[["pd.DataFrame"], list[str]] = _no_summary


def names() -> list[str]:
    """Names of the suites.

    Returns:
        The names.
    """
    return list(_MODULES)


def find(name: str) -> Suite:
    """A suite by name; its module is imported now.

    Args:
        name: Its name.

    Returns:
        The suite.

    Raises:
        UnknownName: If there is no such suite.
    """
    if name not in _MODULES:
        raise UnknownName("suite", name, _MODULES)
    found: Suite = importlib.import_module(_MODULES[name]).SUITE
    return found
