"""From the scores of a round to the mask of that round: allocation, schedule, floors and budget together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pathex.errors import InvalidInput, UnknownName
from pathex.masks import Count, Mask
from pathex.pruning import schedule as schedules
from pathex.pruning.allocation import Allocation, fill, layer_densities, round_to_total
from pathex.pruning.effective import keep_connected
from pathex.pruning.floors import Connected, Floors, Keep, Parts
from pathex.pruning.topk import keep_best, keep_best_by_layer

BUDGETS = ("nominal", "effective")


@dataclass
class RoundUpdater:
    """Turns scores into the mask of a round.

    Attributes:
        start: Mask before the first round.
        density: Density after the last round.
        rounds: Number of planned rounds; an adaptive schedule leaves some out.
        allocation: See `pathex.pruning.layer_densities`, or ``global``.
        schedule: ``exponential``, ``linear``, ``adaptive`` or ``adaptive:TOLERANCE``; the last form once it is made.
        budget: ``nominal`` or ``effective``.
        min_per_layer: Weights that every layer keeps in any case.
        floor: Share of the network's density that every layer on a path keeps, and a path through it, if there is
            room; 0: none.
        revives: Whether weights that a round removed may return in a later one; those outside ``start`` never do.
        seed: Seed of the order that breaks ties.
        parts: From a mask to the parts of each layer that the floor holds for; None: layers are their own parts.
        may_cut: From a mask to whether it may cut anything off; None: it always may.
        densities: Density after each planned round.
        reached: The planned round that the mask is at: 0 before the first choice, ``rounds`` when all is done.

    Raises:
        InvalidInput: If the settings contradict each other or keep nothing.
        UnknownName: If ``budget`` or ``schedule`` is not known.
    """

    start: Mask
    density: float
    rounds: int
    allocation: Allocation = "global"
    schedule: str = "exponential"
    budget: str = "nominal"
    min_per_layer: int = 0
    floor: float = 0.0
    revives: bool = False
    seed: int = 0
    parts: Parts | None = None
    may_cut: Callable[[Mapping[str, Tensor]], bool] | None = None

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise UnknownName("budget", self.budget, BUDGETS)
        self._name, self._tolerance = schedules.read_schedule(self.schedule)
        if self._tolerance is not None:
            self.schedule = f"{self._name}:{self._tolerance:g}"  # the default is written down with the mask
        self.reached, self._step = 0, 1
        self._before: dict[str, Tensor] | None = None
        self._guard: Floors | None = None
        self.total = self.start.total
        self.kept = round(self.density * self.total)
        if self.kept < 1:
            raise InvalidInput(f"sparsity {1 - self.density:g} keeps none of the {self.total} weights")
        if self.kept > self.start.kept:
            raise InvalidInput(f"the start mask keeps {self.start.kept} weights, fewer than the {self.kept} asked for")
        limits = {name: count.kept for name, count in self.start.counts().items()}
        secured = sum(min(self.min_per_layer, limit) for limit in limits.values())
        if secured > self.kept:
            raise InvalidInput(f"min_per_layer secures {secured} weights but only {self.kept} are to be kept")
        self.densities = self._steps(self.start.density, min(self.density, self.start.density))
        self.final = None if self.allocation == "global" else self._final(limits)
        if self.final is not None:
            # Half a weight stands for none, which an exponential fall never reaches.
            self.layer_steps = {
                name: self._steps(limit, max(self.final[name], 0.5)) if limit else [0.0] * self.rounds
                for name, limit in limits.items()
            }

    def _steps(self, start: float, end: float) -> list[float]:
        return schedules.densities(start, end, self.rounds, self._name)

    def _final(self, limits: Mapping[str, int]) -> dict[str, int]:
        """Weights that each layer keeps in the end."""
        if self.budget == "effective":
            raise InvalidInput("budget='effective' needs allocation='global': it moves weights between layers")
        shapes = {name: tuple(entry.shape) for name, entry in self.start.items()}
        densities = layer_densities(self.allocation, self.density, shapes, limits)
        shares = {name: densities[name] * entry.numel() for name, entry in self.start.items()}
        return round_to_total(shares, self.kept, limits, dict.fromkeys(limits, self.min_per_layer))

    def choose(self, scores: Mapping[str, Tensor], current: Mask, number: int, connected: Connected) -> Mask:
        """The mask after a round; `reached` then says how far that is."""
        seed = (self.seed * 1_000_003 + number) % 2**63
        allowed = self.start if self.revives else current
        self.reached = number if self._tolerance is None else self._next(scores, allowed, seed)
        if self.final is None and self.budget == "effective":
            kept, floors = self._kept(self.reached), self._floors(allowed)
            return Mask(keep_connected(scores, allowed, kept, connected, seed=seed, at_least=floors))
        keep = self._keeper(allowed, self.reached, seed)
        if not self.floor:
            return Mask(keep(scores))
        if self._guard is None:
            self._guard = Floors(self.parts or _whole, self.may_cut or _always, self.floor)
        count, last = self._kept(self.reached), self.reached == self.rounds
        return Mask(self._guard.keep(scores, allowed, keep, connected, count=count, last=last))

    def _next(self, scores: Mapping[str, Tensor], allowed: Mask, seed: int) -> int:
        """The planned round that an adaptive schedule goes to."""
        assert self._tolerance is not None
        before = self._before

        def error(step: int) -> float:
            """Share of the weights kept after the step that the scores of the round before would not keep."""
            assert before is not None
            keep = self._keeper(allowed, self.reached + step, seed)
            now, then = keep(scores), keep(before)
            differ = sum(int((kept & ~then[name]).count_nonzero()) for name, kept in now.items())
            return differ / self._kept(self.reached + step)

        if before is not None:
            self._step = schedules.next_step(self._step, self.rounds - self.reached, self._tolerance, error)
        # Copies: a method may write the scores of its next round into the same tensors.
        self._before = {name: score.clone() for name, score in scores.items()}
        return self.reached + self._step

    def _keeper(self, allowed: Mask, number: int, seed: int) -> Keep:
        """What the allocation keeps of scores in a planned round, whether it lies on a path or not."""
        if self.final is not None:
            counts = self.final if number == self.rounds else self._counts(self._kept(number), number, allowed.counts())
            return partial(keep_best_by_layer, allowed=allowed, counts=counts, seed=seed)
        floors = self._floors(allowed)
        return partial(keep_best, allowed=allowed, count=self._kept(number), seed=seed, at_least=floors)

    def _kept(self, number: int) -> int:
        """Weights left after a planned round."""
        return round(self.densities[number - 1] * self.total)

    def _floors(self, allowed: Mask) -> dict[str, int]:
        return {name: min(self.min_per_layer, count.kept) for name, count in allowed.counts().items()}

    def _counts(self, kept: int, number: int, counts: Mapping[str, Count]) -> dict[str, int]:
        """Weights that each layer keeps in a round before the last, together ``kept``."""
        assert self.final is not None
        limits = {name: count.kept for name, count in counts.items()}
        steps = {name: steps[number - 1] for name, steps in self.layer_steps.items()}
        shares = fill(steps, kept, dict.fromkeys(steps, 1), {name: float(limit) for name, limit in limits.items()})
        return round_to_total(shares, kept, limits, self.final)


def _always(mask: Mapping[str, Tensor]) -> bool:
    return True


def _whole(mask: Mapping[str, Tensor]) -> Mapping[str, list[Tensor]]:
    return {name: [kept.cpu()] for name, kept in mask.items()}
