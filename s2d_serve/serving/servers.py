"""The deployments in front of the models: leases, health, the life of their executors.

Plain classes; serving/app.py makes deployments of them.
"""

import asyncio
import contextvars
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import get_current_placement_group, get_node_ip_address
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from s2d_serve.config import DraftConfig, ModelConfig, SpeculationConfig, TargetConfig
from s2d_serve.engine.messages import Shard
from s2d_serve.errors import S2DError
from s2d_serve.serving.draft_executor import DraftExecutor
from s2d_serve.serving.messages import Lease, ModelInfo
from s2d_serve.serving.rank_executor import RankExecutor
from s2d_serve.serving.target_executor import TargetExecutor
from s2d_serve.serving.tasks import spawn, value_of

EXECUTOR_PREFIX = "s2d-executor"
RANK_PREFIX = "s2d-rank"
SERVE_NAMESPACE = "serve"
"""Where Serve names its replicas."""
ROUTER_CHECK_S = 5.0
"""How often a replica looks whether a router that holds leases is still there."""
MAX_CALLS = 10_000
"""Calls that may wait at an executor: rounds of all lanes, leaves, life signs."""


def executor_name(app: str, deployment: str, replica: str) -> str:
    """Name of the actor behind a replica, by which routers find it for /ready."""
    return f"{EXECUTOR_PREFIX}:{app}:{deployment}:{replica}"


def rank_name(app: str, deployment: str, replica: str, rank: int) -> str:
    """Name of the actor that holds a further rank of a sharded target."""
    return f"{RANK_PREFIX}:{app}:{deployment}:{replica}:{rank}"


def _is_alive(actor_name: str) -> bool:
    try:
        ray.get_actor(actor_name, SERVE_NAMESPACE)
    except ValueError:
        return False
    except RayError:  # the cluster does not answer
        return True
    return True


async def _host_of(executor: Any) -> str:
    """Address of the node that an executor runs on."""
    find: Any = get_node_ip_address
    host: str = await value_of(executor.__ray_call__.remote(lambda _: find()))
    return host


class ModelServer:
    """Starts the executor that holds the model, and leases places on it.

    A lease is a streaming call: it lasts as long as the sequence, so that Serve itself picks the
    replica, counts the load, lets a draining replica finish, and reports a death.
    """

    _executor: Any
    _info: ModelInfo

    def __init__(self, config: ModelConfig) -> None:
        context = serve.get_replica_context()
        self._config = config
        self._replica = context.replica_tag
        self._node_id = ray.get_runtime_context().get_node_id()
        self._place = (context.app_name, context.deployment, self._replica)
        self._watches: dict[str, asyncio.Event] = {}

    def _start(self, executor_class: type, *args: Any, rank: int = 0) -> Any:
        """Start the executor of a rank, in its bundle of the replica's placement group.

        Rank 0 is the one that routers talk to.
        """
        config = self._config
        group = get_current_placement_group()
        assert group is not None, "app.py gives every model one"
        return (
            ray.remote(executor_class)
            .options(
                name=rank_name(*self._place, rank) if rank else executor_name(*self._place),
                num_cpus=config.num_cpus,
                num_gpus=config.num_gpus,
                resources=config.resources,
                max_concurrency=MAX_CALLS,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank),
            )
            .remote(*args)
        )

    async def _load(self, executors: Sequence[Any], loads: Sequence[Any]) -> None:
        """Wait for the executors' `load` calls, that of rank 0 first; then end with any of them."""
        try:
            self._info, *_ = await asyncio.gather(*map(value_of, loads))
        except RayTaskError as error:
            if isinstance(error.cause, S2DError):
                raise type(error.cause)(str(error.cause)) from None
            raise
        for executor in executors:
            spawn(self._end_with(executor))

    async def lease(self, sequence_id: str, router: str) -> AsyncGenerator[Lease, None]:
        """Yields one lease, then stays open until the caller ends the call, or is dead: of that
        Serve says nothing.

        `router`: name of the caller's actor.
        """
        try:
            yield Lease(self._replica, self._node_id, self._executor, self._info)
            await self._end_of(router)
        finally:  # of no task: Ray cancels what a cancelled one has started
            contextvars.Context().run(self._executor.leave.remote, sequence_id)

    async def _end_of(self, router: str) -> None:
        """Wait until a router is dead; one watch for all its leases."""
        if router not in self._watches:
            self._watches[router] = asyncio.Event()
            spawn(self._watch(router))
        await self._watches[router].wait()

    async def _watch(self, router: str) -> None:
        while await asyncio.to_thread(_is_alive, router):
            await asyncio.sleep(ROUTER_CHECK_S)
        self._watches.pop(router).set()

    async def check_health(self) -> None:
        """Serve's own question.

        An executor that cannot decode makes the replica unhealthy. One that says nothing ends it:
        Serve would wait for the sequences that it holds.
        """
        try:
            status = value_of(self._executor.status.remote())
            await asyncio.wait_for(status, self._config.silence_s)
        except TimeoutError:
            os._exit(1)

    @staticmethod
    async def _end_with(executor: Any) -> None:
        """A replica without its model is of no use: leave at once, Serve starts another."""
        try:
            await value_of(executor.wait_closed.remote())
        except RayActorError:
            os._exit(1)


class TargetServer(ModelServer):
    """One target."""

    async def __init__(self, name: str, config: TargetConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        super().__init__(config)
        self._executor = self._start(TargetExecutor, name, config)
        if config.tensor_parallel_size == 1:
            executors = [self._executor]
            loads = [self._executor.load.remote()]
        else:
            executors = [self._executor] + [
                self._start(RankExecutor, config, rank=rank)
                for rank in range(1, config.tensor_parallel_size)
            ]
            hosts = await asyncio.gather(*(_host_of(executor) for executor in executors))
            port = await self._executor.open_store.remote(hosts[0])
            loads = [
                executor.load.remote(Shard(rank, len(executors), hosts[0], port, hosts[rank]))
                for rank, executor in enumerate(executors)
            ]
        await self._load(executors, loads)


class DraftServer(ModelServer):
    """The shared draft."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: DraftConfig, targets: Mapping[str, SpeculationConfig]
    ) -> None:
        super().__init__(config)
        self._executor = self._start(DraftExecutor, config, targets)
        await self._load([self._executor], [self._executor.load.remote()])
