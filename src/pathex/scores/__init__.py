"""Scorers: one method per file, and the registry that names them.

Other packages add names by the entry-point group ``pathex.scorers``, each pointing to a `Method`.
"""

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, overload

from pathex.errors import InvalidInput, UnknownName
from pathex.importing import import_callable
from pathex.scores._method import Card, Method
from pathex.scores._problem import Batch, Problem, parse_memory, read_batches

__all__ = ["Batch", "Card", "Method", "Problem", "find", "methods", "names", "parse_memory", "read_batches", "resolve"]

# Each is the module of its name in this package.
_BUILT_IN = (
    "px",
    "px-literal",
    "px-cvpr24",
    "synflow",
    "synflow-l2",
    "snip",
    "iterative-snip",
    "force",
    "grasp",
    "ntk-sap",
    "ntk-diagonal",
    "fisher-diagonal",
    "prospr",
    "phew",
    "npb",
    "magnitude",
    "random",
)


def names() -> list[str]:
    """Names of all methods, those of other packages included.

    Returns:
        The names: built-in ones first.
    """
    return [*_BUILT_IN, *sorted(point.name for point in entry_points(group="pathex.scorers"))]


def find(name: str) -> Method:
    """The method of a name.

    Args:
        name: One of `names`.

    Returns:
        The method.

    Raises:
        UnknownName: If there is no such method.
        InvalidInput: If the entry point of another package is not a `Method`.
    """
    if name in _BUILT_IN:
        built_in: Method = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").METHOD
        return built_in
    for point in entry_points(group="pathex.scorers"):
        if point.name == name:
            method = point.load()
            if not isinstance(method, Method):
                raise InvalidInput(f"entry point {point.value!r} of method {name!r} is not a pathex.scores.Method")
            return method
    raise UnknownName("method", name, names())


def resolve(method: str | Callable[..., Any]) -> Callable[..., Any]:
    """What a method is given as: a name, a `Method`, a callable, or ``package.module:name`` of one of these.

    Args:
        method: The method.

    Returns:
        A `Method`, or a callable ``(model, batches, mask) -> dict``.

    Raises:
        UnknownName: If there is no method of that name.
        InvalidInput: If it is nothing of all this.
    """
    if isinstance(method, str):
        return import_callable("method", method) if ":" in method else find(method)
    if not callable(method):
        raise InvalidInput(f"method must be a name or a callable (model, batches, mask) -> dict, not {method!r}")
    return method


@overload
def methods() -> list[str]: ...
@overload
def methods(name: str) -> Card: ...
def methods(name: str | None = None) -> list[str] | Card:
    """Names of all methods, or the card of one.

    Args:
        name: A method; None lists the names.

    Returns:
        The names, or the card (citation, equation, cost, needs, options).

    Example:
        >>> methods("magnitude").equation
        'S_j = |theta_j|'
    """
    return names() if name is None else find(name).card
