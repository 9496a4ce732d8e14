"""How many weights each layer keeps."""

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pathex.errors import InvalidInput, MaskMismatch, UnknownName, check_name
from pathex.files import read
from pathex.masks import ENDINGS, read_mask

ALLOCATIONS = ("global", "layer", "uniform", "erk")
Allocation = str | Mapping[str, float] | Mapping[str, Tensor]
"""One of `ALLOCATIONS`, weight names to final densities, or a mask whose densities are taken in proportion."""

_TABLES = (".yaml", ".yml", ".json")


def round_to_total(
    shares: Mapping[str, float], total: int, limits: Mapping[str, int], floors: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Round real shares to integers with an exact sum, by largest remainder."""
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
    """Densities proportional to ``weights`` that keep a given number of weights together, none above its cap."""
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
    """As plain data, for metadata and files: a name, densities, or ``{"in proportion to": densities of a mask}``."""
    if isinstance(allocation, str):
        return allocation
    if any(isinstance(value, Tensor) for value in allocation.values()):
        return {"in proportion to": {name: _mean(entry) for name, entry in allocation.items()}}
    return {name: float(value) for name, value in allocation.items()}


def read_allocation(allocation: Allocation | os.PathLike[str]) -> Allocation:
    """An allocation as it is, or read from a file of densities (YAML, JSON) or a mask; `InvalidInput` for others."""
    if isinstance(allocation, Mapping) or allocation in ALLOCATIONS or not isinstance(allocation, str | os.PathLike):
        return allocation
    path = Path(allocation)
    if not path.is_file() and path.suffix not in (*_TABLES, *ENDINGS):
        raise UnknownName("allocation", str(allocation), (*ALLOCATIONS, "a mapping, a mask or a file"))
    if path.suffix not in _TABLES:
        return read_mask(path)
    content = read(path, f"allocation file {str(path)!r}")
    pairs = content.items() if isinstance(content, dict) else ()
    if not pairs or not all(isinstance(n, str) and isinstance(d, int | float) for n, d in pairs):
        raise InvalidInput(f"allocation file {str(path)!r} must hold weight names with densities")
    return dict(pairs)


def _mean(entry: Any) -> float:
    return int(entry.count_nonzero()) / max(entry.numel(), 1)


def _own_densities(mask: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    for name, entry in mask.items():
        check_name("weight in allocation", name, shapes)
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
        check_name("weight in allocation", name, sizes)
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
