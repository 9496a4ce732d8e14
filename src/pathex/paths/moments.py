"""Mean and variance of what reaches a BatchNorm layer, merged over images and parts in float64."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """What one BatchNorm layer used: mean and biased variance of each channel, ``(C,)`` float64 or the stored dtype."""

    mean: Tensor
    var: Tensor


_CHUNK = 1 << 20  # elements at a time, which bounds the extra memory


def moments_of(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and sum of squared deviations of each channel, exact to the precision of ``x``."""
    # Deviations from the mean are summed over each image in the precision of ``x`` (PyTorch adds up in cascades, whose
    # error does not grow with the number of terms), and over the images in float64.
    step = max(1, _CHUNK * len(x) // max(1, x.numel()))
    parts = []
    for part in x.split(step):
        count = part.numel() // part.shape[1]
        center = (_sum(part) / count).to(x.dtype)
        deviations = part - center.view(-1, *[1] * (x.dim() - 2))
        off = _sum(deviations) / count
        parts.append((center + off, _sum(deviations.square_()) - count * off.square(), count))
    return reduce(merge, parts)


def _sum(x: Tensor) -> Tensor:
    """Sum of each channel, float64."""
    return (x.sum(list(range(2, x.dim()))) if x.dim() > 2 else x).double().sum(0)


def merge(a: tuple[Tensor, Tensor, int], b: tuple[Tensor, Tensor, int]) -> tuple[Tensor, Tensor, int]:
    """Moments of two sets of values together (Chan, Golub and LeVeque 1983)."""
    (mean_a, spread_a, n_a), (mean_b, spread_b, n_b) = a, b
    n = n_a + n_b
    delta = mean_b - mean_a
    return mean_a + delta * (n_b / n), spread_a + spread_b + delta.square() * (n_a * n_b / n), n


def finish(moments: tuple[Tensor, Tensor, int], stored: Moments | None) -> Moments:
    """Mean and biased variance; a variance over fewer than two values falls back to the stored one."""
    mean, spread, count = moments
    if count < 2:
        return Moments(mean, torch.ones_like(mean) if stored is None else stored.var.to(mean))
    return Moments(mean, spread / count)
