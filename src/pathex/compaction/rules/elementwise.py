"""Functions of single entries: channels that meet go together."""

from typing import Any

import torch
from torch import Tensor

from pathex.compaction.channels import Channels, Given, rule
from pathex.compaction.labels import Value, settled, varies
from pathex.graph import ACTIVATIONS, FUNCTIONS, Node

_OPERATORS = (
    "relu relu6 hardtanh clamp clip clamp_min clamp_max leaky_relu threshold neg negative prelu batch_norm",
    "instance_norm add sub subtract rsub mul multiply div divide true_divide maximum minimum fmax fmin where lerp",
    "masked_fill addcmul addcdiv gt ge lt le eq ne logical_not logical_and logical_or bitwise_not bitwise_and",
    "bitwise_or sign round floor ceil",
)


@rule(" ".join((*_OPERATORS, *ACTIVATIONS, *FUNCTIONS)), whatever=True)
def _elementwise(of: Channels, node: Node, _: Any) -> Value | None:
    operands = [of(source) for source in node.inputs]
    values = [each for each in operands if isinstance(each, Value)]
    if node.shape is None or any(isinstance(each, tuple) for each in operands):
        return None
    reason = f"{node.op} in {node.module[0] or 'the network'}"
    labels, unknown = values[0].labels, values[0].unknown
    for value in values[1:]:
        labels, unknown = _tied(of, labels, value.labels, reason), unknown | value.unknown
    labels = labels.expand(node.shape or ())
    for operand in operands:
        if isinstance(operand, Given):
            of.matching(_by_channel(node, operand), labels, reason)
    if node.op in ("mul", "multiply"):
        for value in values:
            unknown = unknown & (value.unknown | (value.number != 0))
    floats = all(source.dtype is not None and source.dtype.is_floating_point for source in (node, *node.inputs))
    if node.op == "instance_norm" or not floats or unknown.all():
        return settled(labels, torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.float64))
    return settled(labels, unknown, node.target(*of.numbers(node.args), **of.keywords(node)))


def _by_channel(node: Node, given: Given) -> Given:
    """A parameter of one entry a channel as it meets a value."""
    if node.op not in ("batch_norm", "instance_norm", "prelu") or given.tensor.numel() == 1:
        return given
    form = (-1, *[1] * (len(node.shape) - 2))  # type: ignore[arg-type]
    return Given(given.tensor.view(form), [labels.view(form) for labels in given.labelings])


def _tied(of: Channels, a: Tensor, b: Tensor, reason: str) -> Tensor:
    """The labels of a result whose operands have these labels."""
    dims = max(a.dim(), b.dim())
    a, b = (each.view((1,) * (dims - each.dim()) + each.shape) for each in (a, b))
    shape = torch.broadcast_shapes(a.shape, b.shape)
    lacking = [[d for d in range(dims) if each.shape[d] < shape[d]] for each in (a, b)]
    varied = [[d for d in range(dims) if varies(each, d)] for each in (a, b)]
    over_b, over_a = set(varied[0]) & set(lacking[1]), set(varied[1]) & set(lacking[0])
    if not over_a and not over_b:
        of.labels.tie(a, b, reason)
        return torch.where(b.expand(shape) == 0, 0, a.expand(shape)) if (b == 0).any() else a.expand(shape)
    # One of them is spread over the channels of the other.
    of.labels.pin(b if over_b else a, f"{reason}, for all channels")
    if over_a and over_b:
        of.labels.pin(b, reason)
        return torch.zeros((), dtype=torch.int64).expand(shape)
    return (a if over_b else b).expand(shape)
