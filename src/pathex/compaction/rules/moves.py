"""What moves entries: labels move with them."""

from typing import Any

import torch
from torch import Tensor, nn

from pathex.compaction.channels import Channels, Given, grouped_dims, rule
from pathex.compaction.labels import PARTS, Value, first_of, settled, varies
from pathex.graph import Node

_HEADS = ("num_heads", "heads", "n_heads", "nhead", "num_attention_heads")


@rule("contiguous clone alias detach detach_copy positive to _to_copy type_as lift_fresh_copy dropout feature_dropout")
def _same(of: Channels, node: Node, x: Value) -> Value:
    return x


def _moved(x: Value, move: Any) -> Any:
    parts = [move(getattr(x, part)) for part in PARTS]
    if isinstance(parts[0], (tuple, list)):
        return tuple(settled(*each) for each in zip(*parts, strict=True))
    return settled(*parts)


@rule("view view_as reshape reshape_as flatten unflatten squeeze unsqueeze _unsafe_view ravel")
def _reshape(of: Channels, node: Node, x: Value) -> Any:
    result = _moved(x, lambda each: each.reshape(node.shape))
    for old, new in grouped_dims(x.labels.shape, node.shape or ()):
        if not any(varies(x.labels, dim) for dim in old) or len(new) == 1:
            if len(old) > 1 and len(new) == 1:
                of.risky.append((node, x.ids))
            continue
        of.risky.append((node, x.ids))
        if len(old) > 1:
            of.labels.pin(x.labels, f"{node.op} in {node.module[0]}")
        else:
            _split_in(of, node, result.labels, new)
    return result


def _split_in(of: Channels, node: Node, labels: Tensor, dims: list[int]) -> None:
    """A dimension of channels becomes several: what is removed must be the same for all but one of them."""
    module = of.modules.get(node.module[0], nn.Identity())
    sizes = {dim: [name for name in _HEADS if getattr(module, name, None) == labels.shape[dim]] for dim in dims}
    heads = next((dim for dim in (*reversed(dims[:-1]), dims[-1]) if sizes[dim]), None)  # query, key, value come first
    shrinks = dims[-1] if heads is None else heads
    rest = [dim for dim in range(labels.dim()) if dim != shrinks]
    for dim in dims:
        if dim != shrinks:
            of.labels.tie(labels, labels.narrow(dim, 0, 1), f"{node.op} in {node.module[0]}")
    if heads is None and not any(hasattr(module, name) for name in _HEADS):
        of.unnamed.append((node.module[0], labels))
    elif heads is not None:
        along = first_of(labels, *rest).flatten()
        of.heads.append((node.module[0], sizes[heads][0], along, labels.shape[dims[-1]] if dims[-1] != heads else 1))


@rule(
    "permute transpose swapaxes swapdims movedim moveaxis t numpy_T mT adjoint expand expand_as broadcast_to repeat "
    "tile"
)
def _move(of: Channels, node: Node, x: Value) -> Any:
    if node.op in ("expand", "expand_as", "broadcast_to"):
        return _moved(x, lambda each: each.expand(node.shape or ()))
    return _moved(x, lambda each: node.target(each, *of.numbers(node.args[1:]), **of.keywords(node)))


@rule("getitem", whatever=True)
def _part(of: Channels, node: Node, whole: Any) -> Any:
    return whole[node.args[1]] if isinstance(whole, tuple) else None


@rule("split chunk split_with_sizes tensor_split unbind select slice narrow")
def _cut(of: Channels, node: Node, x: Value) -> Any:
    dim = node["dim"] % x.labels.dim()
    result = _moved(x, lambda each: node.target(each, *of.numbers(node.args[1:]), **of.keywords(node)))
    if not varies(x.labels, dim):
        return result
    reason = f"{node.op} in {node.module[0]}"
    of.risky.append((node, x.ids))
    if node.op in ("unbind", "select"):
        of.labels.tie(x.labels, x.labels.narrow(dim, 0, 1), reason)
    elif isinstance(result, tuple) and len({part.labels.shape for part in result}) == 1:
        for part in result[1:]:
            of.labels.tie(part.labels, result[0].labels, reason)
    elif isinstance(result, tuple) or result.labels.shape != x.labels.shape:
        of.labels.pin(x.labels, reason)
    return result


@rule("cat concat concatenate stack", whatever=True)
def _cat(of: Channels, node: Node, operands: list[Any]) -> Value | None:
    values = [each for each in operands if isinstance(each, Value)]
    if len(values) < len(operands) and (node.op == "stack" or not all(isinstance(e, Value | Given) for e in operands)):
        return None
    dim, reason = node["dim"] % len(node.shape or ()), f"{node.op} in {node.module[0]}"
    if node.op == "stack":
        operands = values = [_moved(each, lambda part: part.unsqueeze(dim)) for each in values]
    first = next((first_of(each.labels, dim) for each in values if not varies(each.labels, dim)), None)
    if first is None and len(values) < len(operands):
        return None
    if first is not None:
        operands = [_beside(of, each, first, dim, reason) for each in operands]
    return settled(*(torch.cat([getattr(each, part) for each in operands], dim) for part in PARTS))


def _beside(of: Channels, operand: Any, first: Tensor, dim: int, reason: str) -> Value:
    """An operand that is joined along a dimension, where the labels of the first operand do not differ."""
    if isinstance(operand, Given):
        labels = first.expand(operand.tensor.shape)
        of.matching(operand, labels, reason)
        return settled(labels, torch.zeros((), dtype=torch.bool), operand.tensor)
    if any(varies(first, other) for other in range(first.dim())):
        of.labels.tie(first_of(operand.labels, dim), first, reason)
        if varies(operand.labels, dim):
            of.labels.pin(operand.labels, reason)
    return operand


@rule("pad constant_pad_nd")
def _pad(of: Channels, node: Node, x: Value) -> Value | None:
    widths = node["pad"]
    dims = [x.labels.dim() - 1 - n // 2 for n, width in enumerate(widths) if width]
    if any(varies(x.labels, dim) for dim in dims):
        return None
    labels, unknown = (first_of(each, *dims).expand(node.shape or ()) for each in (x.labels, x.unknown))
    return settled(labels, unknown, node.target(x.number, *of.numbers(node.args[1:]), **of.keywords(node)))


@rule("pixel_shuffle pixel_unshuffle")
def _pixels(of: Channels, node: Node, x: Value) -> Any:
    if any(varies(x.labels, dim) for dim in (-1, -2)):
        return None
    labels, unknown, number = (node.target(each, node.args[1]) for each in (x.labels, x.unknown, x.number))
    first = first_of(labels, -1, -2).expand(labels.shape)
    of.labels.tie(labels, first, node.op)
    return settled(first, unknown, number)
