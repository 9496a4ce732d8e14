"""From scores to a mask: how many weights each layer keeps, and which.

Counts are exact. Ties, also among zero or infinite scores, are broken by a seeded order.
"""

import functools
import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pathex.errors import InvalidInput, MaskMismatch, UnknownName
from pathex.selecting import cut

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "described",
    "fill",
    "keep_best",
    "keep_best_by_layer",
    "keep_connected",
    "layer_densities",
    "round_to_total",
]

ALLOCATIONS = ("global", "layer", "uniform", "erk")
Allocation = str | Mapping[str, float] | Mapping[str, Tensor]
"""One of `ALLOCATIONS`, weight names to final densities, or a mask whose densities are taken in proportion."""


_TRIALS = 64  # weights that `keep_connected` tries to drop in vain before it gives up


class _Pool:
    """All scores as one vector, in the order of the names, with a seeded order that breaks ties.

    Scores are read layer by layer where they are; only those that are compared are brought together.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        allowed: Mapping[str, Tensor],
        seed: int,
        forced: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.scores = {name: score.detach().cpu() for name, score in scores.items()}
        self.shapes = {name: score.shape for name, score in scores.items()}
        ends = list(itertools.accumulate((shape.numel() for shape in self.shapes.values()), initial=0))
        self.places = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.shapes)}
        self.size = ends[-1]
        # Scores of several precisions are compared in the highest of them.
        self.dtype = functools.reduce(torch.promote_types, [score.dtype for score in self.scores.values()])
        self.allowed = self.vector(allowed)
        self.forced = None if forced is None else self.vector(forced)
        self.seed = seed

    def order(self, indices: Tensor, layer: str | None = None) -> Tensor:
        """Their numbers in the seeded order, of indices into all layers or into one."""
        return _mixed(indices + (0 if layer is None else self.places[layer].start), self.seed)

    def vector(self, entries: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([entries[name].flatten().cpu() for name in self.shapes])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        return {name: vector[place].view(self.shapes[name]) for name, place in self.places.items()}

    def best(self, candidates: Tensor, count: int, layer: str | None = None) -> Tensor:
        """The ``count`` best candidates, all forced ones first; ties go to the lower number in the order."""
        order = functools.partial(self.order, layer=layer)
        # All vectors are bool, of all layers or of one.
        if count <= 0:
            return torch.zeros_like(candidates)
        first: Tensor | None = None
        if self.forced is not None:
            first = candidates & (self.forced if layer is None else self.forced[self.places[layer]])
            count -= int(first.count_nonzero())
            if count <= 0:
                return _without(first, first, -count, order)
            candidates = candidates & ~first
        scores = self.scores if layer is None else {layer: self.scores[layer]}
        keep, ties, surplus = cut([score.flatten() for score in scores.values()], candidates, count, self.dtype)
        keep = _without(keep, ties, surplus, order)
        return keep if first is None else keep.logical_or_(first)

    def ranked(self, indices: Tensor) -> Tensor:
        """Indices from best to worst."""
        indices = indices[self.order(indices).argsort()]
        flat = torch.cat([score.flatten().to(self.dtype) for score in self.scores.values()])
        return indices[flat[indices].argsort(descending=True, stable=True)]

    def secured(self, at_least: Mapping[str, int] | None, count: int) -> Tensor:
        """The best weights of every layer that has a floor; refuses a ``count`` that cannot be had."""
        if count > int(self.allowed.count_nonzero()):
            raise InvalidInput(f"{count} weights are to be kept but only {int(self.allowed.count_nonzero())} are left")
        secured = torch.zeros_like(self.allowed)
        for name, place in self.places.items():
            if floor := (at_least or {}).get(name, 0):
                here = self.allowed[place]
                secured[place] = self.best(here, min(floor, int(here.count_nonzero())), name)
        if int(secured.count_nonzero()) > count:
            raise InvalidInput(
                f"min_per_layer secures {int(secured.count_nonzero())} weights but only {count} are to be kept"
            )
        return secured


def _without(keep: Tensor, ties: Tensor | None, surplus: int, order: Callable[[Tensor], Tensor]) -> Tensor:
    """What is kept without as many of the ties as are too many, those of the highest numbers in the order."""
    if surplus and ties is not None:
        tied = ties.nonzero().squeeze(1)
        numbers = order(tied)
        least = torch.from_numpy(np.partition(numbers.numpy(), -surplus))[-surplus]
        keep[tied[numbers >= least]] = False
    return keep


def _mixed(indices: Tensor, seed: int) -> Tensor:
    """A number for each index, no two alike, as if drawn.

    The finalizer of SplitMix64 (Steele, Lea, Flood, 2014), a bijection of 64 bits. Where few are tied it costs far less
    than a permutation of all weights.

    Returns:
        int64, in the shape of the indices.
    """
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        mixed = indices.numpy().astype(np.uint64) + state
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return torch.from_numpy(mixed.view(np.int64))


def keep_best(
    scores: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    count: int,
    *,
    seed: int = 0,
    at_least: Mapping[str, int] | None = None,
    forced: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Keep the ``count`` weights of highest score, all layers together.

    Args:
        scores: Name to score, higher = keep; infinite scores are allowed, NaN is not.
        allowed: Name to bool tensor: the weights to choose from.
        count: How many weights to keep, at most the number of allowed ones.
        seed: Seed of the order that breaks ties.
        at_least: Name to a number of weights that the layer keeps in any case.
        forced: Name to bool tensor: allowed weights that come before all others, whatever their score.

    Returns:
        Name to bool tensor on the CPU with exactly ``count`` True entries in all. More weights than there are, or
        floors above ``count``, raise `pathex.errors.InvalidInput`.
    """
    pool = _Pool(scores, allowed, seed, forced)
    secured = pool.secured(at_least, count)
    if not secured.any():
        return pool.named(pool.best(pool.allowed, count))
    return pool.named(secured | pool.best(pool.allowed & ~secured, count - int(secured.count_nonzero())))


def keep_connected(
    scores: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    count: int,
    connected: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    *,
    seed: int = 0,
    at_least: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Keep ``count`` weights of high score, all of them on a path from input to output where that is possible.

    The fewest best weights of which ``count`` are connected are found by bisection; of those that are connected the
    worst go, as long as ``count`` others stay connected; what is then missing is filled up one by one. The search is
    greedy and gives up on hard cases, and then some kept weights are not connected. About 20 calls of ``connected``,
    and a few more for each weight too many.

    Args:
        scores: Name to score, higher = keep.
        allowed: Name to bool tensor: the weights to choose from.
        count: How many weights to keep, at most the number of allowed ones.
        connected: From a mask to the part of it that lies on a path.
        seed: Seed of the order that breaks ties.
        at_least: Name to a number of weights that the layer keeps in any case, connected or not.

    Returns:
        Name to bool tensor on the CPU with exactly ``count`` True entries in all. More weights than there are, or
        floors above ``count``, raise `pathex.errors.InvalidInput`.
    """
    pool = _Pool(scores, allowed, seed)
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


def _trimmed(pool: _Pool, kept: Tensor, secured: Tensor, count: int, alive: Callable[[Tensor], Tensor]) -> Tensor:
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


def _grown(pool: _Pool, chosen: Tensor, count: int, alive: Callable[[Tensor], Tensor]) -> Tensor:
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


def keep_best_by_layer(
    scores: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    counts: Mapping[str, int],
    *,
    seed: int = 0,
    forced: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Keep a given number of weights in each layer, those of highest score.

    Args:
        scores: Name to score, higher = keep.
        allowed: Name to bool tensor: the weights to choose from.
        counts: Name to the number of weights that the layer keeps.
        seed: Seed of the order that breaks ties.
        forced: Name to bool tensor: allowed weights that come before all others, whatever their score.

    Returns:
        Name to bool tensor on the CPU.
    """
    return {
        name: keep_best({name: score}, allowed, counts[name], seed=seed + index, forced=forced)[name]
        for index, (name, score) in enumerate(scores.items())
    }


def round_to_total(
    shares: Mapping[str, float], total: int, limits: Mapping[str, int], floors: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Round real shares to integers with an exact sum, by largest remainder.

    Args:
        shares: Name to a share, not negative; together within one per name of ``total``.
        total: Exact sum of the result.
        limits: Name to the largest number that it may get.
        floors: Name to the smallest number that it may get, as far as its limit allows.

    Returns:
        Name to integer.

    Raises:
        InvalidInput: If the limits or floors do not admit the total.
    """
    most = sum(limits[name] for name in shares)
    least = {name: min((floors or {}).get(name, 0), limits[name]) for name in shares}
    if most < total:
        raise InvalidInput(f"{total} weights are to be kept but only {most} are left")
    if sum(least.values()) > total:
        raise InvalidInput(f"min_per_layer secures {sum(least.values())} weights but only {total} are to be kept")
    counts = {name: max(min(math.floor(share + 1e-9), limits[name]), least[name]) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        ordered = by_remainder if step > 0 else by_remainder[::-1]
        open_names = [n for n in ordered if (counts[n] < limits[n] if step > 0 else counts[n] > least[n])]
        for name in open_names[: abs(missing)]:
            counts[name] += step
    return counts


def layer_densities(
    allocation: Allocation, density: float, shapes: Mapping[str, Sequence[int]], start: Mapping[str, int]
) -> dict[str, float]:
    """Final density of every layer, so that together they keep ``density`` of all weights.

    Args:
        allocation: ``layer``: every layer loses the same fraction of what the start mask left it. ``uniform``: every
            layer ends at the same density, as far as the start mask allows. ``erk``: Erdos-Renyi-Kernel (Evci et al.
            2020), density proportional to the sum of a weight's dimensions over their product. A mapping from weight
            names to densities fixes those layers; the others share the rest uniformly. A mask (names to bool tensors):
            densities proportional to its own, as far as the start mask allows; what it does not name is dense in it.
        density: Density over all layers together, in (0, 1].
        shapes: Name to weight shape.
        start: Name to the number of weights that the start mask keeps.

    Returns:
        Name to density.

    Raises:
        UnknownName: If the allocation is not known.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    caps = {name: start[name] / sizes[name] for name in sizes}
    target = density * sum(sizes.values())
    if isinstance(allocation, Mapping):
        if any(isinstance(value, Tensor) for value in allocation.values()):
            return _proportional(_own_densities(allocation, shapes), target, sizes, caps)
        return _explicit(cast(Mapping[str, float], allocation), density, sizes, caps)
    if allocation == "layer":
        factor = target / sum(start.values())
        return {name: cap * factor for name, cap in caps.items()}
    if allocation == "uniform":
        return fill(dict.fromkeys(sizes, 1.0), target, sizes, caps)
    if allocation == "erk":
        return fill({name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}, target, sizes, caps)
    raise UnknownName("allocation", allocation, ALLOCATIONS)


def fill(
    weights: Mapping[str, float], target: float, sizes: Mapping[str, int], caps: Mapping[str, float]
) -> dict[str, float]:
    """Densities proportional to ``weights`` that keep a given number of weights together, none above its cap.

    Args:
        weights: Name to a number, not negative; what has zero stays empty.
        target: Number of kept weights.
        sizes: Name to the number of weights.
        caps: Name to the highest density.

    Returns:
        Name to density.
    """
    full: set[str] = set()
    while True:
        rest = target - sum(caps[name] * sizes[name] for name in full)
        weight = sum(weights[name] * sizes[name] for name in sizes if name not in full)
        scale = rest / weight if rest > 0 and weight > 0 else 0.0
        over = {name for name in sizes if name not in full and weights[name] * scale > caps[name]}
        if not over:
            return {name: caps[name] if name in full else weights[name] * scale for name in sizes}
        full |= over
        if len(full) == len(sizes):
            return dict(caps)


def described(allocation: Allocation) -> str | dict[str, float] | dict[str, dict[str, float]]:
    """An allocation as plain data, for metadata and files.

    Args:
        allocation: The allocation.

    Returns:
        Its name, names to densities, or for a mask ``{"in proportion to": names to its densities}``.
    """
    if isinstance(allocation, str):
        return allocation
    if any(isinstance(value, Tensor) for value in allocation.values()):
        return {"in proportion to": {name: _mean(entry) for name, entry in allocation.items()}}
    return {name: float(value) for name, value in allocation.items()}


def _mean(entry: Any) -> float:
    return int(entry.count_nonzero()) / entry.numel()


def _own_densities(mask: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    for name, entry in mask.items():
        if name not in shapes:
            raise UnknownName("weight in allocation", name, shapes)
        if not isinstance(entry, Tensor) or entry.dtype != torch.bool or tuple(entry.shape) != tuple(shapes[name]):
            found = f"{entry.dtype} {tuple(entry.shape)}" if isinstance(entry, Tensor) else repr(entry)
            raise MaskMismatch(f"allocation has {found} for {name!r}; allowed: a mask of shape {tuple(shapes[name])}")
    return {name: _mean(mask[name]) if name in mask else 1.0 for name in shapes}


def _proportional(
    weights: Mapping[str, float], target: float, sizes: Mapping[str, int], caps: Mapping[str, float]
) -> dict[str, float]:
    room = sum(caps[name] * size for name, size in sizes.items() if weights[name] > 0)
    if target > room + 0.5:
        empty = ", ".join([name for name in sizes if weights[name] == 0][:5])
        total = sum(sizes.values())
        raise InvalidInput(
            f"allocation and sparsity contradict each other: the mask keeps nothing of {empty}, so the sparsity is at "
            f"least {1 - room / total:.6f}, not {1 - target / total:.6f}"
        )
    return fill(weights, target, sizes, caps)


def _explicit(
    allocation: Mapping[str, float], density: float, sizes: Mapping[str, int], caps: Mapping[str, float]
) -> dict[str, float]:
    for name, value in allocation.items():
        if name not in sizes:
            raise UnknownName("weight in allocation", name, sizes)
        if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
            raise InvalidInput(f"allocation gives {name!r} density {value!r}; allowed: 0 to 1")
        if value > caps[name] + 0.5 / sizes[name]:
            raise InvalidInput(
                f"allocation gives {name!r} density {value:.6f} but the start mask keeps {caps[name]:.6f}"
            )
    others = {name: size for name, size in sizes.items() if name not in allocation}
    total = sum(sizes.values())
    fixed = sum(allocation[name] * sizes[name] for name in allocation)
    rest = density * total - fixed
    room = sum(caps[name] * size for name, size in others.items())
    slack = len(sizes)  # one weight of rounding in every layer
    if not -slack <= rest <= room + slack:
        low, high = 1 - (fixed + room) / total, 1 - fixed / total
        raise InvalidInput(
            f"allocation and sparsity contradict each other: it admits sparsity {max(low, 0):.6f} to {high:.6f}, "
            f"not {1 - density:.6f}"
        )
    filled = fill(dict.fromkeys(others, 1.0), max(rest, 0.0), others, caps) if others else {}
    return {name: allocation.get(name, filled.get(name, 0.0)) for name in sizes}
