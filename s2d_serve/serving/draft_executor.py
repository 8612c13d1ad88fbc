"""The actor that holds the draft; like the one of a target, it imports torch when it loads."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s2d_serve.config import DraftConfig, SpeculationConfig
from s2d_serve.engine.messages import SequenceStart, StepResult
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
from s2d_serve.speculation.params import SamplingParams

if TYPE_CHECKING:
    from s2d_serve.engine.drafter import Drafter

log = logging.getLogger("s2d_serve")

WARM_UP_TOKENS = 64
"""Read before the first sequence: what a library makes at its first use is no cost of drafting."""


@dataclass(slots=True, eq=False)
class DraftTurn:
    """A propose call in the passes."""

    call: DraftCall
    results: tuple[StepResult, ...]


class DraftExecutor:
    """Drafts for all lanes of all targets, in the same forward passes."""

    def __init__(self, config: DraftConfig, targets: Mapping[str, SpeculationConfig]) -> None:
        self._config = config
        self._targets = targets
        self._drafter: Drafter
        self._info: ModelInfo
        self._left = Remembered()
        self._mailbox = Mailbox()
        self._last_decode = 0.0
        self._batcher: Batcher[DraftTurn, DraftReply] = Batcher(
            self._run_pass, self._read_ahead, core_turns(config)
        )

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
        results: tuple[StepResult, ...] = ()
        for ref in refs:
            last: VerifyReply = await self._mailbox.first(call.lane_id, call.round - 1, ref)
            results = last.results
        reply = await self._batcher.submit(DraftTurn(call, results))
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
        self._info = ModelInfo(
            "draft",
            checkpoint.digest,
            self._config.dtype,
            self._config.max_context,
            tuple(sorted(checkpoint.eos_token_ids)),
            self._drafter.draft.exit_layers,
        )
        self._self_test(WARM_UP_TOKENS)

    def _run_pass(self, turns: Sequence[DraftTurn]) -> list[tuple[DraftTurn, DraftReply]]:
        """Learn from the last round, then draft for the next: all lanes together."""
        started, started_s = time.perf_counter(), time.time()
        unknown: list[set[str]] = []
        for turn in turns:
            target = turn.call.request.target
            for start in turn.call.joins:
                if start.sequence_id not in self._left:
                    self._drafter.open(start, target)
            missing = {i for i in turn.call.request.limits if not self._drafter.is_open(i)}
            for result in turn.results:
                missing.update(self._drafter.learn(target, result))
            unknown.append(missing)
        drafts = self._drafter.propose([turn.call.request for turn in turns])
        exits = {n for draft in drafts for p in draft.proposals.values() for n in p.exits}
        if exits - {LOOKUP_EXIT}:
            self._last_decode = time.monotonic()
        seconds = time.perf_counter() - started
        return [
            (turn, DraftReply(draft, tuple(missing), seconds, started_s))
            for turn, draft, missing in zip(turns, drafts, unknown, strict=True)
        ]

    def _read_ahead(self) -> bool:
        """Read a chunk of a sequence that lags behind; a draft that cannot is replaced."""
        try:
            return self._drafter.prefill()
        except Exception:
            log.exception("the draft ends: it could not read a prompt")
            os._exit(1)

    def _forget(self, sequence_id: str) -> None:
        self._left[sequence_id] = None
        self._drafter.close(sequence_id)

    def _self_test(self, num_prompt_tokens: int = 1) -> None:
        """Read a sequence of our own and draft a token for it, if a slot is free."""
        draft = self._drafter.draft
        prompt = (0,) * num_prompt_tokens
        params = SamplingParams(temperature=0.0)
        start = SequenceStart("self-test", 0, prompt, len(prompt), params, len(prompt) + 1)
        pairing = next(iter(self._drafter.pairings.values()))
        if draft.open(start, pairing.exits):
            try:
                while draft.prefill("self-test"):
                    pass
                draft.propose({"self-test": 1}, [])
            finally:
                draft.close("self-test")
            self._last_decode = time.monotonic()
