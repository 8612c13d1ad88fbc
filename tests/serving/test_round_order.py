"""Rounds begin in the order of their numbers, whatever order their calls come in."""

import asyncio

import pytest

from s2d_serve.serving import round_order
from s2d_serve.serving.round_order import RoundOrder

Log = list[str]


def begin(order: RoundOrder, log: Log, lane: str, number: int) -> "asyncio.Task[None]":
    """A call that takes three turns of the event loop."""

    async def call() -> None:
        async with order.turn(lane, number):
            log.append(f"{lane}{number}")
            for _ in range(3):
                await asyncio.sleep(0)
            log.append("done")

    return asyncio.create_task(call())


async def test_a_round_waits_for_the_one_before_it_even_if_it_comes_first() -> None:
    order, log = RoundOrder(), Log()
    calls = []
    for number in (2, 1, 4, 3):
        calls.append(begin(order, log, "a", number))
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert log == ["a1", "done", "a2", "done", "a3", "done", "a4", "done"]


async def test_lanes_do_not_wait_for_each_other() -> None:
    order, log = RoundOrder(), Log()
    late = begin(order, log, "a", 2)
    await begin(order, log, "b", 1)
    assert log == ["b1", "done"]
    await begin(order, log, "a", 1)
    await late
    assert log[2:] == ["a1", "done", "a2", "done"]


async def test_a_repeated_round_waits_for_its_first_call() -> None:
    order, log = RoundOrder(), Log()
    await asyncio.gather(*(begin(order, log, "a", 1) for _ in range(2)))
    assert log == ["a1", "done"] * 2


async def test_a_round_that_fails_or_is_given_up_is_over() -> None:
    order, log = RoundOrder(), Log()
    with pytest.raises(RuntimeError, match="no memory"):
        async with order.turn("a", 1):
            raise RuntimeError("no memory")
    first = begin(order, log, "a", 2)
    await asyncio.sleep(0)
    given_up = begin(order, log, "a", 3)
    last = begin(order, log, "a", 4)
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([first, given_up, last])
    assert log == ["a2", "done", "a4", "done"]


async def test_nobody_waits_for_a_lost_round_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_order, "MAX_WAIT_S", 0.05)
    order, log = RoundOrder(), Log()
    await asyncio.wait_for(begin(order, log, "a", 7), 5)
    await asyncio.wait_for(begin(order, log, "a", 8), 5)
    assert log == ["a7", "done", "a8", "done"]
