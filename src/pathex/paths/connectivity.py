"""Which kept weights lie on a path from input to output, and what died with those that do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pathex.paths._effective import EffectiveReplay
from pathex.paths._made import Leaves, Made, saved_to_be_made
from pathex.paths._network import compute_dtype, run, tensors_of, untouched
from pathex.paths._reading import Rule, is_in_place
from pathex.paths.passes import _reached

__all__ = ["Connectivity", "connectivity", "on_paths", "roles"]


@dataclass(frozen=True)
class Connectivity:
    """Kept weights on input-output paths.

    Attributes:
        effective: For each masked weight a bool tensor: kept and on a path.
        disconnected: Number of kept weights that lie on no path.
        dead_layers: Names of the weights of which nothing lies on a path.
        dead_channels: For each weight the number of its output channels of which no weight lies on a path.
    """

    effective: dict[str, Tensor]
    disconnected: int
    dead_layers: list[str]
    dead_channels: dict[str, int]


class _Indicator(torch.autograd.Function):
    """1 where positive, forwards and backwards, so that reachability neither overflows nor underflows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return (grads[0] > 0).to(grads[0].dtype)


@dataclass(eq=False)
class _Connect(EffectiveReplay):
    """Open reading in which every value is 0 (no path from the input arrives) or positive.

    Attributes:
        role: None: paths go through every factor of a product. A number: they end at the next product, where they must
            enter as the factor of that number, and what leaves it must reach the output.
        leaving: For each product which of its results reach the output.
        ends: What ended at products.
    """

    role: int | None = None
    leaving: dict[int, Tensor] = field(default_factory=dict)
    ends: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._products = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self._writes = is_in_place(func) or bool((kwargs or {}).get("inplace"))
        return super().__torch_function__(func, types, args, kwargs)

    def after(self, rule: Rule, result: Any) -> Any:
        if isinstance(result, Tensor) and not self._writes:
            result = _Indicator.apply(result)
        return super().after(rule, result)

    def decide(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Some result of the right form: where decisions choose, paths go through all that may be chosen."""
        with torch.no_grad():
            result = func(*args, **kwargs)
        is_mask = isinstance(result, Tensor) and result.dtype == torch.bool
        return torch.ones_like(result) if is_mask else result

    def joined(self, terms: Sequence[Tensor]) -> Tensor:
        result, number = super().joined(terms), self._products
        self._products += 1
        if self.role is None:
            if result.requires_grad:
                result.register_hook(lambda grad: self.leaving.__setitem__(number, (grad > 0).to(grad.dtype)))
            return result
        if number in self.leaving and self.role < len(terms):
            self.ends.append((terms[self.role] * self.leaving[number]).sum())
        return result.detach()


def connectivity(
    model: nn.Module, mask: Mapping[str, Tensor], x: Tensor, *, output: str | int | None = None
) -> Connectivity:
    """Find the kept weights that lie on no path from an input to an output.

    All gates are open, max pools pass their whole window, and every parameter that is not masked counts as present.

    Args:
        model: The network; left as it was.
        mask: Name to bool tensor, True = kept.
        x: Any input ``(N, ...)``; only its shape counts.
        output: Which of several outputs counts.

    Returns:
        Effective weights, dead layers and dead channels.
    """
    effective = on_paths(model, mask, x, output=output)
    dead_channels = {
        name: int((~_by_output_channel(model, name, used).any(1)).sum()) for name, used in effective.items()
    }
    kept_total = sum(int(m.count_nonzero()) for m in mask.values())
    dead_layers = [name for name, used in effective.items() if not used.any()]
    return Connectivity(
        effective, kept_total - sum(int(e.count_nonzero()) for e in effective.values()), dead_layers, dead_channels
    )


def on_paths(
    model: nn.Module, mask: Mapping[str, Tensor], x: Tensor, *, output: str | int | None = None
) -> dict[str, Tensor]:
    """The kept weights that lie on a path from an input to an output, and nothing about them.

    Args:
        model: The network; left as it was.
        mask: Name to bool tensor, True = kept.
        x: Any input ``(N, ...)``; only its shape counts.
        output: Which of several outputs counts.

    Returns:
        For each masked weight a bool tensor on the CPU.
    """
    return _effective(model, mask, x, output)[0]


def roles(
    model: nn.Module, mask: Mapping[str, Tensor], x: Tensor, *, output: str | int | None = None
) -> dict[str, list[Tensor]]:
    """Tell apart the parts of a weight that play different roles at products: value, gate, query, key.

    Networks fuse such weights into one (the ``qkv`` of an attention, both halves of a GLU). Entries are told apart by
    whether paths of values go through them, and as which factor they enter the next product.

    Args:
        model: The network; left as it was.
        mask: Name to bool tensor, True = kept.
        x: Any input ``(N, ...)``; only its shape counts.
        output: Which of several outputs counts.

    Returns:
        For each masked weight disjoint bool tensors, together the kept entries on a path; most weights have one part.
    """
    whole, leaving = _effective(model, mask, x, output)
    passing = []
    if leaving:
        passing.append(_effective(model, mask, x, output, values_only=True)[0])
        passing += [_effective(model, mask, x, output, role=role, leaving=leaving)[0] for role in (0, 1)]
    found: dict[str, list[Tensor]] = {}
    for name, used in whole.items():
        parts = [used]
        for passed in reversed(passing):  # in the order of the numbers whose bits say what passes
            parts = [half for part in parts for half in (part & ~passed[name], part & passed[name])]
        found[name] = [part for part in parts if part.any()]
    return found


def _effective(
    model: nn.Module, mask: Mapping[str, Tensor], x: Tensor, output: str | int | None, **how: Any
) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """The kept entries on a path, on the CPU, and for each product which of its results reach the output."""
    device = next(iter(model.parameters())).device
    dtype = compute_dtype(model)
    with untouched(model), torch.enable_grad():
        kept = Leaves({name: _indicators(name, entry, dtype, device) for name, entry in mask.items()})
        others = {n: p for n, p in model.named_parameters() if n not in kept and p.is_floating_point()}
        ones = {name: torch.ones(p.shape, dtype=dtype, device=device) for name, p in others.items()}
        own = tensors_of(model, {**ones, **kept}, dtype)
        reading = _Connect(model, own, None, (), "connected", **how)
        start = reading.carry(torch.ones_like(x[:1], dtype=dtype, device=device))
        with saved_to_be_made(), reading:
            result = run(model, own, start, output)
        total = _reached(reading, result).sum() if reading.role is None else sum(reading.ends)
        if not isinstance(total, Tensor) or not total.requires_grad:
            return {name: torch.zeros_like(entry, device="cpu") for name, entry in mask.items()}, reading.leaving
        # Whatever lies on a path has a positive derivative.
        return {name: (product > 0).cpu() for name, product in kept.products(total).items()}, reading.leaving


def _indicators(name: str, kept: Tensor, dtype: torch.dtype, device: torch.device) -> Made:
    """The entries of a mask as 0 and 1."""
    return Made(name, lambda dtype: kept.to(device, dtype, copy=True), kept.shape, dtype, device)


def _by_output_channel(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """``(output channels, weights of each)``; transposed convolutions keep output channels second, per group."""
    module = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, nn.modules.conv._ConvTransposeNd):
        return weight.flatten(1) if weight.dim() > 1 else weight[:, None]
    per_group = weight.unflatten(0, (module.groups, -1)).transpose(1, 2)
    return per_group.flatten(0, 1).flatten(1)
