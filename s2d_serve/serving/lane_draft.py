"""A lane's draft, as the lane sees it: at work, at rest, or lost."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from s2d_serve.engine.messages import AloneCost, DraftRequest
from s2d_serve.serving.live_sequence import LiveSequence
from s2d_serve.serving.messages import DraftCall, VerifyReply
from s2d_serve.serving.tasks import spawn, value_of
from s2d_serve.speculation.draft_length import MAX_REST_ROUNDS

log = logging.getLogger("s2d_serve")

MAX_RETRY_S = 60.0
MAX_REMEMBERED = MAX_REST_ROUNDS
"""Costs of target passes, and lengths of outputs, kept for a draft that rests: it tries again by
the time that it rested.
"""


class LaneDraft:
    """Asks the draft where it may be of use, and remembers what it has to be told."""

    def __init__(
        self, executor: Any | None, target_name: str, retry_s: float, on_dead: Callable[[], None]
    ) -> None:
        """
        Args:
            executor: actor handle of a DraftExecutor; None: the target decodes alone.
            retry_s: from when it was late until it is asked whether it is there again.
            on_dead: called where it turns out to be dead.
        """
        self.attempt = 0
        """Grows when a lost draft is taken up again."""
        self._executor = executor
        self._target_name = target_name
        self._retry_s = retry_s
        self._on_dead = on_dead
        self._is_lost = False
        self._rest_rounds = 0
        self._is_probe = False
        self._unlearned: Any | None = None
        self._alone_costs: deque[AloneCost] = deque(maxlen=MAX_REMEMBERED)
        self._ended_lengths: deque[int] = deque(maxlen=MAX_REMEMBERED)

    def is_wanted(self, sequences: Collection[LiveSequence]) -> bool:
        """Whether a round of these sequences asks it."""
        return (
            self._executor is not None
            and not self._is_lost
            and any(s.is_draftable and not (self._is_resting and s.is_weighed) for s in sequences)
        )

    def ask(self, lane_id: str, number: int, sequences: Sequence[LiveSequence]) -> list[Any]:
        """Reference to the round's DraftReply, if it is wanted; it learns of the last round by
        itself.
        """
        if not self.is_wanted(sequences):
            self._unlearned = None
            for sequence in sequences:
                sequence.is_drafted = False
            return []
        assert self._executor is not None
        wanted = [sequence for sequence in sequences if sequence.max_draft_tokens]
        call = DraftCall(
            lane_id,
            number,
            tuple(sequence.start() for sequence in wanted if not sequence.is_drafted),
            DraftRequest(
                self._target_name,
                {sequence.sequence_id: sequence.max_draft_tokens for sequence in wanted},
                self._is_probe and not self._is_resting,
                tuple(self._alone_costs),
                tuple(self._ended_lengths),
            ),
        )
        self._alone_costs.clear()
        self._ended_lengths.clear()
        for sequence in wanted:
            sequence.is_drafted = True
        last_round = [] if self._unlearned is None else [self._unlearned]
        return [self._executor.propose.remote(call, last_round)]

    def will_learn(self, reply: Any) -> None:
        """Reference to the VerifyReply of the round that it was asked for."""
        self._unlearned = reply

    def ended_alone(self, num_output_tokens: int) -> None:
        """An output ended in a round without it."""
        self._ended_lengths.append(num_output_tokens)

    def heed(
        self, reply: VerifyReply, call_s: float, sequences: Mapping[str, LiveSequence]
    ) -> None:
        """Take in what a round tells of it.

        Args:
            call_s: what the round took, all passes of it.
            sequences: those still served.
        """
        for sequence_id in reply.draft_unknown:
            if sequence_id in sequences:
                sequences[sequence_id].is_drafted = False
        if reply.draft_state in ("late", "dead"):
            self._lose(is_dead=reply.draft_state == "dead")
        elif reply.draft_state == "none":
            self._is_probe = self._is_probe or self._is_resting
            self._rest_rounds = max(self._rest_rounds - len(reply.results), 0)
            self._alone_costs.extend(_alone_costs(reply, call_s))
        elif reply.rest_rounds:
            self._rest_rounds = self._rest_rounds if self._is_resting else reply.rest_rounds
            _weigh(reply, sequences)
        elif any(o.exits for result in reply.results for o in result.outcomes.values()):
            self._rest_rounds = 0
            self._is_probe = False
            _weigh(reply, sequences)

    def fallback(self, reply: VerifyReply) -> str | None:
        """Why a round had no proposals, one of `FALLBACKS`; None: the draft had its say."""
        if reply.draft_state != "none":
            return None if reply.draft_state == "ok" else reply.draft_state
        if self._executor is None:
            return "absent"
        return "lost" if self._is_lost else "rest"

    @property
    def _is_resting(self) -> bool:
        return self._rest_rounds > 0

    def _lose(self, is_dead: bool) -> None:
        """Go on without it; one that is only late gets another chance."""
        if self._is_lost:
            return
        self._is_lost = True
        reason = "dead" if is_dead else "late"
        extra = {"target": self._target_name, "reason": reason}
        log.warning("the draft is %s: the target goes on alone", reason, extra=extra)
        if is_dead:
            self._on_dead()
        else:
            spawn(self._await())

    async def _await(self) -> None:
        """Until it answers again, or is dead."""
        assert self._executor is not None
        pause_s = self._retry_s
        while True:
            await asyncio.sleep(pause_s)
            answer = asyncio.ensure_future(value_of(self._executor.status.remote()))
            done, _ = await asyncio.wait([answer], timeout=MAX_RETRY_S)
            if done and answer.exception() is None:
                self._is_lost = False
                self.attempt += 1
                return
            if done:
                self._on_dead()
                return
            pause_s = min(2 * pause_s, MAX_RETRY_S)


def _weigh(reply: VerifyReply, sequences: Mapping[str, LiveSequence]) -> None:
    """Note that the draft had its say about the sequences of a round."""
    for result in reply.results:
        for sequence_id in result.outcomes.keys() & sequences.keys():
            sequences[sequence_id].is_weighed = True


def _alone_costs(reply: VerifyReply, call_s: float) -> list[AloneCost]:
    """Of the passes of a call without a draft, which took so long in all: waiting for others is no
    cost of theirs.
    """
    beside_s = max(call_s - reply.work_s, 0.0) / max(len(reply.results), 1)
    return [
        AloneCost(
            result.num_committing,
            result.num_tokens,
            result.seconds,
            result.seconds + beside_s,
        )
        for result in reply.results
        if result.num_tokens
    ]
