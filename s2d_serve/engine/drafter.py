"""The draft at work for several targets: how long each proposal is, and what outcomes teach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.messages import Draft, DraftRequest, SequenceStart, StepResult
from s2d_serve.speculation.draft_length import AcceptanceEstimate, DraftLengthPolicy
from s2d_serve.speculation.exits import ExitPolicy


@dataclass(slots=True)
class Pairing:
    """The draft as one target uses it."""

    exits: ExitPolicy
    lengths: DraftLengthPolicy


@dataclass(slots=True)
class Drafter:
    """One sorted draft shared by many targets."""

    draft: SortedDraft
    pairings: Mapping[str, Pairing]
    """By target."""
    _declined: set[str] = field(default_factory=set)
    _records: dict[str, AcceptanceEstimate] = field(default_factory=dict)

    def open(self, start: SequenceStart, target: str) -> None:
        """Take up a sequence of a target; without a free slot it gets empty proposals."""
        if self.draft.open(start, self.pairings[target].exits):
            self._declined.discard(start.sequence_id)
        else:
            self._declined.add(start.sequence_id)
        self._records.setdefault(start.sequence_id, AcceptanceEstimate())

    def close(self, sequence_id: str) -> None:
        """Forget a sequence; an unknown id is fine."""
        self.draft.close(sequence_id)
        self._declined.discard(sequence_id)
        self._records.pop(sequence_id, None)

    def learn(self, target: str, result: StepResult) -> tuple[str, ...]:
        """Take in what the target made of a round; the sequences that must be opened again."""
        policy = self.pairings[target].lengths
        policy.verify_s.record(result.num_tokens, result.seconds)
        unknown = []
        for sequence_id, outcome in result.outcomes.items():
            if sequence_id in self._records:
                policy.record(
                    self._records[sequence_id],
                    len(outcome.exits),
                    outcome.num_accepted,
                    self.draft.gave_up(sequence_id),
                )
            if outcome.finish_reason is not None:
                self.close(sequence_id)
            elif outcome.token_ids and sequence_id not in self._declined:
                tokens = outcome.token_ids
                if not self.draft.commit(sequence_id, outcome.base_length, tokens):
                    unknown.append(sequence_id)
        return tuple(unknown)

    def propose(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """Draft for the sequences of several targets in the same forward passes."""
        lengths: dict[str, int] = {}
        rests: list[int] = []
        for request in requests:
            policy = self.pairings[request.target].lengths
            for num_tokens, seconds in request.verify_costs:
                policy.verify_s.record(num_tokens, seconds)
            ready = [i for i in request.limits if self.draft.is_ready(i)]
            chosen = policy.choose([self._records[i] for i in ready], request.is_probe)
            rests.append(policy.rest_rounds if ready and not any(chosen) else 0)
            for sequence_id, length in zip(ready, chosen, strict=True):
                lengths[sequence_id] = min(length, request.limits[sequence_id])
        costs: list[tuple[int, float]] = []
        proposals = self.draft.propose(lengths, costs)
        for target in {request.target for request in requests}:
            for num_rows, seconds in costs:
                self.pairings[target].lengths.draft_step_s.record(num_rows, seconds)
        return [
            Draft({i: proposals[i] for i in request.limits if i in proposals}, rest)
            for request, rest in zip(requests, rests, strict=True)
        ]

    def is_open(self, sequence_id: str) -> bool:
        """Whether the sequence was opened here (even if it found no slot)."""
        return sequence_id in self._records

    def prefill(self) -> bool:
        """Read one chunk of a sequence that lags behind; False if there is nothing to read."""
        return self.draft.prefill()
