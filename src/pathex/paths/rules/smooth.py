"""Smooth activations and other elementwise functions: a coefficient at each unit.

An activation phi with phi(0) = 0 has two natural coefficients: the secant phi(x) / x (its limit phi'(0) at 0), with
which the linear map has the value of the network, and the tangent phi'(x), with which it has the gradient. For ReLU
both are the gate. A function with phi(0) != 0, such as the sigmoid, has the tangent only.
"""

import math
from typing import Any

import torch
from torch import Tensor

from pathex.graph import ACTIVATIONS, FUNCTIONS, Node
from pathex.paths import recording
from pathex.paths.linear import Linear, rule
from pathex.paths.recording import Record, Slope


def _derivative(reading: Record, node: Node, x: Tensor) -> Tensor:
    """The derivative of an elementwise function at each unit."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        args = [leaf, *map(reading, node.args[1:])]
        kwargs = {name: reading(value) for name, value in node.kwargs.items()}
        (slope,) = torch.autograd.grad(node.target(*args, **kwargs).sum(), leaf)
    return slope


@recording.rule(*ACTIVATIONS)
def _activation(reading: Record, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    result: Tensor = reading.plain(node)
    if reading.smooth == "tangent":
        reading.keep(node, Slope(_derivative(reading, node, x)))
        return result
    tangent = _derivative(reading, node, x) if reading.smooth == "mixed" else None
    zero = x == 0
    secant = result / torch.where(zero, 1, x)
    limit = _derivative(reading, node, torch.zeros((1,), dtype=x.dtype, device=x.device))
    reading.keep(node, Slope(torch.where(zero, limit, secant), tangent))
    return result


@recording.rule(*FUNCTIONS)
def _function(reading: Record, node: Node) -> Tensor:
    x = _only_argument(reading, node)
    reading.keep(node, Slope(_derivative(reading, node, x)))
    return reading.plain(node)


def _only_argument(reading: Record | Linear, node: Node) -> Tensor:
    """The first argument of a function, if it alone depends on the input and has the shape of the result."""
    if not reading.carries(node.args[0]):
        raise reading.unsupported(node, "only a second argument depends on the input")
    x: Tensor = reading(node.args[0])
    others = [*node.args[1:], *node.kwargs.values()]
    if any(map(reading.carries, others)):
        raise reading.unsupported(node, "a second argument depends on the input")
    shapes = [other.shape for other in others if isinstance(other, Node) and other.shape is not None]
    if torch.broadcast_shapes(x.shape, *shapes) != x.shape:
        raise reading.unsupported(node, "it is broadcast to the shape of a second argument")
    return x


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


def scaled(reading: Linear, node: Node, x: Tensor) -> Tensor:
    """What arrives, times the recorded coefficient of a node."""
    assert reading.tape is not None
    site: Slope = reading.tape[node]
    there = reading.slope(site.forward).to(x.dtype)
    if site.backward is None:
        return x * there
    return _TwoWays.apply(x, there, reading.slope(site.backward).to(x.dtype))


@rule(*ACTIVATIONS)
def _activation_linear(reading: Linear, node: Node) -> Tensor:
    x: Tensor = reading(node.args[0])
    return x if reading.opened else scaled(reading, node, x)


@rule(*FUNCTIONS)
def _function_linear(reading: Linear, node: Node) -> Tensor:
    x = _only_argument(reading, node)
    return reading.passes(x, node) if reading.opened else scaled(reading, node, x)


# -- softmax -----------------------------------------------------------------------------------------------------------


@recording.rule("softmax", "_softmax", "log_softmax")
def _softmax(reading: Record, node: Node) -> Tensor:
    x, dim = reading(node.args[0]), node["dim"]
    shares = torch.softmax(x, dim).masked_fill((x == -math.inf).all(dim, keepdim=True), 0.0)
    reading.keep(node, Slope(shares))
    return torch.log_softmax(x, dim) if node.op == "log_softmax" else shares


@rule("softmax", "_softmax", "log_softmax")
def _softmax_linear(reading: Linear, node: Node) -> Tensor:
    """By its Jacobian ``P_i (1[i = j] - P_j)``, or ``1[i = j] - P_j`` of the logarithm, each entry squared."""
    x, dim = reading(node.args[0]), node["dim"]
    if reading.tape is None:
        return reading.passes(x, node)
    shares = reading.tape[node].forward.to(x.dtype)
    outer = 1.0 if node.op == "log_softmax" else reading.slope(shares)
    if reading.coefficients == "plain":
        return outer * (x - (shares * x).sum(dim, keepdim=True))
    squares = shares.square()
    return outer * ((1 - shares).square() * x + (squares * x).sum(dim, keepdim=True) - squares * x)
