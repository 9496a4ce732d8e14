"""What a graph tells about a network: which parameters multiply, which weights act, what is beyond piecewise linear.

Many networks begin with a multiplicative parameter that is zero or tiny (last gamma of a residual block, LayerScale) or
with a head of zeros; every score behind it would vanish. `read_scales` reads those as one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathex.graph import STRUCTURE, Graph, Node, compute_dtype, words
from pathex.paths.origins import PLACED

TINY_SCALE = 0.01
"""Absolute value below which a scale that starts flat is read as one."""

_PRODUCTS = words("mul multiply div divide true_divide matmul bmm mm mv einsum addmm addmv baddbmm addcmul")
_NOT_BEYOND = words("abs absolute hardshrink softshrink")
# Where operators take factors. A divisor that starts small makes nothing vanish.
_FACTORS: Mapping[str, Sequence[Any]] = {
    **dict.fromkeys(("mul", "multiply"), (0, 1)),
    **dict.fromkeys(("div", "divide", "true_divide"), (0,)),
    "addcmul": (1, 2),
    "lerp": (2,),
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm"), ("weight",)),
    "_weight_norm": (1,),
}
# Where operators take weights.
_WEIGHTS: Mapping[str, Sequence[int]] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "einsum"), (0, 1, 2)),
    **dict.fromkeys(("addmm", "baddbmm"), (1, 2)),
}


@dataclass(frozen=True)
class Survey:
    """What a graph shows: names of parameters, and of operators beyond piecewise linear.

    Factors multiply what comes from the input: weights of normalisations, layer scales, gains of standardised weights.
    Weights are those of linear, convolution and matrix products, in the order of their first call; heads those whose
    result goes to the output without meeting another one.
    """

    factors: frozenset[str]
    weights: tuple[str, ...]
    heads: tuple[str, ...]
    beyond: tuple[str, ...] = ()


def survey(graph: Graph) -> Survey:
    """Note the multiplicative parameters of a network, its weights and what is not piecewise linear, once."""
    if "survey" not in graph.memo:
        graph.memo["survey"] = _surveyed(graph)
    return graph.memo["survey"]


def _surveyed(graph: Graph) -> Survey:
    factors: set[str] = set()
    weights: dict[str, None] = {}
    beyond: dict[str, None] = {}
    met: dict[Node, frozenset[str]] = {}
    for node in graph.path:
        if node not in graph.carried:
            continue
        carried = [source for source in node.inputs if source in graph.carried]
        if _is_beyond(graph, node, carried):
            beyond.setdefault(node.op)
        multiplying = _arguments(node, _FACTORS.get(node.op, ()))
        if len(multiplying) == 1 or any(argument in graph.carried for argument in multiplying):
            factors.update(*(_product(argument) for argument in multiplying if argument not in graph.carried))
        own: list[str] = []
        for argument in _arguments(node, (1,) if graph.role(node) == "weighted" else _WEIGHTS.get(node.op, ())):
            if argument not in graph.dependent:
                name = _weight(argument)
                factors |= _product(argument) - {name}
                own += [] if name is None else [name]
        weights.update(dict.fromkeys(own))
        before = frozenset[str]().union(*(met.get(source, ()) for source in carried))
        met[node] = frozenset(own) or before
    last = met.get(graph.output, frozenset())
    names = tuple(weights)
    heads = tuple(name for name in names if name in last) or names[-1:]
    return Survey(frozenset(factors), names, heads, tuple(beyond))


def _is_beyond(graph: Graph, node: Node, carried: Sequence[Node]) -> bool:
    role = graph.role(node)
    if role in ("smooth", "function") or node.op in ("scaled_dot_product_attention", "glu", "var", "std", "var_mean"):
        return node.op not in _NOT_BEYOND
    if role == "normalisation":
        return node.op != "batch_norm"
    return len(carried) > 1 and (node.op in _PRODUCTS or role == "weighted")


def _arguments(node: Node, places: Sequence[Any]) -> list[Node]:
    values = node.args[1] if node.op == "einsum" else node.args
    found = [node[p] if isinstance(p, str) else values[p] for p in places if isinstance(p, str) or p < len(values)]
    return [value for value in found if isinstance(value, Node)]


def _product(node: Node) -> frozenset[str]:
    """Names of the parameters that a constant is a product of."""
    if node.op == "parameter":
        return frozenset({node.target})
    moved = node.op in STRUCTURE or node.op == "tanh"
    operands = _arguments(node, (0,) if moved else _FACTORS.get(node.op, ()))
    return frozenset[str]().union(*map(_product, operands))


def _weight(node: Node) -> str | None:
    """Name of the parameter whose entries, changed in place or moved, are those of a constant."""
    if node.op == "parameter":
        return str(node.target)
    sources = node.inputs[:1] if node.op in STRUCTURE else ()
    if node.op in PLACED:
        sources = tuple(source for source in node.inputs if source.shape == node.shape)
    return next(filter(None, map(_weight, sources)), None)


def read_scales(model: nn.Module, survey: Survey, prunable: Collection[str]) -> dict[str, Tensor]:
    """The parameters that are read as one because they start at zero or almost there.

    These are the multiplicative parameters that are not prunable and whose entries are all equal and below 0.01 in
    absolute value, and the heads that are prunable and all zero (their entries are then of unit square).

    Returns:
        Name to a tensor of ones in the parameter's shape; empty if the network has no such parameter.
    """
    parameters = dict(model.named_parameters())
    factors = sorted(survey.factors & parameters.keys() - set(prunable))
    names = [name for name in factors if _flat_and_tiny(parameters[name])]
    names += [name for name in survey.heads if name in prunable and not parameters[name].any()]
    dtype = compute_dtype(model)
    return {name: torch.ones(parameters[name].shape, dtype=dtype, device=parameters[name].device) for name in names}


def _flat_and_tiny(parameter: Tensor) -> bool:
    first = parameter.detach().flatten()[:1]
    return bool((parameter == first).all()) and bool(first.abs() < TINY_SCALE)
