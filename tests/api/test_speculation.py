import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d_serve.api.jsontext import to_json
from s2d_serve.api.speculation import SpeculationSummary

# two rounds drafted 3, one drafted 2, one drafted nothing; they accepted 3, 1 and 0
SUMMARY = SpeculationSummary(
    seed=7,
    num_rounds=4,
    num_committed_tokens=8,
    num_draft_tokens=8,
    acceptance_histogram=(1, 1, 0, 1),
    exit_counts={12: 3, 6: 5},
)


def counts(summary: SpeculationSummary) -> dict[str, object]:
    metrics = summary.to_body()
    assert list(metrics) == ["speculative_decoding"]
    body = metrics["speculative_decoding"]
    assert isinstance(body, dict)
    return body


def test_the_counts_of_a_response() -> None:
    assert counts(SUMMARY) == {
        "mean_acceptance_length": 1 + 4 / 3,
        "draft_acceptance_rate": 0.5,
        "acceptance_histogram": [1, 1, 0, 1],
        "num_spec_steps": 3,
        "num_accepted_draft_tokens": 4,
        "num_draft_tokens": 8,
        "num_rounds": 4,
        "mean_accepted_tokens": 2.0,
        "exit_counts": {"6": 5, "12": 3},
        "seed": 7,
    }


def test_without_a_draft_all_numbers_are_finite() -> None:
    body = counts(SpeculationSummary(seed=1, num_rounds=0, num_committed_tokens=0))
    assert body["mean_acceptance_length"] == 1.0
    assert body["draft_acceptance_rate"] == body["mean_accepted_tokens"] == 0.0
    assert body["acceptance_histogram"] == [0]
    assert body["num_spec_steps"] == body["num_draft_tokens"] == 0
    assert counts(SpeculationSummary(1, 5, 5))["mean_accepted_tokens"] == 1.0


def test_each_round_only_when_asked() -> None:
    steps = ((3, 3), (3, 1), (2, 0))
    detailed = SpeculationSummary(
        seed=7,
        num_rounds=4,
        num_committed_tokens=8,
        num_draft_tokens=8,
        acceptance_histogram=(1, 1, 0, 1),
        exit_counts={12: 3, 6: 5},
        steps=steps,
    )
    assert counts(detailed) == counts(SUMMARY) | {
        "per_step_accepted": [3, 1, 0],
        "per_step_drafted": [3, 3, 2],
    }


@pytest.mark.parametrize(
    ("num_draft_tokens", "histogram", "steps"),
    [
        (3, (0, 0, 0, 0, 1), None),  # accepted more than was drafted
        (4, (0, 0, 0, 0, 1), ()),  # a round is missing
        (4, (0, 0, 0, 0, 1), ((5, 4),)),  # another number of drafted tokens
        (4, (0, 0, 0, 0, 1), ((4, 3),)),  # another number of accepted tokens
    ],
)
def test_counts_that_contradict_each_other_are_our_bug(
    num_draft_tokens: int,
    histogram: tuple[int, ...],
    steps: tuple[tuple[int, int], ...] | None,
) -> None:
    with pytest.raises(AssertionError):
        SpeculationSummary(1, 1, 5, num_draft_tokens, histogram, {}, steps)


@given(
    steps=st.lists(
        st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=30
    ),
    num_alone=st.integers(0, 5),
)
def test_the_sums_that_aiperf_checks_add_up(steps: list[tuple[int, int]], num_alone: int) -> None:
    accepted = [a for _, a in steps]
    body = counts(
        SpeculationSummary(
            seed=1,
            num_rounds=len(steps) + num_alone,
            num_committed_tokens=sum(accepted) + len(steps) + num_alone,
            num_draft_tokens=sum(drafted for drafted, _ in steps),
            acceptance_histogram=tuple(
                accepted.count(j) for j in range(max(accepted, default=-1) + 1)
            ),
            steps=tuple(steps),
        )
    )
    to_json(body)  # no NaN
    histogram = body["acceptance_histogram"]
    assert isinstance(histogram, list)
    assert sum(histogram) == body["num_spec_steps"] == len(steps)
    assert sum(j * n for j, n in enumerate(histogram)) == body["num_accepted_draft_tokens"]
    assert body["num_accepted_draft_tokens"] == sum(accepted)
    if steps:
        mean = body["mean_acceptance_length"]
        assert isinstance(mean, float)
        assert math.isclose(mean, 1 + sum(accepted) / len(steps))
