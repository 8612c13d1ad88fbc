"""Verification as equality: both sides sampled with the same noise, so agreement is acceptance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verification:
    """What one round gives one sequence."""

    num_accepted: int
    """Draft tokens kept."""
    committed_token_ids: tuple[int, ...]
    """The accepted tokens and the target's own next one: the correction, or the bonus."""


def verify(draft_token_ids: Sequence[int], target_token_ids: Iterable[int]) -> Verification:
    """Accept the longest prefix on which draft and target agree, then commit the target's next
    token.

    Args:
        draft_token_ids: K ids, one per proposed position.
        target_token_ids: the target's own token for each of these positions and the one after. Read
            one at a time, up to the first difference: what is not read need not be sampled.

    Example: draft [5, 9, 2], target [5, 9, 7, 1] -> 2 accepted, committed [5, 9, 7].

    Source: Daliri et al., arXiv:2408.07978 (drafter-invariant speculative decoding).
    """
    committed: list[int] = []
    for token_id in target_token_ids:
        committed.append(token_id)
        num_accepted = len(committed) - 1
        if num_accepted == len(draft_token_ids) or token_id != draft_token_ids[num_accepted]:
            return Verification(num_accepted, tuple(committed))
    raise AssertionError("the target must sample one token more than it accepts")
