import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d_serve.api.jsontext import to_json
from s2d_serve.api.speculation import RoundDetails, RoundToken, SpeculationSummary

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


def details(num_drafted: int, num_accepted: int) -> RoundDetails:
    """A round of so many tokens, all of them the same."""
    token = RoundToken(5, b"a")
    return RoundDetails(
        draft=(token,) * num_drafted,
        exits=(6,) * num_drafted,
        num_accepted=num_accepted,
        committed=(token,) * (num_accepted + 1),
        draft_s=0.01,
        verify_s=0.02,
        round_s=0.04,
    )


ROUNDS = (details(3, 3), details(3, 1), details(2, 0), details(0, 0))


def test_each_round_only_when_asked() -> None:
    detailed = SpeculationSummary(
        seed=7,
        num_rounds=4,
        num_committed_tokens=8,
        num_draft_tokens=8,
        acceptance_histogram=(1, 1, 0, 1),
        exit_counts={12: 3, 6: 5},
        rounds=ROUNDS,
    )
    assert counts(detailed) == counts(SUMMARY) | {
        "per_step_accepted": [3, 1, 0],
        "per_step_drafted": [3, 3, 2],
        "rounds": [one.to_body() for one in ROUNDS],
    }


def test_a_round() -> None:
    """A part of a character has bytes and a readable name; what adds nothing has no bytes."""
    snow, part, end = (
        RoundToken(7, b"snow"),
        RoundToken(8, b"\xe2\x98"),
        RoundToken(2, b"<end>", is_special=True),
    )
    one = RoundDetails((snow, part, snow), (4, 4, 0), 2, (snow, part, end), 0.01, 0.02, 0.04)
    shown_snow = {"token_id": 7, "token": "snow", "bytes": [115, 110, 111, 119]}
    shown_part = {"token_id": 8, "token": "bytes:\\xe2\\x98", "bytes": [226, 152]}
    assert one.to_body() == {
        "draft": [shown_snow | {"exit": 4}, shown_part | {"exit": 4}, shown_snow | {"exit": 0}],
        "num_accepted": 2,
        "committed": [shown_snow, shown_part, {"token_id": 2, "token": "<end>", "bytes": []}],
        "draft_s": 0.01,
        "verify_s": 0.02,
        "round_s": 0.04,
    }


@pytest.mark.parametrize(
    ("num_draft_tokens", "histogram", "rounds"),
    [
        (3, (0, 0, 0, 0, 1), None),  # accepted more than was drafted
        (4, (0, 0, 0, 0, 1), ()),  # a round is missing
        (4, (0, 0, 0, 0, 1), (details(5, 4),)),  # another number of drafted tokens
        (4, (0, 0, 0, 0, 1), (details(4, 3),)),  # another number of accepted tokens
        (4, (0, 0, 0, 1), (details(4, 4),)),  # the same
        (4, (0, 0, 0, 0, 1), (replace(details(4, 4), committed=()),)),  # of committed ones
    ],
)
def test_counts_that_contradict_each_other_are_our_bug(
    num_draft_tokens: int,
    histogram: tuple[int, ...],
    rounds: tuple[RoundDetails, ...] | None,
) -> None:
    with pytest.raises(AssertionError):
        SpeculationSummary(1, 1, 5, num_draft_tokens, histogram, {}, rounds)


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
            rounds=tuple(details(*step) for step in steps) + (details(0, 0),) * num_alone,
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
