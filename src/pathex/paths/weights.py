"""The tensors of a network as a reading sees them, and the scores of its weights, taken where they are used."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pathex.errors import InvalidInput
from pathex.graph import Node

_WORTH = 1 << 16  # entries from which on a weight is made again in the backward pass instead of kept


class Weights:
    """Parameters and buffers by name: masked, replaced and cast when they are asked for.

    Args:
        model: The network; its tensors are read, not changed.
        dtype: Precision of floating-point tensors.
        mask: Name to bool tensor, True = kept.
        replaced: Tensors that stand in for parameters or buffers, by name.
        scored: Names of the parameters whose scores are asked for.
        prunable: Names of those that weights are known by which a network computes from them; None: the scored ones.
        infinite: Names of those whose entries may be infinite or NaN: a choice removes them, a product would not.

    Raises:
        InvalidInput: If ``replaced`` names a tensor that the network does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        *,
        mask: Mapping[str, Tensor] | None = None,
        replaced: Mapping[str, Tensor] | None = None,
        scored: Collection[str] = (),
        prunable: Collection[str] | None = None,
        infinite: Collection[str] = (),
    ) -> None:
        self.dtype, self.mask, self.infinite = dtype, mask or {}, infinite
        self.own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, tensor in (replaced or {}).items():
            if name not in self.own:
                raise InvalidInput(f"the model has no parameter or buffer named {name!r}")
            self.own[name] = tensor
        self.scores: dict[str, Tensor | None] = dict.fromkeys(scored)
        self.prunable = tuple(scored if prunable is None else prunable)

    def __call__(self, name: str) -> Tensor:
        """The tensor of a name: new, or the network's own."""
        own = self.own[name].detach()
        if own.is_floating_point() or own.dtype == torch.bool:
            own = own.to(self.dtype)
        kept = self.mask.get(name)
        if kept is None:
            return own
        kept = kept.to(own.device)
        # Products with bytes are many times faster than a choice.
        return torch.where(kept, own, 0) if name in self.infinite else own * kept.view(torch.uint8)

    def add(self, name: str, product: Tensor) -> None:
        """Add to the score of a weight.

        Args:
            name: Its name.
            product: In its shape; it is taken over.
        """
        known = self.scores[name]
        self.scores[name] = product if known is None else known.add_(product)

    def take(self) -> dict[str, Tensor]:
        """The scores, which are forgotten; zero for a weight that nothing was added to.

        Returns:
            Name to a tensor in the weight's shape.
        """
        taken = {}
        for name, score in self.scores.items():
            own = self.own[name]
            taken[name] = torch.zeros(own.shape, dtype=self.dtype, device=own.device) if score is None else score
        self.scores = dict.fromkeys(self.scores)
        return taken


class Call(Protocol):
    """A linear map of an input with a weight."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The result."""
        ...

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool) -> tuple[Tensor | None, Tensor]:
        """The gradients of input and weight."""
        ...


class _Linear:
    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool) -> tuple[Tensor | None, Tensor]:
        rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return grad @ weight if wants_input else None, rows.T @ columns


class _Convolution:
    def __init__(self, node: Node) -> None:
        self.rank = len(node.shape or ()) - 2
        self.transposed = "transpose" in node.op
        size = [self._all_of(node[name]) for name in ("stride", "dilation")]
        self.stride, self.dilation = size
        padding = node["padding"]
        self.uneven: list[int] | None = None
        if padding == "same":
            weight: Node = node["weight"]
            total = [d * (k - 1) for d, k in zip(self.dilation, (weight.shape or ())[2:], strict=True)]
            padding = [t // 2 for t in total]
            if any(t % 2 for t in total):
                self.uneven = [n for t in reversed(total) for n in (0, t % 2)]
        self.padding = self._all_of(0 if padding == "valid" else padding)
        # A strided convolution of single points reads some of them. In channels last oneDNN 3.12 writes beyond the
        # memory of its gradient for few channels (https://github.com/uxlfoundation/oneDNN/issues/6035).
        points = all(size == 1 for size in (node["weight"].shape or ())[2:]) and not any(self.padding)
        self.read = None if self.transposed or not points or set(self.stride) == {1} else self.stride
        if self.read:
            self.stride = [1] * self.rank
        every = slice(None)
        self.taken = (every, every, *(slice(None, None, step) for step in self.read or ()))
        self.output_padding = self._all_of(node.arguments.get("output_padding", 0))
        self.groups = int(node["groups"])

    def _all_of(self, value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * self.rank if len(values) == 1 else values

    def _options(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.convolution(self._read(x), weight, None, *self._options())

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool) -> tuple[Tensor | None, Tensor]:
        read, wanted = self._read(x), (wants_input, True, False)
        at_x, at_weight, _ = torch.ops.aten.convolution_backward(grad, read, weight, None, *self._options(), wanted)
        if self.uneven and at_x is not None:
            inside = (slice(None), slice(None), *map(slice, x.shape[2:]))
            at_x = at_x[inside]
        if self.read and at_x is not None:
            whole = torch.zeros_like(x)
            whole[self.taken] = at_x
            at_x = whole
        return at_x, at_weight

    def _read(self, x: Tensor) -> Tensor:
        if self.read:
            return x[self.taken]
        return F.pad(x, self.uneven) if self.uneven else x


class _Other:
    """Any function that is linear in the weight, differentiated by autograd."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.forward = function

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool) -> tuple[Tensor | None, Tensor]:
        with torch.enable_grad():
            leaves = x.detach().requires_grad_(wants_input), weight.detach().requires_grad_()
            wanted = leaves if wants_input else leaves[1:]
            *at_x, at_weight = torch.autograd.grad(self.forward(*leaves), wanted, grad)
        return at_x[0] if at_x else None, at_weight


def call_of(node: Node, function: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """How a weighted node maps its input with its weight."""
    if node.op == "linear" and len(node["weight"].shape) == 2:
        return _Linear()
    if node.op.startswith("conv") and len(node.shape or ()) == len(node["weight"].shape):
        return _Convolution(node)
    return _Other(function)


class _Weighed(torch.autograd.Function):
    """A linear map whose weight is made in the call, and what is large of it once more in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,
        call: Call,
        made: Callable[[], Tensor],
        take: Callable[[Tensor], None],
    ) -> Tensor:
        weight = made()
        ctx.save_for_backward(x)
        ctx.call, ctx.made, ctx.take = call, made, take
        ctx.weight = weight if weight.numel() < _WORTH else None
        return call.forward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        weight = ctx.made() if ctx.weight is None else ctx.weight
        at_x, at_weight = ctx.call.backward(grads[0], x, weight, ctx.needs_input_grad[0])
        ctx.take(at_weight.mul_(weight))
        return at_x, None, None, None, None


def weigh(
    x: Tensor, call: Call, made: Callable[[], Tensor], anchor: Tensor | None, take: Callable[[Tensor], None] | None
) -> Tensor:
    """The input of a layer times its weight; the product of the weight and its gradient goes to ``take``."""
    if anchor is None or take is None:
        return call.forward(x, made())
    result: Tensor = _Weighed.apply(x, anchor, call, made, take)
    return result
