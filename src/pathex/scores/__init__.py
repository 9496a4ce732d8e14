"""Scorers: one method per file, and the registry that names them.

Other packages add names by the entry-point group ``pathex.scorers``, each pointing to a `Method`.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, overload

from pathex.errors import InvalidInput, UnknownName
from pathex.importing import import_callable
from pathex.scores._method import Card, Method
from pathex.scores._problem import Batch, Problem, fingerprint, joined, parse_memory, read_batches

__all__ = [
    "Batch",
    "Card",
    "Method",
    "Problem",
    "check_call",
    "find",
    "fingerprint",
    "joined",
    "methods",
    "names",
    "parse_memory",
    "read_batches",
    "resolve",
]

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


def check_call(scorer: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a plain callable does not take.

    Args:
        scorer: A callable ``(model, batches, mask, **options) -> dict``.
        options: The options of a call.

    Raises:
        InvalidInput: If it cannot be called so.
    """
    try:
        signature = inspect.signature(scorer)
    except (TypeError, ValueError):  # some built-in callables do not tell
        return
    try:
        signature.bind(None, None, None, **options)
    except TypeError as error:
        name = getattr(scorer, "__name__", "the method")
        raise InvalidInput(
            f"{name}{signature} cannot be called with (model, batches, mask) and options "
            f"{', '.join(sorted(options)) or 'none'}: {error}"
        ) from error


@overload
def methods() -> list[str]: ...
@overload
def methods(name: str) -> Card: ...
def methods(name: str | None = None) -> list[str] | Card:
    """Names of all methods, or the card of one.

    Args:
        name: A method, by name or as ``package.module:name``; None lists the names.

    Returns:
        The names, or the card (citation, equation, cost, needs, options).

    Raises:
        InvalidInput: If it is a plain callable, which has no card.

    Example:
        >>> methods("magnitude").equation
        'S_j = |theta_j|'
    """
    if name is None:
        return names()
    found = resolve(name)
    if not isinstance(found, Method):
        raise InvalidInput(f"method {name!r} is a plain callable, which has no card")
    return found.card
