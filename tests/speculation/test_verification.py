from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d_serve.speculation.verification import Verification, verify
from tests.speculation.examples import fixed_examples

few_ids = st.integers(0, 2)


class Reader:
    """The target's tokens, and how many of them were asked for."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = token_ids
        self.num_read = 0

    def __iter__(self) -> Iterator[int]:
        for token_id in self.token_ids:
            self.num_read += 1
            yield token_id


@pytest.mark.parametrize(
    ("draft", "target", "num_accepted", "committed"),
    [
        ([5, 9, 2], [5, 9, 7, 1], 2, (5, 9, 7)),  # a correction
        ([5, 9, 2], [5, 9, 2, 1], 3, (5, 9, 2, 1)),  # a bonus
        ([5, 9, 2], [4, 9, 2, 1], 0, (4,)),  # what comes after a difference says nothing
        ([5, 9, 2], [9, 5, 2, 1], 0, (9,)),
        ([], [4], 0, (4,)),  # no proposal: plain decoding
        ([7], [7, 7], 1, (7, 7)),
        ([-1, 10**9], [5, 9, 2], 0, (5,)),  # a draft may say anything
    ],
)
def test_the_longest_agreeing_prefix_and_one_more(
    draft: list[int], target: list[int], num_accepted: int, committed: tuple[int, ...]
) -> None:
    assert verify(draft, target) == Verification(num_accepted, committed)
    assert verify(tuple(draft), iter(target)) == Verification(num_accepted, committed)


@settings(fixed_examples, max_examples=300)
@given(st.lists(few_ids, max_size=6), st.lists(few_ids, min_size=7, max_size=7))
def test_what_is_committed_is_the_targets(draft: list[int], target: list[int]) -> None:
    reader = Reader(target[: len(draft) + 1])
    verification = verify(draft, reader)
    num_accepted = verification.num_accepted
    assert verification.committed_token_ids == tuple(target[: num_accepted + 1])
    assert draft[:num_accepted] == target[:num_accepted]
    assert num_accepted == len(draft) or draft[num_accepted] != target[num_accepted]
    assert reader.num_read == num_accepted + 1


def test_a_target_that_stops_too_early_is_a_bug() -> None:
    for draft in ([], [1], [1, 2]):
        with pytest.raises(AssertionError, match="one token more than it accepts"):
            verify(draft, draft)
