"""Who is there: the state of each deployment, from executors that really decode.

Asking goes to the executors directly: it takes no place from a sequence and wakes no idle target.
"""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import DeploymentStatus  # type: ignore[attr-defined]  # public by its docs
from ray.util import list_named_actors

from s2d_serve.api.info import ReplicaCard, State
from s2d_serve.serving.messages import ExecutorStatus, ModelInfo
from s2d_serve.serving.servers import executor_name
from s2d_serve.serving.tasks import value_of

ANSWER_S = 3.0
"""An executor that takes longer to answer is not ready."""
FRESH_S = 1.0
"""What was seen stays good for so long."""


@dataclass(frozen=True, slots=True)
class View:
    """A deployment as it stands."""

    state: State
    info: ModelInfo | None = None
    """What its executors run; None while there are none."""
    replicas: tuple[ReplicaCard, ...] = ()
    """Those whose executors answered."""
    num_silent: int = 0
    """Executors that do not answer, or not yet."""
    num_waiting: int = 0
    """Sequences that the draft knows and has no slot for."""

    @property
    def num_sequences(self) -> int:
        """Sequences in the slots of all replicas."""
        return sum(replica.num_sequences for replica in self.replicas)

    @property
    def num_slots(self) -> int:
        """Slots of all replicas."""
        return sum(replica.num_slots for replica in self.replicas)


class Directory:
    """Looks executors up by their names."""

    def __init__(self, app: str, deployments: Sequence[str], sleepers: Collection[str]) -> None:
        """`sleepers`: deployments that have no replica while nobody asks."""
        self._app = app
        self._deployments = tuple(deployments)
        self._sleepers = frozenset(sleepers)
        self._seen: dict[str, View] = {}
        self._infos: dict[str, ModelInfo] = {}
        self._seen_at = -FRESH_S
        self._lock = asyncio.Lock()

    async def look(self) -> Mapping[str, View]:
        """The state of each deployment."""
        async with self._lock:
            if time.monotonic() - self._seen_at > FRESH_S:
                self._seen = await self._look()
                self._seen_at = time.monotonic()
        return self._seen

    async def _look(self) -> dict[str, View]:
        names = await asyncio.to_thread(list_named_actors)
        views = {}
        for deployment in self._deployments:
            prefix = executor_name(self._app, deployment, "")
            own = [name for name in names if name.startswith(prefix)]
            answers = await asyncio.gather(*(_status(name) for name in own))
            alive = [answer for answer in answers if answer is not None]
            if alive:
                self._infos[deployment] = alive[0].info
                views[deployment] = View(
                    "ready",
                    alive[0].info,
                    tuple(ReplicaCard(a.num_sequences, a.num_slots) for a in alive),
                    len(own) - len(alive),
                    sum(status.num_waiting for status in alive),
                )
            else:
                state = await asyncio.to_thread(_state_without_executor, self._app, deployment)
                if state == "loading" and deployment in self._sleepers:
                    state = "waking"
                views[deployment] = View(state, self._infos.get(deployment), num_silent=len(own))
        return views


async def _status(name: str) -> ExecutorStatus | None:
    """The executor's own word, after a decode; None if it does not come."""
    try:
        handle = await asyncio.to_thread(ray.get_actor, name)
        answer: ExecutorStatus = await asyncio.wait_for(value_of(handle.status.remote()), ANSWER_S)
    except (TimeoutError, ValueError, RayError):
        return None
    return answer


def _state_without_executor(app: str, deployment: str) -> State:
    """Why nobody answers, from Serve's own status."""
    status = serve.status().applications[app].deployments.get(deployment)
    if status is None:
        return "unavailable"
    if status.status == DeploymentStatus.HEALTHY and not sum(status.replica_states.values()):
        return "idle"
    if status.status in (DeploymentStatus.UNHEALTHY, DeploymentStatus.DEPLOY_FAILED):
        return "unavailable"
    return "loading"
