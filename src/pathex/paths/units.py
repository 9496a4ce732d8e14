"""The weights of convolutions and linear layers in the order of their units."""

from math import prod

from torch import Tensor

from pathex.graph import WEIGHTED, Node


def is_layer(node: Node) -> bool:
    """Whether a node is a convolution or a linear layer with a weight of two dimensions or more."""
    return node.op in WEIGHTED and len(node.args[1].shape or ()) > 1


def layout_of(node: Node) -> tuple[int, bool]:
    """Number of groups of a layer, and whether it is a transposed convolution."""
    return int(node.arguments.get("groups", 1)), "conv_transpose" in node.op


def by_units(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """A weight in the order (groups, outputs of a group, inputs of a group, kernel)."""
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], prod(weight.shape[2:]))
    return grouped.transpose(1, 2) if transposed else grouped
