"""Parameters that are made where a network uses them, and made again where the backward pass does.

A round of scoring reads every weight masked and squared, and asks for its gradient. Held for all layers at once, each
of these takes as much memory as the network. Here the weight of a layer is made in the call of the layer (masked, or
gathered from the processes over which it is spread), what the backward pass needs of it is made once more when it gets
there, and its gradient becomes a score as soon as it is known.
"""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pathex.errors import InvalidInput
from pathex.sharded import in_one_piece

__all__ = ["Leaves", "Made", "Tensors", "checkpoints", "entered", "gathered", "made_where_used", "saved_to_be_made"]

_WORTH = 1 << 16  # entries from which on making a tensor again is worth the time

Make = Callable[[torch.dtype], Tensor]


@dataclass
class _Latest:
    """What was made last, which a layer asks for several times in a row, and what is too small to be made again."""

    key: Any = None
    tensor: Tensor | None = None
    small: dict[Any, Tensor] = field(default_factory=dict)

    def forget(self) -> None:
        self.key = self.tensor = None
        self.small.clear()


@dataclass(frozen=True, eq=False)
class Made:
    """A parameter of a call that is made where the network uses it.

    Attributes:
        name: Its name.
        make: From a precision to the tensor, the same whenever it is asked; it is not written into.
        shape: Its shape.
        dtype: Its precision.
        device: Where it is.
        taken: What takes up gradients; None: none is asked for.
        latest: Shared by those of one call.
    """

    name: str
    make: Make
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    taken: "_Taken | None" = None
    latest: _Latest = field(default_factory=_Latest)

    def detach(self) -> "Made":
        """The same without gradient.

        Returns:
            A new one.
        """
        return replace(self, taken=None)

    def to(self, dtype: torch.dtype) -> "Made":
        """The same in another precision.

        Args:
            dtype: The precision.

        Returns:
            A new one, without gradient if the precision differs.
        """
        return self if dtype == self.dtype else replace(self, dtype=dtype, taken=None)

    def value(self) -> Tensor:
        """The tensor, made if it is not the one made last. Gradients are off where it is called.

        Returns:
            A tensor without gradient, which must not be written into.
        """
        latest, key = self.latest, (self.make, self.dtype)
        if latest.key == key and latest.tensor is not None:
            return latest.tensor
        if key in latest.small:
            return latest.small[key]
        latest.key = latest.tensor = None  # not beside the new one
        tensor = self.make(self.dtype)
        if self.shape.numel() < _WORTH:
            latest.small[key] = tensor
        else:
            latest.key, latest.tensor = key, tensor
        return tensor

    def used(self) -> Tensor:
        """The tensor for a use of it; a gradient that arrives there goes to `taken`.

        Returns:
            A new tensor object, which knows its name.
        """
        tensor: Any
        with torch._C.DisableTorchFunction():
            if self.taken is not None:
                tensor = _Use.apply(self.taken.anchor, self)
                tensor._pathex_scored = True
            else:
                with torch.no_grad():
                    tensor = self.value().detach()
        tensor._pathex_name, tensor._pathex_again = self.name, self.value
        return tensor

    def holds(self, memory: int) -> bool:
        """Whether an address is that of the tensor made last.

        Args:
            memory: The address of a tensor's memory.

        Returns:
            True if so.
        """
        tensor = self.latest.small.get((self.make, self.dtype), self.latest.tensor)
        return tensor is not None and tensor.untyped_storage().data_ptr() == memory


Tensors = Mapping[str, Tensor | Made]
"""Parameters and buffers of a call by name."""


class _Use(torch.autograd.Function):
    """A use of a scored weight; the gradient that reaches it is taken up."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, made: Made) -> Tensor:
        ctx.made = made
        return made.value().detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        made, taken = ctx.made, ctx.made.taken
        product = (made.value() * grads[0]).to(taken.home or made.device)
        if made.name in taken.products:
            taken.products[made.name] += product
        else:
            taken.products[made.name] = product
        return None, None


@dataclass
class _Taken:
    """Products of weights and their gradients.

    Attributes:
        anchor: What all uses of the weights depend on, as far as autograd knows.
        home: Where products go; None: they stay where the weights are.
        products: Name to product.
    """

    anchor: Tensor
    home: torch.device | None
    products: dict[str, Tensor] = field(default_factory=dict)


class Leaves(Mapping[str, Made]):
    """Scored weights that are made where they are used.

    Args:
        weights: The weights by name.
        home: Where their products go; None: they stay where the weights are.
    """

    def __init__(self, weights: Mapping[str, Made], home: torch.device | None = None) -> None:
        self._latest = _Latest()
        self._taken = _Taken(torch.zeros((), requires_grad=True), home)
        self._weights = {name: replace(made, taken=self._taken, latest=self._latest) for name, made in weights.items()}

    def __getitem__(self, name: str) -> Made:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def products(self, total: Tensor) -> dict[str, Tensor]:
        """Each weight times the derivative of a sum with respect to it.

        Args:
            total: A scalar; its graph is gone afterwards.

        Returns:
            Name to a new tensor in the weight's shape; zero for a weight that the sum does not depend on.

        Raises:
            InvalidInput: If it depends on none of them.
        """
        if not total.requires_grad:
            raise InvalidInput("the output that counts depends on no prunable weight; name another output with output=")
        taken = self._taken
        try:
            torch.autograd.grad(total, taken.anchor, allow_unused=True)
            found = taken.products
        finally:
            taken.products = {}
            self._latest.forget()
        return {
            name: found.pop(name)
            if name in found
            else torch.zeros(made.shape, dtype=made.dtype, device=taken.home or made.device)
            for name, made in self._weights.items()
        }


def gathered(parameters: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Made]:
    """Parameters that are spread over processes, which all have to use them together.

    Args:
        parameters: ``DTensor`` by name.
        dtype: Precision of those that are floating-point.

    Returns:
        Name to what makes the parameter in one piece.
    """

    def made(name: str, parameter: Tensor) -> Made:
        own = dtype if parameter.is_floating_point() else parameter.dtype
        whole = lambda dtype: in_one_piece(parameter.detach()).to(dtype)  # noqa: E731
        return Made(name, whole, parameter.shape, own, parameter.device, latest=latest)

    latest = _Latest()
    return {name: made(name, parameter) for name, parameter in parameters.items()}


# -- in a call ---------------------------------------------------------------------------------------------------------


class _Parameters(dict[str, Any]):
    """The parameters of a module, some of which are made when somebody asks for them."""

    def __init__(self, entries: Mapping[str, Any], made: Mapping[str, Made]) -> None:
        super().__init__(entries)
        self._made = dict(made)
        self._alive: dict[tuple[str, bool], weakref.ref[Tensor]] = {}

    # Reading it is enough; a module that writes a parameter in its forward pass replaces what is made.
    def __setitem__(self, name: str, value: Any) -> None:
        self._made.pop(name, None)
        super().__setitem__(name, value)

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            return super().__getitem__(name)
        key = name, torch.is_grad_enabled()
        known = self._alive[key]() if key in self._alive else None
        if known is None:
            known = self._made[name].used()
            self._alive[key] = weakref.ref(known)
        return known

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401  (a dict's own knows nothing of what is made)

    def items(self) -> Any:
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        return (self[name] for name in self)


@contextlib.contextmanager
def made_where_used(model: nn.Module, made: Sequence[tuple[nn.Module, Mapping[str, Made]]]) -> Iterator[None]:
    """Let the modules of a network make parameters when they use them.

    Args:
        model: The network; its modules have their parameters back afterwards.
        made: Modules and their parameters.

    Yields:
        Nothing.
    """
    before = [(module, module._parameters) for module, _ in made]
    try:
        for module, own in made:
            module.__dict__["_parameters"] = _Parameters(module._parameters, own)
        with _without_gathering(model):
            yield
    finally:
        for module, parameters in before:
            module.__dict__["_parameters"] = parameters


@contextlib.contextmanager
def _without_gathering(model: nn.Module) -> Iterator[None]:
    """Put aside the hooks by which ``fully_shard`` gathers the weights of a whole block."""
    aside: list[tuple[Any, dict[int, Any]]] = []
    try:
        if "torch.distributed.fsdp" in sys.modules:
            for module in model.modules():
                for hooks in (module._forward_pre_hooks, module._forward_hooks):
                    if any(map(_gathers, hooks.values())):
                        aside.append((hooks, dict(hooks)))
                        for key in [key for key, hook in hooks.items() if _gathers(hook)]:
                            del hooks[key]
        yield
    finally:
        for hooks, before in aside:
            hooks.clear()
            hooks.update(before)


def _gathers(hook: Any) -> bool:
    room = type(hook.__self__).__module__ if hasattr(hook, "__self__") else getattr(hook, "__module__", None)
    return str(room).startswith("torch.distributed.fsdp")


# -- what is saved for the backward pass -------------------------------------------------------------------------------


def entered(function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """A function of tensors that may have been made, whose result can be made again as they can.

    Args:
        function: The function.
        *operands: Its operands.

    Returns:
        Its result.
    """
    result = function(*operands)
    again = [_again(operand) for operand in operands]
    if any(each is not None for each in again):
        # Without history, and without what is made.
        kept = [None if each else operand.detach() for each, operand in zip(again, operands, strict=True)]
        result._pathex_again = lambda: function(  # type: ignore[attr-defined]
            *(each() if each else operand for each, operand in zip(again, kept, strict=True))
        )
    return result


def _again(tensor: Tensor) -> Callable[[], Tensor] | None:
    """How a tensor, or the one that it is a view of, is made again."""
    own: Callable[[], Tensor] | None = getattr(tensor, "_pathex_again", None)
    base = tensor._base
    if own is not None or base is None:
        return own
    whole: Callable[[], Tensor] | None = getattr(base, "_pathex_again", None)
    if whole is None:
        return None
    size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset() - base.storage_offset()

    def view() -> Tensor:
        made = whole()
        return made.as_strided(size, stride, made.storage_offset() + offset)

    return view


class _Saved(NamedTuple):
    """A tensor that was kept for the backward pass, and how often it had been written into."""

    tensor: Tensor
    version: int


def _pack(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        whole = tensor if tensor._base is None else tensor._base
        if whole.numel() >= _WORTH and (again := _again(tensor)) is not None:
            return again
        return _Saved(tensor.detach(), tensor._version)


def _unpack(saved: Any) -> Tensor:
    if not isinstance(saved, _Saved):
        with torch.no_grad():
            again: Tensor = saved()
            return again
    if saved.tensor._version != saved.version:
        raise RuntimeError("a tensor that the backward pass needs was written into by an in-place operation")
    return saved.tensor


def saved_to_be_made() -> contextlib.AbstractContextManager[Any]:
    """Save for the backward pass only what cannot be made again.

    Returns:
        A context for the forward pass.
    """
    return torch.autograd.graph.saved_tensors_hooks(_pack, _unpack)


def checkpoints() -> bool:
    """Whether a network is in a checkpoint, which saves nothing and runs again in the backward pass.

    Returns:
        True if it is.
    """
    top = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return top is not None and getattr(top[0], "__module__", None) == "torch.utils.checkpoint"
