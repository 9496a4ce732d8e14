"""Extremes over dimensions: the recorded share of each entry; open: the sum."""

import torch
from torch import Tensor

from pathex.graph import Node
from pathex.paths import recording
from pathex.paths.linear import Linear, rule
from pathex.paths.recording import Record, Slope
from pathex.paths.rules.smooth import scaled


def _dims(node: Node, x: Tensor) -> tuple[int, ...]:
    dim = node.arguments.get("dim")
    return (dim,) if isinstance(dim, int) else tuple(dim or range(x.dim()))


@recording.rule("amax", "amin")
def _extreme(reading: Record, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    largest = (torch.amax if node.op == "amax" else torch.amin)(x, _dims(node, x), keepdim=True)
    reached = (x == largest).to(x.dtype)
    reading.keep(node, Slope(reached / reached.sum(_dims(node, x), keepdim=True)))
    return reading.plain(node)


@rule("amax", "amin")
def _extreme_linear(reading: Linear, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    routed = x if reading.opened else scaled(reading, node, x)
    return routed.sum(_dims(node, x), keepdim=node["keepdim"])
