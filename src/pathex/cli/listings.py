"""``pathex methods``, ``pathex models`` and ``pathex datasets``: what there is."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from pathex.cli.parser import Command
from pathex.errors import PathexWarning, reason

OF_RUNS = MappingProxyType(
    {
        "dense": "No pruning",
        "small-dense": "A dense network as small as the ticket (options match, mask)",
        "imp": "Iterative magnitude pruning with rewinding (options levels, rewind, epochs)",
        "magnitude-after-training": "Magnitude of trained weights, once (options rewind, epochs)",
    }
)
"""Methods of ``pathex run`` that are no scorers."""


@dataclass(frozen=True)
class ListOptions:
    """Options of the listing commands.

    Attributes:
        name: Show this one only; null lists all.
    """

    name: str | None = None


def _show(heading: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints a table of names."""
    from rich.text import Text

    from pathex.cli.console import show, table

    listed = table(heading, "")
    for name, line in rows:
        listed.add_row(Text(name, style="bold"), Text(line))
    show(listed)


def _methods(options: ListOptions) -> None:
    import pathex

    if (name := options.name) in OF_RUNS:
        _show("method of pathex run", [(str(name), OF_RUNS[str(name)])])
    elif name is not None:
        method = pathex.methods(name)
        print(method)
        if type(method).__module__.startswith("pathex.scores."):
            print(f"  more      docs/methods/{method.name}.md")
    else:
        rows = []
        for known in pathex.methods():
            try:
                rows.append((known, pathex.methods(known).title))
            except Exception as error:  # noqa: PERF203 -- of another package
                warnings.warn(f"method {known!r} is left out: {reason(error)}", PathexWarning, stacklevel=2)
        _show("method", rows)
        print()
        _show("method of pathex run only", OF_RUNS.items())


def _models(options: ListOptions) -> None:
    from pathex import models

    if options.name is not None:
        _show("model", [(options.name, models.describe(options.name))])
    else:
        _show("model", [*((name, models.describe(name)) for name in models.names()), *models.prefixes().items()])


def _datasets(options: ListOptions) -> None:
    from pathex import data

    if (name := options.name) is not None:
        own = " ".join(f"--data-options.{option}" for option in data.option_names(name))
        _show("data set", [(name, data.describe(name)), ("options", own)])
    else:
        _show("data set", [(name, data.describe(name)) for name in data.names()])


_NAME = ("name", "?", "Show this one only.")
METHODS = Command("list the pruning methods, or tell of one", ListOptions, _methods, positional=_NAME)
MODELS = Command("list the networks, or tell of one", ListOptions, _models, positional=_NAME)
DATASETS = Command("list the data sets, or tell of one", ListOptions, _datasets, positional=_NAME)
