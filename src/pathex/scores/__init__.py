"""Scorers: one method per file, and the registry that names them.

Other packages add names by the entry-point group ``pathex.scorers``, each pointing to a `Method`.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import overload

from pathex.errors import InvalidInput, UnknownName
from pathex.scores import (
    fisher_diagonal,
    force,
    grasp,
    iterative_snip,
    magnitude,
    npb,
    ntk_diagonal,
    ntk_sap,
    phew,
    prospr,
    px,
    px_cvpr24,
    px_literal,
    random,
    snip,
    synflow,
    synflow_l2,
)
from pathex.scores._method import Card, Method
from pathex.scores._problem import Batch, Problem, parse_memory, read_batches

__all__ = ["Batch", "Card", "Method", "Problem", "find", "methods", "names", "parse_memory", "read_batches"]

_BUILT_IN: Mapping[str, Method] = {
    module.METHOD.card.name: module.METHOD
    for module in (
        px,
        px_literal,
        px_cvpr24,
        synflow,
        synflow_l2,
        snip,
        iterative_snip,
        force,
        grasp,
        ntk_sap,
        ntk_diagonal,
        fisher_diagonal,
        prospr,
        phew,
        npb,
        magnitude,
        random,
    )
}


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
        return _BUILT_IN[name]
    for point in entry_points(group="pathex.scorers"):
        if point.name == name:
            method = point.load()
            if not isinstance(method, Method):
                raise InvalidInput(f"entry point {point.value!r} of method {name!r} is not a pathex.scores.Method")
            return method
    raise UnknownName("method", name, names())


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
