"""Replies that executors send each other, ahead of the object references that carry the same.

An object belongs to the caller of the task that made it: its value goes to the router first, and
from there to the executor that waits for it. Between hosts that is two one-way delays where one
will do, so a lane over several hosts introduces its executors to each other.
"""

import asyncio
from typing import Any

from s2d_serve.serving.remembered import Remembered
from s2d_serve.serving.tasks import value_of


class Mailbox:
    """What this executor's peers sent, and who its peers are."""

    def __init__(self) -> None:
        self._peers = Remembered()
        self._letters = Remembered()

    def meet(self, lane_id: str, peer: Any) -> None:
        """From now on send this lane's replies to `peer`, an actor handle, too."""
        self._peers[lane_id] = peer

    def send(self, lane_id: str, number: int, reply: Any) -> None:
        """Send the reply of a round to the lane's other executor, if the two have met."""
        peer = self._peers.get(lane_id)
        if peer is not None:
            peer.receive.remote(lane_id, number, reply)

    def receive(self, lane_id: str, number: int, reply: Any) -> None:
        """Keep what a peer sent until somebody asks for it."""
        letter = self._letter(lane_id, number)
        if not letter.done():
            letter.set_result(reply)

    async def first(self, lane_id: str, number: int, ref: Any) -> Any:
        """The reply of a round, from the peer or by its reference, whichever comes first.

        Raises: what the reference raises, if that comes first.
        """
        letter = self._letter(lane_id, number)
        by_ref = asyncio.ensure_future(value_of(ref))
        try:
            await asyncio.wait((letter, by_ref), return_when=asyncio.FIRST_COMPLETED)
            return letter.result() if letter.done() else by_ref.result()
        finally:
            by_ref.cancel()
            self._letters.pop(_key(lane_id, number), None)

    def _letter(self, lane_id: str, number: int) -> "asyncio.Future[Any]":
        key = _key(lane_id, number)
        if key not in self._letters:
            self._letters[key] = asyncio.get_running_loop().create_future()
        return self._letters[key]  # type: ignore[no-any-return]  # what is put in above


def _key(lane_id: str, number: int) -> str:
    return f"{lane_id}/{number}"
