"""Steps that torch carries out."""

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pathex.graph import Node, words
from pathex.sparse.layers import Features, Layer
from pathex.sparse.memory import Memory

Values = dict[Node, Any]
Step = Callable[[Values], None]
_PRODUCTS = words("scaled_dot_product_attention matmul bmm")
_RESHAPING = words("view _unsafe_view reshape")


def _fetch(values: Values, argument: Any) -> Any:
    if isinstance(argument, Node):
        return values[argument]
    return [_fetch(values, entry) for entry in argument] if isinstance(argument, list) else argument


def call(node: Node, args: list[Any], kwargs: dict[str, Any], values: Values) -> None:
    """The operator of a node, as it stands."""
    found = [_fetch(values, argument) for argument in args]
    if node.op in _PRODUCTS:  # slow where features are far from each other
        found = [value.contiguous() if isinstance(value, Tensor) else value for value in found]
    if node.op in _RESHAPING and isinstance(found[1], list):
        values[node] = found[0].reshape(found[1])
    else:
        values[node] = node.target(*found, **{name: _fetch(values, value) for name, value in kwargs.items()})


def attend(node: Node, features: Features, args: list[Any], values: Values) -> None:
    """Attention by the features that matter."""
    query, key, value = (_fetch(values, argument) for argument in args[:3])
    scale = node["scale"] or query.shape[-1] ** -0.5
    rows = (features.products, features.products, features.values)
    query, key, value = (
        each.transpose(2, 3).flatten(1, 2).index_select(1, index).unflatten(1, (each.shape[1], -1)).transpose(2, 3)
        for each, index in zip((query, key, value), rows, strict=True)
    )
    parts = (query.contiguous(), key.contiguous(), value.contiguous())
    out = F.scaled_dot_product_attention(*parts, is_causal=node["is_causal"], scale=scale)
    found = features.level.flatten()[None, :, None].repeat(len(out), 1, out.shape[2])
    found.index_copy_(1, features.values, out.transpose(2, 3).flatten(1, 2))
    values[node] = found.unflatten(1, features.level.shape).transpose(2, 3)


def activate(node: Node, source: Tensor, target: Tensor, values: Values) -> None:
    """An elementwise operator from one tensor into another one."""
    packet = node.target.overloadpacket
    if "out" in packet.overloads():
        packet.out(source, *node.args[1:], **node.kwargs, out=target)
    else:
        target.copy_(node.target(source, *node.args[1:], **node.kwargs))


def evaluated(step: Step, static: Values) -> Any:
    """What a step gives from values that are known beforehand."""
    values = dict(static)
    step(values)
    return next(reversed(values.values()))


def lives_in(value: Any, memories: list[Memory]) -> bool:
    """Whether a value is a number or a view of some memory."""
    if isinstance(value, (tuple, list)):
        return all(lives_in(entry, memories) for entry in value)
    if isinstance(value, Tensor):
        return any(value.untyped_storage().data_ptr() == m.tensor.untyped_storage().data_ptr() for m in memories)
    return True


def bring(view: Tensor, node: Node, form: tuple[int, int] | None, values: Values) -> None:
    """Copy a value to where kernels read it."""
    value = values[node]
    view.copy_(value if form is None else value.reshape(form))


def forget(nodes: list[Node], values: Values) -> None:
    """Values that nobody needs any more."""
    for node in nodes:
        values.pop(node, None)


def viewed(value: Any, form: tuple[int, ...]) -> Tensor | None:
    """A tensor in another form, if it is one and has it as a view."""
    try:
        return value.view(form) if isinstance(value, Tensor) else None
    except RuntimeError:
        return None


def dense(node: Node, layer: Layer, channels_last: bool, values: Values) -> None:
    """A layer by torch, with what follows it."""
    x = values[layer.source]
    weight = layer.channels_last if channels_last and not layer.is_linear else layer.weight
    if layer.is_linear:
        y = F.linear(x, weight[:, :, 0, 0], layer.bias)
    else:
        top, left, bottom, right = layer.window.pads
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        window = layer.window
        y = F.conv2d(x, weight, layer.bias, window.stride, (top, left), window.dilation, layer.groups)
    if layer.residual is not None:
        y += values[layer.residual]
    if (layer.low, layer.high) == (0.0, math.inf):
        y.relu_()
    elif (layer.low, layer.high) != (-math.inf, math.inf):
        y.clamp_(layer.low, layer.high)
    values[node] = y
