"""Dynamic sparse training: a mask that moves while its network trains, with as many weights in every layer as before.

RigL: Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery: Making All Tickets Winners" (ICML 2020).
SET: Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, "Scalable training of artificial neural networks with adaptive
sparse connectivity inspired by network science" (Nature Communications 2018).
"""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pathex import sparse
from pathex.distributed import is_sharded
from pathex.errors import InvalidInput, check_integer, check_name, check_names
from pathex.masks import Handle, Mask, check_optimizers, own_module
from pathex.pruning.topk import keep_best
from pathex.scores import generator

__all__ = ["METHODS", "OPTIONS", "DynamicHandle", "attach", "check_options", "drop_fraction"]

METHODS = ("rigl", "set")
"""Rules of growth: where the dense gradient is largest, or at random."""

OPTIONS: Mapping[str, Any] = MappingProxyType({"every": 100, "fraction": 0.3, "until": 0.75})
"""What of `attach` a user chooses, and the defaults."""


def drop_fraction(step: int, *, steps: int, fraction: float = 0.3, until: float = 0.75) -> float:
    """What an update drops of a layer's kept weights: ``fraction / 2 (1 + cos(pi step / (until steps)))``, then 0."""
    end = until * steps
    return fraction / 2 * (1 + math.cos(math.pi * step / end)) if step < end else 0.0


class DynamicHandle(Handle):
    """Moves the mask of a model that trains and keeps the weights outside it zero, until `remove` is called.

    Made by `attach`, which says what an update does. Everything that `pathex.masks.Handle` says holds for the mask
    in force. A ``deepcopy`` of the model keeps the mask of its moment.

    Attributes:
        mask: The mask in force.
        step: Steps of the optimizer so far.
        updates: Updates of the mask so far.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask,
        optimizer: Optimizer,
        *,
        method: str,
        every: int,
        fraction: Callable[[int], float],
        seed: int,
    ) -> None:
        self.step = self.updates = 0
        self._method, self._every, self._fraction, self._seed = method, every, fraction, seed
        super().__init__(model, mask, [optimizer])
        self._expect()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside model and optimizer: ``mask`` (name to bool tensor), ``step``, ``updates``."""
        mask = {name: entry.clone() for name, entry in self.mask.items()}
        return {"mask": mask, "step": self.step, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` returned, before the model does: weights outside the mask are zeroed at once."""
        if missing := [name for name in ("mask", "step", "updates") if name not in state]:
            raise InvalidInput(f"the state of a dynamic mask has no {missing[0]!r}; allowed: what state_dict returned")
        mask = Mask(state["mask"], self.mask.metadata)
        self._check(mask)
        self._put(mask)
        self.step, self.updates = int(state["step"]), int(state["updates"])
        self._expect()

    def _check(self, mask: Mask) -> None:
        mask.check(self._model)

    def _updates_at(self, step: int) -> bool:
        return step % self._every == 0 and self._fraction(step) > 0

    def _expect(self) -> None:
        """Let gradients of removed weights come where the next step moves the mask by them."""
        for weight in self._weights.values():
            weight.masks_gradient = not (self._method == "rigl" and self._updates_at(self.step + 1))

    def _before_step(self, optimizer: Optimizer, *given: Any) -> None:
        args, kwargs = given
        if any(callable(argument) for argument in (*args[1:], *kwargs.values())):
            raise InvalidInput("dynamic sparse training needs optimizer.step() without a closure")
        self.step += 1
        if self._method == "rigl" and self._updates_at(self.step):
            self._update(optimizer)
            # Optimizers leave parameters without a gradient alone: the update of the mask takes the place of this step.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        super()._before_step(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        super()._after_step(optimizer)
        self._expect()
        if self._method == "set" and self._updates_at(self.step):
            self._update(optimizer)

    def _read(self) -> Mapping[str, tuple[Tensor, Tensor | None]]:
        """The weights that the mask is of, and their gradients where the dense layer has one."""
        return {name: (weight, weight.grad) for name, weight in own_module(self._model).named_parameters()}

    @torch.no_grad()
    def _update(self, optimizer: Optimizer) -> None:
        self.updates += 1
        source = generator(self._seed, self.updates)
        fraction, entries = self._fraction(self.step), dict(self.mask)
        parameters = self._read()
        for name, kept in self.mask.items():
            weight, gradient = parameters.get(name, (None, None))
            # Drawn for every layer, so that what happens in one changes nothing for the next.
            ties = int(torch.randint(2**62, (), generator=source))
            random = torch.rand(kept.shape, dtype=torch.float64, generator=source)
            if weight is None or weight.shape != kept.shape or not weight.requires_grad:
                continue
            gain = random if self._method == "set" else gradient
            count = math.floor(fraction * int(kept.count_nonzero()))
            if count and gain is not None:
                entries[name] = _moved(kept, weight, gain, count, ties)
                _begin(weight, entries[name] & ~kept, optimizer)
        self._put(Mask(entries, self.mask.metadata))

    def _put(self, mask: Mask) -> None:
        self.mask = mask
        for weight in self._weights.values():
            weight.removed = ~mask[weight.entry]
        self._met.clear()
        self.apply()


class KeptHandle(DynamicHandle):
    """That of a network that `pathex.sparse.convert` made: layers get other weights, and are dense for a gradient."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self._layers: Mapping[str, sparse.Kept] = {}
        super().__init__(*given, **options)
        self._layers = sparse.kept_layers(self._model)
        self._expect()

    def apply(self) -> None:
        """Nothing: there are no removed weights."""

    def _held(self) -> Iterator[Any]:
        return iter(())

    def _expect(self) -> None:
        for layer in self._layers.values():
            layer.asked, layer.whole = self._method == "rigl" and self._updates_at(self.step + 1), None

    def _read(self) -> Mapping[str, tuple[Tensor, Tensor | None]]:
        weights = {name: (layer.dense_weight(), layer) for name, layer in self._layers.items()}
        return {
            name: (weight.requires_grad_(layer.weight.requires_grad), None if layer.whole is None else layer.whole.grad)
            for name, (weight, layer) in weights.items()
        }

    def _check(self, mask: Mask) -> None:
        mask.check({name: layer.kept for name, layer in self._layers.items()})

    def _put(self, mask: Mask) -> None:
        sparse.move(self._layers, mask, self._optimizers[0])
        self.mask = mask


def _moved(kept: Tensor, weight: Tensor, gain: Tensor, count: int, seed: int) -> Tensor:
    """One layer's mask after ``count`` weights of least magnitude left it and as many of most gain joined it."""
    drop, grow = ({"": tensor.detach().cpu().double().abs().nan_to_num(0, math.inf)} for tensor in (weight, gain))
    stay = keep_best(drop, {"": kept}, int(kept.count_nonzero()) - count, seed=seed)[""]
    return stay | keep_best(grow, {"": ~stay}, count, seed=seed)[""]


def _begin(weight: Tensor, grown: Tensor, optimizer: Optimizer) -> None:
    """Weights that grow start at zero, and so does what the optimizer remembers of them."""
    memory = [entry for entry in optimizer.state.get(weight, {}).values() if isinstance(entry, Tensor)]
    for tensor in (weight, *(entry for entry in memory if entry.shape == weight.shape)):
        tensor.masked_fill_(grown.to(tensor.device), 0)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of `attach` that are not in `OPTIONS` (`UnknownName`) or out of range (`InvalidInput`)."""
    check_names("option of dynamic sparse training:", options, OPTIONS)
    for name, value in options.items():
        if name == "every":
            check_integer(name, value)
            continue
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not (0 < value < 1 or (name == "until" and value == 1)):
            raise InvalidInput(f"{name} is {value!r}; allowed: a number in (0, 1{']' if name == 'until' else ')'}")


def attach(
    model: nn.Module,
    mask: Mask,
    optimizer: Optimizer,
    *,
    method: str = "rigl",
    steps: int,
    every: int = 100,
    fraction: float = 0.3,
    until: float = 0.75,
    seed: int = 0,
) -> DynamicHandle:
    """Zero the removed weights of a model now, keep them zero through training, and move the mask now and then.

    An update comes at the steps ``every``, ``2 every``, ... before ``until steps``. In every layer it drops
    ``floor(drop_fraction kept)`` of the kept weights, those of least magnitude, and grows as many: where the gradient
    of the dense layer is largest (``rigl``) or at random (``set``). Ties are broken by a seeded order. As in the
    released code of RigL, a weight that was just dropped may be chosen to grow, and then keeps its value; all others
    that grow start at zero, with nothing in the optimizer's memory. Layers keep their number of weights; one that keeps
    none, or whose weight needs no gradient, keeps its mask.

    RigL: the update takes the place of that step of the optimizer, as in algorithm 1 of the paper and in the released
    code; no parameter is trained by it. Gradients of removed weights exist for that step only, over all batches that
    were accumulated for it. Before the first step nothing moves (the released code updates there too).

    SET: the update follows the step. The paper drops the same share of positive and of negative weights, after every
    epoch, and draws values for new ones; here magnitudes, schedule and zeros are those of the RigL paper's comparison.

    Processes that train one network together need the same seed; gradients that are averaged over them and equal
    weights then give equal masks.

    Args:
        model: The model. Its parameters are whole on every device, not sharded.
        mask: The mask to begin with; every layer keeps its density.
        optimizer: The optimizer that trains the model, called without a closure.
        method: ``rigl`` or ``set``.
        steps: Steps of the optimizer in the whole training.
        every: Steps from one update to the next.
        fraction: Fraction of the kept weights that the first update may drop, in (0, 1). It falls as a cosine.
        until: Fraction of the training after which the mask stays, in (0, 1].
        seed: Seed of ties and of random growth.

    Returns:
        A handle with the mask in force; ``handle.remove()`` ends it.

    Raises:
        UnknownName: If the method is not known.
        MaskMismatch: If the mask does not fit the model.
        InvalidInput: If another argument is out of its range, or the optimizer is none or trains none of these weights.

    Examples:
        >>> model = nn.Linear(4, 2, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> mask = Mask({"weight": torch.tensor([[True, True, False, False], [False, False, True, True]])})
        >>> handle = attach(model, mask, optimizer, steps=4, every=1, fraction=0.9)
        >>> for step in range(4):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(4.0)).square().sum().backward()
        ...     optimizer.step()
        >>> handle.updates, handle.mask.kept, bool((model.weight[~handle.mask["weight"]] == 0).all())
        (2, 4, True)
    """
    check_name("method of dynamic sparse training", method, METHODS)
    check_integer("steps", steps)
    check_integer("seed", seed, 0)
    check_options({"every": every, "fraction": fraction, "until": until})
    if sharded := [name for name, parameter in model.named_parameters() if is_sharded(parameter)]:
        raise InvalidInput(f"{sharded[0]!r} is spread over processes; a dynamic mask needs whole weights, as with ddp")
    drop = partial(drop_fraction, steps=steps, fraction=fraction, until=until)
    how: dict[str, Any] = {"method": method, "every": every, "fraction": drop, "seed": seed}
    if sparse.kept_layers(model):
        return KeptHandle(model, mask, optimizer, **how)
    [inner] = check_optimizers(model, mask, [optimizer])
    return DynamicHandle(model, mask, inner, **how)
