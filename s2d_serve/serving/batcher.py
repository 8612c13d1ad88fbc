"""Calls that wait at one executor run together: one worker thread, one pass at a time."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

Turn = TypeVar("Turn")
Reply = TypeVar("Reply")

MAX_IDLE_WAIT_S = 1.0
"""Idle work gets a turn at least this often, however busy the executor is."""


class Batcher(Generic[Turn, Reply]):
    """Joins the turns of many callers into passes; a turn may join at any pass and last for some.

    All model state is touched on the worker thread only, so it needs no locks.
    """

    def __init__(
        self,
        run_pass: Callable[[Sequence[Turn]], Sequence[tuple[Turn, Reply]]],
        run_idle: Callable[[], bool] = lambda: False,
        cores: AbstractContextManager[None] | None = None,
    ) -> None:
        """Both run on the worker thread.

        Args:
            run_pass: one pass over the open turns; the finished ones with their replies.
            run_idle: a piece of work for when nobody waits; False if there was none.
            cores: entered for each pass.
        """
        self._run_pass = run_pass
        self._run_idle = run_idle
        self._cores = cores or nullcontext()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._open: dict[int, tuple[Turn, asyncio.Future[Reply]]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def submit(self, turn: Turn) -> Reply:
        """Wait until the passes have finished this turn.

        Raises: what the pass raised.
        """
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._open[id(turn)] = (turn, future)
        self._wake.set()
        return await future

    async def run(self, action: Callable[[], None]) -> None:
        """Run something on the worker thread, between two passes; it is run even if the caller is
        cancelled.
        """
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self._worker, action))
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        last_idle = time.monotonic()
        while True:
            await self._wake.wait()
            self._wake.clear()
            is_idle = not self._open
            if self._open:
                turns = [turn for turn, _ in self._open.values()]
                try:
                    done = await loop.run_in_executor(self._worker, self._compute, turns)
                except Exception as error:
                    for turn in turns:
                        future = self._open.pop(id(turn))[1]
                        if not future.done():
                            future.set_exception(error)
                    continue
                for turn, reply in done:
                    future = self._open.pop(id(turn))[1]
                    if not future.done():  # a cancelled caller
                        future.set_result(reply)
            has_more = True
            if is_idle or time.monotonic() - last_idle > MAX_IDLE_WAIT_S:
                has_more = await loop.run_in_executor(self._worker, self._run_idle)
                last_idle = time.monotonic()
            if self._open or has_more:
                self._wake.set()

    def _compute(self, turns: Sequence[Turn]) -> Sequence[tuple[Turn, Reply]]:
        with self._cores:
            return self._run_pass(turns)
