"""Piecewise-linear activations: the gate of a unit is the local slope at the recorded point."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathex.paths._reading import is_in_place
from pathex.paths._readings import RECORD, REPLAY, Gate, Record, Replay

__all__: list[str] = []

_RELU = ("relu", "relu_")
_RELU6 = ("relu6",)
_HARDTANH = ("hardtanh", "hardtanh_")
_CLAMP = ("clamp", "clamp_", "clip", "clip_")
_CLAMP_MIN = ("clamp_min", "clamp_min_")
_CLAMP_MAX = ("clamp_max", "clamp_max_")
_LEAKY = ("leaky_relu", "leaky_relu_")
_PRELU = ("prelu",)
_RRELU = ("rrelu", "rrelu_")
_THRESHOLD = ("threshold", "threshold_")


@RECORD.add(*_RELU)
def _relu(reading: Record, func: Callable[..., Any], input: Tensor, inplace: bool = False) -> Tensor:
    reading.site(Gate(input > 0))
    return func(input, inplace) if inplace else func(input)


@RECORD.add(*_RELU6)
def _relu6(reading: Record, func: Callable[..., Any], input: Tensor, inplace: bool = False) -> Tensor:
    reading.site(Gate((input > 0) & (input < 6)))
    return func(input, inplace)


@RECORD.add(*_HARDTANH)
def _hardtanh(
    reading: Record,
    func: Callable[..., Any],
    input: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    reading.site(Gate((input > min_val) & (input < max_val)))
    return func(input, min_val, max_val, **({"inplace": True} if inplace else {}))


@RECORD.add(*_CLAMP)
def _clamp(reading: Record, func: Callable[..., Any], input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    gate = torch.ones_like(input, dtype=torch.bool)
    for bound, inside in ((min, torch.gt), (max, torch.lt)):
        if reading.carries(bound):
            raise reading.unsupported(func.__name__, "a bound depends on the input")
        if isinstance(bound, Tensor) and torch.broadcast_shapes(input.shape, bound.shape) != input.shape:
            raise reading.unsupported(func.__name__, "it is broadcast to the shape of a bound")
        if bound is not None:
            gate &= inside(input, bound)
    reading.site(Gate(gate))
    return func(input, min, max)


@RECORD.add(*_CLAMP_MIN)
def _clamp_min(reading: Record, func: Callable[..., Any], input: Tensor, min: Any) -> Tensor:
    if reading.carries(min):
        raise reading.unsupported(func.__name__, "a bound depends on the input")
    reading.site(Gate(input > min))
    return func(input, min)


@RECORD.add(*_CLAMP_MAX)
def _clamp_max(reading: Record, func: Callable[..., Any], input: Tensor, max: Any) -> Tensor:
    if reading.carries(max):
        raise reading.unsupported(func.__name__, "a bound depends on the input")
    reading.site(Gate(input < max))
    return func(input, max)


@RECORD.add(*_LEAKY)
def _leaky_relu(
    reading: Record, func: Callable[..., Any], input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    reading.site(Gate(input > 0, negative_slope))
    return func(input, negative_slope, **({"inplace": True} if inplace else {}))


@RECORD.add(*_PRELU)
def _prelu(reading: Record, func: Callable[..., Any], input: Tensor, weight: Tensor) -> Tensor:
    if reading.carries(weight):
        raise reading.unsupported(func.__name__, "its slope depends on the input")
    slope = weight.reshape(-1, *[1] * (input.dim() - 2)) if weight.numel() > 1 else weight.reshape(())
    reading.site(Gate(input > 0, slope))
    return func(input, weight)


@RECORD.add(*_RRELU)
def _rrelu(
    reading: Record,
    func: Callable[..., Any],
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    reading.site(Gate(input > 0, (lower + upper) / 2))
    return func(input, lower, upper, False, **({"inplace": True} if inplace else {}))


@RECORD.add(*_THRESHOLD)
def _threshold(
    reading: Record, func: Callable[..., Any], input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Tensor:
    reading.site(Gate(input > threshold))
    return func(input, threshold, value, **({"inplace": True} if inplace else {}))


@REPLAY.add(*_RELU, *_RELU6, *_HARDTANH, *_CLAMP, *_CLAMP_MIN, *_CLAMP_MAX, *_LEAKY, *_PRELU, *_RRELU, *_THRESHOLD)
def _gate(
    reading: Replay, func: Callable[..., Any], input: Tensor, *args: Any, inplace: bool = False, **kwargs: Any
) -> Tensor:
    """Every activation replays alike: the recorded slope times what arrives; open: what arrives."""
    # Modules pass `inplace` by keyword or as the last positional argument.
    in_place = inplace or is_in_place(func) or (bool(args) and args[-1] is True)
    if reading.sites is None:
        return input if in_place else input.clone()
    gate: Gate = reading.next_site(Gate, input.shape, func)
    factor = gate.open.view(torch.uint8)  # products with bool are several times slower than with bytes
    if isinstance(gate.slope, Tensor) or gate.slope != 0:
        slope = reading.slope(gate.slope)
        slope = slope.to(input) if isinstance(slope, Tensor) else input.new_full((), slope)
        factor = torch.where(gate.open, input.new_ones(()), slope)
    return input.mul_(factor) if in_place else input * factor
