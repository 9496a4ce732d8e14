"""Remedies for sparse training, each around the step of any optimizer and on any mask.

HAM: Jacobs, Gadhikar, Rubio-Madrigal, Burkholz, "Hyperbolic Aware Minimization: Implicit Bias for Sparsity" (ICLR
2026).
Sign-In: Gadhikar, Jacobs, Zhou, Burkholz, "Sign-In to the Lottery: Reparameterized Sparse Training" (NeurIPS 2025).
SparseOpt: Adnan, Jain, Jacobs, Sharma, Krishnan, Burkholz, Ioannou, "SparseOpt: Addressing Normalization-induced
Gradient Skew in Sparse Training" (ICML 2026).

All work on pairs of a parameter and its gradient of any shape, vectors of kept weights included.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer

from pathex.errors import InvalidInput, check_integer, check_name

OPTIONS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {"ham": {"alpha": 200.0, "beta": 1e-3}, "sign-in": {"every": 1}, "sparseopt": {}}
)
"""Remedies, and their options."""

_LARGEST_EXPONENT = 5.0


class Remedy:
    """What is done around every step of an optimizer, until `remove` is called.

    A mask has to be attached before: a remedy then sees its gradients, and its zeros stay.
    """

    def __init__(self, optimizer: Optimizer, weights: Mapping[str, Tensor]) -> None:
        """Work on some weights of an optimizer.

        Args:
            optimizer: What trains the weights, called without a closure.
            weights: Parameters by name; those that the optimizer does not hold are left alone.
        """
        trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        self._optimizer = optimizer
        self._names = {weight: name for name, weight in weights.items() if weight in trained}
        self._hook = self._register(optimizer)

    def _register(self, optimizer: Optimizer) -> Any:
        return optimizer.register_step_pre_hook(self._around)

    def _around(self, *_: object) -> None:
        raise NotImplementedError

    def _stepping(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Weight, gradient and learning rate of what has a gradient."""
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                if weight in self._names and weight.grad is not None:
                    yield weight, weight.grad, group["lr"]

    def end_epoch(self, number: int) -> None:
        """Called after every epoch, with the number of those that are over."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the network and its optimizer."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` returned, after network and optimizer did."""

    def remove(self) -> None:
        """Leave the optimizer alone from now on."""
        self._hook.remove()


class HAM(Remedy):
    """After the step, ``w <- w exp(lr (-alpha sign(w) grad - beta))``, with an exponent within 5 of 0.

    The gradient is that of the loss before the step, as the optimizer was given it: without weight decay and momentum.
    Zeros stay zero, and no weight changes its sign here.
    """

    def __init__(
        self, optimizer: Optimizer, weights: Mapping[str, Tensor], *, alpha: float = 200.0, beta: float = 1e-3
    ) -> None:
        """See `Remedy`.

        Args:
            optimizer: What trains the weights.
            weights: Parameters by name.
            alpha: Weight of the gradient, at least 0.
            beta: Decay beside the gradient, at least 0.
        """
        check_remedy("ham", {"alpha": alpha, "beta": beta})
        self._alpha, self._beta = alpha, beta
        super().__init__(optimizer, weights)

    def _register(self, optimizer: Optimizer) -> Any:
        return optimizer.register_step_post_hook(self._around)

    @torch.no_grad()
    def _around(self, *_: object) -> None:
        for weight, gradient, lr in self._stepping():
            exponent = (weight.sign() * gradient).mul_(-self._alpha).sub_(self._beta).mul_(lr)
            weight.mul_(exponent.clamp_(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).exp_())


def balanced(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of a weight with ``m w = weight``, ``m^2 - w^2 = 1`` and m > 0."""
    m = ((1 + (1 + 4 * weight.square()).sqrt()) / 2).sqrt()
    return m, weight / m


class SignIn(Remedy):
    """Trains two factors ``m w`` in place of every weight, which are balanced anew now and then.

    An optimizer of the same class and settings steps the factors by ``grad w`` and ``grad m``, with momentum and weight
    decay of their own; the weights' own optimizer passes them over. A small step of plain gradient descent thereby
    moves a weight by ``m^2 + w^2 = sqrt(4 weight^2 + 1)`` times its gradient where the factors are balanced. Weights
    that something else moved, and zeros, begin with balanced factors and nothing in the memory of their optimizer.
    """

    def __init__(self, optimizer: Optimizer, weights: Mapping[str, Tensor], *, every: int = 1) -> None:
        """See `Remedy`.

        Args:
            optimizer: What trains the weights.
            weights: Parameters by name.
            every: Epochs after which the factors are balanced anew.
        """
        check_remedy("sign-in", {"every": every})
        self._every = every
        super().__init__(optimizer, weights)
        self._factors = {weight: balanced(weight.detach()) for weight in self._names}
        self._inner = type(optimizer)(  # all settings are in the groups
            [
                {**group, "params": [factor for each in group["params"] for factor in self._factors.get(each, ())]}
                for group in optimizer.param_groups
            ],
            lr=1.0,  # type: ignore[call-arg]
        )
        self._put()

    @torch.no_grad()
    def _put(self) -> None:
        for weight, (m, w) in self._factors.items():
            weight.copy_(m * w)

    @torch.no_grad()
    def _around(self, *_: object) -> None:
        for given, own in zip(self._optimizer.param_groups, self._inner.param_groups, strict=True):
            own.update({name: value for name, value in given.items() if name != "params"})
        stepping = []
        for weight, gradient, _rate in self._stepping():
            m, w = self._factors[weight]
            self._renew(weight, m, w)
            m.grad, w.grad = gradient * w, gradient * m
            weight.grad = None  # its own optimizer passes it over
            stepping.append(weight)
        self._inner.step()
        for weight in stepping:
            m, w = self._factors[weight]
            weight.copy_(m * w)
            m.grad = w.grad = None

    def _renew(self, weight: Tensor, m: Tensor, w: Tensor) -> None:
        """Balanced factors, and no memory, where the weight is no longer their product or is zero."""
        new = (weight != m * w) | (weight == 0)
        for factor, value in zip((m, w), balanced(weight), strict=True):
            factor.copy_(torch.where(new, value, factor))
            for memory in self._inner.state.get(factor, {}).values():
                if isinstance(memory, Tensor) and memory.shape == weight.shape:
                    memory.masked_fill_(new, 0)

    @torch.no_grad()
    def balance(self) -> None:
        """Balance all factors; weights stay, up to rounding, and so does the memory of the factors' optimizer."""
        for weight, (m, w) in self._factors.items():
            for factor, value in zip((m, w), balanced(weight), strict=True):
                factor.copy_(value)
        self._put()

    def end_epoch(self, number: int) -> None:
        """Balance all factors after every ``every`` epochs."""
        if number % self._every == 0:
            self.balance()

    def state_dict(self) -> dict[str, Any]:
        """The factors by name of the weight, and the state of their optimizer."""
        factors = {name: list(self._factors[weight]) for weight, name in self._names.items()}
        return {"factors": factors, "optimizer": self._inner.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` returned, after network and optimizer did."""
        for weight, name in self._names.items():
            for factor, value in zip(self._factors[weight], state["factors"][name], strict=True):
                factor.copy_(value)
        self._inner.load_state_dict(state["optimizer"])


def unit_factors(kept: Tensor, groups: int | None = None) -> Tensor:
    """SparseOpt's factor of every gradient of a layer: ``sqrt(1 - s_i) / sqrt(1 - s_mean)``, s_i sparsity of unit i.

    Args:
        kept: Mask of the layer's weight, (units, ...), or of a transposed convolution, (inputs, units / groups, ...).
        groups: Groups of a transposed convolution; None for every other layer.

    Returns:
        Factors in the shape of the mask, float64; zeros where a layer keeps nothing.
    """
    parts = kept.double().unflatten(0, (groups or 1, -1))
    own = [dim for dim in range(1, parts.dim()) if dim != (1 if groups is None else 2)]
    density = parts.mean(own, keepdim=True)
    mean = density.mean().clamp_min(torch.finfo(density.dtype).tiny)
    return (density / mean).sqrt().expand_as(parts).flatten(0, 1)


class SparseOpt(Remedy):
    """Before the step, the gradients of every unit times :func:`unit_factors`, from the mask in force.

    A mask that moves is found by the gradients as they are. Layers without a mask, and vectors, are left alone.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        weights: Mapping[str, Tensor],
        *,
        mask: Callable[[], Mapping[str, Tensor]],
        transposed: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """See `Remedy`.

        Args:
            optimizer: What trains the weights.
            weights: Parameters by name, in the shape of their mask, or vectors of the kept weights in their order.
            mask: Gives the mask in force; what moves it gives another object.
            transposed: Groups of transposed convolutions by name of the weight.
        """
        self._mask, self._transposed = mask, transposed
        self._seen: Mapping[str, Tensor] | None = None
        self._factors: dict[Tensor, Tensor] = {}
        super().__init__(optimizer, weights)

    @torch.no_grad()
    def _around(self, *_: object) -> None:
        if (mask := self._mask()) is not self._seen:
            self._seen = mask
            self._factors = {
                weight: self._factor(mask[name], name, weight)
                for weight, name in self._names.items()
                if name in mask and mask[name].dim() > 1
            }
        for weight, gradient, _rate in self._stepping():
            if weight in self._factors:
                gradient.mul_(self._factors[weight])

    def _factor(self, kept: Tensor, name: str, weight: Tensor) -> Tensor:
        factor = unit_factors(kept, self._transposed.get(name))
        return (factor if weight.shape == kept.shape else factor[kept]).to(weight)


def attach_remedy(
    name: str,
    optimizer: Optimizer,
    model: nn.Module,
    mask: Callable[[], Mapping[str, Tensor]],
    options: Mapping[str, Any],
) -> Remedy:
    """The remedy of a name, on tensors of two or more dimensions and whatever the mask in force prunes."""
    weights = {each: weight for each, weight in model.named_parameters() if weight.dim() > 1 or each in mask()}
    if name != "sparseopt":
        return {"ham": HAM, "sign-in": SignIn}[name](optimizer, weights, **options)
    transposed = {
        f"{place}.weight".removeprefix("."): module.groups
        for place, module in model.named_modules()
        if isinstance(module, _ConvTransposeNd)
    }
    return SparseOpt(optimizer, weights, mask=mask, transposed=transposed)


def check_remedy(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options of a remedy that it does not have (`UnknownName`) or that are out of range (`InvalidInput`)."""
    check_name("remedy", name, OPTIONS)
    for option, value in options.items():
        check_name(f"option of remedy {name!r}", option, OPTIONS[name])
        if option == "every":
            check_integer(option, value)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise InvalidInput(f"{option} is {value!r}; allowed: a number of at least 0")
