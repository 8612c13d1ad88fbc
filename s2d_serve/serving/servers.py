"""The deployments in front of the models: leases, health, the life of their executors.

Plain classes; serving/app.py makes deployments of them.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from s2d_serve.config import DraftConfig, ModelConfig, SpeculationConfig, TargetConfig
from s2d_serve.errors import S2DError
from s2d_serve.serving.draft_executor import DraftExecutor
from s2d_serve.serving.messages import Lease, ModelInfo
from s2d_serve.serving.target_executor import TargetExecutor
from s2d_serve.serving.tasks import spawn, value_of

EXECUTOR_PREFIX = "s2d-executor"
MAX_CALLS = 10_000
"""Calls that may wait at an executor: rounds of all lanes, leaves, life signs."""


def executor_name(app: str, deployment: str, replica: str) -> str:
    """Name of the actor behind a replica, by which routers find it for /ready."""
    return f"{EXECUTOR_PREFIX}:{app}:{deployment}:{replica}"


class ModelServer:
    """Starts the executor that holds the model, and leases places on it.

    A lease is a streaming call: it lasts as long as the sequence, so that Serve itself picks the
    replica, counts the load, lets a draining replica finish, and reports a death.
    """

    _executor: Any
    _info: ModelInfo

    async def _start(self, executor_class: type, config: ModelConfig, *args: Any) -> None:
        context = serve.get_replica_context()
        self._replica = context.replica_tag
        name = executor_name(context.app_name, context.deployment, self._replica)
        self._executor = (
            ray.remote(executor_class)
            .options(
                name=name,
                num_cpus=config.num_cpus,
                num_gpus=config.num_gpus,
                max_concurrency=MAX_CALLS,
            )
            .remote(*args)
        )
        try:
            self._info = await self._executor.load.remote()
        except RayTaskError as error:
            if isinstance(error.cause, S2DError):
                raise type(error.cause)(str(error.cause)) from None
            raise
        spawn(self._end_with_executor())

    async def lease(self, sequence_id: str) -> AsyncGenerator[Lease, None]:
        """Yields one lease, then stays open until the caller ends the call."""
        try:
            yield Lease(self._replica, self._executor, self._info)
            await asyncio.Event().wait()
        finally:
            self._executor.leave.remote(sequence_id)

    async def check_health(self) -> None:
        """Serve's own question; an executor that cannot decode makes the replica unhealthy."""
        await self._executor.status.remote()

    async def _end_with_executor(self) -> None:
        """A replica without its model is of no use: leave at once, Serve starts another."""
        try:
            await value_of(self._executor.wait_closed.remote())
        except RayActorError:
            os._exit(1)


class TargetServer(ModelServer):
    """One target."""

    async def __init__(self, name: str, config: TargetConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        await self._start(TargetExecutor, config, name, config)


class DraftServer(ModelServer):
    """The shared draft."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: DraftConfig, targets: Mapping[str, SpeculationConfig]
    ) -> None:
        await self._start(DraftExecutor, config, config, targets)
