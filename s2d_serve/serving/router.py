"""The router: finds a sequence its place on a target and on the draft, and follows it to its end.

It holds prompt and committed tokens, so a lost executor costs time only: the sequence is opened
again elsewhere. Plain asyncio; serving/http.py puts HTTP before it.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from s2d_serve.api.info import AVAILABLE
from s2d_serve.config import AppConfig
from s2d_serve.engine.messages import Outcome
from s2d_serve.errors import DeadlineError, OverloadedError, UnavailableError
from s2d_serve.observability.meter import Meter
from s2d_serve.observability.request import current_request
from s2d_serve.serving.directory import Directory
from s2d_serve.serving.live_sequence import LiveSequence, ReplicaLostError
from s2d_serve.serving.messages import Lease
from s2d_serve.serving.places import Lanes, Place
from s2d_serve.serving.tasks import spawn, value_of
from s2d_serve.speculation.params import SamplingParams

log = logging.getLogger("s2d_serve")

MAX_LOST = 5
"""Replicas that one sequence may lose without a token between before it is given up."""
STATE_CHECK_S = 2.0
"""A place that takes longer to come may be that of a target that is down."""
REOPEN_PAUSE_S = 0.1
"""Before a lost replica is replaced; doubles each time."""
DRAFT_WAIT_S = 0.25
"""A new sequence waits so long for a draft, if there was one lately; then it starts alone."""


class _UnfitError(UnavailableError):
    """A replica of another version of the deployment cannot hold the sequence; others may."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One sequence to generate: what the client wants, in tokens."""

    target: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    """`stop_token_ids` holds the request's; the router adds the target's own end tokens."""
    max_tokens: int
    ignore_eos: bool = False
    num_logprobs: int | None = None
    use_draft: bool = True
    max_draft_tokens: int | None = None
    """None: the target's own cap."""


class Router:
    """Serves generations on the targets it has handles of."""

    def __init__(
        self,
        config: AppConfig,
        targets: Mapping[str, Any],
        draft: Any | None,
        directory: Directory,
        actor_name: str,
        meter: Meter,
    ) -> None:
        """
        Args:
            targets, draft: Serve handles of the deployments.
            actor_name: of this process; leases end with it.
        """
        self._config = config
        self._targets = targets
        self._draft = draft
        self._draft_was_there = True
        self._directory = directory
        self._actor_name = actor_name
        self._lanes = Lanes(config, meter, ray.get_runtime_context().get_node_id())
        self._meter = meter
        self._waking: dict[str, asyncio.Task[None]] = {}

    async def run(self, generation: Generation) -> AsyncGenerator[Outcome, None]:
        """The outcomes of one sequence, in order, each token once.

        Raises:
            OverloadedError: the target's queue is full.
            UnavailableError: no replica of the target is to be had.
            DeadlineError: a time limit ran out.
        """
        sequence = self._sequence(generation)
        delivered = list(generation.prompt_token_ids)
        deadline = time.monotonic() + self._config.limits.ttft_s
        num_lost = 0
        is_recovery = False
        while num_lost < MAX_LOST:
            try:
                async with (
                    self._lease(generation.target, sequence, deadline, is_recovery) as target,
                    self._placed(sequence, target, generation),
                ):
                    while True:
                        outcome = await self._next(sequence, deadline)
                        num_lost = 0
                        deadline = time.monotonic() + self._config.limits.idle_s
                        delivered += outcome.token_ids
                        yield outcome
                        if outcome.finish_reason is not None:
                            return
            except (OverloadedError, _UnfitError) as error:
                may_wait = is_recovery or isinstance(error, _UnfitError)
                if not may_wait or time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(REOPEN_PAUSE_S)
            except ReplicaLostError as lost:
                self._meter.of(generation.target).migrations[lost.reason].inc()
                extra = {"target": generation.target, "reason": lost.reason}
                log.warning("a sequence is opened again: %s", lost, extra=extra)
                await asyncio.sleep(min(REOPEN_PAUSE_S * 2**num_lost, deadline - time.monotonic()))
                num_lost += 1
                is_recovery = True
                sequence = self._sequence(generation)
                sequence.token_ids[:] = delivered
        raise UnavailableError(
            f"target {generation.target!r} lost {MAX_LOST} replicas in a row; try again later"
        )

    def _sequence(self, generation: Generation) -> LiveSequence:
        own = self._config.targets[generation.target].speculation
        max_draft_tokens = 0
        if generation.use_draft and own.enabled and self._draft is not None:
            max_draft_tokens = min(
                own.max_draft_tokens, generation.max_draft_tokens or own.max_draft_tokens
            )
        notes = current_request.get()
        return LiveSequence(
            uuid.uuid4().hex,
            list(generation.prompt_token_ids),
            len(generation.prompt_token_ids),
            generation.params,
            generation.max_tokens,
            generation.num_logprobs,
            max_draft_tokens,
            trace=None if notes is None else notes.trace,
        )

    @contextlib.asynccontextmanager
    async def _placed(
        self, sequence: LiveSequence, target: Lease, generation: Generation
    ) -> AsyncIterator[None]:
        """The sequence in a lane, with its draft looked after."""
        if not generation.ignore_eos:
            ends = {*generation.params.stop_token_ids, *target.info.eos_token_ids}
            sequence.params = replace(generation.params, stop_token_ids=tuple(sorted(ends)))
        place = Place(sequence, target, self._lanes)
        keeper: asyncio.Task[None] | None = None
        try:
            if sequence.max_draft_tokens:
                found = asyncio.Event()
                keeper = asyncio.create_task(self._keep_draft(place, found))
                if self._draft_was_there:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(DRAFT_WAIT_S):
                            await found.wait()
                self._draft_was_there = found.is_set()
            place.settle()
            yield
        finally:
            if keeper is not None:
                keeper.cancel()
            place.leave()

    async def _keep_draft(self, place: Place, found: asyncio.Event) -> None:
        """Lease the draft for as long as the sequence lives; lease another when it is lost."""
        assert self._draft is not None
        pause_s = self._config.router.draft_retry_s
        while True:
            stream = self._open_lease(self._draft, place.sequence.sequence_id)
            try:
                lease = await stream.__anext__()
                await place.move(lease)
                found.set()
                self._draft_was_there = True
                await stream.__anext__()  # until the replica is lost
            except (RayError, RayServeException, StopAsyncIteration):
                self._draft_was_there = False
                await place.move(None)
            finally:
                _cancel(stream)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 60.0)

    @contextlib.asynccontextmanager
    async def _lease(
        self, target: str, sequence: LiveSequence, deadline: float, is_recovery: bool
    ) -> AsyncIterator[Lease]:
        """A place at a target's replica, for as long as the block runs."""
        if self._config.targets[target].cold_start == "refuse" and not is_recovery:
            await self._refuse_if_cold(target)
        meter = self._meter.of(target)
        stream = self._open_lease(self._targets[target], sequence.sequence_id)
        waiting = asyncio.ensure_future(stream.__anext__())
        try:
            with meter.waiting.track_inprogress():
                await self._wait_for_place(waiting, target, deadline)
            lease = _granted(waiting, target)
            if sequence.num_prompt_tokens + sequence.max_tokens > lease.info.max_context:
                raise _UnfitError(
                    f"target {target!r} is being changed, and this replica's max_context is still "
                    f"{lease.info.max_context}; try again in a few seconds"
                )
            watch = asyncio.ensure_future(_report_loss(stream, sequence))
            try:
                with meter.running.track_inprogress():
                    yield lease
            finally:
                watch.cancel()
        finally:
            waiting.cancel()
            _cancel(stream)

    async def _wait_for_place(
        self, waiting: "asyncio.Future[Lease]", target: str, deadline: float
    ) -> None:
        """Until Serve has found a replica, for as long as there is hope of one."""
        patience_s = self._config.targets[target].patience_s
        last_seen = time.monotonic()
        while not waiting.done():
            now = time.monotonic()
            if now >= deadline:
                raise DeadlineError(f"no free place at target {target!r} in time; try later")
            await asyncio.wait([waiting], timeout=min(deadline - now, STATE_CHECK_S))
            if waiting.done():
                return
            view = (await self._directory.look())[target]
            if view.state in AVAILABLE:
                last_seen = time.monotonic()
            elif view.info is None or time.monotonic() - last_seen > patience_s:
                raise UnavailableError(
                    f"target {target!r} is {view.state}; try again in a few seconds"
                )

    def _open_lease(self, deployment: Any, sequence_id: str) -> Any:
        return deployment.options(stream=True).lease.remote(sequence_id, self._actor_name)

    async def _refuse_if_cold(self, target: str) -> None:
        """Refuse at a target without a replica, and leave one lease behind that wakes it."""
        state = (await self._directory.look())[target].state
        if state not in ("idle", "waking", "loading"):
            return
        if target not in self._waking:
            self._waking[target] = spawn(self._wake(target))
        raise UnavailableError(f"target {target!r} is starting; try again in a few seconds")

    async def _wake(self, target: str) -> None:
        stream = self._open_lease(self._targets[target], f"wake-{uuid.uuid4().hex}")
        try:
            await asyncio.wait_for(value_of(stream.__anext__()), self._config.limits.total_s)
        except (TimeoutError, RayError, RayServeException, StopAsyncIteration):
            log.warning("target %s did not wake", target)
        finally:
            _cancel(stream)
            del self._waking[target]

    async def _next(self, sequence: LiveSequence, deadline: float) -> Outcome:
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                outcome = await sequence.outcomes.get()
        except TimeoutError:
            raise DeadlineError("the target gave no token in time; try later") from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _cancel(stream: Any) -> None:
    """End a lease, or the wait for one; what had ended it already is raised by Ray once more."""
    with contextlib.suppress(RayError, RayServeException):
        stream.cancel()


async def _report_loss(stream: Any, sequence: LiveSequence) -> None:
    """Wait for the lease to break: the replica is lost, even if no round says so."""
    try:
        await stream.__anext__()
        error = ReplicaLostError("lease_ended", "the target's replica ended the lease")
    except (RayError, RayServeException, StopAsyncIteration) as lost:
        error = ReplicaLostError("replica_died", f"the target's replica is lost: {lost}")
    sequence.outcomes.put_nowait(error)


def _granted(waiting: "asyncio.Future[Lease]", target: str) -> Lease:
    """The lease that was waited for, or why there is none."""
    try:
        return waiting.result()
    except BackPressureError:
        raise OverloadedError(
            f"the queue of target {target!r} is full; try again in a moment"
        ) from None
    except (RayServeException, StopAsyncIteration) as error:
        raise UnavailableError(f"target {target!r} has no live replica: {error}") from None
    except RayError as error:
        raise ReplicaLostError("no_answer", f"the target's replica is lost: {error}") from None
