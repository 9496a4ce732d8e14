"""A path through every layer: what a method keeps so that no layer that lies on a path is cut off."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pathex.errors import UnsupportedOperation

__all__ = ["Connected", "Securer"]

Connected = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""From a mask to the part of it that lies on input-output paths."""

Keep = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""From scores to the mask that an allocation keeps of them."""

_ATTEMPTS = 4  # a weight that makes room may cut another layer off


@dataclass
class Securer:
    """Keeps one path through every layer that lies on a path, at the cost of the worst weights elsewhere.

    Where a choice cuts layers off, the best weights that bring them back are kept from then on.

    Attributes:
        connected: From a mask to the part of it that lies on paths.
        alive: Names of the weights that lie on a path; None until the first check.
        secured: Name to bool tensor: weights that hold a path together.
        reads: Whether paths can be read; once they could not, nothing is secured.
    """

    connected: Connected
    alive: set[str] | None = None
    secured: dict[str, Tensor] = field(default_factory=dict)
    reads: bool = True

    def keep(
        self, scores: Mapping[str, Tensor], allowed: Mapping[str, Tensor], keep: Keep, *, last: bool
    ) -> Mapping[str, Tensor]:
        """The mask that an allocation keeps, with every layer connected as far as room allows.

        Args:
            scores: Name to score.
            allowed: Name to bool tensor: the weights to choose from.
            keep: The allocation: from scores to a mask of a given number of weights.
            last: Whether this is the last round; before it only thin layers are looked after.

        Returns:
            The mask.
        """
        chosen = keep(self._raised(scores))
        if not self.reads or not (last or any(map(_thin, chosen.values()))):
            return chosen
        try:
            if self.alive is None:
                self.alive = {name for name, kept in self.connected(allowed).items() if kept.any()}
            for _ in range(_ATTEMPTS):
                dead = self._dead(chosen)
                if not dead:
                    break
                if not self._secure(scores, allowed, chosen, dead):
                    break
                chosen = keep(self._raised(scores))
        except UnsupportedOperation:
            self.reads = False
        return chosen

    def _dead(self, mask: Mapping[str, Tensor]) -> list[str]:
        assert self.alive is not None
        effective = self.connected(mask)
        return [name for name in mask if name in self.alive and not effective[name].any()]

    def _raised(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The scores, infinite where a weight is secured."""
        return {
            name: score.masked_fill(self.secured[name].to(score.device), math.inf) if name in self.secured else score
            for name, score in scores.items()
        }

    def _secure(
        self, scores: Mapping[str, Tensor], allowed: Mapping[str, Tensor], chosen: Mapping[str, Tensor], dead: list[str]
    ) -> bool:
        """Secure weights that bring dead layers back.

        The dead layers (where that is not enough, all) start with the weights to choose from, and are taken back to
        what was chosen, many at a time. Where that would cut a dead layer off, a layer keeps its best weights that
        prevent it.

        Returns:
            Whether a weight was secured.
        """
        candidate = {name: (allowed[name] if name in dead else kept).cpu() for name, kept in chosen.items()}
        goal, restored = dead, dead

        def joined(trial: Mapping[str, Tensor]) -> bool:
            found = self.connected({**candidate, **trial})
            return all(found[name].any() for name in goal)

        if not joined({}):
            candidate = {name: allowed[name].cpu() for name in chosen}
            effective = self.connected(candidate)
            goal, restored = [name for name in dead if effective[name].any()], list(chosen)
        pending = [restored] if goal else []
        before = _count(self.secured)
        while pending:
            names = pending.pop()
            trial = {name: chosen[name].cpu() for name in names}
            if joined(trial):
                candidate.update(trial)
            elif len(names) > 1:
                pending += [names[len(names) // 2 :], names[: len(names) // 2]]
            else:
                (name,) = names
                on_path = self.connected(candidate)[name].cpu()
                needed = _needed(scores[name], trial[name], on_path, partial(_alone, joined, name))
                self.secured[name] = self.secured.get(name, torch.zeros_like(needed)) | needed
                candidate[name] = trial[name] | needed
        return _count(self.secured) > before


def _needed(score: Tensor, kept: Tensor, on_path: Tensor, enough: Callable[[Tensor], bool]) -> Tensor:
    """The best weights on paths that are enough together with the kept ones: the very best one, or by bisection."""
    ranked = (on_path & ~kept).flatten().nonzero().squeeze(1)
    ranked = ranked[score.detach().cpu().double().flatten()[ranked].argsort(descending=True, stable=True)]

    def with_best(count: int) -> Tensor:
        trial = needed.clone()
        trial[ranked[:count]] = True
        return kept | trial.view(kept.shape)

    needed = torch.zeros(kept.numel(), dtype=torch.bool)
    while not enough(kept | needed.view(kept.shape)):
        few, many = 0, len(ranked)  # `many` are enough, `few` are not
        while many - few > 1:
            middle = (few + many) // 2 if few else 1
            few, many = (few, middle) if enough(with_best(middle)) else (middle, many)
        needed[ranked[many - 1]] = True
        ranked = ranked[: many - 1]
    return needed.view(kept.shape)


def _alone(joined: Callable[[Mapping[str, Tensor]], bool], name: str, kept: Tensor) -> bool:
    return joined({name: kept})


def _count(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _thin(kept: Tensor) -> bool:
    """Few enough weights that none may lie on a path: fewer than the layer has inputs and outputs."""
    return int(kept.sum()) < sum(kept.shape[:2])
