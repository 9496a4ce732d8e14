"""Which kept weights lie on a path from input to output, and what died with those that do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathex.paths._effective import EffectiveReplay
from pathex.paths._network import compute_dtype, run, tensors_of, untouched
from pathex.paths._reading import Rule, is_in_place
from pathex.paths.passes import _reached

__all__ = ["Connectivity", "connectivity"]


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


class _Connect(EffectiveReplay):
    """Open reading in which every value is 0 (no path from the input arrives) or positive."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self._writes = is_in_place(func) or bool((kwargs or {}).get("inplace"))
        return super().__torch_function__(func, types, args, kwargs)

    def after(self, rule: Rule, result: Any) -> Any:
        if isinstance(result, Tensor) and not self._writes:
            result = _Indicator.apply(result)
        return super().after(rule, result)


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
    device = next(iter(model.parameters())).device
    dtype = compute_dtype(model)
    with untouched(model), torch.enable_grad():
        ones = {name: torch.ones_like(p, dtype=dtype) for name, p in model.named_parameters() if p.is_floating_point()}
        kept = {name: m.to(device, dtype, copy=True).requires_grad_() for name, m in mask.items()}
        own = tensors_of(model, {**{n: t.requires_grad_(False) for n, t in ones.items()}, **kept}, dtype)
        reading = _Connect(model, own, None, (), "connected")
        start = reading.carry(torch.ones_like(x[:1], dtype=dtype, device=device))
        with reading:
            result = run(model, own, start, output)
        total = _reached(reading, result).sum()
        grads = torch.autograd.grad(total, list(kept.values()), allow_unused=True) if kept else ()
    effective, dead_channels = {}, {}
    for (name, weight), grad in zip(kept.items(), grads, strict=True):
        used = torch.zeros_like(weight, dtype=torch.bool) if grad is None else (weight > 0) & (grad > 0)
        effective[name] = used.cpu()
        dead_channels[name] = int((~_by_output_channel(model, name, effective[name]).any(1)).sum())
    kept_total = sum(int(m.sum()) for m in mask.values())
    dead_layers = [name for name, used in effective.items() if not used.any()]
    return Connectivity(
        effective, kept_total - sum(int(e.sum()) for e in effective.values()), dead_layers, dead_channels
    )


def _by_output_channel(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """``(output channels, weights of each)``; transposed convolutions keep output channels second, per group."""
    module = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, nn.modules.conv._ConvTransposeNd):
        return weight.flatten(1) if weight.dim() > 1 else weight[:, None]
    per_group = weight.unflatten(0, (module.groups, -1)).transpose(1, 2)
    return per_group.flatten(0, 1).flatten(1)
