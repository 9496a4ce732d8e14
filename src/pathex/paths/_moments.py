"""Mean and variance of what reaches a BatchNorm layer, accumulated in float64 and merged over parts."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "finish", "merge", "moments_of"]


@dataclass(frozen=True)
class Moments:
    """What one BatchNorm layer used: mean and biased variance of each channel, ``(C,)`` float64 or the stored dtype."""

    mean: Tensor
    var: Tensor


_CHUNK = 1 << 18  # elements taken to float64 at a time, which bounds the extra memory


def moments_of(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and sum of squared deviations of each channel, accumulated in float64.

    Args:
        x: ``(N, C, ...)``.

    Returns:
        Mean ``(C,)``, sum of squared deviations ``(C,)`` and the number of values of a channel.
    """
    step = max(1, _CHUNK * len(x) // max(1, x.numel()))
    dims = [d for d in range(x.dim()) if d != 1]
    total = None
    for part in x.split(step):
        values = part.to(torch.float64, copy=True)
        mean = values.mean(dims)
        values -= mean.view(-1, *[1] * (x.dim() - 2))
        here = mean, values.square_().sum(dims), values.numel() // values.shape[1]
        total = here if total is None else merge(total, here)
    assert total is not None
    return total


def merge(a: tuple[Tensor, Tensor, int], b: tuple[Tensor, Tensor, int]) -> tuple[Tensor, Tensor, int]:
    """Moments of two sets of values together (Chan, Golub and LeVeque 1983).

    Args:
        a: Mean, sum of squared deviations and count of the first set.
        b: The same of the second set.

    Returns:
        The same of both.
    """
    (mean_a, spread_a, n_a), (mean_b, spread_b, n_b) = a, b
    n = n_a + n_b
    delta = mean_b - mean_a
    return mean_a + delta * (n_b / n), spread_a + spread_b + delta.square() * (n_a * n_b / n), n


def finish(moments: tuple[Tensor, Tensor, int], stored: Moments | None) -> Moments:
    """Mean and biased variance; a variance over fewer than two values falls back to the stored one.

    Args:
        moments: Mean, sum of squared deviations and count.
        stored: The stored statistics, if there are any.

    Returns:
        What BatchNorm uses.
    """
    mean, spread, count = moments
    if count < 2:
        return Moments(mean, torch.ones_like(mean) if stored is None else stored.var.to(mean))
    return Moments(mean, spread / count)
