import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d_serve.speculation.estimates import (
    COST_WEIGHT,
    DECAY,
    LESS_COST_WEIGHT,
    MAX_READ_S,
    MIN_READ_TOKENS,
    AcceptanceEstimate,
    CostCurve,
    ReadingCost,
    StepEstimate,
)
from tests.speculation.examples import fixed_examples

costs = st.floats(0.01, 3.0)


# Acceptance


def test_a_round_says_nothing_about_what_follows_a_rejection() -> None:
    estimate = AcceptanceEstimate()
    estimate.record(num_drafted=4, num_accepted=1)
    assert (estimate.tried, estimate.accepted) == ([1.0, 1.0], [1.0, 0.0])
    estimate.record(num_drafted=2, num_accepted=2)
    assert estimate.tried == [1 + DECAY, 1 + DECAY]
    assert estimate.accepted == [1 + DECAY, 1.0]
    estimate.record(num_drafted=3, num_accepted=3)
    assert estimate.tried[2] == estimate.accepted[2] == 1.0


def test_what_is_no_longer_tried_is_forgotten() -> None:
    estimate = AcceptanceEstimate()
    for _ in range(50):
        estimate.record(2, 1)
    assert estimate.probability(1, prior=0.9, prior_weight=2.0) < 0.1
    for _ in range(200):
        estimate.record(1, 1)
    assert estimate.probability(0, prior=0.5, prior_weight=2.0) > 0.9
    assert estimate.probability(1, prior=0.9, prior_weight=2.0) == pytest.approx(0.9, abs=0.01)


def test_an_estimate_weighs_its_record_against_the_prior() -> None:
    estimate = AcceptanceEstimate(tried=[6.0], accepted=[3.0])
    assert estimate.probability(0, prior=0.8, prior_weight=2.0) == pytest.approx(4.6 / 8)
    assert estimate.probability(1, prior=0.8, prior_weight=2.0) == 0.8
    assert AcceptanceEstimate().probability(0, prior=0.25, prior_weight=9.0) == 0.25


@fixed_examples
@given(st.lists(st.integers(0, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))))
def test_estimates_are_probabilities(rounds: list[tuple[int, int]]) -> None:
    estimate = AcceptanceEstimate()
    for num_drafted, num_accepted in rounds:
        estimate.record(num_drafted, num_accepted)
    for position in range(8):
        assert 0.0 <= estimate.probability(position, 0.7, 2.0) <= 1.0


# Costs


def test_a_cost_curve_goes_through_its_points() -> None:
    curve = CostCurve({2: 1.0, 4: 2.0, 10: 5.0})
    assert [curve(n) for n in (2, 3, 4, 7, 10)] == [1.0, 1.5, 2.0, 3.5, 5.0]
    assert curve(11) == curve(1000) == 5.0
    assert curve(1) == 0.5
    assert CostCurve({4: 2.0, 6: 2.2})(1) == pytest.approx(1.7)
    assert CostCurve({4: 2.0, 6: 4.0})(1) == 1.0  # the line goes to -1: half of the least


def test_a_lone_point_is_taken_everywhere() -> None:
    assert math.isnan(CostCurve()(1))
    curve = CostCurve()
    curve.record(4, 2.0)
    assert [curve(n) for n in (1, 3, 4, 5, 100)] == [2.0] * 5


def test_a_cost_that_was_wrong_was_wrong_at_larger_sizes_too() -> None:
    curve = CostCurve({1: 4.0, 2: 6.0, 4: 2.0})
    curve.correct(1, 1.0)
    assert curve.seconds == {1: 1.0, 2: 1.5, 4: 1.0}
    curve.correct(8, 3.0)
    assert curve.seconds == {1: 1.0, 2: 1.5, 4: 1.0, 8: 3.0}


def test_fewer_tokens_cost_no_more_than_was_measured_for_many() -> None:
    curve = CostCurve({4: 3.0, 8: 2.0, 16: 1.0})
    curve.record(8, 2.0)
    assert curve.seconds == {4: 2.0, 8: 2.0, 16: 1.0}
    curve.record(6, 1.5)
    assert curve.seconds == {4: 1.5, 6: 1.5, 8: 2.0, 16: 1.0}


def test_a_cost_follows_new_measurements() -> None:
    curve = CostCurve()
    curve.record(4, 2.0)
    curve.record(4, 3.0)
    assert curve(4) == pytest.approx(2.0 + COST_WEIGHT)
    for _ in range(50):
        curve.record(4, 7.0)
    assert curve(4) == pytest.approx(7.0, rel=1e-3)
    curve.record(4, 6.0)
    assert curve(4) == pytest.approx(7.0 - LESS_COST_WEIGHT, rel=1e-3)


@fixed_examples
@given(st.dictionaries(st.integers(1, 40), costs, min_size=1), st.integers(0, 50))
def test_costs_stay_between_half_the_least_and_the_largest(
    seconds: dict[int, float], num_tokens: int
) -> None:
    curve = CostCurve(dict(zip(sorted(seconds), sorted(seconds.values()), strict=True)))
    least, largest = min(seconds.values()), max(seconds.values())
    assert least / 2 <= curve(num_tokens) <= largest + 1e-12
    assert curve(num_tokens) <= curve(num_tokens + 1) + 1e-12
    assert all(curve(n) == pytest.approx(s) for n, s in curve.seconds.items())


# Proposals that end early


def test_a_position_where_the_draft_gave_up_gave_nothing() -> None:
    estimate = AcceptanceEstimate()
    estimate.record(2, 2, gave_up=True)
    assert (estimate.tried, estimate.accepted) == ([1.0, 1.0, 1.0], [1.0, 1.0, 0.0])
    rejected = AcceptanceEstimate()
    rejected.record(2, 0, gave_up=True)  # what came after the rejection says nothing
    assert (rejected.tried, rejected.accepted) == ([1.0], [0.0])


def test_steps_are_counted_as_far_as_the_draft_goes() -> None:
    steps = StepEstimate()
    assert steps(4) == 4
    for _ in range(200):
        steps.record(1, gave_up=True)
        steps.record(3, gave_up=False)
    assert steps(1) == pytest.approx(1)
    assert steps(3) == pytest.approx(1 + 2 * 0.5, abs=0.06)


# Reading


def test_a_pass_that_reads_costs_something_however_few_tokens_it_has() -> None:
    cost = ReadingCost()
    assert math.isnan(cost(9))
    assert cost.max_tokens is None
    cost.record(30, 0.06)
    assert cost(10) == pytest.approx(0.02), "nothing else is known"
    cost.tell_apart(30, 90, 0.09)
    assert (cost.pass_s, cost.token_s) == pytest.approx((0.045, 0.0005))
    assert cost(60) == pytest.approx(0.075)
    assert cost.max_tokens == int((MAX_READ_S - 0.045) / 0.0005) == 410
    assert cost(820) == pytest.approx(2 * 0.25)
    assert cost(840) == pytest.approx(3 * 0.045 + 840 * 0.0005), "a third pass"
    cost.record(60, 0.15)
    assert cost(60) == pytest.approx(0.075 * (1 + COST_WEIGHT))
    assert cost.pass_s == pytest.approx(0.045 * (1 + COST_WEIGHT))
    cost.record(60, 9.0, weight=1.0)
    assert cost(16) == pytest.approx(9.0 * (0.045 + 16 * 0.0005) / 0.075), "both as much dearer"
    assert cost.max_tokens == 90, "the pass alone takes longer than that"
    cost.pass_s = 0.0
    assert cost.max_tokens == MIN_READ_TOKENS


@given(few_s=costs, many_s=costs, num_tokens=st.integers(1, 999))
def test_more_tokens_cost_more_whatever_was_measured(
    few_s: float, many_s: float, num_tokens: int
) -> None:
    cost = ReadingCost()
    cost.record(31, few_s)
    cost.tell_apart(31, 127, many_s)
    assert cost.pass_s >= -1e-9
    assert cost(num_tokens + 1) > cost(num_tokens) > 0
