import math

import pytest
from scipy import stats

from pathex.experiments.report.tables import difference, estimate


def test_intervals_of_three_values_and_of_one():
    found, alone = estimate([0.80, 0.82, 0.84]), estimate([0.8])
    assert found.mean == pytest.approx(0.82)
    assert found.half_width == pytest.approx(4.3027 * 0.02 / math.sqrt(3), rel=1e-4)
    assert found.low < 0.82 < found.high
    assert all(map(math.isnan, (alone.low, alone.half_width, alone.high)))
    assert alone.overlaps(estimate([0.1, 0.1]))


def test_intervals_overlap_only_when_they_touch():
    high, low = estimate([0.90, 0.91, 0.92]), estimate([0.80, 0.81, 0.82])
    assert not high.overlaps(low)
    assert high.overlaps(estimate([0.88, 0.90, 0.91]))


def test_welch_difference():
    gap = difference([0.92, 0.90, 0.91], [0.82, 0.80, 0.81])  # of equal spreads: the pooled one
    assert gap.mean == pytest.approx(0.1)
    assert gap.half_width == pytest.approx(2.7764 * 0.01 * math.sqrt(2 / 3), rel=1e-3)
    # Of unequal spreads and numbers, with the degrees of freedom of Welch's formula.
    first, second = [1.0, 2.0, 3.0], [0.0, 4.0]
    a, b = 1 / 3, 8 / 2
    degrees = (a + b) ** 2 / (a**2 / 2 + b**2 / 1)
    assert difference(first, second).half_width == pytest.approx(stats.t.ppf(0.975, degrees) * math.sqrt(a + b))
    assert difference([0.5, 0.5], [0.25, 0.25]).half_width == 0
    assert math.isnan(difference([0.5], [0.25, 0.3]).half_width)
