import math

from s2d_serve.speculation.account import REST_SHARE, START_ROUNDS
from s2d_serve.speculation.draft_length import MAX_REST_ROUNDS, MIN_REST_ROUNDS, DraftLengthPolicy
from s2d_serve.speculation.estimates import AcceptanceEstimate, CostCurve, ReadingCost
from s2d_serve.speculation.reading import READ_MARGIN
from tests.speculation.policies import informed, known, reads, rest, unread


def test_reading_pays_where_it_saves_more_than_it_costs() -> None:
    policy = informed(3, [1.0] * 3, 0.5, {1: 1.0, 4: 1.0})
    saved_s = 1.0 - (1.0 + 3 * 0.5) / 4  # per token
    assert reads(policy, unread(1000, 0, 1)), "unknown cost: find out"
    policy.reading_s.record(10, 1.0)
    assert reads(policy, unread(10, 0, math.ceil(1.01 * READ_MARGIN / saved_s)))
    assert not reads(policy, unread(10, 0, math.floor(0.99 * READ_MARGIN / saved_s)))
    fixed = DraftLengthPolicy(3, adaptive=False, reading_s=ReadingCost(9.0))
    assert reads(fixed, unread(1000, 0, 1))


def test_those_that_would_be_left_out_are_not_read() -> None:
    policy = informed(8, [0.8] * 8, 0.1, {1: 1.0, 40: 4.0})
    policy.reading_s.record(1, 1e-6)
    good, bad = (unread(1, 0, 100)._replace(record=known([p] * 8)) for p in (0.95, 0.1))
    assert reads(policy, good, bad, others=[None]) == 1
    assert reads(policy, good, good, others=[None]) == 2


def test_several_are_read_where_drafting_pays_for_all_of_them_only() -> None:
    """Steps of half a pass: 16.4 tokens in 3 s, not 12; yet 4.9 in 1.5 s, not 6."""
    for read_s, balance_s, num_read in ((0.01, 2.0, 4), (1.0, 9.0, 0), (0.01, 0.005, 0)):
        policy = informed(4, [0.9] * 4, 0.5, {1: 1.0})
        policy.reading_s.record(1, read_s)
        policy.record_round(4, 4, 4, 1.0 + START_ROUNDS - balance_s)
        assert reads(policy, *[unread(1, 0, 9)] * 4) == num_read
        assert not reads(policy, unread(1, 0, 9), others=[None] * 3), "not one of them"


def test_what_is_to_be_read_already_comes_beside_what_is_ready() -> None:
    policy = informed(4, [0.9] * 4, 0.5, {1: 1.0})
    policy.reading_s.record(1, 0.01)
    ready = AcceptanceEstimate()
    assert reads(policy, unread(1, 0, 9), others=[None]) == 0
    assert reads(policy, unread(1, 0, 9), others=[ready]) == 1


def test_one_is_read_to_find_out_what_is_unknown() -> None:
    policy = informed(4, [0.9] * 4, 0.5, {1: 1.0})
    policy.reading_s.record(1, 0.01)
    policy.draft_step_s = CostCurve()
    assert reads(policy, *[unread(1, 0, 9)] * 3) == 1
    assert reads(policy, unread(1, 0, 9), others=[AcceptanceEstimate()]) == 0


def test_an_output_is_expected_to_be_as_long_as_others_or_twice_what_there_is() -> None:
    policy = informed(3, [1.0] * 3, 0.5, {1: 1.0, 4: 1.0})
    policy.reading_s.record(1, 0.3749 / READ_MARGIN)  # hardly less than a token saves
    policy.record_end(20)
    for num_made, num_left, expected in ((0, 100, 20), (5, 100, 15), (40, 100, 40), (0, 7, 7)):
        policy.accounts.clear()  # of what was borrowed for the last one
        assert reads(policy, unread(expected, num_made, num_left))
        policy.accounts.clear()
        assert not reads(policy, unread(expected + 1, num_made, num_left))


def test_reading_for_a_probe_is_paid_by_the_rests_before_it() -> None:
    hopeless = informed(3, [0.0] * 3, 0.5, {1: 1.0, 4: 1.0})
    hopeless.reading_s.record(1, 0.1)
    assert not reads(hopeless, unread(1, 0, 1000), probe=True), "no rest so far"
    rests = [rest(hopeless) for _ in range(3)]
    assert rests == [2 * MIN_REST_ROUNDS, 4 * MIN_REST_ROUNDS, 8 * MIN_REST_ROUNDS]
    num_paid = int(REST_SHARE * sum(rests) / 0.1)
    assert not reads(hopeless, unread(num_paid, 0, 1000))
    assert not reads(hopeless, unread(num_paid + 1, 0, 1000), probe=True)
    assert reads(hopeless, unread(num_paid, 0, 1000), probe=True)
    assert not reads(hopeless, unread(num_paid, 0, 1000), probe=True), "it is spent"
    assert reads(hopeless, unread(num_paid, 0, 1000, is_begun=True), probe=True)


def test_a_probe_reads_nothing_for_an_output_that_is_nearly_done() -> None:
    """Not even a draft that is always right and takes no time would make up for it."""
    hopeless = informed(3, [0.0] * 3, 0.5, {1: 1.0, 4: 1.0})
    hopeless.reading_s.record(1, 1.0)
    while rest(hopeless) < MAX_REST_ROUNDS:
        pass
    assert not reads(hopeless, unread(1, 0, math.floor(READ_MARGIN)), probe=True)
    assert reads(hopeless, unread(1, 0, math.ceil(READ_MARGIN)), probe=True)


def test_nothing_is_read_while_nothing_may_be_proposed() -> None:
    """Not even for a probe that could be paid for, nor what was begun."""
    policy = informed(3, [1.0] * 3, 0.5, {1: 1.0, 4: 1.0})
    policy.reading_s.record(1, 0.001)
    assert reads(policy, unread(1, 0, 100, is_begun=True))
    policy.rest(probe=True)
    policy.record_round(1, 0, 0, 9.0)
    for probe, begun in ((False, True), (True, False)):
        assert not reads(policy, unread(1, 0, 100, is_begun=begun), probe=probe)
