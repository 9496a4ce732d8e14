"""Layers: what they read is tied to their weights, and constant where all that is kept reads constants."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathex.compaction.channels import Channels, Given, Reader, rule
from pathex.compaction.labels import Value, first_of, settled, varies
from pathex.graph import Node


@rule("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
def _layer(of: Channels, node: Node, x: Value) -> Value | None:
    weight = node.args[1]
    if not isinstance(weight, Node) or weight.op != "parameter":
        return None
    name, linear, transposed = weight.target, node.op == "linear", "transpose" in node.op
    axis = x.labels.dim() - 1 if linear else x.labels.dim() - of.tensors[name].dim() + 1
    groups = 1 if linear else node["groups"]
    labels, unknown, number = _along(of, node, x, axis)
    places = [of.labels.along(name, dim, size) for dim, size in enumerate(of.tensors[name].shape[:2])]
    rows, columns = (places[1], places[0]) if transposed else places
    if groups == 1:
        of.labels.tie(columns, labels, f"read by {name}")
    else:  # a group goes as a whole
        first = labels.view(groups, -1)[:, :1]
        if transposed:
            of.labels.tie(columns, labels, f"read by {name}")
            rows = columns.view(groups, -1)[:, :1].expand(groups, places[1].numel()).flatten()
        of.labels.tie(labels.view(groups, -1), first, f"in groups of {name}")
        of.labels.tie(rows.view(groups, -1), first, f"in groups of {name}")
    bordered = not linear and (transposed or any(entries(node["padding"])))
    bias = None if bordered else of.bias_for(node, name)
    reader = Reader(node, name, rows, labels, unknown, number, groups, transposed, bias)
    of.readers.append(reader)
    return _fed(of, node, reader, axis)


def _along(of: Channels, node: Node, x: Value, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, and what is known, of the channels that a layer reads; they stay where a channel has several labels."""
    others = [dim for dim in range(x.labels.dim()) if dim != axis]
    if any(varies(x.labels, dim) for dim in others):
        of.labels.pin(x.labels, f"read crosswise by {node.args[1]}")
        zero = torch.zeros(x.labels.shape[axis], dtype=torch.int64)
        return zero, zero == 0, zero.double()
    return tuple(first_of(each, *others).flatten() for each in (x.labels, x.unknown, x.number))  # type: ignore[return-value]


def _fed(of: Channels, node: Node, reader: Reader, axis: int) -> Value:
    """The result of a layer: constant where all that is kept reads constants."""
    weight, kept = of.tensors[reader.weight].double(), of.kept(reader.weight)
    reading = reader.by_unit(kept).any(3)
    open_ = reader.unknown | ((reader.number != 0) & (reader.bias is None))
    unknown = (reading & open_.view(reader.groups, 1, -1)).any(2).flatten()
    number = (reader.by_unit(weight * kept).sum(3) * reader.number.view(reader.groups, 1, -1)).sum(2).flatten()
    bias = of(node["bias"])
    if isinstance(bias, Given):
        number = number + bias.tensor
        of.matching(bias, reader.rows, f"a bias of {reader.weight}")
    elif bias is not None:
        unknown = torch.ones_like(unknown)
    form = [1] * len(node.shape)  # type: ignore[arg-type]
    form[axis] = -1
    return settled(*(each.view(form).expand(node.shape or ()) for each in (reader.rows, unknown, number)))


def entries(value: Any) -> Sequence[Any]:
    """Entries of an argument; of a padding by name none if it is ``valid``."""
    return [value != "valid"] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
