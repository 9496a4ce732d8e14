import itertools
import math

import pytest

from pathex.experiments.report.tables import difference, estimate, student_quantile

# Printed tables of Student's t, two-sided 95 %.
PRINTED = {1: 12.706, 2: 4.303, 5: 2.571, 10: 2.228, 20: 2.086, 30: 2.042, 31: 2.040, 40: 2.021, 120: 1.980}


def test_quantile_is_that_of_the_printed_tables_and_falls_with_the_degrees():
    for degrees, printed in PRINTED.items():
        assert student_quantile(degrees) == pytest.approx(printed, abs=6e-4), degrees
    quantiles = [student_quantile(degrees) for degrees in range(1, 200)]
    assert all(first > second > 1.96 for first, second in itertools.pairwise(quantiles))


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
    assert difference([0.5, 0.5], [0.25, 0.25]).half_width == 0
    assert math.isnan(difference([0.5], [0.25, 0.3]).half_width)
