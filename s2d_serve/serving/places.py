"""Which lane a sequence is in, for as long as it has a draft, and when that comes or goes."""

import uuid

from s2d_serve.config import AppConfig
from s2d_serve.observability.meter import Meter
from s2d_serve.serving.lanes import Lane, LaneEnds
from s2d_serve.serving.live_sequence import LiveSequence
from s2d_serve.serving.messages import Lease


class Lanes:
    """The lanes of this router, one per pair of executors in use."""

    def __init__(self, config: AppConfig, meter: Meter, node_id: str) -> None:
        """`node_id`: of this process, in Ray's words."""
        self._config = config
        self._meter = meter
        self._node_id = node_id
        self._router_id = uuid.uuid4().hex[:8]
        self._lanes: dict[tuple[str, str | None], Lane] = {}

    def between(self, target: Lease, draft: Lease | None) -> Lane:
        """The lane over these two executors."""
        draft_id = None if draft is None else draft.executor._actor_id.hex()
        key = (target.executor._actor_id.hex(), draft_id)
        self._lanes = {k: lane for k, lane in self._lanes.items() if not lane.is_over}
        if key not in self._lanes:
            name = target.info.name
            leases = [target] if draft is None else [target, draft]
            ends = LaneEnds(
                name,
                target.executor,
                None if draft is None else draft.executor,
                self._config.targets[name].decode_steps,
                self._config.router,
                self._meter.of(name),
                any(lease.node_id != self._node_id for lease in leases),
            )
            self._lanes[key] = Lane(f"{self._router_id}-{uuid.uuid4().hex[:8]}", ends)
        return self._lanes[key]


class Place:
    """Which lane a sequence is in; it moves when a draft comes or goes."""

    def __init__(self, sequence: LiveSequence, target: Lease, lanes: Lanes) -> None:
        self.sequence = sequence
        self._target = target
        self._lanes = lanes
        self._draft: Lease | None = None
        self._lane: Lane | None = None

    def settle(self) -> None:
        """Enter a lane for the first time, with the draft if one was found by now."""
        self._lane = self._lanes.between(self._target, self._draft)
        self._lane.add(self.sequence)

    async def move(self, draft: Lease | None) -> None:
        """Go on with this draft, or with none."""
        self._draft = draft
        if self._lane is None:
            return
        if self._lanes.between(self._target, draft) is not self._lane:
            await self._lane.drain(self.sequence)
            self._lane = self._lanes.between(self._target, draft)
            self._lane.add(self.sequence)

    def leave(self) -> None:
        """Take no part in rounds any more."""
        if self._lane is not None:
            self._lane.remove(self.sequence)
