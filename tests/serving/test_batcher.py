"""What callers that fail or go away mean for the passes of the others."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import nullcontext

import pytest

from s2d_serve.serving.batcher import Batcher


async def test_what_is_to_be_run_is_run_though_its_caller_was_cancelled() -> None:
    goes_on, done = threading.Event(), threading.Event()
    batcher: Batcher[str, str] = Batcher(lambda turns: [])

    def block() -> None:
        goes_on.wait(10)

    first = asyncio.create_task(batcher.run(block))
    second = asyncio.create_task(batcher.run(done.set))
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.sleep(0.05)
    goes_on.set()
    await first
    assert await asyncio.to_thread(done.wait, 10)


async def test_a_pass_that_fails_for_one_who_is_gone_is_not_the_last() -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def run_pass(turns: Sequence[str]) -> list[tuple[str, str]]:
        if turns == ["bad"]:
            begun.set()
            goes_on.wait(10)
            raise RuntimeError("no memory")
        return [(turn, turn.upper()) for turn in turns]

    batcher: Batcher[str, str] = Batcher(run_pass)
    bad = asyncio.create_task(batcher.submit("bad"))
    await asyncio.to_thread(begun.wait, 10)
    bad.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bad
    goes_on.set()
    assert await asyncio.wait_for(batcher.submit("good"), 10) == "GOOD"


async def test_passes_take_the_cores_and_nothing_else_does() -> None:
    taken: list[str] = []

    class Cores(nullcontext[None]):
        def __enter__(self) -> None:
            taken.append("cores")

    batcher: Batcher[str, str] = Batcher(
        lambda turns: [(turn, taken[-1]) for turn in turns], cores=Cores()
    )
    await batcher.run(lambda: taken.append("no cores"))
    assert taken == ["no cores"]
    assert await batcher.submit("a") == "cores"
