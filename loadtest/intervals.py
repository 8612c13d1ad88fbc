"""Confidence intervals over repeats: Student's t, since repeats are few."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev, variance

from scipy import stats  # type: ignore[import-untyped]  # scipy ships no types

from loadtest.results import Interval

LEVEL = 0.95


def of_mean(values: Sequence[float]) -> Interval:
    """The mean; with two values and more its t interval."""
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean=mean, repeats=tuple(values))
    half = _t(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half, repeats=tuple(values))


def of_ratio(pairs: Sequence[tuple[float, float]]) -> Interval:
    """Geometric mean of second over first; the t interval of its logarithm, pair by pair.

    Pairs of which one is zero are left out; at least one must be left.
    """
    logs = of_mean([math.log(b / a) for a, b in pairs if a > 0 and b > 0])
    return _exp(logs)


def of_unpaired_ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Geometric mean of second over that of first; Welch's t interval of the difference of logs."""
    a, b = [math.log(x) for x in first if x > 0], [math.log(x) for x in second if x > 0]
    difference = fmean(b) - fmean(a)
    if len(a) < 2 or len(b) < 2:
        return _exp(Interval(mean=difference, repeats=()))
    u, v = variance(a) / len(a), variance(b) / len(b)
    if u + v == 0:
        return _exp(Interval(mean=difference, low=difference, high=difference, repeats=()))
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    half = _t(freedom) * math.sqrt(u + v)
    low, high = difference - half, difference + half
    return _exp(Interval(mean=difference, low=low, high=high, repeats=()))


def percentile(values: Sequence[float], share: float) -> float:
    """Between the two nearest values in order, linearly; `share` from 0 to 1."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _t(freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _exp(logs: Interval) -> Interval:
    return Interval(
        mean=math.exp(logs.mean),
        low=None if logs.low is None else math.exp(logs.low),
        high=None if logs.high is None else math.exp(logs.high),
        repeats=tuple(math.exp(x) for x in logs.repeats),
    )
