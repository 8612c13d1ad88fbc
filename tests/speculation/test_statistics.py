import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d_serve.speculation.statistics import SpeculationStatistics
from tests.speculation.examples import fixed_examples

rounds = st.lists(
    st.lists(st.sampled_from([6, 12, 24]), max_size=5).flatmap(
        lambda exits: st.tuples(st.just(tuple(exits)), st.integers(0, len(exits)))
    ),
    max_size=20,
)


def test_the_counts_of_three_rounds() -> None:
    statistics = SpeculationStatistics()
    statistics.record(3, num_accepted=2, exits=(6, 12, 6))
    statistics.record(1)
    statistics.record(1, num_accepted=0, exits=(24,))
    assert statistics == SpeculationStatistics(
        num_rounds=3,
        num_drafts=2,
        num_draft_tokens=4,
        num_accepted_tokens=2,
        num_committed_tokens=5,
        acceptance_histogram=[1, 0, 1],
        accepted_by_position=[1, 1, 0],
        drafted_by_position=[2, 1, 1],
        exit_counts={6: 2, 12: 1, 24: 1},
    )
    assert statistics.acceptance_rate == 0.5
    assert statistics.mean_accepted_tokens == pytest.approx(5 / 3)


def test_rates_of_nothing_are_no_numbers() -> None:
    statistics = SpeculationStatistics()
    assert math.isnan(statistics.acceptance_rate)
    assert math.isnan(statistics.mean_accepted_tokens)
    statistics.record(1)
    assert math.isnan(statistics.acceptance_rate)
    assert statistics.mean_accepted_tokens == 1.0


def test_a_sequence_may_end_inside_a_round() -> None:
    """At a stop token fewer tokens are committed than accepted and one."""
    statistics = SpeculationStatistics()
    statistics.record(2, num_accepted=2, exits=(6, 6, 6))
    assert statistics.acceptance_rate == pytest.approx(2 / 3)
    assert statistics.mean_accepted_tokens == 2.0


@fixed_examples
@given(rounds)
def test_the_counts_agree_with_each_other(rounds: list[tuple[tuple[int, ...], int]]) -> None:
    statistics = SpeculationStatistics()
    for exits, num_accepted in rounds:
        statistics.record(num_accepted + 1, num_accepted, exits)
    drafts = [(exits, num_accepted) for exits, num_accepted in rounds if exits]
    histogram = statistics.acceptance_histogram
    assert statistics.num_rounds == len(rounds)
    assert statistics.num_drafts == len(drafts) == sum(histogram)
    assert statistics.num_draft_tokens == sum(len(exits) for exits, _ in drafts)
    assert statistics.num_accepted_tokens == sum(accepted for _, accepted in drafts)
    assert statistics.num_committed_tokens == len(rounds) + statistics.num_accepted_tokens
    assert sum(statistics.exit_counts.values()) == statistics.num_draft_tokens
    assert sum(statistics.drafted_by_position) == statistics.num_draft_tokens
    assert sum(statistics.accepted_by_position) == statistics.num_accepted_tokens
    assert statistics.num_accepted_tokens == sum(j * times for j, times in enumerate(histogram))
    for position, accepted in enumerate(statistics.accepted_by_position):
        assert accepted == sum(histogram[position + 1 :])
