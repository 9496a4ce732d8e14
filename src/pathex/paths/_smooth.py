"""Smooth activations and other elementwise functions: a coefficient at each unit.

An activation phi with phi(0) = 0 has two natural coefficients: the secant phi(x) / x (its limit phi'(0) at 0), with
which the linear map has the value of the network, and the tangent phi'(x), with which it has the gradient. For ReLU
both are the gate. A function with phi(0) != 0, such as the sigmoid, has the tangent only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pathex.paths._reading import is_in_place
from pathex.paths._readings import RECORD, REPLAY, Record, Replay, Slope

__all__ = ["ACTIVATIONS", "FUNCTIONS", "derivative", "scaled", "writes"]

# phi(0) = 0: both coefficients.
ACTIVATIONS = (
    *("gelu", "silu", "silu_", "mish", "mish_", "hardswish", "hardswish_", "elu", "elu_", "selu", "selu_"),
    *("celu", "celu_", "tanh", "tanh_", "softsign", "tanhshrink", "softshrink", "hardshrink"),
    *("sin", "asinh", "atan", "arctan", "erf", "expm1", "log1p"),
)
# The tangent only.
FUNCTIONS = (
    *("sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "softplus", "logsigmoid", "exp", "exp_", "cos"),
    *("log", "log_", "log2", "log10", "sqrt", "sqrt_", "rsqrt", "rsqrt_", "square", "square_", "abs", "abs_"),
    *("pow", "pow_", "__pow__", "__ipow__", "float_power", "reciprocal", "reciprocal_", "__rpow__", "exp2"),
    *("absolute", "__abs__", "expit", "erfc"),
)


def derivative(func: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The derivative of an elementwise function at each unit.

    Args:
        func: The function.
        x: The units.
        *args: Further arguments of the function.
        **kwargs: Further arguments of the function.

    Returns:
        A tensor in the shape of ``x``, without gradient.
    """
    # The hooks around a recorded pass save nothing; this small pass needs what it saves.
    with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
        leaf = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(func(leaf.clone(), *args, **kwargs).sum(), leaf)
    return slope


def _as_it_is(tensor: Any) -> Any:
    return tensor


def writes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call of an activation writes into its input: modules pass ``inplace`` by keyword or last.

    Args:
        func: The torch function.
        args: Arguments after the input.
        kwargs: Keyword arguments.

    Returns:
        True if it does.
    """
    return is_in_place(func) or bool(kwargs.get("inplace")) or (bool(args) and args[-1] is True)


@RECORD.add(*ACTIVATIONS)
def _activation(reading: Record, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    tangent = derivative(func, input, *args, **kwargs) if reading.smooth != "secant" else None
    before = input.detach().clone() if writes(func, args, kwargs) else input.detach()
    result = func(input, *args, **kwargs)
    if reading.smooth == "tangent":
        reading.site(Slope(_known(tangent), before.shape))
        return result
    zero = before == 0
    secant = result.detach() / torch.where(zero, torch.ones_like(before), before)
    limit = derivative(func, torch.zeros((1,), dtype=before.dtype, device=before.device), *args, **kwargs)
    reading.site(Slope(torch.where(zero, limit, secant), before.shape, tangent))
    return result


def _known(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


@RECORD.add(*FUNCTIONS)
def _function(reading: Record, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    _refuse_second(reading, func, input, args, kwargs)
    reading.site(Slope(derivative(func, input, *args, **kwargs), input.shape))
    return func(input, *args, **kwargs)


def _refuse_second(
    reading: Record | Replay, func: Callable[..., Any], input: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if not reading.carries(input):
        raise reading.unsupported(func.__name__, "only a second argument depends on the input")
    if any(reading.carries(value) for value in (*args, *kwargs.values())):
        raise reading.unsupported(func.__name__, "a second argument depends on the input")
    shapes = [value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if torch.broadcast_shapes(input.shape, *shapes) != input.shape:
        raise reading.unsupported(func.__name__, "it is broadcast to the shape of a second argument")


class _TwoWays(torch.autograd.Function):
    """Multiplies with one coefficient on the way and with another one on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x * there

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grads[0] * back, None, None


def scaled(reading: Replay, func: Callable[..., Any], input: Tensor, in_place: bool = False) -> Tensor:
    """What arrives, times the recorded coefficient of the call at hand.

    Args:
        reading: A replay with recorded sites.
        func: The torch function, for error messages.
        input: What arrives.
        in_place: Whether the result is written into ``input``.

    Returns:
        The product.
    """
    site: Slope = reading.next_site(Slope, input.shape, func)
    there = reading.slope(site.forward).to(input.dtype)
    if site.backward is None:
        return input.mul_(there) if in_place else input * there
    result: Tensor = _TwoWays.apply(input, there, reading.slope(site.backward).to(input.dtype))
    return input.copy_(result) if in_place else result


@REPLAY.add(*ACTIVATIONS)
def _activation_linear(reading: Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    in_place = writes(func, args, kwargs)
    if reading.sites is None:
        return input if in_place else input.clone()
    return scaled(reading, func, input, in_place)


@REPLAY.add(*FUNCTIONS)
def _function_linear(reading: Replay, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    _refuse_second(reading, func, input, args, kwargs)
    in_place = writes(func, args, kwargs)
    if reading.sites is None:
        reading.open_per_sample(func)
        passes = float(not reading.values_only)
        return input.mul_(passes) if in_place else input * passes
    return scaled(reading, func, input, in_place)
