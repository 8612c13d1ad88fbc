import math

import pytest

from s2d_serve.speculation.account import MAX_ROUNDS, REST_SHARE, Account, AloneRounds, bucket


def test_savings_and_losses_add_up_to_a_limit() -> None:
    account = Account(1.0)
    account.settle(-1.5, 1, alone_s=1.0)
    assert account.balance_s == -0.5
    account.settle(0.75, 3, alone_s=1.0)
    assert account.balance_s == 0.25
    account.settle(100.0, 3, alone_s=1.0)
    assert account.balance_s == MAX_ROUNDS


def test_what_reading_took_is_paid_over_the_tokens_that_it_was_for() -> None:
    account = Account(2.0)
    account.borrow(1.0, 10)
    account.settle(0.0, 5, alone_s=1.0)
    assert (account.balance_s, account.debt_s, account.debt_tokens) == (1.5, 0.5, 5)
    account.borrow(0.5, 5)
    account.settle(0.0, 2, alone_s=1.0)
    assert account.balance_s == pytest.approx(1.3)
    account.settle(0.0, 50, alone_s=1.0)
    assert account.balance_s == pytest.approx(0.5)
    assert account.debt_s == 0


def test_a_rest_settles_debts_and_earns_trying_again() -> None:
    account = Account(1.0)
    account.borrow(2.0, 10)
    account.write_off()
    assert (account.balance_s, account.debt_s) == (-1.0, 0)
    account.allow(50.0)
    assert account.balance_s == 50 * REST_SHARE - 1.0
    account.balance_s = 0.0
    account.allow(20.0)
    assert account.allowance_s == pytest.approx(20 * REST_SHARE)
    assert not account.spend(0.3)
    assert account.spend(0.15)
    assert account.spend(-5.0), "what saves is no expense"
    assert account.allowance_s == pytest.approx(0.05)


def test_alone_rounds_are_medians_of_their_bucket() -> None:
    alone = AloneRounds()
    assert math.isnan(alone(1))
    for seconds in (1.0, 9.0, 1.1):
        alone.record(4, seconds)
    alone.record(7, 2.0)
    assert (alone(4), alone(5), alone(6), alone(7)) == (1.1, 1.1, 2.0, 2.0)
    assert math.isnan(alone(3))
    assert math.isnan(alone(8))
    for _ in range(9):
        alone.record(4, 3.0)
    assert alone(4) == 3.0


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 7, 8, 15, 16)] == [1, 2, 2, 3, 3, 4, 4, 5]
