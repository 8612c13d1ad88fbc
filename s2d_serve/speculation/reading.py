"""Which sequences the draft should read: it can draft only after a text that it has followed, and
reading one costs time before it saves any.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from s2d_serve.speculation.draft_length import DraftLengthPolicy
from s2d_serve.speculation.estimates import AcceptanceEstimate

READ_MARGIN = 1.5
"""How many times its cost reading must promise to save: the target waits for chunks, or shares its
cores with them, and an output may end early.
"""


class Reading(NamedTuple):
    """What the draft must read before it can draft for a sequence, and what for."""

    record: AcceptanceEstimate
    """Of the sequence."""
    num_unread: int
    """Tokens."""
    num_made: int
    """Output tokens so far."""
    num_left: int
    """Output tokens that are allowed still."""
    is_begun: bool = False
    """It was to be read already, and the account knows."""


def num_worth_reading(
    policy: DraftLengthPolicy,
    others: Sequence[AcceptanceEstimate | None],
    lagging: Sequence[Reading],
    probe: bool = False,
) -> int:
    """How many of the sequences that lag behind, the first ones, are to be read, since drafting for
    them will save more than reading them costs.

    They are weighed together: a step serves all of them, and may pay for two where it does not for
    one. What is read on the promise of savings is debt of the policy's account.

    Args:
        policy: of the sequences' target.
        others: records of the other sequences of a round, as in `DraftLengthPolicy.choose`; None
            for those that will not be ready either.
        lagging: the other ones, those first that were to be read already.
        probe: read more if the account allows it, unless not even a draft that is always right and
            takes no time would pay.
    """
    if not policy.adaptive or math.isnan(policy.reading_s(1)):
        return len(lagging)
    num_sequences = len(others) + len(lagging)
    account = policy.account_in_credit(num_sequences)
    if account is None:
        return 0
    chosen, most_s, num_lent = 0, 0.0, 0
    for count, reading in enumerate(lagging, 1):
        if not reading.is_begun:
            if account.debt_s + policy.reading_s(num_lent) > account.balance_s:
                break
            num_lent += reading.num_unread
        gain_s = _gain(policy, others, lagging, count)
        if math.isnan(gain_s):
            chosen = 0 if any(others) else 1  # one is enough to find out
            break
        if gain_s >= most_s:
            chosen, most_s = count, gain_s
    if new := [reading for reading in lagging[:chosen] if not reading.is_begun]:
        num_tokens = sum(_expected_tokens(policy, reading) for reading in new)
        account.borrow(_cost_s(policy, new), num_tokens)
    most_saved_s = policy.alone_now_s(num_sequences) / num_sequences  # per output token
    while probe and chosen < len(lagging):
        reading = lagging[chosen]
        cost_s = policy.reading_s(reading.num_unread)
        is_hopeful = READ_MARGIN * cost_s <= most_saved_s * _expected_tokens(policy, reading)
        if not (reading.is_begun or (is_hopeful and account.spend(cost_s))):
            break
        chosen += 1
    return chosen


def _gain(
    policy: DraftLengthPolicy,
    others: Sequence[AcceptanceEstimate | None],
    lagging: Sequence[Reading],
    count: int,
) -> float:
    """Seconds that drafting saves for the first `count` that lag, less `READ_MARGIN` times what
    reading them costs; NaN while a cost is unknown.
    """
    records = [reading.record for reading in lagging[:count]]
    plan = policy.plan([*others, *records, *[None] * (len(lagging) - count)])
    if plan is None:
        return math.nan
    saved_s = 1 / plan.alone - 1 / plan.rate  # per output token
    lengths = plan.lengths[len(others) :]
    num_tokens = sum(
        _expected_tokens(policy, reading)
        for reading, length in zip(lagging[:count], lengths, strict=False)
        if length
    )
    return saved_s * num_tokens - READ_MARGIN * _cost_s(policy, lagging[:count])


def _cost_s(policy: DraftLengthPolicy, lagging: Sequence[Reading]) -> float:
    """Of reading all of them together."""
    return policy.reading_s(sum(reading.num_unread for reading in lagging))


def _expected_tokens(policy: DraftLengthPolicy, reading: Reading) -> float:
    """Output tokens still to come: as many as of others, or twice what there is."""
    num_made = reading.num_made
    return min(reading.num_left, max(policy.output_tokens - num_made, num_made))
