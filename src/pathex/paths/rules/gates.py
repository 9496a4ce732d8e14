"""Piecewise-linear activations: the gate of a unit is the local slope at the recorded point."""

from functools import reduce
from operator import and_

import torch
from torch import Tensor

from pathex.graph import Node
from pathex.paths import recording
from pathex.paths.linear import Linear, rule
from pathex.paths.recording import Gate, Record

_CLAMPS = {"clamp": ("min", "max"), "clip": ("min", "max"), "clamp_min": ("min", None), "clamp_max": (None, "max")}
_BOUNDS = {
    "hardtanh": ("min_val", "max_val"),
    "relu": (0.0, None),
    "relu6": (0.0, 6.0),
    "threshold": ("threshold", None),
}


@recording.rule("relu", "relu6", "hardtanh", "threshold", *_CLAMPS)
def _bounded(reading: Record, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    within = []
    for name, inside in zip({**_BOUNDS, **_CLAMPS}[node.op], (torch.gt, torch.lt), strict=True):
        argument = node[name] if isinstance(name, str) else name
        if argument is None:
            continue
        if reading.carries(argument):
            raise reading.unsupported(node, "a bound depends on the input")
        bound = reading(argument)
        if isinstance(bound, Tensor) and torch.broadcast_shapes(x.shape, bound.shape) != x.shape:
            raise reading.unsupported(node, "it is broadcast to the shape of a bound")
        within.append(inside(x, bound))
    reading.keep(node, Gate(reduce(and_, within).view(torch.uint8)))
    return reading.plain(node)


@recording.rule("leaky_relu", "prelu", "rrelu")
def _leaky(reading: Record, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    opened = (x > 0).view(torch.uint8)
    if node.op == "rrelu":
        slope = (node["lower"] + node["upper"]) / 2
        reading.keep(node, Gate(opened, slope))
        return torch.rrelu(x, node["lower"], node["upper"], False)
    if node.op == "leaky_relu":
        reading.keep(node, Gate(opened, node["negative_slope"]))
    else:
        if reading.carries(node["weight"]):
            raise reading.unsupported(node, "its slope depends on the input")
        weight: Tensor = reading(node["weight"])
        channels = weight.reshape(-1, *[1] * (x.dim() - 2)) if weight.numel() > 1 else weight.reshape(())
        reading.keep(node, Gate(opened, channels))
    return reading.plain(node)


@rule("relu", "relu6", "hardtanh", "threshold", *_CLAMPS, "leaky_relu", "prelu", "rrelu")
def _gate(reading: Linear, node: Node) -> Tensor:
    """Every activation replays alike: the recorded slope times what arrives; open: what arrives."""
    x: Tensor = reading(node.args[0])
    if reading.tape is None:
        return x
    gate: Gate = reading.tape[node]
    if not isinstance(gate.slope, Tensor) and gate.slope == 0:
        return x * gate.open  # products with bool are several times slower than with bytes
    slope = reading.slope(gate.slope)
    slope = slope.to(x) if isinstance(slope, Tensor) else x.new_full((), slope)
    return x * torch.where(gate.open.view(torch.bool), x.new_ones(()), slope)
