"""Intervals, against numbers worked out by hand and by simulation."""

import math
from random import Random

import pytest

from loadtest.intervals import of_mean, of_ratio, of_unpaired_ratio, percentile


def test_the_interval_of_a_mean() -> None:
    found = of_mean([10.0, 12.0, 14.0])  # t(2) = 4.3027, standard error 2 / sqrt(3)
    assert found.mean == 12
    assert found.low == pytest.approx(12 - 4.3027 * 2 / math.sqrt(3), abs=1e-3)
    assert found.high == pytest.approx(12 + 4.3027 * 2 / math.sqrt(3), abs=1e-3)


def test_one_repeat_has_no_interval() -> None:
    found = of_mean([3.0])
    assert (found.mean, found.low, found.high) == (3.0, None, None)
    assert of_unpaired_ratio([1.0], [2.0]).low is None


def test_pairs_cancel_what_drifts() -> None:
    found = of_ratio([(10.0, 20.0), (5.0, 10.0), (40.0, 80.0)])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = Random(1)
    held = [0, 0]
    for _ in range(1000):
        a = [math.exp(random.gauss(0, 0.1)) for _ in range(5)]
        b = [1.3 * math.exp(random.gauss(0, 0.2)) for _ in range(4)]
        ratios = of_unpaired_ratio(a, b), of_ratio(list(zip(a, b, strict=False)))
        for i, ratio in enumerate(ratios):
            held[i] += (ratio.low or 0) <= 1.3 <= (ratio.high or 0)
    assert 930 <= held[0] <= 970
    assert 930 <= held[1] <= 970


def test_percentiles_lie_between_their_neighbours() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([1.0, 2.0], 0.99) == pytest.approx(1.99)
    assert percentile([7.0], 0.9) == 7.0
