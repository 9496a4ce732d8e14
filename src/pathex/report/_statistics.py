"""Numbers over seeds: means, intervals, differences, and what they allow to be said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

__all__ = ["Estimate", "difference", "estimate", "student_quantile"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
        n: Number of values.
        mean: Their mean.
        half_width: Half the width of the interval; None when one value gives none.
    """

    n: int
    mean: float
    half_width: float | None

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width

    def overlaps(self, other: "Estimate") -> bool:
        """Whether the two intervals share a point; one without an interval overlaps everything."""
        if self.half_width is None or other.half_width is None:
            return True
        return abs(self.mean - other.mean) <= self.half_width + other.half_width


def student_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's t distribution.

    The finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4 give P(|T| < t) exactly for whole degrees of freedom;
    bisection inverts them in the angle atan(t / sqrt(degrees)).

    Args:
        degrees: Degrees of freedom, at least 1.
        confidence: Probability between -t and t.

    Returns:
        t.

    Example:
        >>> round(student_quantile(2), 3), round(student_quantile(9), 3)
        (4.303, 2.262)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _central_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(degrees)


def _central_probability(angle: float, degrees: int) -> float:
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval by Student's t."""
    n = len(values)
    if n < 2:
        return Estimate(n, fmean(values), None)
    return Estimate(n, fmean(values), student_quantile(n - 1) * math.sqrt(variance(values) / n))


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Difference of two means with Welch's 95 % interval (degrees of freedom rounded down)."""
    mean, n = fmean(first) - fmean(second), min(len(first), len(second))
    if n < 2:
        return Estimate(n, mean, None)
    parts = [variance(values) / len(values) for values in (first, second)]
    spread = sum(parts)
    if spread == 0:
        return Estimate(n, mean, 0.0)
    squares = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True))
    return Estimate(n, mean, student_quantile(max(1, int(spread**2 / squares))) * math.sqrt(spread))
