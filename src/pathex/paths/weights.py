"""The tensors of a network as a reading sees them, and the scores of its weights, taken where they are used."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pathex.errors import InvalidInput, MaskMismatch
from pathex.graph import Node

_WORTH = 1 << 16  # entries from which on a weight is made again in the backward pass instead of kept


class Weights:
    """Parameters and buffers by name: masked, replaced and cast when they are asked for.

    The scores of those that are ``scored`` are summed up here. Weights that a network computes are known by the
    ``prunable`` parameters they are made of (None: the scored ones). Entries of ``infinite`` ones may be infinite or
    NaN: a choice removes them, a product would not. `InvalidInput` if ``replaced`` names what the network has not,
    `MaskMismatch` if the ``mask`` does not fit it.
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
        for name, kept in self.mask.items():
            if (own := self.own.get(name)) is None:
                raise MaskMismatch(f"the mask names {name!r}, which is no parameter, or not the first name of one")
            if kept.dtype != torch.bool or kept.shape != own.shape:
                allowed, found = (f"of shape {tuple(each.shape)}" for each in (own, kept))
                raise MaskMismatch(f"mask entry {name!r} must be a bool tensor {allowed}, not {kept.dtype} {found}")
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
        """Add a product in its shape, which is taken over, to the score of a weight."""
        known = self.scores[name]
        self.scores[name] = product if known is None else known.add_(product)

    def take(self) -> dict[str, Tensor]:
        """The scores by name, which are forgotten; zero for a weight that nothing was added to."""
        taken = {}
        for name, score in self.scores.items():
            own = self.own[name]
            taken[name] = torch.zeros(own.shape, dtype=self.dtype, device=own.device) if score is None else score
        self.scores = dict.fromkeys(self.scores)
        return taken


class Call:
    """A map of an input with a weight that is linear in both, differentiated by autograd."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The result."""
        return self.function(x, weight)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool) -> tuple[Tensor | None, Tensor]:
        """The gradients of input and weight."""
        with torch.enable_grad():
            leaves = x.detach().requires_grad_(wants_input), weight.detach().requires_grad_()
            wanted = leaves if wants_input else leaves[1:]
            *at_x, at_weight = torch.autograd.grad(self.forward(*leaves), wanted, grad)
        return at_x[0] if at_x else None, at_weight


class _Linear(Call):
    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool) -> tuple[Tensor | None, Tensor]:
        rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return grad @ weight if wants_input else None, rows.T @ columns


def per_dimension(value: Any, rank: int) -> list[int]:
    """A number for each spatial dimension, as torch takes one for all of them."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


class _Convolution(Call):
    def __init__(self, node: Node) -> None:
        shape: Sequence[int] = node["weight"].shape
        rank = len(shape) - 2
        self.transposed = "transpose" in node.op
        stride, self.dilation = (per_dimension(node[name], rank) for name in ("stride", "dilation"))
        padding = 0 if node["padding"] == "valid" else node["padding"]
        self.uneven: list[int] = []
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, shape[2:], strict=True)]
            padding = [t // 2 for t in total]
            if any(t % 2 for t in total):
                self.uneven = [n for t in reversed(total) for n in (0, t % 2)]
        self.padding = per_dimension(padding, rank)
        # A strided convolution of single points reads some of them. In channels last oneDNN 3.12 writes beyond the
        # memory of its gradient for few channels (https://github.com/uxlfoundation/oneDNN/issues/6035).
        points = not self.transposed and set(shape[2:]) == {1} and not any(self.padding)
        self.reads = points and set(stride) != {1}
        self.stride = [1] * rank if self.reads else stride
        self.taken = (slice(None), slice(None), *(slice(None, None, step) for step in stride))
        self.output_padding = per_dimension(node.arguments.get("output_padding", 0), rank)
        self.groups = int(node["groups"])

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
        if self.reads and at_x is not None:
            whole = torch.zeros_like(x)
            whole[self.taken] = at_x
            at_x = whole
        return at_x, at_weight

    def _read(self, x: Tensor) -> Tensor:
        if self.reads:
            return x[self.taken]
        return F.pad(x, self.uneven) if self.uneven else x


def call_of(node: Node, function: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """How a weighted node maps its input with its weight."""
    if node.op == "linear" and len(node["weight"].shape) == 2:
        return _Linear(F.linear)
    if node.op.startswith("conv") and len(node.shape or ()) == len(node["weight"].shape):
        return _Convolution(node)
    return Call(function)


class _Weighed(torch.autograd.Function):
    """A linear map whose weight is made in the call, and what is large of it once more in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, call: Call, made: Callable[[], Tensor], take: Callable[[Tensor], None]
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
    return _Weighed.apply(x, anchor, call, made, take)
