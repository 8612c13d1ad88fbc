"""Policies that know all there is to know, and sequences for them."""

from collections.abc import Sequence

from s2d_serve.speculation.draft_length import DraftLengthPolicy
from s2d_serve.speculation.estimates import AcceptanceEstimate, CostCurve
from s2d_serve.speculation.reading import Reading, num_worth_reading

CERTAIN = 1e9
"""Rounds on record that no prior outweighs."""


def known(acceptance: list[float]) -> AcceptanceEstimate:
    """A record that leaves no doubt about each position."""
    return AcceptanceEstimate([CERTAIN] * len(acceptance), [CERTAIN * a for a in acceptance])


def informed(
    max_draft_tokens: int, acceptance: list[float], draft_step_s: float, verify_s: dict[int, float]
) -> DraftLengthPolicy:
    """A policy that knows all there is to know."""
    policy = DraftLengthPolicy(
        max_draft_tokens,
        acceptance=known(acceptance),
        draft_step_s=CostCurve({1: draft_step_s}),
        verify_s=CostCurve(verify_s),
    )
    for num_sequences in range(1, 33):
        policy.record_alone(num_sequences, policy.verify_s(num_sequences))
    policy.accounts.clear()
    return policy


def rest(policy: DraftLengthPolicy, num_sequences: int = 1) -> int:
    """Stay away for the rounds that the policy says after a probe, all of them."""
    num_rounds = policy.rest(probe=True, num_sequences=num_sequences)
    for _ in range(num_rounds):
        policy.record_alone(num_sequences, policy.verify_s(num_sequences))
    return num_rounds


def unread(num_unread: int, num_made: int, num_left: int, is_begun: bool = False) -> Reading:
    """Of a sequence of which nothing is known yet."""
    return Reading(AcceptanceEstimate(), num_unread, num_made, num_left, is_begun)


def reads(
    policy: DraftLengthPolicy,
    *lagging: Reading,
    others: Sequence[AcceptanceEstimate | None] = (),
    probe: bool = False,
) -> int:
    """How many of these are worth reading."""
    return num_worth_reading(policy, others, lagging, probe)
