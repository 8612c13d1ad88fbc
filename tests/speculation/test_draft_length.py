import math
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d_serve.speculation.account import REST_SHARE, START_ROUNDS, AloneRounds, bucket
from s2d_serve.speculation.draft_length import (
    MARGIN,
    MAX_REST_ROUNDS,
    MIN_REST_ROUNDS,
    PRIOR_ACCEPTANCE,
    PROBE_TOKENS,
    DraftLengthPolicy,
)
from s2d_serve.speculation.estimates import AcceptanceEstimate
from tests.speculation.examples import fixed_examples
from tests.speculation.policies import informed, known, reads, rest, unread
from tests.speculation.world import flat

probabilities = st.floats(0.0, 1.0)
costs = st.floats(0.01, 3.0)


def chosen(policy: DraftLengthPolicy, num_rows: int = 1, probe: bool = False) -> int:
    """The longest for sequences of which nothing is known yet."""
    return max(policy.choose([AcceptanceEstimate() for _ in range(num_rows)], probe))


# The choice


@settings(fixed_examples, max_examples=300)
@given(
    st.lists(probabilities, min_size=6, max_size=6),
    costs,
    st.lists(costs, min_size=28, max_size=28),
    st.integers(1, 4),
)
def test_the_length_is_the_best_of_all(
    acceptance: list[float], draft_step_s: float, verify_s: list[float], num_rows: int
) -> None:
    verify_s = sorted(verify_s)
    policy = informed(6, acceptance, draft_step_s, dict(enumerate(verify_s, start=1)))
    rates = []
    for length in range(7):
        reach = [math.prod(acceptance[: position + 1]) for position in range(length)]
        seconds = verify_s[num_rows * (1 + length) - 1] + length * draft_step_s
        rates.append(num_rows * (1 + sum(reach)) / seconds)
    lengths = policy.choose([AcceptanceEstimate() for _ in range(num_rows)])
    if max(rates) <= MARGIN * rates[0]:
        assert 0 in lengths
    elif len(set(lengths)) == 1:
        assert rates[lengths[0]] == pytest.approx(max(rates), rel=1e-6)
    else:
        assert num_rows > 1, "to leave some out may be better than any length for all"


def test_a_sequences_own_record_counts() -> None:
    policy = informed(8, [0.8] * 8, 0.1, {1: 1.0})
    usual = chosen(policy)
    (longer,) = policy.choose([known([0.97] * 8)])
    (none,) = policy.choose([known([0.01] * 8)])
    assert 0 == none < usual < longer == 8
    # a new sequence has the target's record, and a few rounds do not overturn it
    young = AcceptanceEstimate()
    policy.record(young, 2, 0)
    assert 0 < policy.choose([young])[0] <= usual


def test_sequences_that_would_cost_more_than_they_bring_are_left_out() -> None:
    policy = informed(8, [0.8] * 8, 0.1, {1: 1.0, 40: 4.0})
    good, bad = known([0.95] * 8), known([0.1] * 8)
    (long,) = policy.choose([good])
    assert policy.choose([bad]) == [0]
    assert long > 0
    mixed = policy.choose([good, bad, None, good])
    assert 0 < mixed[0] == mixed[3] <= long, "a draft step serves all"
    assert mixed[1:3] == [0, 0]
    free = informed(8, [0.8] * 8, 0.1, {1: 1.0})
    assert all(free.choose([good, bad, good])), "more tokens cost nothing there"


def test_what_a_round_costs_beside_its_passes_counts() -> None:
    policy = informed(8, [0.5] * 8, 0.1, {1: 1.0})
    assert chosen(policy) > 0
    policy.record_overhead(5.0)
    assert policy.overhead_s == 0, "the first of all is no measure"
    for seconds in (0.7, 9.0):
        policy.record_overhead(seconds)
    assert policy.overhead_s == 0.7, "the least: the others had to wait"
    assert chosen(policy) == 0


def test_positions_without_a_record_stand_on_the_one_before() -> None:
    policy = informed(8, [0.97, 0.97], 0.1, {1: 1.0})
    assert chosen(policy) == 8
    policy = informed(8, [0.3, 0.3], 0.25, {1: 1.0})
    assert chosen(policy) <= 1


def test_verification_that_costs_by_the_token_shortens() -> None:
    by_batch = {n: 1.0 + 0.05 * max(0, n - 8) for n in range(1, 400)}
    lengths = [
        chosen(informed(8, [0.8] * 8, 0.05, by_batch), num_rows) for num_rows in (1, 2, 4, 8, 32)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] >= 4
    assert lengths[-1] <= 1
    alone = [chosen(informed(8, [0.8] * 8, 0.05, {1: 1.0}), num_rows) for num_rows in (1, 32)]
    assert alone[0] == alone[1] >= 6


@fixed_examples
@given(st.integers(0, 9), st.lists(probabilities, max_size=9), costs, st.booleans(), st.booleans())
def test_the_cap_holds(
    cap: int, acceptance: list[float], draft_step_s: float, probe: bool, promising: bool
) -> None:
    policy = informed(cap, acceptance, draft_step_s, dict.fromkeys(range(1, 12), 1.0))
    policy.promising = promising
    assert 0 <= chosen(policy, probe=probe) <= cap
    assert 0 <= chosen(DraftLengthPolicy(cap), probe=probe) <= cap


def test_a_fixed_length_is_kept_whatever_happens() -> None:
    policy = DraftLengthPolicy(5, adaptive=False)
    record = AcceptanceEstimate()
    for _ in range(100):
        assert policy.choose([record, record]) == [5, 5]
        policy.record(record, 5, 0)
        policy.draft_step_s.record(2, 9.0)
        policy.verify_s.record(12, flat(12))


def test_the_first_rounds_are_the_targets_and_then_probes() -> None:
    policy = DraftLengthPolicy(8)
    assert chosen(policy) == 0
    policy.record_alone(1, 1.0)
    assert chosen(policy) == PROBE_TOKENS
    policy.verify_s.record(3, 1.0)
    assert chosen(policy) == PROBE_TOKENS
    policy.draft_step_s.record(1, 0.01)
    assert chosen(policy) > PROBE_TOKENS
    assert 0.5 < PRIOR_ACCEPTANCE < 1.0


def test_rests_grow_while_probes_fail_and_start_over_when_drafting_pays() -> None:
    policy = informed(8, [0.0], 0.5, {1: 1.0})
    assert chosen(policy) == 0
    assert policy.rest_rounds == MIN_REST_ROUNDS
    rests = []
    for _ in range(8):
        policy.accounts[1].allowance_s = 1.0
        assert chosen(policy, probe=True) == PROBE_TOKENS
        rests.append(policy.rest_rounds)
        assert chosen(policy) == 0
    assert rests == [min(MIN_REST_ROUNDS * 2**i, MAX_REST_ROUNDS) for i in range(1, 9)]
    policy.acceptance = known([0.9] * 8)
    assert chosen(policy) > 0
    assert policy.rest_rounds == MIN_REST_ROUNDS


def test_a_probe_is_made_when_the_rests_have_paid_for_it() -> None:
    policy = informed(8, [0.0], 0.5, {1: 1.0})
    assert chosen(policy, probe=True) == 0
    loss_s = PROBE_TOKENS * 0.5
    rested = rest(policy)
    while not chosen(policy, probe=True):
        assert REST_SHARE * rested < loss_s
        rested += rest(policy)
    assert REST_SHARE * rested >= loss_s
    assert policy.accounts[1].allowance_s == pytest.approx(REST_SHARE * rested - loss_s)


def test_rests_that_are_cut_short_pay_for_what_they_were() -> None:
    """Each new sequence asks again, long before the rest is over."""
    policy = informed(8, [0.0], 0.1, {1: 1.0})
    for _ in range(20):
        assert policy.rest(probe=True) >= MIN_REST_ROUNDS
        policy.record_alone(1, 1.0)
    assert policy.accounts[1].allowance_s == pytest.approx(20 * REST_SHARE)


def test_as_many_sequences_are_probed_as_the_rests_have_paid_for() -> None:
    policy = informed(8, [0.0], 0.1, {1: 1.0, 8: 1.0, 16: 3.0})
    for _ in range(3):
        rest(policy, 8)
    lengths = policy.choose([AcceptanceEstimate() for _ in range(8)], probe=True)
    assert set(lengths) == {0, PROBE_TOKENS}


def test_a_proposal_accepted_whole_is_followed_up() -> None:
    policy = informed(8, [0.0], 0.5, {1: 1.0})
    assert chosen(policy) == 0
    policy.accounts[1].allowance_s = 5.0
    policy.record(AcceptanceEstimate(), 2, 2)
    assert chosen(policy) == PROBE_TOKENS
    assert policy.rest_rounds == MIN_REST_ROUNDS
    policy.record(AcceptanceEstimate(), 0, 0)  # a round without a proposal says nothing
    assert chosen(policy) == PROBE_TOKENS
    policy.record(AcceptanceEstimate(), 2, 1)
    assert chosen(policy) == 0


def test_a_proposal_accepted_whole_is_not_followed_up_by_a_draft_that_is_too_slow() -> None:
    policy = informed(8, [0.0], 1.5, {1: 1.0})
    policy.record(AcceptanceEstimate(), 2, 2)
    assert chosen(policy) == 0


def test_a_round_of_no_sequences_is_no_probe() -> None:
    policy = informed(8, [0.0], 0.5, {1: 1.0})
    assert policy.choose([], probe=True) == []
    assert policy.choose([None], probe=True) == [0]
    assert policy.rest_rounds == MIN_REST_ROUNDS
    assert DraftLengthPolicy(8).choose([]) == []


# Accounts

LOSING_ROUNDS = int(START_ROUNDS) + 1
"""That each lose a second, where the target alone takes one."""


def test_rounds_that_lose_end_drafting_and_rests_allow_it_again() -> None:
    policy = informed(4, [0.9] * 4, 0.1, {1: 1.0})
    assert chosen(policy) == 4
    for _ in range(LOSING_ROUNDS):
        policy.record_round(1, 1, 1, 2.0)
    assert chosen(policy) == 0
    policy.reading_s.record(1, 0.001)
    assert not reads(policy, unread(1, 0, 100))
    assert policy.look_up([None], [0], [[1.0] * 4]) == [0]
    rested = 0
    while not chosen(policy):
        rested += rest(policy)
    lost_s = LOSING_ROUNDS - START_ROUNDS
    assert lost_s <= REST_SHARE * rested < 3 * lost_s


def test_savings_are_set_against_what_the_target_would_take_now() -> None:
    """Its rounds alone were slow once; while drafting pays there are no others."""
    policy = informed(4, [0.9] * 4, 0.1, {1: 1.0, 9: 1.0})
    policy.verify_s.record(1, 1.0)
    policy.alone_s = AloneRounds({1: deque([3.0])})
    for _ in range(2):
        policy.record_overhead(0.5)
    policy.record_round(1, 2, 2, 2.0)
    (account,) = policy.accounts.values()
    assert account.balance_s == pytest.approx(START_ROUNDS * 1.5 + 2 * 1.5 - 2.0)


def test_few_and_many_sequences_have_accounts_of_their_own() -> None:
    policy = informed(4, [0.9] * 4, 0.1, {1: 1.0})
    assert chosen(policy, 8) == 4
    for _ in range(LOSING_ROUNDS):
        policy.record_round(9, 9, 9, 2.0)
    assert chosen(policy, 8) == chosen(policy, 15) == 0
    assert chosen(policy, 4) == chosen(policy, 16) == 4


def test_a_round_of_other_size_that_was_never_seen_alone_takes_what_its_pass_takes() -> None:
    policy = informed(4, [0.9] * 4, 0.1, {1: 1.0, 9: 1.0})
    policy.alone_s = AloneRounds()
    assert chosen(policy, 4) == 0, "nothing is known of the target alone"
    policy.record_alone(1, 9.0)
    assert chosen(policy, 4) == 4
    policy.record_round(4, 4, 4, 1.0)
    assert policy.accounts[bucket(4)].balance_s == pytest.approx(START_ROUNDS * 1.0)


# Proposals that end early


def test_long_proposals_pay_where_the_draft_stops_itself() -> None:
    """Half of the rounds are sure and right to the end, the others end after a wrong token."""
    stops = informed(6, [], 0.4, {1: 1.0})
    for _ in range(100):
        stops.record(AcceptanceEstimate(), 6, 6)
        stops.record(AcceptanceEstimate(), 1, 0, gave_up=True)
    goes_on = informed(6, [], 0.4, {1: 1.0})
    for _ in range(100):
        goes_on.record(AcceptanceEstimate(), 6, 6)
        goes_on.record(AcceptanceEstimate(), 6, 0)
    assert chosen(stops) == 6
    for policy, num_read in ((stops, 1), (goes_on, 0)):
        policy.reading_s.record(1, 2.0)
        assert reads(policy, unread(1, 0, 10)) == num_read


def test_found_tokens_replace_drafted_ones_where_they_pay_more() -> None:
    policy = informed(4, [0.5] * 4, 0.02, {1: 1.0, 9: 1.0})
    sequence, good, poor = AcceptanceEstimate(), [0.9, 0.8, 0.7, 0.6], [0.3, 0.1]
    (length,) = policy.choose([sequence])
    assert length > 0
    assert policy.look_up([sequence], [length], [good]) == [4]
    assert policy.look_up([sequence], [length], [poor]) == [0]
    assert policy.look_up([sequence], [length], [[]]) == [0]
    assert policy.look_up([None], [0], [poor]) == [2], "better than nothing"


def test_found_tokens_are_cut_where_the_target_slows_down() -> None:
    policy = informed(4, [0.0] * 4, 0.3, {1: 1.0, 2: 1.1, 3: 3.0, 5: 9.0})
    assert policy.look_up([AcceptanceEstimate()], [0], [[0.9, 0.8, 0.7, 0.6]]) == [1]
    slower = informed(4, [0.0] * 4, 0.3, {1: 1.0, 2: 2.0})
    assert slower.look_up([AcceptanceEstimate()], [0], [[0.9]]) == [0]


def test_each_sequence_of_a_round_takes_what_suits_it() -> None:
    policy = informed(3, [0.8] * 3, 0.01, {1: 1.0, 16: 1.0})
    rows = [AcceptanceEstimate(), AcceptanceEstimate(), None]
    assert policy.look_up(rows, [3, 3, 0], [[0.2], [1.0] * 3, [0.5]]) == [0, 3, 1]


def test_nothing_is_looked_up_at_a_fixed_length_or_before_costs_are_known() -> None:
    fixed = DraftLengthPolicy(4, adaptive=False)
    fixed.verify_s.record(1, 1.0)
    assert fixed.look_up([None], [0], [[1.0]]) == [0]
    assert DraftLengthPolicy(4).look_up([None], [0], [[1.0]]) == [0]
