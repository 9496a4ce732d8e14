"""Normalisation over a sample: a recorded scale; mean, centring and shift act on gates only.

LayerNorm, GroupNorm, InstanceNorm and RMSNorm have a coefficient per sample, which the recorded pass keeps.
InstanceNorm with stored statistics has one per channel, like BatchNorm (`layers`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pathex.graph import Node
from pathex.paths import recording
from pathex.paths.linear import Linear, rule
from pathex.paths.recording import Record, Slope


def _last(normalized_shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(-len(normalized_shape), 0))


def _by_channel(x: Tensor) -> tuple[int, ...]:
    return (-1, *[1] * (x.dim() - 2))


def _stored(node: Node) -> bool:
    """Whether an InstanceNorm uses stored statistics."""
    return node.op == "instance_norm" and not node["use_input_stats"] and node["running_var"] is not None


@recording.rule("layer_norm", "rms_norm", "group_norm", "instance_norm")
def _norm(reading: Record, node: Node) -> Tensor:
    reading.refuse_dynamic(node, "weight", "bias")
    if _stored(node):
        return reading.plain(node)
    x: Tensor = reading(node["input"])
    eps = node["eps"]
    if node.op == "layer_norm":
        spread = x.var(_last(node["normalized_shape"]), correction=0, keepdim=True)
    elif node.op == "rms_norm":
        spread = x.square().mean(_last(node["normalized_shape"]), keepdim=True)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
    elif node.op == "group_norm":
        groups = x.reshape(len(x), node["num_groups"], -1).var(-1, correction=0)
        spread = groups.repeat_interleave(x.shape[1] // node["num_groups"], 1).view(*x.shape[:2], *[1] * (x.dim() - 2))
    else:
        spread = x.flatten(2).var(-1, correction=0).view(*x.shape[:2], *[1] * (x.dim() - 2))
    reading.keep(node, Slope((spread + eps).rsqrt()))
    return reading.plain(node)


@rule("layer_norm", "rms_norm", "group_norm", "instance_norm")
def _norm_linear(reading: Linear, node: Node) -> Tensor:
    reading.refuse_dynamic(node, "weight", "bias")
    x: Tensor = reading(node["input"])
    form = (*reading(node["normalized_shape"]),) if node.op in ("layer_norm", "rms_norm") else _by_channel(x)
    if _stored(node):
        if reading.coefficients not in ("ones", "connected"):
            scale = (reading(node["running_var"]) + node["eps"]).rsqrt()
            x = x * reading.coefficient(scale).view(form)
    elif reading.tape is None:
        reading.open_per_sample(node)
    elif reading.coefficients not in ("ones", "connected"):
        x = x * reading.coefficient(reading.tape[node].forward).to(x.dtype)
    return reading.by_weight(node, x, node["weight"], form)
