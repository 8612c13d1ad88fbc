"""The actor that holds the draft; like the one of a target, it imports torch when it loads."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s2d_serve.config import DraftConfig, SpeculationConfig
from s2d_serve.engine.messages import StepResult
from s2d_serve.serving.batcher import Batcher
from s2d_serve.serving.cores import core_turns
from s2d_serve.serving.mailbox import Mailbox
from s2d_serve.serving.messages import (
    DraftCall,
    DraftReply,
    ExecutorStatus,
    ModelInfo,
    VerifyReply,
)
from s2d_serve.serving.remembered import Remembered
from s2d_serve.serving.target_executor import SELF_TEST_AGE_S
from s2d_serve.speculation.exits import LOOKUP_EXIT

if TYPE_CHECKING:
    from s2d_serve.engine.drafter import Drafter

log = logging.getLogger("s2d_serve")


@dataclass(slots=True, eq=False)
class DraftTurn:
    """A propose call in the passes."""

    call: DraftCall
    results: tuple[StepResult, ...] = ()
    """Of the lane's last round."""
    waited_s: float = 0.0
    """In that round, by the target."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A lane's last call that brought proposals."""

    round: int
    started: float
    """Of the pass, as if it had not waited for the cores."""
    seconds: float
    """Of the pass, without that."""
    seconds_reading: float
    """The drafter's, by then."""


class DraftExecutor:
    """Drafts for all lanes of all targets, in the same forward passes."""

    def __init__(self, config: DraftConfig, targets: Mapping[str, SpeculationConfig]) -> None:
        self._config = config
        self._targets = targets
        self._drafter: Drafter
        self._info: ModelInfo
        self._left = Remembered()
        self._asked = Remembered()
        self._mailbox = Mailbox()
        self._last_decode = 0.0
        self._batcher: Batcher[DraftTurn, DraftReply] = Batcher(self._run_pass, self._work_ahead)

    async def load(self) -> ModelInfo:
        """Load the weights; the first call to make.

        Raises: S2DError of any kind.
        """
        await self._batcher.run(self._load)
        return self._info

    async def propose(self, call: DraftCall, refs: Sequence[Any]) -> DraftReply:
        """Proposals for one lane's next round.

        Args:
            refs: a reference to the lane's last `VerifyReply`, or nothing.
        """
        turn = DraftTurn(call)
        for ref in refs:
            last: VerifyReply = await self._mailbox.first(call.lane_id, call.round - 1, ref)
            turn = DraftTurn(call, last.results, last.waited_s)
        reply = await self._batcher.submit(turn)
        self._mailbox.send(call.lane_id, call.round, reply)
        return reply

    async def meet(self, lane_id: str, target: Any) -> None:
        """Send this lane's replies to its target's executor too, without a detour."""
        self._mailbox.meet(lane_id, target)

    async def receive(self, lane_id: str, number: int, reply: VerifyReply) -> None:
        """Take a target's reply that came without a detour."""
        self._mailbox.receive(lane_id, number, reply)

    async def leave(self, sequence_id: str) -> None:
        """End a sequence for good, whatever calls about it are still under way."""
        await self._batcher.run(lambda: self._forget(sequence_id))

    async def status(self) -> ExecutorStatus:
        """Life signs; an idle draft first reads and drafts a token to show that it can.

        Raises: what the forward pass raises.
        """
        if time.monotonic() - self._last_decode > SELF_TEST_AGE_S:
            await self._batcher.run(self._self_test)
        draft = self._drafter.draft
        return ExecutorStatus(
            self._info,
            os.getpid(),
            len(draft.sequences),
            self._config.max_sequences,
            time.monotonic() - self._last_decode,
            self._drafter.num_waiting,
        )

    async def wait_closed(self) -> None:
        """Never returns: a caller learns of this process's end by the error."""
        await asyncio.Event().wait()

    def _load(self) -> None:
        from s2d_serve.engine.assemble import load_drafter

        self._drafter, checkpoint = load_drafter(self._config, self._targets)
        self._drafter.cores = core_turns(self._config)
        self._info = ModelInfo(
            "draft",
            checkpoint.digest,
            self._config.dtype,
            self._config.max_context,
            tuple(sorted(checkpoint.eos_token_ids)),
            self._drafter.draft.exit_layers,
        )
        self._drafter.trials.warm_up()
        self._last_decode = time.monotonic()

    def _run_pass(self, turns: Sequence[DraftTurn]) -> list[tuple[DraftTurn, DraftReply]]:
        """Learn from the last round, then draft for the next: all lanes together."""
        started, started_s = time.perf_counter(), time.time()
        unknown: list[set[str]] = []
        for turn in turns:
            round_s = self._round_s(turn)
            target = turn.call.request.target
            for start in turn.call.joins:
                if start.sequence_id not in self._left:
                    self._drafter.open(start, target)
            missing = {i for i in turn.call.request.limits if not self._drafter.is_open(i)}
            for result in turn.results:
                missing.update(self._drafter.learn(target, result, round_s))
            unknown.append(missing)
        waited_s = -self._drafter.seconds_waiting
        drafts = self._drafter.propose([turn.call.request for turn in turns])
        waited_s += self._drafter.seconds_waiting
        exits = {n for draft in drafts for p in draft.proposals.values() for n in p.exits}
        if exits - {LOOKUP_EXIT}:
            self._last_decode = time.monotonic()
        seconds = time.perf_counter() - started - waited_s
        asked = started + waited_s, seconds, self._drafter.seconds_reading
        for turn, draft in zip(turns, drafts, strict=True):
            if draft.has_tokens:
                self._asked[turn.call.lane_id] = _Asked(turn.call.round, *asked)
        return [
            (turn, DraftReply(draft, tuple(missing), seconds, started_s))
            for turn, draft, missing in zip(turns, drafts, unknown, strict=True)
        ]

    def _round_s(self, turn: DraftTurn) -> float | None:
        """What the lane's last round took since it asked for proposals, if it got any, without the
        reading of prompts here, for which the target waits, and without other waiting.
        """
        last: _Asked | None = self._asked.pop(turn.call.lane_id, None)
        if last is None or last.round != turn.call.round - 1 or not turn.results:
            return None
        read_s = self._drafter.seconds_reading - last.seconds_reading
        round_s = time.perf_counter() - last.started - max(read_s, turn.waited_s)
        policy = self._drafter.pairings[turn.call.request.target].lengths
        passes_s = last.seconds + sum(result.seconds for result in turn.results)
        policy.record_overhead(round_s - passes_s)
        return round_s

    def _work_ahead(self) -> bool:
        """Read a chunk of a sequence that lags behind, or else measure a cost; a draft that cannot
        is replaced.
        """
        try:
            return self._drafter.prefill() or self._drafter.trials.measure_next()
        except Exception:
            log.exception("the draft ends: it could not compute in its idle time")
            os._exit(1)

    def _forget(self, sequence_id: str) -> None:
        self._left[sequence_id] = None
        self._drafter.close(sequence_id)

    def _self_test(self) -> None:
        if self._drafter.trials.try_out():
            self._last_decode = time.monotonic()
