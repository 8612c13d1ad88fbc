"""The actor that holds a target. Rounds reach it directly, by object references, past Serve.

torch is imported when the model is loaded: the replica in front of it, which only starts it, does
without.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from s2d_serve.config import TargetConfig
from s2d_serve.engine.messages import (
    Draft,
    Outcome,
    Proposal,
    SequenceStart,
    Shard,
    StepResult,
)
from s2d_serve.serving.batcher import Batcher
from s2d_serve.serving.cores import core_turns
from s2d_serve.serving.mailbox import Mailbox
from s2d_serve.serving.messages import (
    DraftReply,
    DraftState,
    ExecutorStatus,
    ModelInfo,
    SequenceRef,
    VerifyCall,
    VerifyReply,
)
from s2d_serve.serving.remembered import Remembered
from s2d_serve.serving.round_order import RoundOrder
from s2d_serve.speculation.params import SamplingParams

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

    from s2d_serve.engine.target import TargetModel

log = logging.getLogger("s2d_serve")

NOTHING = Proposal(base_length=0)
SELF_TEST_AGE_S = 300.0
"""A model that gave no token for so long decodes one when it is asked how it is. Where models share
cores, each such pass delays the others: a round of 0.14 s by 0.3 s, for 1.5B parameters.
"""
MAX_DECODE_S = 0.1
"""After so long a call without proposals ends, however few passes it had: people read along."""


@dataclass(slots=True, eq=False)
class VerifyTurn:
    """A verify call in the passes."""

    call: VerifyCall
    proposals: Mapping[str, Proposal]
    results: list[StepResult] = field(default_factory=list)
    unknown: tuple[SequenceRef, ...] = ()
    is_joined: bool = False
    waiting_since: float = field(default_factory=time.perf_counter)
    """The last pass ended then, or the call came."""
    waited_s: float = 0.0
    """As in `VerifyReply`."""


class TargetExecutor:
    """Verifies and decodes for all lanes that lead to this replica."""

    def __init__(self, name: str, config: TargetConfig) -> None:
        self._name = name
        self._config = config
        self._model: TargetModel
        self._info: ModelInfo
        self._store: TCPStore
        self._waiting: dict[str, SequenceStart] = {}
        self._left = Remembered()
        self._replies = Remembered()
        self._late_drafts = Remembered()
        self._mailbox = Mailbox()
        self._order = RoundOrder()
        self._last_decode = 0.0
        self._loaded = asyncio.Event()
        self._batcher: Batcher[VerifyTurn, VerifyReply] = Batcher(
            self._run_pass, cores=core_turns(config)
        )

    async def load(self, shard: Shard | None = None) -> ModelInfo:
        """Load the weights; the first call to make.

        Args:
            shard: this rank's place, rank 0; None: the target is whole here.

        Raises: S2DError of any kind.
        """
        await self._batcher.run(lambda: self._load(shard))
        self._loaded.set()
        return self._info

    async def open_store(self, host: str) -> int:
        """Port at which the other ranks find this one, before `load`; `host` is its address."""
        from s2d_serve.engine.sharding import open_store

        self._store = await asyncio.to_thread(open_store, host)
        return self._store.port

    async def verify(self, call: VerifyCall, refs: Sequence[Any]) -> VerifyReply:
        """One round for one lane: one pass where something is proposed, else up to `num_steps`, or
        until a sequence has its first token, or `MAX_DECODE_S` are over.

        Args:
            refs: a reference to the lane's `DraftReply`, or nothing.
        """
        async with self._order.turn(call.lane_id, call.round):
            repeated = self._replies.get(call.lane_id)
            if repeated is not None and repeated[0] == call.round:
                return repeated[1]  # type: ignore[no-any-return]  # a pair of (round, VerifyReply)
            reply = await self._verify(call, refs)
            if refs:
                self._mailbox.send(call.lane_id, call.round, reply)
            self._replies[call.lane_id] = (call.round, reply)
            return reply

    async def meet(self, lane_id: str, draft: Any) -> None:
        """Send this lane's replies to its draft's executor too, without a detour."""
        self._mailbox.meet(lane_id, draft)

    async def receive(self, lane_id: str, number: int, reply: DraftReply) -> None:
        """Take a draft's reply that came without a detour."""
        self._mailbox.receive(lane_id, number, reply)

    async def leave(self, sequence_id: str) -> None:
        """End a sequence for good, whatever calls about it are still under way."""
        await self._batcher.run(lambda: self._forget(sequence_id))

    async def status(self) -> ExecutorStatus:
        """Life signs, none before the model is loaded; an idle one first decodes a token to show
        that it can.

        Raises: what the forward pass raises.
        """
        await self._loaded.wait()
        if time.monotonic() - self._last_decode > SELF_TEST_AGE_S:
            await self._self_test()
        return ExecutorStatus(
            self._info,
            os.getpid(),
            len(self._model.sequences),
            self._config.max_sequences,
            time.monotonic() - self._last_decode,
        )

    async def wait_closed(self) -> None:
        """Never returns: a caller learns of this process's end by the error."""
        await asyncio.Event().wait()

    def _load(self, shard: Shard | None) -> None:
        from s2d_serve.engine.assemble import load_target
        from s2d_serve.engine.sharding import ShardGroup

        group = None
        if shard is not None:
            group = ShardGroup(shard, self._config, self._store)
        self._model, checkpoint = load_target(self._config, group)
        self._info = ModelInfo(
            self._name,
            checkpoint.digest,
            self._config.dtype,
            self._config.max_context,
            tuple(sorted(checkpoint.eos_token_ids)),
        )

    async def _verify(self, call: VerifyCall, refs: Sequence[Any]) -> VerifyReply:
        if self._late_drafts.get(call.lane_id) == call.draft_attempt:
            refs = ()
        reply, state = await self._proposals(call, refs)
        if state == "late":
            self._late_drafts[call.lane_id] = call.draft_attempt
        started_s = time.time()
        turn = VerifyTurn(call, reply.draft.proposals)
        verified = await self._batcher.submit(turn)
        return VerifyReply(
            verified.results,
            verified.unknown,
            state,
            reply.unknown,
            reply.draft.rest_rounds,
            reply.seconds,
            reply.started_s,
            started_s,
            verified.waited_s,
        )

    async def _proposals(
        self, call: VerifyCall, refs: Sequence[Any]
    ) -> tuple[DraftReply, DraftState]:
        """The draft's reply, or an empty one if it is late or dead."""
        nothing = DraftReply(Draft({}), (), 0.0)
        if not refs:
            return nothing, "none"
        try:
            coming = self._mailbox.first(call.lane_id, call.round, refs[0])
            reply = await asyncio.wait_for(coming, call.patience_s)
        except TimeoutError:
            return nothing, "late"
        except Exception:  # a dead draft, however Ray words it, costs no more than its proposal
            return nothing, "dead"
        return (reply, "ok") if isinstance(reply, DraftReply) else (nothing, "dead")

    def _run_pass(self, turns: Sequence[VerifyTurn]) -> list[tuple[VerifyTurn, VerifyReply]]:
        """One forward pass over the sequences of all turns."""
        for turn in turns:
            turn.waited_s += time.perf_counter() - turn.waiting_since
        self._open_joins(turns)
        proposals: dict[str, Proposal] = {}
        for turn in turns:
            for ref in turn.call.sequences:
                if self._holds(ref):
                    proposals[ref.sequence_id] = turn.proposals.get(ref.sequence_id, NOTHING)
        result = self._step(proposals)
        if any(outcome.token_ids for outcome in result.outcomes.values()):
            self._last_decode = time.monotonic()
        begun = set()
        for sequence_id, outcome in result.outcomes.items():
            start = self._model.sequences[sequence_id].start
            if outcome.token_ids and outcome.base_length == start.num_prompt_tokens:
                begun.add(sequence_id)
            if outcome.finish_reason is not None:
                self._model.close(sequence_id)
        done = []
        for turn in turns:
            own = {
                ref.sequence_id: result.outcomes[ref.sequence_id]
                for ref in turn.call.sequences
                if ref.sequence_id in result.outcomes
            }
            turn.results.append(StepResult(own, result.num_tokens, result.seconds))
            turn.waiting_since = time.perf_counter()
            if _is_over(turn, own) or not begun.isdisjoint(own):  # a first token waits for none
                reply = VerifyReply(tuple(turn.results), turn.unknown, waited_s=turn.waited_s)
                done.append((turn, reply))
        return done

    def _step(self, proposals: Mapping[str, Proposal]) -> StepResult:
        """A pass of the model; a sharded one that fails has lost a rank, and its replica ends."""
        try:
            return self._model.step(proposals)
        except Exception:
            if self._config.tensor_parallel_size > 1:
                log.exception("target %s ends: a pass over its ranks failed", self._name)
                os._exit(1)
            raise

    def _open_joins(self, turns: Sequence[VerifyTurn]) -> None:
        for turn in turns:
            if not turn.is_joined:
                self._waiting.update((s.sequence_id, s) for s in turn.call.joins)
        for start in list(self._waiting.values()):
            held = self._model.sequences.get(start.sequence_id)
            is_stale = held is not None and held.start.epoch >= start.epoch
            if is_stale or start.sequence_id in self._left:
                del self._waiting[start.sequence_id]
            elif held is not None or self._model.num_free_slots > 0:
                del self._waiting[start.sequence_id]
                self._model.open(start)
        for turn in turns:
            if not turn.is_joined:
                turn.is_joined = True
                turn.unknown = tuple(
                    ref
                    for ref in turn.call.sequences
                    if not self._holds(ref) and ref.sequence_id not in self._waiting
                )

    def _holds(self, ref: SequenceRef) -> bool:
        sequence = self._model.sequences.get(ref.sequence_id)
        return sequence is not None and sequence.start.epoch == ref.epoch

    def _forget(self, sequence_id: str) -> None:
        self._left[sequence_id] = None
        self._waiting.pop(sequence_id, None)
        self._model.close(sequence_id)

    async def _self_test(self) -> None:
        """Decode one token of a sequence of our own, if a slot is free."""
        name = f"self-test-{time.monotonic_ns()}"
        start = SequenceStart(name, 0, (0,), 1, SamplingParams(temperature=0.0), max_tokens=1)
        refs = (SequenceRef(name, 0),)
        turn = VerifyTurn(VerifyCall(name, 0, (start,), refs, 1, 0.0, 0), {})
        try:
            await self._batcher.submit(turn)
        finally:
            await self.leave(name)


def _is_over(turn: VerifyTurn, own: Mapping[str, Outcome]) -> bool:
    """Whether a turn has had its passes."""
    was_proposed = any(outcome.exits for outcome in own.values())
    is_live = any(outcome.finish_reason is None for outcome in own.values())
    is_long = sum(result.seconds for result in turn.results) >= MAX_DECODE_S
    return was_proposed or not is_live or is_long or len(turn.results) >= turn.call.num_steps
