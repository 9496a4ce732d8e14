"""Numbers over seeds: means, intervals, differences, and what they allow to be said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    n: int
    mean: float
    half_width: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

    def overlaps(self, other: "Estimate") -> bool:
        """Whether the two intervals share a point; one without an interval overlaps everything."""
        return not abs(self.mean - other.mean) > self.half_width + other.half_width


# Two-sided 95 % quantiles for 1 to 30 degrees of freedom.
_QUANTILES = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def student_quantile(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t distribution."""
    if degrees <= len(_QUANTILES):
        return _QUANTILES[degrees - 1]
    z = 1.959964  # of the normal distribution; the terms are those of its expansion in 1 / degrees
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval by Student's t."""
    n = len(values)
    if n < 2:
        return Estimate(n, fmean(values), math.nan)
    return Estimate(n, fmean(values), student_quantile(n - 1) * math.sqrt(variance(values) / n))


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Difference of two means with Welch's 95 % interval (degrees of freedom rounded down)."""
    mean, n = fmean(first) - fmean(second), min(len(first), len(second))
    if n < 2:
        return Estimate(n, mean, math.nan)
    parts = [variance(values) / len(values) for values in (first, second)]
    spread = sum(parts)
    if spread == 0:
        return Estimate(n, mean, 0.0)
    squares = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True))
    return Estimate(n, mean, student_quantile(max(1, int(spread**2 / squares))) * math.sqrt(spread))
