"""Pools, sums over dimensions, attention and matrix products."""

from typing import Any

import torch
from torch import Tensor

from pathex.compaction.channels import Channels, rule
from pathex.compaction.labels import PARTS, Value, first_of, settled, varies
from pathex.compaction.rules.layers import entries
from pathex.graph import Node

_POOLS = "avg_pool max_pool adaptive_avg_pool adaptive_max_pool upsample_nearest upsample_linear upsample_bilinear "
_POOLS += "upsample_bicubic upsample_trilinear _upsample_nearest_exact _upsample_bilinear2d_aa _upsample_bicubic2d_aa"


@rule(" ".join(f"{op}{n}d" if "2d" not in op else op for op in _POOLS.split() for n in (1, 2, 3)))
def _pool(of: Channels, node: Node, x: Value) -> Any:
    dims = [dim for dim in range(x.labels.dim()) if dim > 1 or (dim == 1 and x.labels.dim() == 2)]
    if any(varies(x.labels, dim) for dim in dims):
        return None
    shape, parts = node.shape, [first_of(getattr(x, part), *dims) for part in PARTS]
    if shape is None:  # of values and their places
        shape = node.target(x.number.to("meta"), *of.numbers(node.args[1:]), **of.keywords(node))[0].shape
    labels, unknown, number = (each.expand(shape) for each in parts)
    scaled = ("ceil_mode", "divisor_override")
    if node.op.startswith("avg_pool") and any((*entries(node["padding"]), *map(node.arguments.get, scaled))):
        unknown = unknown | (number != 0)
    result = settled(labels, unknown, number)
    return result if node.shape is not None else (result, settled(labels, torch.ones((), dtype=torch.bool), number))


@rule("mean sum amax amin softmax _softmax log_softmax var std linalg_vector_norm")
def _over(of: Channels, node: Node, x: Value) -> Value | None:
    over = node.arguments.get("dim")
    if over is None or over == []:
        return None
    dims = [dim % x.labels.dim() for dim in (over if isinstance(over, (list, tuple)) else [over])]
    crossed = [dim for dim in dims if varies(x.labels, dim)]
    for dim in crossed:
        of.labels.tie(x.labels, x.labels.narrow(dim, 0, 1), f"{node.op} in {node.module[0]}")
    if "softmax" in node.op:
        return settled(x.labels, torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.float64))
    labels, number = (first_of(each, *dims) for each in (x.labels, x.number))
    unknown = first_of(x.unknown, *dims)
    if crossed or node.op not in ("mean", "amax", "amin"):
        unknown = (x.unknown | (x.number != 0)).any(dims, True)
    if not node.arguments.get("keepdim", False):
        labels, unknown, number = (_squeezed(each, dims) for each in (labels, unknown, number))
    return settled(labels, unknown, number)


def _squeezed(tensor: Tensor, dims: list[int]) -> Tensor:
    for dim in sorted(dims, reverse=True):
        tensor = tensor.select(dim, 0)
    return tensor


@rule("scaled_dot_product_attention")
def _attention(of: Channels, node: Node, _: Value) -> Value | None:
    parts, reason = [of(each) for each in node.args[:3]], f"attention in {node.module[0]}"
    if not all(isinstance(each, Value) and each.labels.dim() == 4 for each in parts) or node["attn_mask"] is not None:
        return None
    query, key, value = (each.labels for each in parts)
    for each in (query, key, value):
        if any(varies(each, dim) for dim in (0, 2)):
            return None
        of.labels.tie(each, first_of(each, 3), reason)
    if query.shape[1] != value.shape[1]:
        return None
    (reads, asked), (told, *_rest), (changes, level) = (
        [first_of(known, 0, 2)[0, :, 0] for known in (part.unknown, part.number)] for part in parts
    )
    of.attention[node] = (reads | (asked != 0)) & told, changes, level
    for each in (query, key):
        of.labels.tie(first_of(each, 0, 2, 3), first_of(value, 0, 2, 3), reason)
    return settled(*(first_of(getattr(parts[2], part), 0, 2).expand(node.shape or ()) for part in PARTS))


@rule("matmul bmm")
def _product(of: Channels, node: Node, left: Value) -> Value | None:
    """Channels that are summed over go together, and with them the heads that they belong to."""
    right = of(node.args[1])
    if not isinstance(right, Value) or left.labels.dim() < 3 or left.labels.shape[:-2] != right.labels.shape[:-2]:
        return None
    a, b, reason = left.labels, right.labels, f"{node.op} in {node.module[0]}"
    if varies(a, -1) or varies(b, -2):
        of.labels.tie(a, first_of(a, -1), reason)
        of.labels.tie(b, first_of(b, -2), reason)
    a, b = first_of(a, -1), first_of(b, -2)
    if varies(a, -2) and varies(b, -1):
        return None
    of.labels.tie(first_of(a, -2), first_of(b, -1), reason)
    if varies(left.labels, -1) or varies(right.labels, -2):
        of.labels.tie(a, b, reason)
    labels = (a if varies(a, -2) else b).expand(node.shape or ())
    zeros = [~(each.unknown | (each.number != 0)).any(dim, True) for each, dim in ((left, -1), (right, -2))]
    return settled(labels, ~(zeros[0] | zeros[1]), torch.zeros((), dtype=torch.float64))
