"""The order of a lane's rounds at an executor.

Ray starts the calls of an async actor in any order. A round that begins before the one ahead of it
waits for proposals that the draft makes of that one's outcomes, while that one waits for its turn.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from s2d_serve.serving.remembered import Remembered

MAX_WAIT_S = 10.0
"""For a round that the router has sent before this one: longer, and it was lost on its way."""


@dataclass(slots=True, eq=False)
class _Lane:
    last: int = 0
    """The latest round that is over; the first one is 1."""
    is_busy: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class RoundOrder:
    """Lets the rounds of each lane through one at a time, by their numbers."""

    def __init__(self) -> None:
        self._lanes = Remembered()

    @asynccontextmanager
    async def turn(self, lane_id: str, number: int) -> AsyncIterator[None]:
        """Holds the lane; the round is over afterwards, however it ended. One that is over already
        has a turn, too.
        """
        lane: _Lane = self._lanes.get(lane_id, _Lane())
        self._lanes[lane_id] = lane  # the latest to be forgotten
        try:
            async with lane.changed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(MAX_WAIT_S):
                        await lane.changed.wait_for(lambda: lane.last >= number - 1)
                await lane.changed.wait_for(lambda: not lane.is_busy)
                lane.is_busy = True
            try:
                yield
            finally:
                lane.is_busy = False
        finally:
            lane.last = max(lane.last, number)
            async with lane.changed:
                lane.changed.notify_all()
