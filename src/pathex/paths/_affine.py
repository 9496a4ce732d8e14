"""Weights, sums and products with constants.

In a replay every additive constant (bias, shift, position embedding) is zero, and every factor that does not come from
the input is a coefficient of the paths that pass, squared where the reading squares.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathex.paths._made import entered
from pathex.paths._products import multilinear, multilinear_replay
from pathex.paths._reading import is_in_place, spellings
from pathex.paths._readings import RECORD, REPLAY, Record, Replay

__all__ = ["WEIGHTED"]

WEIGHTED = (
    *("linear", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)
# Those whose weight has one entry for each channel of the result first.
_CONVOLUTIONS = frozenset(spellings("conv1d", "conv2d", "conv3d"))


# -- weights -----------------------------------------------------------------------------------------------------------


@RECORD.add(*WEIGHTED)
def _weighted(
    reading: Record,
    func: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    _refuse_dynamic_bias(reading, func, bias)
    result = multilinear(reading, (input, weight), lambda factors: func(*factors, bias, *args, **kwargs))
    return reading.convolved(weight, result) if func in _CONVOLUTIONS else result


@REPLAY.add(*WEIGHTED)
def _weighted_linear(
    reading: Replay,
    func: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    _refuse_dynamic_bias(reading, func, bias)
    if not reading.carries(weight):
        coefficient = reading.coefficient(weight)
        if func not in _CONVOLUTIONS:
            return func(input, coefficient, None, *args, **kwargs)

        def product(scale: Tensor | None) -> Tensor:
            if scale is None:
                return func(input, coefficient, None, *args, **kwargs)
            scaled = entered(torch.mul, coefficient, _by_output(scale.to(coefficient.dtype), weight))
            return func(input, scaled, None, *args, **kwargs)

        return reading.convolved(weight, input, product)
    return multilinear_replay(reading, func, (input, weight), lambda factors: func(*factors, None, *args, **kwargs))


def _by_output(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))


def _refuse_dynamic_bias(reading: Record | Replay, func: Callable[..., Any], bias: Tensor | None) -> None:
    if reading.carries(bias):
        raise reading.unsupported(func.__name__, "its bias depends on the input")


# -- sums --------------------------------------------------------------------------------------------------------------

_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_DIFFERENCES = ("sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__")
_REVERSED = ("rsub", "__rsub__")


@RECORD.add(*_SUMS, *_DIFFERENCES, *_REVERSED)
def _sum(reading: Record, func: Callable[..., Any], input: Any, other: Any, **kwargs: Any) -> Any:
    if is_in_place(func) and not reading.carries(input):
        reading.claim(input, func)
    return func(input, other, **kwargs)


@REPLAY.add(*_SUMS)
def _sum_linear(reading: Replay, func: Callable[..., Any], input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return _weighted_sum(reading, func, input, other, 1, alpha)


@REPLAY.add(*_DIFFERENCES)
def _difference(reading: Replay, func: Callable[..., Any], input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return _weighted_sum(reading, func, input, other, 1, -alpha)


@REPLAY.add(*_REVERSED)
def _reversed(reading: Replay, func: Callable[..., Any], input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    return _weighted_sum(reading, func, input, other, -alpha, 1)


def _weighted_sum(
    reading: Replay, func: Callable[..., Any], a: Any, b: Any, weight_a: float, weight_b: float
) -> Tensor:
    """``weight_a a + weight_b b``, where a term that carries no path counts zero but keeps its shape."""
    weight_a, weight_b = reading.coefficient(weight_a), reading.coefficient(weight_b)
    if is_in_place(func):
        if not reading.carries(a):
            reading.claim(a, func).zero_()
        return a.add_(b, alpha=weight_b) if reading.carries(b) else a
    if reading.carries(a) and reading.carries(b):
        return torch.add(a if weight_a == 1 else a * weight_a, b, alpha=weight_b)
    path, weight, constant = (a, weight_a, b) if reading.carries(a) else (b, weight_b, a)
    # A new tensor even where nothing changes: the network may go on to write into it.
    path = path.clone() if weight == 1 else path * weight
    if isinstance(constant, Tensor) and torch.broadcast_shapes(path.shape, constant.shape) != path.shape:
        return path.expand(torch.broadcast_shapes(path.shape, constant.shape)).contiguous()
    return path


# -- signs and means ---------------------------------------------------------------------------------------------------


@RECORD.add("neg", "neg_", "negative", "negative_", "__neg__")
def _negative(reading: Record, func: Callable[..., Any], input: Tensor) -> Tensor:
    return func(input)


@REPLAY.add("neg", "neg_", "negative", "negative_", "__neg__")
def _negative_linear(reading: Replay, func: Callable[..., Any], input: Tensor) -> Tensor:
    if is_in_place(func):
        return func(input) if reading.coefficients == "plain" else input
    return -input if reading.coefficients == "plain" else input.clone()


@RECORD.add("mean")
def _mean(reading: Record, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    return func(*args, **kwargs)


@REPLAY.add("mean")
def _mean_linear(reading: Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    result = func(input, *args, **kwargs)
    return result * (result.numel() / input.numel()) if reading.coefficients == "squared" else result
