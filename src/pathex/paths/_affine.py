"""Weights, sums and products with constants.

In a replay every additive constant (bias, shift, position embedding) is zero, and every factor that does not come from
the input is a coefficient of the paths that pass, squared where the reading squares.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathex.paths._reading import is_in_place
from pathex.paths._readings import RECORD, REPLAY, Record, Replay

__all__ = ["WEIGHTED"]

WEIGHTED = (
    *("linear", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)


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
    _refuse_dynamic(reading, func, weight, bias)
    return func(input, weight, bias, *args, **kwargs)


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
    _refuse_dynamic(reading, func, weight, bias)
    return func(input, reading.coefficient(weight), None, *args, **kwargs)


def _refuse_dynamic(reading: Record | Replay, func: Callable[..., Any], weight: Tensor, bias: Tensor | None) -> None:
    if reading.carries(weight) or reading.carries(bias):
        raise reading.unsupported(func.__name__, "its weight or bias depends on the input")


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


# -- products with constants -------------------------------------------------------------------------------------------

_PRODUCTS = ("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__")
_QUOTIENTS = ("div", "div_", "divide", "divide_", "true_divide", "true_divide_", "__truediv__", "__itruediv__")


def _refuse_two(reading: Record | Replay, func: Callable[..., Any], input: Any, other: Any) -> None:
    if reading.carries(input) and reading.carries(other):
        raise reading.unsupported(func.__name__, "both factors depend on the input")
    if is_in_place(func) and not reading.carries(input):
        raise reading.unsupported(func.__name__, "it multiplies into a constant")


@RECORD.add(*_PRODUCTS)
def _product(reading: Record, func: Callable[..., Any], input: Any, other: Any) -> Any:
    _refuse_two(reading, func, input, other)
    return func(input, other)


@REPLAY.add(*_PRODUCTS)
def _product_linear(reading: Replay, func: Callable[..., Any], input: Any, other: Any) -> Any:
    _refuse_two(reading, func, input, other)
    if reading.carries(input):
        return func(input, reading.coefficient(other))
    return func(reading.coefficient(input), other)


def _refuse_nonlinear(
    reading: Record | Replay, func: Callable[..., Any], other: Any, rounding_mode: str | None
) -> None:
    if rounding_mode is not None or reading.carries(other):
        raise reading.unsupported(func.__name__, "it is not linear in what depends on the input")


@RECORD.add(*_QUOTIENTS)
def _quotient(
    reading: Record, func: Callable[..., Any], input: Any, other: Any, *, rounding_mode: str | None = None
) -> Any:
    _refuse_nonlinear(reading, func, other, rounding_mode)
    return func(input, other)


@REPLAY.add(*_QUOTIENTS)
def _quotient_linear(
    reading: Replay, func: Callable[..., Any], input: Any, other: Any, *, rounding_mode: str | None = None
) -> Any:
    _refuse_nonlinear(reading, func, other, rounding_mode)
    return func(input, reading.coefficient(other))


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
