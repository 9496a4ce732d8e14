"""Normalisation: a coefficient per channel or per sample; mean, centring and shift act on gates only.

BatchNorm, and InstanceNorm with stored statistics, have a coefficient per channel, a property of the network.
LayerNorm, GroupNorm, InstanceNorm, RMSNorm and local response normalisation have one per sample, which the record pass
keeps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.paths._moments import Moments
from pathex.paths._readings import RECORD, REPLAY, Record, Replay, Slope

__all__: list[str] = []

# In these readings a normalisation counts 1.
_WITHOUT_SCALE = ("ones", "connected")


# -- by statistics of the network --------------------------------------------------------------------------------------


def _batch_norm(
    reading: Record,
    func: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    _refuse_dynamic(reading, func, weight, bias)
    stored = None if running_mean is None or running_var is None else Moments(running_mean, running_var)
    index = len(reading.moments)
    if reading.given == "running" and stored is not None:
        moments = stored
    elif reading.given is not None and reading.given != "running" and index < len(reading.given):
        moments = reading.given[index]
    else:
        moments = reading.measure(input, stored)
    reading.moments.append(moments)
    weight, bias = _as(input, weight), _as(input, bias)
    return F.batch_norm(input, moments.mean.to(input), moments.var.to(input), weight, bias, False, 0.0, eps)


def _batch_norm_linear(
    reading: Replay,
    func: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    _refuse_dynamic(reading, func, weight, bias)
    moments = None if reading.coefficients in _WITHOUT_SCALE else reading.next_moments()
    var = running_var if moments is None else moments.var
    if var is None and reading.coefficients not in _WITHOUT_SCALE:
        raise reading.unsupported("batch_norm", "it keeps no statistics; use calibration='batch'")
    return _by_statistics(reading, input, var, weight, eps)


def _by_statistics(reading: Replay, input: Tensor, var: Tensor | None, weight: Tensor | None, eps: float) -> Tensor:
    if var is None or reading.coefficients in _WITHOUT_SCALE:
        return _weighted(reading, reading.normalise(input, None), _by_channel(input, weight))
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    return reading.normalise(input, reading.coefficient(scale))


RECORD[F.batch_norm] = _batch_norm
REPLAY[F.batch_norm] = _batch_norm_linear


# -- what all have in common -------------------------------------------------------------------------------------------


def _refuse_dynamic(reading: Record | Replay, func: Callable[..., Any], *affine: Tensor | None) -> None:
    if any(reading.carries(tensor) for tensor in affine):
        raise reading.unsupported(func.__name__, "its weight or bias depends on the input")


def _as(input: Tensor, affine: Tensor | None) -> Tensor | None:
    """A weight or bias in the precision of what arrives: a network may have cast it to half precision."""
    return None if affine is None else affine.to(input.dtype)


def _by_channel(input: Tensor, weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.view(-1, *[1] * (input.dim() - 2))


def _by_sample_and_channel(input: Tensor) -> tuple[int, ...]:
    return (*input.shape[:2], *[1] * (input.dim() - 2))


def _weighted(reading: Replay, input: Tensor, weight: Tensor | None) -> Tensor:
    """What arrives times the weight of a normalisation; where that counts 1, only a mask on it remains."""
    if weight is None:
        return input
    if reading.coefficients == "ones":
        return input * (weight != 0).to(input.dtype)
    return input * reading.coefficient(weight).to(input.dtype)


def _keep(reading: Record, input: Tensor, spread: Tensor, eps: float) -> None:
    """Record the scale ``1 / sqrt(spread + eps)``; ``spread`` broadcasts to the input."""
    reading.site(Slope((spread + eps).rsqrt(), input.shape))


def _replayed(reading: Replay, func: Callable[..., Any], input: Tensor, weight: Tensor | None) -> Tensor:
    """What arrives times the recorded scale and the weight, which broadcasts; with open gates the scale counts 1."""
    if reading.sites is None:
        reading.open_per_sample(func)
        return _weighted(reading, input * 1, weight)
    site: Slope = reading.next_site(Slope, input.shape, func)
    scale = 1 if reading.coefficients in _WITHOUT_SCALE else reading.coefficient(site.forward).to(input.dtype)
    return _weighted(reading, input * scale, weight)


# -- over the last dimensions ------------------------------------------------------------------------------------------


def _last(normalized_shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(-len(normalized_shape), 0))


@RECORD.add("layer_norm")
@REPLAY.add("layer_norm")
def _layer_norm(
    reading: Record | Replay,
    func: Callable[..., Any],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    _refuse_dynamic(reading, func, weight, bias)
    if isinstance(reading, Replay):
        return _replayed(reading, func, input, weight)
    _keep(reading, input, input.detach().var(_last(normalized_shape), correction=0, keepdim=True), eps)
    return F.layer_norm(input, list(normalized_shape), _as(input, weight), _as(input, bias), eps)


@RECORD.add("rms_norm")
@REPLAY.add("rms_norm")
def _rms_norm(
    reading: Record | Replay,
    func: Callable[..., Any],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    _refuse_dynamic(reading, func, weight)
    if isinstance(reading, Replay):
        return _replayed(reading, func, input, weight)
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    _keep(reading, input, input.detach().square().mean(_last(normalized_shape), keepdim=True), eps)
    return F.rms_norm(input, list(normalized_shape), _as(input, weight), eps)


# -- over groups of channels -------------------------------------------------------------------------------------------


@RECORD.add("group_norm")
@REPLAY.add("group_norm")
def _group_norm(
    reading: Record | Replay,
    func: Callable[..., Any],
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    _refuse_dynamic(reading, func, weight, bias)
    if isinstance(reading, Replay):
        return _replayed(reading, func, input, _by_channel(input, weight))
    groups = input.detach().reshape(len(input), num_groups, -1).var(-1, correction=0)
    channels = groups.repeat_interleave(input.shape[1] // num_groups, 1)
    _keep(reading, input, channels.view(_by_sample_and_channel(input)), eps)
    return F.group_norm(input, num_groups, _as(input, weight), _as(input, bias), eps)


def _instance_norm(
    reading: Record | Replay,
    func: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    _refuse_dynamic(reading, func, weight, bias)
    stored = not use_input_stats and running_var is not None
    if isinstance(reading, Replay):
        if not stored:
            return _replayed(reading, func, input, _by_channel(input, weight))
        return _by_statistics(reading, input, running_var, weight, eps)
    weight, bias = _as(input, weight), _as(input, bias)
    if stored:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    spread = input.detach().flatten(2).var(-1, correction=0)
    _keep(reading, input, spread.view(_by_sample_and_channel(input)), eps)
    return F.instance_norm(input, None, None, weight, bias, True, 0.0, eps)


def _instance_norm_of_torch(
    reading: Record | Replay,
    func: Callable[..., Any],
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """``torch.instance_norm`` takes weight and bias before the statistics."""
    statistics = running_mean, running_var
    return _instance_norm(reading, func, input, *statistics, weight, bias, use_input_stats, momentum, eps)


for _table in (RECORD, REPLAY):
    _table[F.instance_norm] = _instance_norm
    _table[torch.instance_norm] = _instance_norm_of_torch


# -- over neighbouring channels ----------------------------------------------------------------------------------------


@RECORD.add("local_response_norm")
@REPLAY.add("local_response_norm")
def _local_response_norm(
    reading: Record | Replay,
    func: Callable[..., Any],
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Tensor:
    if isinstance(reading, Replay):
        return _replayed(reading, func, input, None)
    squares = input.detach().square().flatten(2).unsqueeze(1)
    windows = F.avg_pool2d(F.pad(squares, (0, 0, size // 2, (size - 1) // 2)), (size, 1), stride=1)
    reading.site(Slope((k + alpha * windows.view(input.shape)) ** -beta, input.shape))
    return F.local_response_norm(input, size, alpha, beta, k)
