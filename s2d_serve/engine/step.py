"""The reference loop: propose, verify, commit, in one process.

The service must produce the same text; evaluation, `s2d generate` and tests use this.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from s2d_serve.engine.drafter import Drafter
from s2d_serve.engine.messages import (
    Draft,
    DraftRequest,
    Outcome,
    Proposal,
    SequenceStart,
    StepResult,
)
from s2d_serve.engine.target import TargetModel


@dataclass(slots=True)
class ReferenceLoop:
    """One target, and the shared draft if there is one."""

    target: TargetModel
    drafter: Drafter | None = None
    target_name: str = "target"
    """The draft's pairing to use."""
    max_draft_tokens: int = 32
    _seconds_reading: float = field(default=0.0, init=False)
    """The drafter's, so far."""
    _rest_rounds: int = field(default=0, init=False)
    _is_probe: bool = field(default=False, init=False)
    _has_new: bool = field(default=False, init=False)
    """The draft was not asked yet about one of the sequences: a rest does not hold for it."""

    def generate(self, starts: Sequence[SequenceStart]) -> Iterator[tuple[str, Outcome]]:
        """Serve these sequences until all have ended: (sequence id, outcome) as they come."""
        for start in starts:
            self.target.open(start)
            if self.drafter is not None:
                self.drafter.open(start, self.target_name)
        self._has_new = True
        live = [start.sequence_id for start in starts]
        try:
            while live:
                outcomes = self.step(live)
                yield from outcomes.items()
                live = [i for i in live if outcomes[i].finish_reason is None]
        finally:
            for start in starts:
                self.target.close(start.sequence_id)
                if self.drafter is not None:
                    self.drafter.close(start.sequence_id)

    def step(self, sequence_ids: Sequence[str]) -> dict[str, Outcome]:
        """One round: propose, verify, commit."""
        started = time.perf_counter()
        draft = self._propose(sequence_ids)
        nothing = Proposal(base_length=0)
        result = self.target.step({i: draft.proposals.get(i, nothing) for i in sequence_ids})
        if self.drafter is not None:
            self._learn(draft, result, time.perf_counter() - started)
        return dict(result.outcomes)

    def _learn(self, draft: Draft, result: StepResult, round_s: float) -> None:
        assert self.drafter is not None
        has_read = self.drafter.seconds_reading - self._seconds_reading
        self._seconds_reading += has_read
        self.drafter.learn(
            self.target_name, result, round_s - has_read if draft.has_tokens else None
        )
        num_sequences = result.num_committing
        if not draft.has_tokens and result.num_tokens == num_sequences > 0:
            lengths = self.drafter.pairings[self.target_name].lengths
            lengths.record_alone(num_sequences, round_s - has_read)

    def _propose(self, sequence_ids: Sequence[str]) -> Draft:
        if self.drafter is None:
            return Draft({})
        is_resting = self._rest_rounds > 0
        if is_resting:
            self._rest_rounds -= 1
            self._is_probe = self._rest_rounds == 0
            if not self._has_new:
                return Draft({})
        self.drafter.prefill()
        limits = dict.fromkeys(sequence_ids, self.max_draft_tokens)
        request = DraftRequest(self.target_name, limits, self._is_probe and not is_resting)
        (draft,) = self.drafter.propose([request])
        self._has_new = self._has_new and not (draft.proposals or draft.rest_rounds)
        if draft.proposals or not is_resting:
            self._rest_rounds = draft.rest_rounds
        self._is_probe = self._is_probe and not draft.proposals
        return draft
