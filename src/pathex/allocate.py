"""From scores to a mask: how many weights each layer keeps, and which.

Counts are exact. Ties, also among zero or infinite scores, are broken by a seeded order.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnknownName

__all__ = ["ALLOCATIONS", "Allocation", "keep_best", "keep_best_by_layer", "layer_densities", "round_to_total"]

ALLOCATIONS = ("global", "layer", "uniform", "erk")
Allocation = str | Mapping[str, float]
"""One of `ALLOCATIONS`, or weight names to final densities."""


def _top(flat: Tensor, allowed: Tensor, order: Tensor, count: int) -> Tensor:
    """The ``count`` best of the allowed entries as a bool vector; ties go to the lower number in ``order``."""
    keep = torch.zeros_like(allowed)
    if count <= 0:
        return keep
    candidates = allowed.nonzero().squeeze(1)
    values = flat[candidates]
    threshold = values.kthvalue(len(values) - count + 1).values
    above = candidates[values > threshold]
    keep[above] = True
    ties = candidates[values == threshold]
    keep[ties[order[ties].argsort()[: count - len(above)]]] = True
    return keep


def keep_best(
    scores: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    count: int,
    *,
    seed: int = 0,
    at_least: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Keep the ``count`` weights of highest score, all layers together.

    Args:
        scores: Name to score, higher = keep; infinite scores are allowed, NaN is not.
        allowed: Name to bool tensor: the weights to choose from.
        count: How many weights to keep, at most the number of allowed ones.
        seed: Seed of the order that breaks ties.
        at_least: Name to a number of weights that the layer keeps in any case.

    Returns:
        Name to bool tensor on the CPU with exactly ``count`` True entries in all.

    Raises:
        InvalidInput: If more weights must be kept than there are, or the floors exceed ``count``.
    """
    names = list(scores)
    flat = torch.cat([scores[name].detach().flatten().double().cpu() for name in names])
    pool = torch.cat([allowed[name].flatten().cpu() for name in names])
    if count > int(pool.sum()):
        raise InvalidInput(f"{count} weights are to be kept but only {int(pool.sum())} are left")
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))
    sizes = [scores[name].numel() for name in names]
    secured = torch.zeros_like(pool)
    if at_least:
        for name, part, chosen in zip(names, pool.split(sizes), secured.split(sizes), strict=True):
            start = sum(sizes[: names.index(name)])
            here = slice(start, start + len(part))
            floor = min(at_least.get(name, 0), int(part.sum()))
            chosen.copy_(_top(flat[here], part, order[here], floor))
        if int(secured.sum()) > count:
            raise InvalidInput(f"min_per_layer secures {int(secured.sum())} weights but only {count} are to be kept")
    keep = secured | _top(flat, pool & ~secured, order, count - int(secured.sum()))
    return {name: part.view(scores[name].shape) for name, part in zip(names, keep.split(sizes), strict=True)}


def keep_best_by_layer(
    scores: Mapping[str, Tensor], allowed: Mapping[str, Tensor], counts: Mapping[str, int], *, seed: int = 0
) -> dict[str, Tensor]:
    """Keep a given number of weights in each layer, those of highest score.

    Args:
        scores: Name to score, higher = keep.
        allowed: Name to bool tensor: the weights to choose from.
        counts: Name to the number of weights that the layer keeps.
        seed: Seed of the order that breaks ties.

    Returns:
        Name to bool tensor on the CPU.
    """
    return {
        name: keep_best({name: score}, allowed, counts[name], seed=seed + index)[name]
        for index, (name, score) in enumerate(scores.items())
    }


def round_to_total(shares: Mapping[str, float], total: int, limits: Mapping[str, int]) -> dict[str, int]:
    """Round real shares to integers with an exact sum, by largest remainder.

    Args:
        shares: Name to a share, not negative; together within one per name of ``total``.
        total: Exact sum of the result.
        limits: Name to the largest number that it may get.

    Returns:
        Name to integer.

    Raises:
        InvalidInput: If the limits do not admit the total.
    """
    if sum(limits[name] for name in shares) < total:
        raise InvalidInput(f"{total} weights are to be kept but only {sum(limits.values())} are left")
    counts = {name: min(math.floor(share + 1e-9), limits[name]) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        ordered = by_remainder if step > 0 else by_remainder[::-1]
        open_names = [n for n in ordered if (counts[n] < limits[n] if step > 0 else counts[n] > 0)]
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
            names to densities fixes those layers; the others share the rest uniformly.
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
        return _explicit(allocation, density, sizes, caps)
    if allocation == "layer":
        factor = target / sum(start.values())
        return {name: cap * factor for name, cap in caps.items()}
    if allocation == "uniform":
        return _filled(dict.fromkeys(sizes, 1.0), target, sizes, caps)
    if allocation == "erk":
        return _filled({name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}, target, sizes, caps)
    raise UnknownName("allocation", allocation, ALLOCATIONS)


def _filled(
    weights: Mapping[str, float], target: float, sizes: Mapping[str, int], caps: Mapping[str, float]
) -> dict[str, float]:
    """Densities proportional to ``weights`` with the given number of kept weights, none above its cap."""
    full: set[str] = set()
    while True:
        rest = target - sum(caps[name] * sizes[name] for name in full)
        scale = rest / sum(weights[name] * sizes[name] for name in sizes if name not in full) if rest > 0 else 0.0
        over = {name for name in sizes if name not in full and weights[name] * scale > caps[name]}
        if not over:
            return {name: caps[name] if name in full else weights[name] * scale for name in sizes}
        full |= over
        if len(full) == len(sizes):
            return dict(caps)


def _explicit(
    allocation: Mapping[str, float], density: float, sizes: Mapping[str, int], caps: Mapping[str, float]
) -> dict[str, float]:
    for name, value in allocation.items():
        if name not in sizes:
            raise UnknownName("weight in allocation", name, sizes)
        if not 0 <= value <= 1:
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
    filled = _filled(dict.fromkeys(others, 1.0), max(rest, 0.0), others, caps) if others else {}
    return {name: allocation.get(name, filled.get(name, 0.0)) for name in sizes}
