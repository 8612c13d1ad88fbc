"""Two ways for one reply: the first one counts."""

import asyncio
from typing import Any

import pytest

from s2d_serve.serving.mailbox import Mailbox


def never() -> "asyncio.Future[Any]":
    """A reference whose value does not come."""
    return asyncio.get_running_loop().create_future()


def resolved(value: Any) -> "asyncio.Future[Any]":
    """A reference whose value is here."""
    ref = never()
    ref.set_result(value)
    return ref


async def test_what_a_peer_sends_is_enough() -> None:
    """Before somebody asks, or after."""
    mailbox = Mailbox()
    mailbox.receive("lane", 1, "early")
    assert await mailbox.first("lane", 1, never()) == "early"
    waiting = asyncio.create_task(mailbox.first("lane", 2, never()))
    await asyncio.sleep(0)
    mailbox.receive("other lane", 2, "not this one")
    mailbox.receive("lane", 3, "nor this one")
    mailbox.receive("lane", 2, "late")
    assert await waiting == "late"
    assert await mailbox.first("lane", 3, never()) == "nor this one"


async def test_a_reference_is_enough() -> None:
    """What the peer sends afterwards, even twice, harms nobody."""
    mailbox = Mailbox()
    assert await mailbox.first("lane", 1, resolved("by reference")) == "by reference"
    mailbox.receive("lane", 1, "sent")
    mailbox.receive("lane", 1, "sent again")
    assert await mailbox.first("lane", 2, resolved("next")) == "next"


async def test_a_dead_peer_is_known_by_its_reference() -> None:
    """Nobody waits for a letter that does not come."""
    ref = never()
    ref.set_exception(RuntimeError("dead"))
    with pytest.raises(RuntimeError, match="dead"):
        await Mailbox().first("lane", 1, ref)


async def test_giving_up_leaves_nothing_behind() -> None:
    """A caller whose patience ends can ask for the next round."""
    mailbox = Mailbox()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(mailbox.first("lane", 1, never()), 0.01)
    mailbox.receive("lane", 2, "next")
    assert await mailbox.first("lane", 2, never()) == "next"
