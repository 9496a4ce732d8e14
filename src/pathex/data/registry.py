"""Data sets by name: each loader registers itself."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

_Loader = TypeVar("_Loader", bound=Callable[..., Any])


class Entry(NamedTuple):
    """What loads a data set, a line about it, and what a form of name has behind its colon (``PATH``), if it is one."""

    load: Callable[..., Any]
    line: str
    place: str | None


DATASETS: dict[str, Entry] = {}


def dataset(name: str, line: str, place: str | None = None) -> Callable[[_Loader], _Loader]:
    """Register a loader; its keyword-only arguments are the options of the data set."""

    def register(load: _Loader) -> _Loader:
        DATASETS[name] = Entry(load, line, place)
        return load

    return register
