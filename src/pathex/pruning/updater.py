"""From the scores of a round to the mask of that round: allocation, schedule, floors and budget together."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pathex.errors import InvalidInput
from pathex.masks import Mask
from pathex.pruning import schedule as schedules
from pathex.pruning.allocation import Allocation, fill, layer_densities, round_to_total
from pathex.pruning.floors import Connected, Floors, Keep, Masks
from pathex.pruning.structure import Blocks, Channels, spent
from pathex.pruning.topk import Pool, keep_best, keep_best_by_layer

_TRIALS = 64  # weights that are tried in vain before the search gives up
_BITS = 32  # of a weight


BUDGETS = ("nominal", "effective")


@dataclass
class RoundUpdater:
    """Turns the scores of a round into its mask, from the ``start`` mask to a ``density`` after the last round.

    With ``costs``, of an entry of each weight, density is the share of their sum that is kept, exact to one weight in
    the last round, and the best scores for these costs count; with ``size`` it is the share of the bytes of a file.
    `InvalidInput` if the settings contradict each other or keep nothing. An adaptive schedule leaves planned rounds
    out: ``reached`` is the one that the mask is at, 0 before the first choice, ``rounds`` when all is done.
    """

    start: Mask
    density: float
    rounds: int
    allocation: Allocation = "global"
    schedule: str = "exponential"
    budget: str = "nominal"
    min_per_layer: int = 0
    revives: bool = False  # whether weights that a round removed may return; those outside ``start`` never do
    seed: int = 0
    floors: Callable[[Mask], Floors] | None = None  # what layers on a path keep in any case, from what they may keep
    costs: Mapping[str, int] | None = None
    structure: Channels | Blocks | None = None
    size: Callable[..., int] | None = None  # bytes of a file of what a mask keeps, or of all; in place of costs
    rounding: str | None = None  # see `schedules.counts`
    outputs: Mapping[str, Tensor] | None = None  # flat places of the weights of each output, by the name of the weight
    min_per_output: int = 0

    def __post_init__(self) -> None:
        self._name, self._tolerance = schedules.read_schedule(self.schedule)
        if self._tolerance is not None:
            self.schedule = f"{self._name}:{self._tolerance:g}"  # the default is written down with the mask
        self.reached, self._step = 0, 1
        self._before: dict[str, Tensor] | None = None
        self._guard: Floors | None = None
        self._limit, self._asked = None, f"sparsity {1 - self.density:g}"
        if self.size is not None:
            self._limit = round(self.density * self.size())
            self.density = _density_of(self.density)
        self._costs = self.costs or dict.fromkeys(self.start, 1)
        self.total = sum(entry.numel() * self._costs[name] for name, entry in self.start.items())
        begin = self.spent(self.start)
        self.kept = round(self.density * self.total)
        if isinstance(self.structure, Blocks):
            self.kept = self.structure.count(self.start)
        if self.kept < 1:
            raise InvalidInput(f"{self._asked} keeps none of the {self.total} {self.counted}")
        if self.kept > begin:
            raise InvalidInput(f"the start mask keeps {begin} {self.counted}, fewer than the {self.kept} asked for")
        limits = _kept_by_layer(self.start)
        secured = sum(self._least(self.start).values())
        if secured > self.kept:
            raise InvalidInput(f"min_per_layer secures {secured} weights but only {self.kept} are to be kept")
        whole = begin / self.total, min(self.density, begin / self.total)
        self.densities = self._steps(*whole)
        self.planned = schedules.counts(self.total, *whole, self.rounds, self._name, self.rounding)
        self.kept = self.kept if self.rounding is None else self.planned[-1]
        self.final = None if self.allocation == "global" else self._final(limits)
        self._check_outputs()
        if self.final is not None:
            # Half a weight stands for none, which an exponential fall never reaches.
            self.layer_steps = {
                name: self._steps(limit, max(self.final[name], 0.5)) if limit else [0.0] * self.rounds
                for name, limit in limits.items()
            }

    def _check_outputs(self) -> None:
        """Refuse more weights for each output than are to be kept."""
        asked = {n: len(each) * min(self.min_per_output, each.shape[1]) for n, each in (self.outputs or {}).items()}
        spent = sum(count * self._costs[name] for name, count in asked.items())
        if spent > self.kept:
            raise InvalidInput(f"min_per_output secures {spent} {self.counted} but only {self.kept} are to be kept")
        for name, count in asked.items():
            if self.final is not None and count > self.final[name]:
                own = self.final[name]
                raise InvalidInput(f"min_per_output secures {count} weights of {name!r}, but only {own} are to be kept")

    @property
    def target(self) -> int | dict[str, int]:
        """Weights that are kept in the end: of each layer if that is settled, otherwise in all."""
        return self.kept if self.final is None else self.final

    def _steps(self, start: float, end: float) -> list[float]:
        return schedules.densities(start, end, self.rounds, self._name)

    def _final(self, limits: Mapping[str, int]) -> dict[str, int]:
        """Weights that each layer keeps in the end."""
        shapes = {name: tuple(entry.shape) for name, entry in self.start.items()}
        densities = layer_densities(self.allocation, self.density, shapes, limits)
        shares = {name: densities[name] * entry.numel() for name, entry in self.start.items()}
        return round_to_total(shares, self.kept, limits, dict.fromkeys(limits, self.min_per_layer))

    def choose(self, scores: Mapping[str, Tensor], current: Mask, number: int, connected: Connected) -> Mask:
        """The mask after a round; `reached` then says how far that is."""
        seed = (self.seed * 1_000_003 + number) % 2**63
        allowed = self.start if self.revives else current
        if self.outputs:
            scores = {**scores, **{name: self._secured(scores[name], allowed[name], name) for name in self.outputs}}
        if self.costs is not None and self.structure is None:
            scores = {name: _worth(score, self.costs[name]) for name, score in scores.items()}
        self.reached = number if self._tolerance is None else self._next(scores, allowed, seed)
        how: dict[str, Any] = {"allowed": allowed, "connected": connected, "seed": seed}
        count = self._count(scores, allowed, self.reached)
        exact = self._limit if self.costs is None else self._kept(self.reached)
        if exact is None or self.structure is not None or self.reached < self.rounds:
            return self._choice(scores, count, **how)
        return self._within(exact, count, allowed.kept, partial(self._choice, scores, **how))

    def _choice(self, scores: Masks, count: int, *, allowed: Mask, connected: Connected, seed: int) -> Mask:
        """As many weights by allocation, budget and floors."""
        if self.budget == "effective":
            least = self._least(allowed)
            return Mask(keep_connected(scores, allowed, count, connected, seed=seed, at_least=least))
        keep = self._keeper(allowed, self.reached, seed, count)
        if self.floors is None:
            return Mask(keep(scores))
        self._guard = self._guard or self.floors(allowed)
        return Mask(self._guard.keep(scores, allowed, keep, connected, count=count, last=self.reached == self.rounds))

    def _secured(self, score: Tensor, allowed: Tensor, name: str) -> Tensor:
        """Scores of a weight that outputs are made of, infinite for the best of each."""
        assert self.outputs is not None
        places, secured = self.outputs[name].to(score.device), score.detach().flatten().clone()
        ranked = secured.masked_fill(~allowed.flatten().to(score.device), -torch.inf)[places]
        best = ranked.topk(min(self.min_per_output, places.shape[1]), dim=1).indices
        secured[places.gather(1, best)] = torch.inf
        return secured.view(score.shape)

    @property
    def counted(self) -> str:
        """What is counted, in words."""
        return "weights" if self.costs is None else "multiply-adds"

    def spent(self, mask: Mapping[str, Tensor]) -> int:
        """What a mask keeps of what is counted."""
        return spent(mask, self._costs)

    def _count(self, scores: Masks, allowed: Mask, number: int) -> int:
        """How many of the best weights a planned round can keep, all layers together."""
        limit = self._kept(number)
        if self.costs is None:
            return limit
        worth = torch.cat([score.detach().cpu().double()[allowed[name]] for name, score in scores.items()])
        spent = torch.cat([torch.full((kept,), self.costs[name]) for name, kept in _kept_by_layer(allowed).items()])
        return int(torch.searchsorted(spent[worth.argsort(descending=True)].cumsum(0), limit, right=True))

    def _within(self, limit: int, count: int, most: int, choice: Callable[[int], Mask]) -> Mask:
        """The choice of most weights that costs no more than a limit, searched for from a count on."""
        # What is secured in any case costs other sums than the best weights alone.
        low, high, found = 0, most + 1, None
        while high - low > 1:
            count = min(max(count, low + 1), high - 1)
            chosen = choice(count)
            left = limit - (self.spent if self.size is None else self.size)(chosen)
            low, high, found = (count, high, chosen) if left >= 0 else (low, count, found)
            count += round(left * count / max(limit - left, 1)) or (1 if left >= 0 else -1)
        if found is None:
            raise InvalidInput(f"{self._asked} leaves no room for one weight")
        return found

    def _next(self, scores: Mapping[str, Tensor], allowed: Mask, seed: int) -> int:
        """The planned round that an adaptive schedule goes to."""
        assert self._tolerance is not None

        def error(before: Masks, step: int) -> float:
            """Share of what is kept after the step that the scores of the round before would not keep."""
            number = self.reached + step
            both = [(each, self._count(each, allowed, number)) for each in (scores, before)]
            now, then = (self._keeper(allowed, number, seed, count)(each) for each, count in both)
            differ = self.spent({name: kept & ~then[name] for name, kept in now.items()})
            return differ / self._kept(number)

        if self._before is not None:
            left = self.rounds - self.reached
            self._step = schedules.next_step(self._step, left, self._tolerance, partial(error, self._before))
        # Copies: a method may write the scores of its next round into the same tensors.
        self._before = {name: score.clone() for name, score in scores.items()}
        return self.reached + self._step

    def _keeper(self, allowed: Mask, number: int, seed: int, count: int) -> Keep:
        """What the allocation keeps of scores in a planned round, whether it lies on a path or not."""
        if self.structure is not None:
            limits: dict[str, Any] = {"limit": self._kept(number), "costs": self._costs, "last": number == self.rounds}
            return partial(self.structure.keep, allowed=allowed, seed=seed, **limits)
        if self.final is not None:
            counts = self.final if number == self.rounds else self._counts(number, allowed)
            return partial(keep_best_by_layer, allowed=allowed, counts=counts, seed=seed)
        least = self._least(allowed)
        return partial(keep_best, allowed=allowed, count=count, seed=seed, at_least=least)

    def _kept(self, number: int) -> int:
        return self.kept if number == self.rounds else self.planned[number - 1]

    def _least(self, allowed: Mask) -> dict[str, int]:
        return {name: min(self.min_per_layer, kept) for name, kept in _kept_by_layer(allowed).items()}

    def _counts(self, number: int, allowed: Mask) -> dict[str, int]:
        """Weights that each layer keeps in a round before the last."""
        kept, limits = self._kept(number), _kept_by_layer(allowed)
        steps = {name: steps[number - 1] for name, steps in self.layer_steps.items()}
        shares = fill(steps, kept, dict.fromkeys(steps, 1), {name: float(limit) for name, limit in limits.items()})
        return round_to_total(shares, kept, limits, self.final)


def _density_of(share: float) -> float:
    """The density at which kept weights and the entropy of their places take a share of the bits of all weights."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        entropy = -sum(p * math.log2(p) for p in (middle, 1 - middle))
        low, high = (middle, high) if middle + entropy / _BITS <= share else (low, middle)
    return low


def _worth(score: Tensor, cost: int) -> Tensor:
    """Scores by what a weight costs; one that costs nothing stays."""
    return score / cost if cost else torch.full_like(score, torch.inf)


def _kept_by_layer(mask: Mask) -> dict[str, int]:
    return {name: count.kept for name, count in mask.counts().items()}


def keep_connected(
    scores: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    count: int,
    connected: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    *,
    seed: int = 0,
    at_least: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Keep ``count`` weights of high score, all of them on a path from input to output where that is possible."""
    # The fewest best weights of which ``count`` are connected are found by bisection; of those that are connected the
    # worst go, as long as ``count`` others stay connected; what is then missing is filled up one by one. The search is
    # greedy and gives up on hard cases, and then some kept weights are not connected. About 20 calls of ``connected``,
    # and a few more for each weight too many.
    pool = Pool(scores, allowed, seed)
    secured = pool.secured(at_least, count)

    def alive(candidates: Tensor) -> Tensor:
        return pool.vector(connected(pool.named(candidates | secured))) | secured

    def ranked(number: int) -> Tensor:
        return alive(secured | pool.best(pool.allowed & ~secured, number - int(secured.count_nonzero())))

    low, high = count, int(pool.allowed.count_nonzero())
    kept = ranked(high)
    if int(kept.count_nonzero()) < count:
        return pool.named(kept | pool.best(pool.allowed & ~kept, count - int(kept.count_nonzero())))
    while low < high:
        middle = (low + high) // 2
        found = ranked(middle)
        if int(found.count_nonzero()) >= count:
            kept, high = found, middle
        else:
            low = middle + 1
    kept = _trimmed(pool, kept, secured, count, alive)
    chosen = secured | pool.best(kept & ~secured, count - int(secured.count_nonzero()))
    return pool.named(chosen if int(kept.count_nonzero()) == count else _grown(pool, chosen, count, alive))


def _trimmed(pool: Pool, kept: Tensor, secured: Tensor, count: int, alive: Callable[[Tensor], Tensor]) -> Tensor:
    """Drop the worst of the kept weights while at least ``count`` stay alive; weights that many hang on stay."""
    needed = secured.clone()
    for _ in range(_TRIALS):
        low, high = 0, min(int(kept.count_nonzero()) - count, int((kept & ~needed).sum()))
        if high == 0:
            break
        free = kept & ~needed
        while low < high:
            middle = (low + high + 1) // 2
            rest = alive((kept & needed) | pool.best(free, int(free.count_nonzero()) - middle))
            low, high = (middle, high) if int(rest.count_nonzero()) >= count else (low, middle - 1)
        left = pool.best(free, int(free.count_nonzero()) - low)
        needed |= left ^ pool.best(left, int(left.count_nonzero()) - 1)
        kept = alive((kept & needed) | left) if low else kept
    return kept


def _grown(pool: Pool, chosen: Tensor, count: int, alive: Callable[[Tensor], Tensor]) -> Tensor:
    """Replace chosen weights that are not alive by the best others that are, and exactly ``count`` in all."""
    kept = alive(chosen)
    others = pool.allowed & ~kept
    for index in pool.ranked(pool.best(others, min(_TRIALS, int(others.count_nonzero()))).nonzero().squeeze(1)):
        found = kept.clone()
        found[index] = True
        found = alive(found)
        if int(kept.count_nonzero()) < int(found.count_nonzero()) <= count:
            kept = found
    return kept | pool.best(chosen & ~kept, count - int(kept.count_nonzero()))
