"""What a method keeps of every layer that lies on a path: a share of its weights, and a path through them.

In networks whose blocks begin faint beside their shortcut, one threshold for all would remove whole blocks, and every
query and key of an attention. A layer is looked at in its parts: weights of different roles may be fused into one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from pathex.errors import UnsupportedOperation
from pathex.pruning.topk import cut

Masks = Mapping[str, Tensor]

Connected = Callable[..., Masks]
"""From a mask to the part of it that lies on input-output paths, of the weights that are named or of all."""

Keep = Callable[..., Masks]
"""From scores to the mask that an allocation keeps of them; what is ``forced`` comes before all others."""

_ATTEMPTS = 4  # a weight that makes room may cut another part off
_CHECKS = 100  # of what is connected, for each part, in the rounds before the last and again in the last


class Floors:
    """Keeps a share of every part on a path, and a path through it, at the cost of the worst weights elsewhere.

    Where a choice cuts parts off, the best weights that bring them back are kept from then on. ``parts_of`` tells the
    parts of each layer in a mask (disjoint bool tensors in its shape), ``may_cut`` whether a mask may cut anything off,
    which costs less than to look; each part keeps this ``share`` of the density of the whole network.
    """

    def __init__(
        self,
        parts_of: Callable[[Masks], Mapping[str, Sequence[Tensor]]],
        may_cut: Callable[[Masks], bool],
        share: float,
        allowed: Masks,
    ) -> None:
        self.may_cut, self.share = may_cut, share
        self.secured: dict[str, Tensor] = {}  # weights that hold a path together
        self.reads = True
        try:
            self.parts = parts_of(allowed)
        except UnsupportedOperation:
            # Layers are their own parts then, and no path is secured.
            self.reads, self.parts = False, {name: [kept.cpu()] for name, kept in allowed.items()}
        self._sizes = {name: [int(part.count_nonzero()) for part in parts] for name, parts in self.parts.items()}
        self._checks, self._limit = 0, _CHECKS * sum(map(len, self.parts.values()))

    def keep(self, scores: Masks, allowed: Masks, keep: Keep, connected: Connected, *, count: int, last: bool) -> Masks:
        """The mask that an allocation keeps, with every part connected as far as room allows."""
        chosen, floors = keep(scores, forced=self._forced(allowed, None, count)), None
        if self._short(chosen, count):
            floors = self._floors(scores, allowed, count)
            chosen = keep(scores, forced=self._forced(allowed, floors, count))
        if not self.reads or not (last or self.may_cut(chosen)):
            return chosen
        if last:
            self._checks = 0

        def joins(mask: Masks, names: Collection[str] | None = None) -> Masks:
            self._checks += 1
            return connected(mask, names)

        for _ in range(_ATTEMPTS):
            if self._checks > self._limit or _count(self._in_any_case(floors)) > count:
                break
            joined = joins(chosen)
            dead = [(n, part) for n, each in self.parts.items() for part in each if not (joined[n].cpu() & part).any()]
            if not dead or not self._secure(scores, allowed, chosen, dead, joins):
                break
            floors = floors or self._floors(scores, allowed, count)
            chosen = keep(scores, forced=self._forced(allowed, floors, count))
        return chosen

    def _short(self, chosen: Masks, count: int) -> bool:
        """Whether a part may have less than its share; where none has, its best weights are there by themselves."""
        share = self.share * count / sum(kept.numel() for kept in chosen.values())
        for name, parts in self.parts.items():
            best = chosen[name].cpu()
            best = best & ~self.secured[name] if name in self.secured else best
            for part, size in zip(parts, self._sizes[name], strict=True):
                if int((best & part).count_nonzero()) < max(1, int(share * size)):
                    return True
        return False

    def _in_any_case(self, floors: Masks | None) -> dict[str, Tensor]:
        """What is kept in any case, by the layers that have such weights."""
        result = dict(self.secured)
        for name, floor in (floors or {}).items():
            result[name] = floor | result[name] if name in result else floor
        return result

    def _forced(self, allowed: Masks, floors: Masks | None, count: int) -> Masks | None:
        """What comes before all other weights of every layer; what is more than there is room for does not."""
        for wanted in (floors, None):
            forced = self._in_any_case(wanted)
            if _count(forced) <= count:
                none = {n: torch.zeros(m.shape, dtype=torch.bool) for n, m in allowed.items() if n not in forced}
                return none | forced if forced else None
        return None

    def _floors(self, scores: Masks, allowed: Masks, count: int) -> Masks | None:
        """The best weights of each part, its share of them, or one of each; None where even that leaves no room."""
        density = count / sum(kept.numel() for kept in allowed.values())
        for share in (self.share * density, 0.0):
            floors = {}
            for name, parts in self.parts.items():
                score = scores[name].detach().cpu()
                there = allowed[name].cpu() & (score > 0)
                floors[name] = torch.zeros_like(there)
                for part, size in zip(parts, self._sizes[name], strict=True):
                    floors[name] |= _best(score, there & part, max(1, int(share * size)))
            if _count(floors) <= count:
                return floors
        return None

    def _secure(
        self, scores: Masks, allowed: Masks, chosen: Masks, dead: list[tuple[str, Tensor]], joins: Connected
    ) -> bool:
        """Secure weights that bring dead parts back."""
        # Their layers (where that is not enough, all) start with the weights to choose from, and are taken back to what
        # was chosen, many at a time. Where that would cut a part off, a layer keeps its best weights that prevent it.
        restored = list(dict.fromkeys(name for name, _ in dead))
        candidate = {name: (allowed[name] if name in restored else kept).cpu() for name, kept in chosen.items()}
        goal = dead

        def joined(trial: Masks) -> bool:
            found = joins({**candidate, **trial}, {name for name, _ in goal})
            return all((found[name].cpu() & part).any() for name, part in goal)

        if not joined({}):
            candidate = {name: allowed[name].cpu() for name in chosen}
            effective = joins(candidate)
            goal = [(name, part) for name, part in dead if (effective[name].cpu() & part).any()]
            restored = list(chosen)
        pending = [restored] if goal else []
        before = _count(self.secured)
        while pending and self._checks <= self._limit:
            names = pending.pop()
            trial = {name: chosen[name].cpu() for name in names}
            if joined(trial):
                candidate.update(trial)
            elif len(names) > 1:
                # From the output on: what a layer keeps leaves less to choose from before it.
                pending += [names[: len(names) // 2], names[len(names) // 2 :]]
            else:
                (name,) = names
                on_path = joins(candidate, [name])[name].cpu()
                needed = _needed(name, scores[name], trial[name], candidate[name], on_path, joined)
                self.secured[name] = self.secured.get(name, torch.zeros_like(needed)) | needed
                candidate[name] = trial[name] | needed
        return _count(self.secured) > before


def _needed(
    name: str, score: Tensor, kept: Tensor, pool: Tensor, on_path: Tensor, joined: Callable[[Masks], bool]
) -> Tensor:
    """The best weights of a pool that are enough together with the kept ones: one, or by bisection more."""
    # What is on a path comes first; a factor may be needed that is on none: the query of a class token.
    ranked = (pool & ~kept).flatten().nonzero().squeeze(1)
    ranked = ranked[score.detach().cpu().double().flatten()[ranked].argsort(descending=True, stable=True)]
    ranked = ranked[on_path.flatten()[ranked].argsort(descending=True, stable=True)]
    needed = torch.zeros(kept.numel(), dtype=torch.bool)

    def enough(count: int) -> bool:
        trial = needed.clone()
        trial[ranked[:count]] = True
        return joined({name: kept | trial.view(kept.shape)})

    while not enough(0):
        few, many = 0, len(ranked)  # `many` are enough, `few` are not
        while many - few > 1:
            middle = (few + many) // 2 if few else 1
            few, many = (few, middle) if enough(middle) else (middle, many)
        needed[ranked[many - 1]] = True
        ranked = ranked[: many - 1]
    return needed.view(kept.shape)


def _best(score: Tensor, candidates: Tensor, number: int) -> Tensor:
    """The best candidates, all in the shape of the score; which of equal ones, `torch.topk` decides."""
    best, _, surplus = cut([score.flatten()], candidates.flatten(), number, score.dtype)
    if surplus:
        indices = candidates.flatten().nonzero().squeeze(1)
        best = torch.zeros_like(best).index_fill_(0, indices[score.flatten()[indices].topk(number).indices], True)
    return best.view(score.shape)


def _count(masks: Masks) -> int:
    return sum(int(mask.count_nonzero()) for mask in masks.values())
