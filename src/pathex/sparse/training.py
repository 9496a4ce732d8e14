"""Layers that train by their kept weights, and what lies between them: BatchNorm, sums and ReLU in the same kernels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import words
from pathex.sparse.plan import Window
from pathex.sparse.team import Team
from pathex.sparse.unit import Affine, Pool, Unit, add, add_backward, as_images, in_blocks

_NO_BOUND = float("-inf")


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
        numbers = np.zeros((3, x.shape[1]), np.float32 if x.dtype == torch.float32 else np.float64)
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


class _Convolve(torch.autograd.Function):
    """The result of a layer, mean and variance of its channels (float64), and what it read if others read it too."""

    @staticmethod
    def forward(
        ctx: Any, layer: "Kept", images: int, moments: bool, copied: bool, low: float, eps: float, values: Tensor,
        bias: Tensor | None, x: Tensor, added: Tensor | None, *norm: Tensor | None,
    ) -> Any:  # fmt: skip
        unit, team = layer
        copy = torch.empty_like(x) if copied else None
        read = _normalised(norm, eps).affine(x, low)
        terms = None if bias is None else bias.detach().numpy()
        y, found = unit.forward(images, x, added, copy, values.detach().numpy(), terms, read, team, moments)
        ctx.layer, ctx.images, ctx.read, ctx.eps = layer, images, read, eps
        ctx.is_sum, ctx.has_bias = added is not None, bias is not None
        ctx.set_materialize_grads(False)
        if found is None:
            ctx.save_for_backward(values, x, copy, None, None, *norm)
            return y, None, None, copy
        ctx.count = found[0, 0]
        mean, variance = torch.from_numpy(found[:, 1].copy()), torch.from_numpy(found[:, 2] / found[:, 0])
        ctx.save_for_backward(values, x, copy, y, mean, *norm)
        return y, mean, variance, copy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gy: Tensor | None, gmean: Tensor | None, gvariance: Tensor | None, more: Tensor | None
    ) -> Any:
        unit, team = ctx.layer
        values, x, copy, y, mean, *norm = ctx.saved_tensors
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
            ctx.images, gy, gy if y is None else y, result, x, copy, more, values.detach().numpy(), ctx.read, team,
            any(ctx.needs_input_grad[8:]), ctx.is_sum,
        )  # fmt: skip
        normalised = _normalised(norm, ctx.eps)
        return *[None] * 6, gvalues, gbias if ctx.has_bias else None, gx, gadded, *normalised.back(sums)


class _Add(torch.autograd.Function):
    """Something normalised, perhaps something added, perhaps rectified."""

    @staticmethod
    def forward(
        ctx: Any, team: Team, images: int, low: float, eps: float, x: Tensor, added: Tensor | None, *norm: Tensor | None
    ) -> Tensor:
        ctx.read = _normalised(norm, eps).affine(x, low)
        y = add(images, x, added, ctx.read, team)
        ctx.team, ctx.images, ctx.eps = team, images, eps
        ctx.save_for_backward(x, None if added is None else y, *norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> Any:
        x, y, *norm = ctx.saved_tensors
        gx, gadded, sums = add_backward(ctx.images, gy.contiguous(), y, x, ctx.read, ctx.team)
        return None, None, None, None, gx, gadded, *_normalised(norm, ctx.eps).back(sums)


class _Pool(torch.autograd.Function):
    """Maxima of something normalised and perhaps rectified."""

    @staticmethod
    def forward(
        ctx: Any, pool: Pool, team: Team, images: int, low: float, eps: float, x: Tensor, *norm: Tensor | None
    ) -> Tensor:
        ctx.read = _normalised(norm, eps).affine(x, low)
        y = pool.forward(images, x, ctx.read, team)
        ctx.pool, ctx.team, ctx.images, ctx.eps = pool, team, images, eps
        ctx.save_for_backward(x, y, *norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> Any:
        x, y, *norm = ctx.saved_tensors
        gx, sums = ctx.pool.backward(ctx.images, gy.contiguous(), y, x, ctx.read, ctx.team)
        return *[None] * 5, gx, *_normalised(norm, ctx.eps).back(sums)


Kept = tuple[Unit, Team]
"""The kernels of a layer, and who carries them out."""


class Pending:
    """The result of a layer, with what is still to be done to it: the next layer does it while it reads.

    It stands for the tensor: whatever else torch does with it is done with `tensor`, which then is what all read.

    Args:
        team: Who carries out kernels.
        images: How many images there are.
        x: The result in blocks of images.
        moments: Mean and variance of its channels, if they are known.
        last: The last of ``batch_norm``, ``add``, ``relu`` and ``max_pool2d`` that it waits for.
        readers: How many layers and sums read it then, if there is nothing else; otherwise 0.
    """

    def __init__(
        self, team: Team, images: int, x: Tensor, moments: tuple[Tensor, Tensor] | None, last: str, readers: int
    ) -> None:
        self._team, self._images, self._x, self._moments = team, images, x, moments
        self._last, self._readers = last, readers
        self._norm, self._low, self._added = Normalised(), _NO_BOUND, None
        self._done: Tensor | None = None
        self._tensor: Tensor | None = None
        self._keeper = _keeper()
        self.shape = torch.Size((images, *x.shape[1:4]))

    @property
    def tensor(self) -> Tensor:
        """The values ``(N, C, H, W)``, computed when they are asked for."""
        own = self._here()
        if own._tensor is None:
            own._tensor = as_images(own.blocks, own._images)
        return own._tensor

    @property
    def blocks(self) -> Tensor:
        """The values in blocks of images, computed when they are asked for."""
        own = self._here()
        return own._blocks() if own._tensor is None else in_blocks(own._tensor)

    def _here(self) -> "Pending":
        """Itself; a copy where the way back is another one, or is gone over again, and must find the same once more."""
        return self if self._keeper == _keeper() else self._copied(_keeper=_keeper())

    def _copied(self, **changes: Any) -> "Pending":
        made = Pending.__new__(Pending)
        made.__dict__.update(self.__dict__, **changes)
        return made

    def _blocks(self) -> Tensor:
        if self._done is None:
            self._done = self._x
            if self._waits:
                given = self._x, self._added, *self._norm.tensors
                self._done = _Add.apply(self._team, self._images, self._low, self._norm.eps, *given)
        return self._done

    @property
    def _is_open(self) -> bool:
        return self._done is None and self._tensor is None

    @property
    def _waits(self) -> bool:
        return self._norm.variance is not None or self._added is not None or self._low != _NO_BOUND

    def convolved(self, layer: Kept, moments: bool, values: Tensor, bias: Tensor | None) -> Any:
        """What a layer makes of it: the result, mean and variance of its channels."""
        if self._x.requires_grad and not torch.is_grad_enabled():
            raise UnsupportedOperation(
                "under no_grad a sparse layer reads what needs gradients: detach it, or checkpoint(use_reentrant=False)"
            )
        own, copied = self._here(), self._added is not None or self._readers > 1
        if self._is_open and (not copied or layer[0].shape(*self.shape[2:]).covers):
            given = self._low, self._norm.eps, values, bias, self._x, self._added, *self._norm.tensors
            *found, own._done = _Convolve.apply(layer, self._images, moments, copied, *given)
            return found
        return _convolved(self.blocks, self._images, layer, moments, values, bias)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._x if name in _OF_TYPE else self.tensor, name)

    def size(self, dim: int | None = None) -> Any:
        """As `torch.Tensor.size`."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As `torch.Tensor.dim`."""
        return len(self.shape)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(function)
        found = rule(*args, **kwargs or {}) if rule is not None else None
        return found if found is not None else function(*_plain(args), **_plain(kwargs or {}))

    # -- what waits ----------------------------------------------------------------------------------------------------

    def normalise(
        self, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> "Pending | Tensor | None":  # fmt: skip
        """As `torch.nn.functional.batch_norm`, if nothing waits."""
        count = self.shape.numel() // self.shape[1]
        if self._waits or not self._is_open or (training and (self._moments is None or count == 1)):
            return None
        if training:
            assert self._moments is not None
            mean, variance = self._moments
            if running_mean is not None and running_var is not None:
                with torch.no_grad():
                    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                    running_var.lerp_((variance * (count / max(1, count - 1))).to(running_var.dtype), momentum)
        else:
            assert running_mean is not None and running_var is not None
            mean, variance = running_mean, running_var
        return self._with("batch_norm", None, _norm=Normalised(mean, variance, weight, bias, eps))

    def rectify(self, inplace: bool = False) -> "Pending | Tensor | None":
        """As `torch.nn.functional.relu`."""
        if not self._is_open:
            return None
        return self._with("relu", self if inplace else None, _low=0.0)

    def plus(
        self, other: Any, *, alpha: float = 1, inplace: bool = False, out: Any = None
    ) -> "Pending | Tensor | None":
        """As `torch.add` of two tensors of one shape."""
        fits = isinstance(other, Tensor | Pending) and other.shape == self.shape and other.dtype == self._x.dtype
        plain = alpha == 1 and out is None and self._is_open
        if not fits or not plain or self._added is not None or self._low != _NO_BOUND:
            return None
        other = other.blocks if isinstance(other, Pending) else in_blocks(other)
        return self._with("add", self if inplace else None, _added=other)

    def add_(self, other: Any, *, alpha: float = 1) -> Any:
        """As `torch.Tensor.add_`."""
        done = self.plus(other, alpha=alpha, inplace=True)
        return self.tensor.add_(_plain(other), alpha=alpha) if done is None else done

    def pool(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> "Pending | Tensor | None":  # fmt: skip
        """As `torch.nn.functional.max_pool2d`."""
        if ceil_mode or return_indices or self._last != "max_pool2d":
            return None
        kernel, down, pads, apart = (_pair(each) for each in (kernel_size, stride or kernel_size, padding, dilation))
        pool = Pool(Window(kernel, down, apart, (*pads, *pads)), *self.shape[2:])
        x, norm, low = self._x, self._norm, self._low
        if self._added is not None or not self._is_open:
            x, norm, low = self.blocks, Normalised(), _NO_BOUND
        y = _Pool.apply(pool, self._team, self._images, low, norm.eps, x, *norm.tensors)
        made = Pending(self._team, self._images, y, None, self._last, self._readers)
        return made if self._readers else made.tensor

    def _with(self, step: str, made: "Pending | None", **changes: Any) -> "Pending | Tensor":
        """After a step: itself, changed in place, or another one."""
        if made is None:
            made = self._copied()
        made.__dict__.update(changes)
        return made if step != self._last or self._readers else made.tensor


def convolve(x: Any, layer: Kept, moments: bool, values: Tensor, bias: Tensor | None) -> Any:
    """The result of a layer in blocks of images, mean and variance of its channels if they are asked for."""
    inputs, dtype = layer[0].inputs, values.dtype
    fits = x.dim() == 4 and x.shape[1] == inputs and 0 not in x.shape
    if not fits or x.dtype != dtype or dtype not in (torch.float32, torch.float64):
        raise InvalidInput(
            f"a sparse layer in {dtype} reads (N, {inputs}, H, W) in the same torch.float32 or torch.float64,"
            f" not {tuple(x.shape)} in {x.dtype}"
        )
    if isinstance(x, Pending):
        return x.convolved(layer, moments, values, bias)
    return _convolved(in_blocks(x), len(x), layer, moments, values, bias)


def _convolved(x: Tensor, images: int, layer: Kept, moments: bool, values: Tensor, bias: Tensor | None) -> Any:
    plain = _NO_BOUND, 0.0, values, bias, x, None, *Normalised().tensors
    return _Convolve.apply(layer, images, moments, False, *plain)[:3]


def _keeper() -> Any:
    """What is kept for the way back, and how: gradient checkpointing, for one, computes it again."""
    return torch.is_grad_enabled(), torch._C._autograd._top_saved_tensors_default_hooks(True)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _plain(value: Any) -> Any:
    """Nested values with tensors for what is pending."""
    if isinstance(value, Pending):
        return value.tensor
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def _sum(x: Any, other: Any, **options: Any) -> Any:
    return x.plus(other, **options) if isinstance(x, Pending) else other.plus(x, **options)


def _rule(rule: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: rule(x, *args, **more, **kwargs) if isinstance(x, Pending) else None


_OF_TYPE = words("dtype device requires_grad is_cuda layout")
_RULES = {F.batch_norm: _rule(Pending.normalise), F.relu: _rule(Pending.rectify), torch.add: _sum}
_RULES |= {torch.relu: _rule(Pending.rectify), torch.relu_: _rule(Pending.rectify, inplace=True)}
_RULES |= {F.max_pool2d: _rule(Pending.pool)}
_METHODS = {"__add__": torch.add, "__radd__": torch.add, "add": torch.add, "relu": torch.relu, "relu_": torch.relu_}
_METHODS["__iadd__"] = Pending.add_
_OPERATORS = words(
    "bool eq float ge getitem gt int iter le len lt matmul mul ne neg pow rmatmul rmul rpow rsub rtruediv setitem sub"
    " truediv imul isub itruediv"
)


def _method(function: Any) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: function(self, *args, **kwargs)  # noqa: PLW0108  # built-in functions are no methods


def _plain_method(name: str) -> Callable[..., Any]:
    return lambda self, *args: getattr(Tensor, name)(*_plain((self, *args)))


for _name in _OPERATORS:  # which are looked up in the class
    setattr(Pending, f"__{_name}__", _plain_method(f"__{_name}__"))
for _name, _function in _METHODS.items():
    setattr(Pending, _name, _method(_function))
