"""Moves, sums and what puts tensors together: what no path reaches (a bias, a class token) counts zero."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.graph import STRUCTURE, Node
from pathex.paths.linear import Linear, rule

_BY_VALUES = "it takes entries by values that this reading does not have"
_TAKES = {"gather": "index", "take_along_dim": "indices", "index_select": "index"}


@rule(*STRUCTURE)
def _move(reading: Linear, node: Node) -> Any:
    if node.op in _TAKES and reading.opened and _decided(reading, node[_TAKES[node.op]]):
        # Any may come to any place.
        x = reading(node.args[0])
        return x.sum(node["dim"], keepdim=True).expand(_shape(node, x))
    if node.op == "index" and reading.opened and any(_decided(reading, i) for i in node["indices"] if i is not None):
        raise reading.unsupported(node, _BY_VALUES)
    return reading.plain(node)


def _decided(reading: Linear, argument: Any) -> bool:
    return argument in reading.graph.dependent and argument not in reading.graph.carried


def _shape(node: Node, x: Tensor) -> list[int]:
    """The shape of what is taken, for as many images as arrive: the example's where it differs from its source."""
    traced = zip(node.shape or (), node.args[0].shape, x.shape, strict=True)
    return [here if taken == source else taken for taken, source, here in traced]


@rule("add", "sub", "subtract", "rsub")
def _sum(reading: Linear, node: Node) -> Tensor:
    alpha = node.arguments.get("alpha", 1)
    signs = {"add": (1, alpha), "rsub": (-alpha, 1)}.get(node.op, (1, -alpha))
    terms = [
        (reading(argument), reading.coefficient(sign))
        for argument, sign in zip(node.args[:2], signs, strict=True)
        if reading.carries(argument)
    ]
    (first, weight), *others = terms
    result: Tensor = first if weight == 1 else first * weight
    if others:
        return torch.add(result, others[0][0], alpha=others[0][1])
    other = next((a for a in node.args[:2] if not reading.carries(a)), None)
    shape = other.shape if isinstance(other, Node) and other.shape is not None else ()
    return result if _fits(shape, result.shape) else result + reading.zeros(other)


def _fits(shape: Any, into: torch.Size) -> bool:
    """Whether a shape is broadcast to another one, whatever the number of images."""
    if len(shape) > len(into):
        return False
    pairs = zip(shape, into[len(into) - len(shape) :], strict=True)
    return all(a in (1, b) or place == 0 for place, (a, b) in enumerate(pairs))


@rule("neg", "negative")
def _negative(reading: Linear, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    return -x if reading.coefficients == "plain" else x


def _part(reading: Linear, argument: Any) -> Tensor:
    """What the paths bring to a part of a tensor."""
    return reading(argument) if reading.carries(argument) else reading.beside(argument)


@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack")
def _join(reading: Linear, node: Node) -> Tensor:
    parts = [_part(reading, part) for part in node.args[0]]
    return node.target(parts, *node.args[1:], **node.kwargs)


rule(*(f"{kind}_pad{d}d" for kind in ("reflection", "replication") for d in (1, 2, 3)))(Linear.plain)


@rule("pad", "constant_pad_nd")
def _pad(reading: Linear, node: Node) -> Tensor:
    return F.pad(reading(node.args[0]), reading(node["pad"]), node.arguments.get("mode", "constant"))


@rule("write")
def _write(reading: Linear, node: Node) -> Tensor:
    whole, part, views = node.args
    return node.target(_part(reading, whole), _part(reading, part), reading(views))


@rule("copy", "fill")
def _copy(reading: Linear, node: Node) -> Tensor:
    """The first operand gives the form alone."""
    form = reading.zeros(node.args[0])
    return form + reading(node.args[1]) if reading.carries(node.args[1]) else form


@rule("index_put")
def _index_put(reading: Linear, node: Node) -> Tensor:
    whole, index, values, *how = node.args
    if reading.opened and any(_decided(reading, i) for i in index if i is not None):
        if reading.carries(values):
            raise reading.unsupported(node, _BY_VALUES)
        return _part(reading, whole)  # any may stay
    return node.target(_part(reading, whole), reading(index), _part(reading, values), *how)


@rule("where")
def _where(reading: Linear, node: Node) -> Tensor:
    parts: list[Any] = [reading(a) if reading.carries(a) else 0.0 for a in node.args[1:3]]
    if reading.opened and node.args[0] in reading.graph.dependent:  # either may be chosen
        return _broadcast(reading, parts[0] + parts[1], node)
    condition: Tensor = reading(node.args[0])
    filled = [torch.as_tensor(part, dtype=reading.dtype, device=condition.device) for part in parts]
    return _broadcast(reading, torch.where(condition, filled[0], filled[1]), node)


def _broadcast(reading: Linear, value: Tensor, node: Node) -> Tensor:
    size = list(node.shape or ())
    if len(size) == value.dim() and all(a == b for a, b in zip(size[1:], value.shape[1:], strict=True)):
        return value
    if node.batched and size:
        size[0] = -1 if len(size) == value.dim() else next(len(reading(a)) for a in node.inputs if reading.carries(a))
    return value.expand(size)


@rule("masked_fill")
def _masked_fill(reading: Linear, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    reading.refuse_dynamic(node, "value")
    if reading.opened and node.args[1] in reading.graph.dependent:  # any may stay
        return _broadcast(reading, x, node)
    return x.masked_fill(reading(node.args[1]), 0.0)
