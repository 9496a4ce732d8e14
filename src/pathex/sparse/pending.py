"""What lies between layers that train by their kept weights: results that wait for the next layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import words
from pathex.sparse.planes import Window
from pathex.sparse.team import Team
from pathex.sparse.training import NO_BOUND, Add, Convolve, Kernel, MaxPool, Normalised
from pathex.sparse.unit import Pool, as_images, in_blocks


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
        self._team, self._images, self._x, self.moments = team, images, x, moments
        self._last, self.readers = last, readers
        self._norm, self._low, self._added = Normalised(), NO_BOUND, None
        self._gate: Tensor | None = None
        self._marks: Tensor | None = None
        self._done: Tensor | None = None
        self._tensor: Tensor | None = None
        self._keeper = _keeper()
        self.shape = torch.Size((images, *x.shape[1:4]))

    @classmethod
    def of(cls, team: Team, x: Any) -> "Pending":
        """Images ``(N, C, H, W)`` for which nothing is to be done; what waits already as it is."""
        return x if isinstance(x, Pending) else cls(team, len(x), in_blocks(x), None, "", 2)

    @property
    def tensor(self) -> Tensor:
        """The values ``(N, C, H, W)``, computed when they are asked for."""
        own = self._here()
        if own._tensor is None:
            blocks = own.blocks  # images of a single one are a view, which others may write into
            own._tensor = as_images(blocks.clone() if len(blocks) == 1 else blocks, own._images)
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
                given = self._gate, self._marks, self._x, self._added, *self._norm.tensors
                self._done = Add.apply(self._team, self._images, self._low, self._norm.eps, *given)
        return self._done

    @property
    def _is_open(self) -> bool:
        """Whether nothing was computed from it yet."""
        return self._done is None and self._tensor is None

    @property
    def _waits(self) -> bool:
        return self._norm.variance is not None or self._added is not None or self._low != NO_BOUND or self._is_gated

    @property
    def _is_gated(self) -> bool:
        return self._gate is not None or self._marks is not None

    def convolved(self, layer: Kernel, moments: bool, values: Tensor, bias: Tensor | None) -> Any:
        """What a layer makes of it: the result, mean and variance of its channels."""
        if self._x.requires_grad and not torch.is_grad_enabled():
            raise UnsupportedOperation(
                "under no_grad a sparse layer reads what needs gradients: detach it, or checkpoint(use_reentrant=False)"
            )
        own, is_sum = self._here(), self._added is not None and torch.is_grad_enabled()
        copied = is_sum or self.readers > 1
        whole = copied or self._marks is not None
        if self._is_open and (not whole or layer[0].shape(*self.shape[2:]).covers):
            given = self._gate, self._marks, values, bias, self._x, self._added, *self._norm.tensors
            *found, own._done = Convolve.apply(layer, self._images, moments, copied, self._low, self._norm.eps, *given)
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
        if self._waits or not self._is_open or (training and (self.moments is None or count == 1)):
            return None
        if training:
            assert self.moments is not None
            mean, variance = self.moments
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

    def marked(self, readers: int) -> tuple["Pending", Tensor]:
        """As `torch.relu` for so many readers, and bits ``(blocks, C, H, W)`` of where it is, once read, positive."""
        opened = self._closed() if self._is_gated or not self._is_open else self
        marks = torch.empty(opened._x.shape[:4], dtype=torch.int16)
        return opened._copied(_low=0.0, _marks=marks, readers=readers), marks

    def gated(self, gate: Tensor, readers: int) -> "Pending":
        """What it is where such bits say so, zero elsewhere."""
        opened = self._closed() if self._is_gated or not self._is_open else self
        return opened._copied(_gate=gate, readers=readers)

    def _closed(self) -> "Pending":
        return Pending(self._team, self._images, self.blocks, None, self._last, self.readers)

    def plus(
        self, other: Any, *, alpha: float = 1, inplace: bool = False, out: Any = None
    ) -> "Pending | Tensor | None":
        """As `torch.add` of two tensors of one shape."""
        fits = isinstance(other, Tensor | Pending) and other.shape == self.shape and other.dtype == self._x.dtype
        plain = alpha == 1 and out is None and self._is_open and not self._is_gated
        if not fits or not plain or self._added is not None or self._low != NO_BOUND:
            return None
        other = other.blocks if isinstance(other, Pending) else in_blocks(other)
        return self._with("add", self if inplace else None, _added=other)

    def __iadd__(self, other: Any) -> Any:
        return self.add_(other)

    def add_(self, other: Any, *, alpha: float = 1) -> Any:
        """As `torch.Tensor.add_`."""
        done = self.plus(other, alpha=alpha, inplace=True)
        if done is not None:
            return done
        with torch.set_grad_enabled(self._keeper[0]):
            own = self.tensor
        return own.add_(_plain(other), alpha=alpha)

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
        if self._added is not None or self._is_gated or not self._is_open:
            x, norm, low = self.blocks, Normalised(), NO_BOUND
        y = MaxPool.apply(pool, self._team, self._images, low, norm.eps, x, *norm.tensors)
        made = Pending(self._team, self._images, y, None, self._last, self.readers)
        return made if self.readers else made.tensor

    def _with(self, step: str, made: "Pending | None", **changes: Any) -> "Pending | Tensor":
        """After a step: itself, changed in place, or another one."""
        if made is None:
            made = self._copied()
        made.__dict__.update(changes, _done=None)  # what is added may be itself, which then is done
        return made if step != self._last or self.readers else made.tensor


def convolve(x: Any, layer: Kernel, moments: bool, values: Tensor, bias: Tensor | None) -> Any:
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


def _convolved(x: Tensor, images: int, layer: Kernel, moments: bool, values: Tensor, bias: Tensor | None) -> Any:
    plain = NO_BOUND, 0.0, None, None, values, bias, x, None, *Normalised().tensors
    return Convolve.apply(layer, images, moments, False, *plain)[:3]


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
    found = x.plus(other, **options) if isinstance(x, Pending) else None
    return other.plus(x, **options) if found is None and isinstance(other, Pending) else found


def _rule(rule: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: rule(x, *args, **more, **kwargs) if isinstance(x, Pending) else None


_OF_TYPE = words("dtype device requires_grad is_cuda layout")
_RULES: dict[Any, Any] = {F.batch_norm: _rule(Pending.normalise), F.relu: _rule(Pending.rectify), torch.add: _sum}
_RULES[torch.ops.aten.add.Tensor] = _sum
_RULES |= {torch.relu: _rule(Pending.rectify), torch.relu_: _rule(Pending.rectify, inplace=True)}
_RULES |= {F.max_pool2d: _rule(Pending.pool)}
_METHODS = {"__add__": torch.add, "__radd__": torch.add, "add": torch.add, "relu": torch.relu, "relu_": torch.relu_}
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
