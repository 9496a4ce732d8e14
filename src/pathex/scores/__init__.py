"""Scorers: one method per file, and the registry that names them.

Other packages add names by the entry-point group ``pathex.scorers``, each pointing to a `Method`: a class or an object.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, overload

from pathex.errors import InvalidInput, UnknownName, import_callable, refusing
from pathex.scores.batches import Batch, Keys, check_arguments, fingerprint, joined, read_batches
from pathex.scores.cts import Cts
from pathex.scores.dpai import DPaI
from pathex.scores.edge_popup import EdgePopup
from pathex.scores.fisher_diagonal import FisherDiagonal
from pathex.scores.fisher_taylor import FisherTaylor
from pathex.scores.force import Force
from pathex.scores.grasp import Grasp
from pathex.scores.hutchinson_taylor import HutchinsonTaylor
from pathex.scores.iterative_grasp import IterativeGrasp
from pathex.scores.iterative_snip import IterativeSnip
from pathex.scores.magnitude import Magnitude
from pathex.scores.method import LossMethod, Method, ModelMethod, PathMethod
from pathex.scores.node_path import NodePath
from pathex.scores.ntk_diagonal import NtkDiagonal
from pathex.scores.ntk_sap import NtkSap
from pathex.scores.phew import Phew
from pathex.scores.precision import extremes
from pathex.scores.problem import Problem, generator, mib, parse_memory
from pathex.scores.prospr import ProsPr
from pathex.scores.px import PX
from pathex.scores.px_cvpr24 import PXCvpr24, PXCvpr24V2
from pathex.scores.px_literal import PXLiteral
from pathex.scores.random import Random
from pathex.scores.snip import Snip
from pathex.scores.synflow import SynFlow
from pathex.scores.synflow_l2 import SynFlowL2
from pathex.scores.widetopo import WideTopo

__all__ = [
    "PX",
    "Batch",
    "Cts",
    "DPaI",
    "EdgePopup",
    "FisherDiagonal",
    "FisherTaylor",
    "Force",
    "Grasp",
    "HutchinsonTaylor",
    "IterativeGrasp",
    "IterativeSnip",
    "Keys",
    "LossMethod",
    "Magnitude",
    "Method",
    "ModelMethod",
    "NodePath",
    "NtkDiagonal",
    "NtkSap",
    "PXCvpr24",
    "PXCvpr24V2",
    "PXLiteral",
    "PathMethod",
    "Phew",
    "Problem",
    "ProsPr",
    "Random",
    "Snip",
    "SynFlow",
    "SynFlowL2",
    "WideTopo",
    "check_arguments",
    "extremes",
    "find",
    "fingerprint",
    "generator",
    "joined",
    "methods",
    "mib",
    "names",
    "parse_memory",
    "read_batches",
    "resolve",
]

_BUILT_IN: Mapping[str, type[Method]] = {
    method.name: method
    for method in (
        PX,
        PXLiteral,
        PXCvpr24,
        PXCvpr24V2,
        SynFlow,
        SynFlowL2,
        Snip,
        IterativeSnip,
        Force,
        Grasp,
        IterativeGrasp,
        NtkSap,
        NtkDiagonal,
        FisherDiagonal,
        FisherTaylor,
        HutchinsonTaylor,
        ProsPr,
        Phew,
        NodePath,
        DPaI,
        EdgePopup,
        Cts,
        WideTopo,
        Magnitude,
        Random,
    )
}

_OWN_ARGUMENTS = {
    "data", "keys", "sparsity", "rounds", "allocation", "ignore", "prunable", "min_per_layer", "min_per_output", "mask",
    "budget", "count", "schedule", "structure", "rounding", "seed", "memory", "strict", "progress", "on_round",
    "on_step", "checkpoint", "group", "narrow",
}  # fmt: skip


def names() -> list[str]:
    """Names of all methods, built-in ones first, then those of other packages."""
    return [*_BUILT_IN, *sorted(point.name for point in entry_points(group="pathex.scorers"))]


def find(name: str) -> Method:
    """The method of a name, with its defaults; `InvalidInput` if there is none, or the entry point is no `Method`."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    for point in entry_points(group="pathex.scorers"):
        if point.name == name:
            with refusing(f"entry point {point.value!r} of method {name!r} cannot be loaded ({{}})"):
                method = _object(point.load())
            if not isinstance(method, Method):
                raise InvalidInput(f"entry point {point.value!r} of method {name!r} is not a pathex.scores.Method")
            return method
    raise UnknownName("method", name, names())


def resolve(method: str | Callable[..., Any], options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """A method as it is given, with options.

    Args:
        method: A name, a `Method`, a callable, or ``package.module:name`` of one of these.
        options: Beside a name or a callable; an object has its own. None: they are not known yet.

    Returns:
        A `Method` with these options, or a callable ``(model, batches, mask, **options) -> dict``.

    Raises:
        InvalidInput: If it is nothing of all this, or does not take the options.
    """
    found: Any = method
    if isinstance(method, str):
        found = import_callable("method", method) if ":" in method else find(method)
    elif not callable(method):
        raise InvalidInput(f"method must be a name or a callable (model, batches, mask) -> dict, not {method!r}")
    found = _object(found)
    if not isinstance(found, Method):
        if options is not None:
            _check_call(found, options)
        return found
    if options and not isinstance(method, str):
        raise InvalidInput(
            f"options {', '.join(sorted(options))} beside a method object; give them to the object: "
            f"{type(found).__name__}({next(iter(options))}=...)"
        )
    return found.having(options or {})


def _object(found: Any) -> Any:
    """A method of its class; anything else as it is."""
    return found() if inspect.isclass(found) and issubclass(found, Method) else found


def _check_call(scorer: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a plain callable does not take, or that never reach it."""
    name = getattr(scorer, "__name__", "the method")
    if taken := sorted(options.keys() & _OWN_ARGUMENTS):
        raise InvalidInput(f"options {', '.join(taken)} of {name} have names of pathex.prune's own; give them others")
    try:
        signature = inspect.signature(scorer)
    except (TypeError, ValueError):  # some built-in callables do not tell
        return
    try:
        signature.bind(None, None, None, **options)
    except TypeError as error:
        raise InvalidInput(
            f"{name}{signature} cannot be called with (model, batches, mask) and options "
            f"{', '.join(sorted(options)) or 'none'}: {error}"
        ) from error


@overload
def methods() -> list[str]: ...
@overload
def methods(name: str) -> Method: ...
def methods(name: str | None = None) -> list[str] | Method:
    """Names of all methods, or one of them.

    Args:
        name: A method, by name or as ``package.module:name``; None lists the names.

    Returns:
        The names, or the method (name, title, citation, equation, needs, rounds, options).

    Raises:
        InvalidInput: If it is a plain callable, of which nothing is known.

    Examples:
        >>> methods("magnitude").equation
        'S_j = |theta_j|'
    """
    if name is None:
        return names()
    found = resolve(name)
    if not isinstance(found, Method):
        raise InvalidInput(f"method {name!r} is a plain callable, of which nothing is known")
    return found
