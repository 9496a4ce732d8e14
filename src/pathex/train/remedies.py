"""Remedies for sparse training, each around the steps of any optimizer and on any mask.

HAM: Jacobs, Gadhikar, Rubio-Madrigal, Burkholz (ICLR 2026). Sign-In: Gadhikar, Jacobs, Zhou, Burkholz (NeurIPS 2025).
SparseOpt: Adnan, Jain, Jacobs, Sharma, Krishnan, Burkholz, Ioannou (ICML 2026). Cards: docs/guides/training.md.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer

from pathex.errors import InvalidInput, check_integer, check_name

OPTIONS: Mapping[str, Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "average": {"ema": {"decay": 0.999}, "swa": {"start": 0.75}},
        "remedy": {"ham": {"alpha": 200.0, "beta": 1e-3}, "sign-in": {"every": 1}, "sparseopt": {}},
    }
)


class Remedy:
    """What `attach_remedy` puts around the steps of an optimizer."""

    def __init__(self, optimizer: Optimizer, weights: Mapping[str, Tensor]) -> None:
        trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        self._optimizer = optimizer
        self._names = {weight: name for name, weight in weights.items() if weight in trained}

    def _stepping(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Weight, gradient and learning rate of what has a gradient."""
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                if weight in self._names and weight.grad is not None:
                    yield weight, weight.grad, group["lr"]

    def end_epoch(self, number: int) -> None:
        """To be called after every epoch, with the number of those that are over."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the network and its optimizer."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` returned, after network and optimizer did."""


class _Ham(Remedy):
    """``w <- w exp(lr (-alpha sign(w) grad - beta))`` after the step, with an exponent within 5 of 0."""

    def __init__(self, *given: Any, alpha: float = 200.0, beta: float = 1e-3) -> None:
        super().__init__(*given)
        self._alpha, self._beta = alpha, beta
        self._optimizer.register_step_post_hook(self._after_step)

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        for weight, gradient, lr in self._stepping():
            exponent = (weight.sign() * gradient).mul_(-self._alpha).sub_(self._beta).mul_(lr)
            weight.mul_(exponent.clamp_(-5, 5).exp_())


def balanced(weight: Tensor) -> Tensor:
    """The factors m, w of a weight, (2, ...), with ``m w = weight``, ``m^2 - w^2 = 1`` and m > 0."""
    m = ((1 + (1 + 4 * weight.square()).sqrt()) / 2).sqrt()
    return torch.stack((m, weight / m))


class _SignIn(Remedy):
    """Steps two factors in place of each weight, by an optimizer of their own, before the other's step."""

    def __init__(self, *given: Any, every: int = 1) -> None:
        super().__init__(*given)
        self._every = every
        self._factors = {weight: balanced(weight.detach()) for weight in self._names}
        groups = [
            {**group, "params": [self._factors[each] for each in group["params"] if each in self._factors]}
            for group in self._optimizer.param_groups
        ]
        self._inner = type(self._optimizer)(groups, lr=1.0)  # type: ignore[call-arg] # all settings are in the groups
        self._put(self._factors)
        self._optimizer.register_step_pre_hook(self._before_step)

    @torch.no_grad()
    def _put(self, weights: Iterable[Tensor]) -> None:
        for weight in weights:
            weight.copy_(torch.mul(*self._factors[weight]))

    @torch.no_grad()
    def _before_step(self, *_: object) -> None:
        for given, own in zip(self._optimizer.param_groups, self._inner.param_groups, strict=True):
            own.update({name: value for name, value in given.items() if name != "params"})
        stepping = []
        for weight, gradient, _lr in self._stepping():
            factors = self._factors[weight]
            self._renew(weight, factors)
            factors.grad = gradient * factors.flip(0)
            weight.grad = None  # its own optimizer passes it over
            stepping.append(weight)
        self._inner.step()
        self._inner.zero_grad()
        self._put(stepping)

    def _renew(self, weight: Tensor, factors: Tensor) -> None:
        """Balanced factors without memory for what the mask moved or holds at zero."""
        new = (weight != torch.mul(*factors)) | (weight == 0)
        factors.copy_(torch.where(new, balanced(weight), factors))
        for memory in self._inner.state.get(factors, {}).values():
            if isinstance(memory, Tensor) and memory.shape == factors.shape:
                memory.masked_fill_(new, 0)

    def end_epoch(self, number: int) -> None:
        if number % self._every == 0:
            self._load([balanced(weight.detach()) for weight in self._factors])
            self._put(self._factors)

    def _load(self, values: Iterable[Tensor]) -> None:
        for factors, value in zip(self._factors.values(), values, strict=True):
            factors.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"factors": list(self._factors.values()), "optimizer": self._inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._load(state["factors"])
        self._inner.load_state_dict(state["optimizer"])


def unit_factors(kept: Tensor, groups: int | None = None) -> Tensor:
    """``sqrt(1 - s_i) / sqrt(1 - s_mean)`` in the shape of a mask; with ``groups`` of a transposed convolution."""
    parts = kept.double().unflatten(0, (groups or 1, -1))
    density = parts.mean([dim for dim in range(1, parts.dim()) if dim != (1 if groups is None else 2)], keepdim=True)
    mean = density.mean().clamp_min(torch.finfo(density.dtype).tiny)
    return (density / mean).sqrt().expand_as(parts).flatten(0, 1)


class _SparseOpt(Remedy):
    """Gradients of every masked layer times `unit_factors` before the step."""

    def __init__(self, *given: Any, mask: Callable[[], Mapping[str, Tensor]], groups: Mapping[str, int]) -> None:
        super().__init__(*given)
        self._mask, self._groups = mask, groups
        self._seen: Mapping[str, Tensor] | None = None
        self._scales: dict[Tensor, Tensor] = {}
        self._optimizer.register_step_pre_hook(self._before_step)

    @torch.no_grad()
    def _before_step(self, *_: object) -> None:
        if (mask := self._mask()) is not self._seen:  # it moved
            self._seen, self._scales = mask, {}
            for weight, name in self._names.items():
                if name in mask and mask[name].dim() > 1:
                    scale = unit_factors(mask[name], self._groups.get(name))
                    self._scales[weight] = (scale if weight.shape == scale.shape else scale[mask[name]]).to(weight)
        for weight, gradient, _lr in self._stepping():
            if weight in self._scales:
                gradient.mul_(self._scales[weight])


def attach_remedy(
    name: str,
    optimizer: Optimizer,
    model: nn.Module,
    mask: Callable[[], Mapping[str, Tensor]],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Remedy:
    """Put a remedy around the steps of an optimizer; after a mask was attached, whose zeros it keeps.

    It works on parameters of two or more dimensions and on all in the mask, in its shape or as vectors of kept weights.

    Args:
        name: ``ham``, ``sign-in`` or ``sparseopt``.
        optimizer: What trains the model, called without a closure.
        model: The network; ``sign-in`` changes its weights by their rounding.
        mask: Gives the mask in force, by name of the parameter; when it moved, another object.
        options: ``alpha``, ``beta`` of ``ham``; ``every`` (epochs between two balances) of ``sign-in``.

    Returns:
        A handle, whose ``end_epoch`` is to be called after every epoch.

    Raises:
        InvalidInput: If there is no such remedy or option, or it is out of its range.
    """
    check_recipe("remedy", name, options)
    weights = {each: weight for each, weight in model.named_parameters() if weight.dim() > 1 or each in mask()}
    if name != "sparseopt":
        return {"ham": _Ham, "sign-in": _SignIn}[name](optimizer, weights, **options)
    modules = [(place, each) for place, each in model.named_modules() if isinstance(each, _ConvTransposeNd)]
    groups = {f"{place}.weight".removeprefix("."): module.groups for place, module in modules}
    return _SparseOpt(optimizer, weights, mask=mask, groups=groups)


def check_recipe(setting: str, name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that an ``average`` or a ``remedy`` does not have, or that are out of their range."""
    check_name(setting, name, OPTIONS[setting])
    for option, value in options.items():
        check_name(f"option of {setting} {name!r}", option, OPTIONS[setting][name])
        if option == "every":
            check_integer(option, value)
            continue
        most = 1 if setting == "average" else math.inf
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < most:
            raise InvalidInput(f"{option} is {value!r}; allowed: a number in [0, {most})")
