"""The best of many scores, exactly as many as are wanted; ties, also among zeros or infinities, by a seeded order."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pathex.errors import InvalidInput
from pathex.graph import Tensors


def cut(
    scores: Sequence[Tensor], candidates: Tensor, count: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, int]:
    """The best of the candidates, with all that tie with the last of them."""
    parts = candidates.split([len(score) for score in scores])
    numbers = [int(part.count_nonzero()) for part in parts]
    if count >= sum(numbers):
        return candidates.clone(), None, 0
    dtype = torch.float32 if dtype is torch.bfloat16 else dtype  # which NumPy does not know
    values = np.empty(sum(numbers), dtype=torch.empty(0, dtype=dtype).numpy().dtype)
    ends = itertools.accumulate(numbers)
    for score, part, number, end in zip(scores, parts, numbers, ends, strict=True):
        np.compress(part.numpy(), score.to(dtype).numpy(), out=values[end - number : end])
    values.partition(len(values) - count)
    threshold = float(values[len(values) - count])
    del values

    def where(compare: Callable[..., Tensor]) -> Tensor:
        found = candidates.clone()
        for score, part in zip(scores, found.split([len(score) for score in scores]), strict=True):
            part.logical_and_(compare(score.to(dtype), threshold))
        return found

    keep = where(torch.ge)
    surplus = int(keep.count_nonzero()) - count
    return (keep, where(torch.eq), surplus) if surplus else (keep, None, 0)


class Pool:
    """All scores as one vector, in the order of the names, with a seeded order that breaks ties.

    Scores are read layer by layer where they are; only those that are compared are brought together.
    """

    def __init__(self, scores: Tensors, allowed: Tensors, seed: int, forced: Tensors | None = None) -> None:
        self.scores = {name: score.detach().cpu() for name, score in scores.items()}
        self.shapes = {name: score.shape for name, score in scores.items()}
        ends = list(itertools.accumulate((shape.numel() for shape in self.shapes.values()), initial=0))
        self.places = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.shapes)}
        # Scores of several precisions are compared in the highest of them.
        self.dtype = functools.reduce(torch.promote_types, [score.dtype for score in self.scores.values()])
        self.allowed = self.vector(allowed)
        self.forced = None if forced is None else self.vector(forced)
        self.seed = seed

    def order(self, indices: Tensor, layer: str | None = None) -> Tensor:
        """Their numbers in the seeded order, of indices into all layers or into one."""
        return _mixed(indices + (0 if layer is None else self.places[layer].start), self.seed)

    def vector(self, entries: Tensors) -> Tensor:
        """All entries in one."""
        return torch.cat([entries[name].flatten().cpu() for name in self.shapes])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a vector by name, in their shapes."""
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
            raise InvalidInput(f"min_per_layer secures {int(secured.sum())} weights but only {count} are to be kept")
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
    """A number for each index, no two alike, as if drawn."""
    # The finalizer of SplitMix64 (Steele, Lea, Flood, 2014), a bijection of 64 bits. Where few are tied it costs far
    # less than a permutation of all weights.
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        mixed = indices.numpy().astype(np.uint64) + state
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return torch.from_numpy(mixed.view(np.int64))


def keep_best(
    scores: Tensors,
    allowed: Tensors,
    count: int,
    *,
    seed: int = 0,
    at_least: Mapping[str, int] | None = None,
    forced: Tensors | None = None,
) -> dict[str, Tensor]:
    """Keep the ``count`` weights of highest score, all layers together."""
    pool = Pool(scores, allowed, seed, forced)
    secured = pool.secured(at_least, count)
    if not secured.any():
        del secured  # as large as a mask
        return pool.named(pool.best(pool.allowed, count))
    return pool.named(secured | pool.best(pool.allowed & ~secured, count - int(secured.count_nonzero())))


def keep_best_by_layer(
    scores: Tensors, allowed: Tensors, counts: Mapping[str, int], *, seed: int = 0, forced: Tensors | None = None
) -> dict[str, Tensor]:
    """Keep a given number of weights in each layer, those of highest score."""
    return {
        name: keep_best({name: score}, allowed, counts[name], seed=seed + index, forced=forced)[name]
        for index, (name, score) in enumerate(scores.items())
    }
