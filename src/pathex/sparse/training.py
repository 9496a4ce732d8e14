"""Layers that train by their kept weights, with BatchNorm, sums, ReLU and max pools in the same kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pathex.sparse.team import Team
from pathex.sparse.unit import NUMBERS, Affine, Pool, Unit, add, add_backward

NO_BOUND = float("-inf")


@dataclass(frozen=True)
class Normalised:
    """A normalisation by channel: mean and variance ``(C,)``, factors and terms if there are any."""

    mean: Tensor | None = None
    variance: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What it takes from the network."""
        return self.mean, self.variance, self.weight, self.bias

    def affine(self, x: Tensor, low: float) -> Affine:
        """What it is as factors and terms of x."""
        numbers = np.zeros((3, x.shape[1]), NUMBERS[x.dtype])
        if self.variance is None:
            numbers[0] = 1.0
            return Affine(numbers, low)
        mean, variance, weight, bias = (_array(each) for each in self.tensors)
        scale = (1.0 if weight is None else weight) / np.sqrt(variance + self.eps)
        numbers[0], numbers[1], numbers[2] = scale, (0.0 if bias is None else bias) - mean * scale, mean
        return Affine(numbers, low)

    def back(self, sums: Any) -> tuple[Tensor | None, ...]:
        """Gradients of `tensors` from the sums ``(C, 2)`` of the gradient g and of g (x - mean)."""
        if self.variance is None:
            return None, None, None, None
        _, variance, weight, _ = (_array(each) for each in self.tensors)
        factor = 1.0 if weight is None else weight
        inverse = 1.0 / np.sqrt(variance + self.eps)
        found = (
            -factor * inverse * sums[:, 0], -0.5 * factor * inverse**3 * sums[:, 1], inverse * sums[:, 1], sums[:, 0]
        )  # fmt: skip
        pairs = zip(found, self.tensors, strict=True)
        return tuple(None if of is None else torch.from_numpy(each).to(of.dtype) for each, of in pairs)


def _normalised(tensors: Sequence[Tensor | None], eps: float) -> Normalised:
    mean, variance, weight, bias = tensors
    return Normalised(mean, variance, weight, bias, eps)


def _array(value: Tensor | None) -> Any:
    return None if value is None else value.detach().numpy().astype(np.float64, copy=False)


class Convolve(torch.autograd.Function):
    """The result of a layer, mean and variance of its channels (float64), and what it read if others read it too."""

    @staticmethod
    def forward(
        ctx: Any, layer: "Kernel", images: int, moments: bool, copied: bool, low: float, eps: float,
        gate: Tensor | None, marks: Tensor | None, values: Tensor, bias: Tensor | None, x: Tensor,
        added: Tensor | None, *norm: Tensor | None,
    ) -> Any:  # fmt: skip
        """The values."""
        unit, team = layer
        copy = torch.empty_like(x) if copied else None
        read = _normalised(norm, eps).affine(x, low)
        terms = None if bias is None else bias.detach().numpy()
        y, found = unit.forward(
            images, x, added, gate, marks, copy, values.detach().numpy(), terms, read, team, moments
        )
        ctx.layer, ctx.images, ctx.read, ctx.eps = layer, images, read, eps
        ctx.is_sum, ctx.has_bias = added is not None, bias is not None
        ctx.set_materialize_grads(False)
        if found is None:
            ctx.save_for_backward(values, x, gate, copy, None, None, *norm)
            return y, None, None, copy
        ctx.count = found[0, 0]
        mean, variance = torch.from_numpy(found[:, 1].copy()), torch.from_numpy(found[:, 2] / found[:, 0])
        ctx.save_for_backward(values, x, gate, copy, y, mean, *norm)
        return y, mean, variance, copy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gy: Tensor | None, gmean: Tensor | None, gvariance: Tensor | None, more: Tensor | None
    ) -> Any:
        """The gradients."""
        unit, team = ctx.layer
        values, x, gate, copy, y, mean, *norm = ctx.saved_tensors
        given = values.detach().numpy()
        if gy is None:
            shape = unit.shape(*x.shape[2:4])
            gy = x.new_zeros(len(x), unit.outputs, shape.rows, shape.columns, x.shape[4])
        result = np.zeros((3, unit.outputs), ctx.read.numbers.dtype)  # level, slope, mean
        if y is not None and gmean is not None:
            result[0], result[2] = gmean.numpy() / ctx.count, mean.numpy()
        if y is not None and gvariance is not None:
            result[1] = 2.0 * gvariance.numpy() / ctx.count
        gy, more = gy.contiguous(), None if more is None else more.contiguous()
        gvalues, gbias, gx, gadded, sums = unit.backward(
            ctx.images, gy, gy if y is None else y, result, x, gate, copy, more, given, ctx.read, team,
            any(ctx.needs_input_grad[10:]), ctx.is_sum,
        )  # fmt: skip
        normalised = _normalised(norm, ctx.eps)
        return *[None] * 8, gvalues, gbias if ctx.has_bias else None, gx, gadded, *normalised.back(sums)


class Add(torch.autograd.Function):
    """Something normalised, perhaps something added, perhaps rectified."""

    @staticmethod
    def forward(
        ctx: Any, team: Team, images: int, low: float, eps: float, gate: Tensor | None, marks: Tensor | None, x: Tensor,
        added: Tensor | None, *norm: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The values."""
        ctx.read = _normalised(norm, eps).affine(x, low)
        y = add(images, x, added, gate, marks, ctx.read, team)
        ctx.team, ctx.images, ctx.eps = team, images, eps
        ctx.save_for_backward(x, gate, None if added is None else y, *norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> Any:
        """The gradients."""
        x, gate, y, *norm = ctx.saved_tensors
        gx, gadded, sums = add_backward(ctx.images, gy.contiguous(), y, x, gate, ctx.read, ctx.team)
        return *[None] * 6, gx, gadded, *_normalised(norm, ctx.eps).back(sums)


class MaxPool(torch.autograd.Function):
    """Maxima of something normalised and perhaps rectified."""

    @staticmethod
    def forward(
        ctx: Any, pool: Pool, team: Team, images: int, low: float, eps: float, x: Tensor, *norm: Tensor | None
    ) -> Tensor:
        """The values."""
        ctx.read = _normalised(norm, eps).affine(x, low)
        y = pool.forward(images, x, ctx.read, team)
        ctx.pool, ctx.team, ctx.images, ctx.eps = pool, team, images, eps
        ctx.save_for_backward(x, y, *norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> Any:
        """The gradients."""
        x, y, *norm = ctx.saved_tensors
        gx, sums = ctx.pool.backward(ctx.images, gy.contiguous(), y, x, ctx.read, ctx.team)
        return *[None] * 5, gx, *_normalised(norm, ctx.eps).back(sums)


Kernel = tuple[Unit, Team]
"""The kernels of a layer, and who carries them out."""
