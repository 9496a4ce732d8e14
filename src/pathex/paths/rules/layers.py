"""Convolutions and linear layers. One whose result BatchNorm alone uses takes up the coefficient of that BatchNorm."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pathex.graph import WEIGHTED, Node
from pathex.paths import recording
from pathex.paths.linear import Linear, rule
from pathex.paths.recording import Factors, Record
from pathex.paths.rules.products import multilinear
from pathex.paths.weights import call_of

# Those whose weight has one entry for each channel of the result first.
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


def norm_of(reading: Linear, node: Node) -> Node | None:
    """The BatchNorm that alone uses the result of a convolution, whose coefficient multiplies its weight."""
    users = reading.graph.users[node]
    if node.op not in _CONVOLUTIONS or len(users) != 1 or users[0].op != "batch_norm":
        return None
    if users[0] not in reading.graph.carried or reading.origins.origin(users[0]["weight"]) is not None:
        return None
    return users[0] if not reading.carries(node["weight"]) else None


def _function(node: Node, extra: Sequence[Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """The layer as a function of input and weight, without bias."""
    target, kwargs = node.target, dict(node.kwargs)
    kwargs.pop("bias", None)
    return lambda x, weight: target(x, weight, None, *extra, **kwargs)


@recording.rule(*WEIGHTED)
def _layer(reading: Record, node: Node) -> Tensor:
    reading.refuse_dynamic(node, "bias")
    if reading.carries(node.args[1]) and reading.carries(node.args[0]):
        reading.keep(node, Factors((reading(node.args[0]), reading(node.args[1]))))
    return reading.plain(node)


@rule(*WEIGHTED)
def _layer_linear(reading: Linear, node: Node) -> Tensor:
    reading.refuse_dynamic(node, "bias")
    function = _function(node, [reading(argument) for argument in node.args[3:]])
    if reading.carries(node.args[1]):
        return multilinear(reading, node, node.args[:2], lambda factors: function(*factors))
    norm = norm_of(reading, node)
    scale = None
    if norm is not None:
        parts = [part for part in (reading.scale(norm), reading.affine(norm["weight"])) if part is not None]
        scale = None if not parts else parts[0] if len(parts) == 1 else parts[0] * parts[1]
    return reading.weighed(node, reading(node.args[0]), node.args[1], call_of(node, function), scale)


@rule("batch_norm")
def _batch_norm_linear(reading: Linear, node: Node) -> Tensor:
    reading.refuse_dynamic(node, "weight", "bias")
    source = node["input"]
    x: Tensor = reading(source)
    if source.op in _CONVOLUTIONS and norm_of(reading, source) is node:
        return x
    sides = [1] * (x.dim() - 2)
    scale = reading.scale(node)
    if scale is not None:
        x = x * scale.view(-1, *sides)
    return reading.by_weight(node, x, node["weight"], (-1, *sides))
