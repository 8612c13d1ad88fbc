"""A lane: the rounds of one router over one (draft executor, target executor) pair.

    proposals = draft.propose.remote(call, [last outcomes])     # object references only:
    outcomes = target.verify.remote(call, [proposals])          # no proposal passes through here

Where messages take a good part of a round, the next one is submitted before the last is read, so
that this process is off the critical path; a newcomer waits for both. While the draft rests, or is
lost, the target decodes several tokens per call.
"""

import asyncio
import itertools
import math
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from s2d_serve.config import RouterConfig
from s2d_serve.engine.messages import Outcome, RoundTimes
from s2d_serve.observability.meter import TargetMeter
from s2d_serve.serving.lane_draft import LaneDraft
from s2d_serve.serving.live_sequence import LiveSequence, ReplicaLostError
from s2d_serve.serving.messages import SequenceRef, VerifyCall, VerifyReply
from s2d_serve.serving.round_report import RoundReport
from s2d_serve.serving.tasks import spawn

MIN_WIRE_SHARE = 0.2
"""Of a round's time, that on the wire from which on rounds are sent ahead. That saves half of it,
since the way by the router falls out, and costs a sequence that joins a whole round: it pays from
ten rounds on.
"""
NUM_WIRE_ROUNDS = 8
"""Rounds over which the least time on the wire counts: what others make it wait for is none."""
NO_WORK_PAUSE_S = 0.02
"""After a round in which no sequence took part: they all wait for a slot."""
IDLE_S = 60.0
"""A lane without a sequence for so long ends: its executors may be gone."""


@dataclass(frozen=True, slots=True)
class LaneEnds:
    """The two executors of a lane, and how rounds between them are run."""

    target_name: str
    target: Any
    """Actor handle of a TargetExecutor."""
    draft: Any | None
    """Actor handle of a DraftExecutor; None: the target decodes alone."""
    decode_steps: int
    config: RouterConfig
    meter: TargetMeter
    is_apart: bool = False
    """Router and executors are not all on one node."""


@dataclass(frozen=True, slots=True)
class Round:
    """A round under way."""

    reply: Any
    """Reference to its VerifyReply."""
    sequence_ids: frozenset[str]
    submitted_at: float
    """On the monotonic clock."""


class Lane:
    """Runs rounds for the sequences it is given, for as long as it has any."""

    def __init__(self, lane_id: str, ends: LaneEnds) -> None:
        self.lane_id = lane_id
        self.is_over = False
        """An executor is dead, or nothing was to be done for long: nothing may be added."""
        self._ends = ends
        self._sequences: dict[str, LiveSequence] = {}
        self._draining: dict[str, asyncio.Future[None]] = {}
        self._pending: deque[Round] = deque()
        self._changed = asyncio.Event()
        self._round_numbers = itertools.count(1)
        self._delivered_at = 0.0
        self._round_s = math.inf
        """What the last one took."""
        self._wires_s: deque[float] = deque(maxlen=NUM_WIRE_ROUNDS)
        """What the last ones with a draft took beside all work, by way of this process."""
        self._draft = LaneDraft(
            ends.draft, ends.target_name, ends.config.draft_retry_s, self._end_with_draft
        )
        if ends.is_apart and ends.draft is not None:
            ends.draft.meet.remote(lane_id, ends.target)
            ends.target.meet.remote(lane_id, ends.draft)
        spawn(self._run())

    def add(self, sequence: LiveSequence) -> None:
        """Serve this sequence from the next round on."""
        sequence.is_drafted = sequence.is_weighed = False
        self._sequences[sequence.sequence_id] = sequence
        self._changed.set()

    def remove(self, sequence: LiveSequence) -> None:
        """Serve it no more; what a round under way still brings is dropped."""
        self._sequences.pop(sequence.sequence_id, None)

    async def drain(self, sequence: LiveSequence) -> None:
        """Serve it no more once the rounds under way are read, so that another lane can go on."""
        if sequence.sequence_id in self._sequences:
            drained = asyncio.get_running_loop().create_future()
            self._draining[sequence.sequence_id] = drained
            self._finish_draining()
            await drained

    @property
    def is_empty(self) -> bool:
        """No sequence is served here."""
        return not self._sequences

    @property
    def _goes_ahead(self) -> bool:
        """Whether the next round is sent before the last is read."""
        wire_s = min(self._wires_s, default=0.0)
        return wire_s > MIN_WIRE_SHARE * self._round_s and self._draft.is_wanted(self._served())

    async def _run(self) -> None:
        while True:
            while self._served() and len(self._pending) < 1 + self._goes_ahead:
                self._pending.append(self._submit(self._served()))
            if not self._pending:
                if self.is_over or not await self._has_work():
                    return
                continue
            pending = self._pending[0]
            try:
                reply: VerifyReply = await pending.reply
            except Exception as error:  # the target is lost, however Ray words it
                self._fail(error)
                return
            self._pending.popleft()
            was_ahead = pending.submitted_at < self._delivered_at
            begun_at = self._delivered_at if was_ahead else pending.submitted_at  # one by one
            self._delivered_at = time.monotonic()
            self._round_s = self._delivered_at - begun_at
            if reply.draft_state == "ok":
                wire_s = self._round_s - reply.work_s
                self._wires_s.append(2 * wire_s if was_ahead else wire_s)
            self._report(pending, reply, self._round_s)
            self._deliver(reply, self._round_s)
            self._finish_draining()
            if not any(result.outcomes for result in reply.results):
                await asyncio.sleep(NO_WORK_PAUSE_S)

    async def _has_work(self) -> bool:
        """Wait until there may be a round to run; False: there was none for too long."""
        self._changed.clear()
        try:
            async with asyncio.timeout(IDLE_S):
                await self._changed.wait()
        except TimeoutError:
            self.is_over = not self._sequences
        return not self.is_over or bool(self._sequences)

    def _served(self) -> list[LiveSequence]:
        return [s for i, s in self._sequences.items() if i not in self._draining]

    def _submit(self, sequences: list[LiveSequence]) -> Round:
        """Send off a round; object references tie it to the one before."""
        number = next(self._round_numbers)
        proposals = self._draft.ask(self.lane_id, number, sequences)
        call = VerifyCall(
            self.lane_id,
            number,
            tuple(sequence.start() for sequence in sequences if not sequence.is_joined),
            tuple(SequenceRef(sequence.sequence_id, sequence.epoch) for sequence in sequences),
            num_steps=1 if proposals else self._ends.decode_steps,
            patience_s=self._ends.config.draft_patience_s,
            draft_attempt=self._draft.attempt,
        )
        for sequence in sequences:
            sequence.is_joined = True
        reply = self._ends.target.verify.remote(call, proposals)
        if proposals:
            self._draft.will_learn(reply)
        sequence_ids = frozenset(sequence.sequence_id for sequence in sequences)
        return Round(reply, sequence_ids, time.monotonic())

    def _report(self, pending: Round, reply: VerifyReply, seconds: float) -> None:
        """Say what a round took, and why it had no draft."""
        served = [self._sequences[i] for i in pending.sequence_ids & self._sequences.keys()]
        wants_draft = any(sequence.is_draftable for sequence in served)
        report = RoundReport(seconds, reply, self._draft.fallback(reply) if wants_draft else None)
        report.count(self._ends.meter)
        report.trace([sequence.trace for sequence in served if sequence.trace is not None])

    def _deliver(self, reply: VerifyReply, call_s: float) -> None:
        """Hand a round's outcomes to their sequences, and heed what it says of the draft.

        `call_s`: what it took, all passes of it.
        """
        for result in reply.results:
            round_s = call_s / len(reply.results)
            times = RoundTimes(reply.draft_seconds, result.seconds, round_s)
            for sequence_id, outcome in result.outcomes.items():
                sequence = self._sequences.get(sequence_id)
                if sequence is not None and outcome.token_ids:
                    self._take(sequence, replace(outcome, times=times))
                    if outcome.finish_reason is not None and reply.draft_state == "none":
                        self._draft.ended_alone(sequence.num_output_tokens)
        for ref in reply.unknown:
            sequence = self._sequences.get(ref.sequence_id)
            if sequence is not None and sequence.epoch == ref.epoch:
                sequence.reopen()
        self._draft.heed(reply, call_s, self._sequences)

    def _take(self, sequence: LiveSequence, outcome: Outcome) -> None:
        if outcome.base_length != len(sequence.token_ids):
            sequence.reopen()
            return
        sequence.token_ids += outcome.token_ids
        sequence.outcomes.put_nowait(outcome)
        if outcome.finish_reason is not None:
            self.remove(sequence)

    def _end_with_draft(self) -> None:
        self.is_over = True
        self._changed.set()

    def _fail(self, error: Exception) -> None:
        """The target is lost: its sequences look for another one."""
        self.is_over = True
        for sequence in self._sequences.values():
            lost = ReplicaLostError("round_failed", f"a round failed: {error}")
            sequence.outcomes.put_nowait(lost)
        self._sequences.clear()
        self._pending.clear()
        self._finish_draining()

    def _finish_draining(self) -> None:
        """Let go of the sequences that wait to leave and that no round under way holds."""
        for sequence_id, drained in list(self._draining.items()):
            if not any(sequence_id in pending.sequence_ids for pending in self._pending):
                del self._draining[sequence_id]
                self._sequences.pop(sequence_id, None)
                if not drained.done():
                    drained.set_result(None)
