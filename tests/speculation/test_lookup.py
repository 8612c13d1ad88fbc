import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d_serve.speculation.estimates import AcceptanceEstimate
from s2d_serve.speculation.lookup import (
    MAX_MATCH,
    MAX_PLACES,
    MIN_MATCH,
    LookupEstimate,
    Match,
    SuffixLookup,
)
from tests.speculation.examples import fixed_examples


def test_what_came_next_is_found() -> None:
    text = [7, 8, 9, 1, 2, 3, 4, 8, 9]
    assert SuffixLookup(text).find(3) == Match(2, (1, 2, 3))


def test_the_longest_match_wins_and_the_latest_of_equals() -> None:
    longest = SuffixLookup([1, 2, 3, 4, 5, 3, 4, 6, 2, 3, 4])
    assert longest.find(1) == Match(3, (5,))
    latest = SuffixLookup([3, 4, 5, 0, 3, 4, 6, 1, 3, 4])
    assert latest.find(1) == Match(2, (6,))


def test_a_continuation_that_meets_the_end_repeats() -> None:
    assert SuffixLookup([7, 8, 9, 7, 8]).find(7) == Match(2, (9, 7, 8, 9, 7, 8, 9))
    assert SuffixLookup([5] * 5).find(3) == Match(4, (5, 5, 5))


@pytest.mark.parametrize("text", [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 2]])
def test_without_an_earlier_place_nothing_is_found(text: list[int]) -> None:
    assert SuffixLookup(text).find(4) is None


def test_a_long_match_is_as_good_as_a_longer_one() -> None:
    piece = random.Random(0).sample(range(1000), 3 * MAX_MATCH)
    match = SuffixLookup(piece + piece[:-5]).find(9)
    assert match == Match(MAX_MATCH, (*piece[-5:], *piece[:4]))


def plain_search(text: list[int], max_tokens: int) -> Match | None:
    """Every earlier place, one after the other."""
    best: Match | None = None
    for end in range(len(text) - 2, -1, -1):
        length = 0
        while length <= end and length < MAX_MATCH and text[end - length] == text[-1 - length]:
            length += 1
        if length >= MIN_MATCH and (best is None or length > best.length):
            following = list(text)
            for i in range(max_tokens):
                following.append(following[end + 1 + i])
            found = following[end + 1 : end + 1 + max_tokens]
            best = Match(length, tuple(found))
    return best


@fixed_examples
@given(st.lists(st.integers(0, 3), max_size=MAX_PLACES), st.integers(1, 9))
def test_it_finds_what_a_plain_search_finds(text: list[int], max_tokens: int) -> None:
    grown = SuffixLookup([])
    for token_id in text:
        grown.extend([token_id])
    assert grown.find(max_tokens) == plain_search(text, max_tokens)
    assert SuffixLookup(text).find(max_tokens) == grown.find(max_tokens)


def test_worth_is_learned_from_what_is_committed() -> None:
    estimate = LookupEstimate()
    short, long = Match(2, (1, 2, 3, 4)), Match(9, (1, 2, 3, 4))
    assert estimate.reach(short, AcceptanceEstimate()) == pytest.approx([0.3, 0.09])
    for _ in range(40):
        estimate.record(short, AcceptanceEstimate(), (8,))
        estimate.record(long, AcceptanceEstimate(), (1, 2, 3, 9))
    assert estimate.reach(short, AcceptanceEstimate()) == []
    good = estimate.reach(long, AcceptanceEstimate())
    assert good[2] > 0.85
    assert good[3] < 0.1


def test_a_longer_match_starts_where_shorter_ones_stand() -> None:
    estimate = LookupEstimate()
    for _ in range(40):
        estimate.record(Match(3, (1,)), AcceptanceEstimate(), (1,))
    assert estimate.reach(Match(20, (1,)), AcceptanceEstimate())[0] > 0.9
    for _ in range(40):
        estimate.record(Match(20, (1,)), AcceptanceEstimate(), (2,))
    assert estimate.reach(Match(20, (1,)), AcceptanceEstimate())[0] < 0.1
    assert estimate.reach(Match(2, (1,)), AcceptanceEstimate())[0] > 0.9


def test_what_was_not_committed_says_nothing() -> None:
    estimate, own = LookupEstimate(), AcceptanceEstimate()
    estimate.record(Match(2, (1, 2, 3, 4)), own, (1, 2))
    assert (own.tried, own.accepted) == ([1.0, 1.0], [1.0, 1.0])
    estimate.record(Match(2, (1, 2, 3, 4)), own, ())
    assert len(own.tried) == 2


def test_a_sequence_that_copies_is_trusted_more_than_its_target() -> None:
    estimate, copying, other = LookupEstimate(), AcceptanceEstimate(), AcceptanceEstimate()
    match = Match(3, (1, 2))
    for _ in range(20):
        estimate.record(match, copying, (1, 2, 3))
        estimate.record(match, other, (5,))
    assert estimate.reach(match, copying)[0] > estimate.reach(match, other)[0] + 0.3
