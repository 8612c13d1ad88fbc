"""The draft at work for several targets: how long each proposal is, where it comes from, and what
outcomes teach.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.messages import (
    Draft,
    DraftRequest,
    Outcome,
    Proposal,
    SequenceStart,
    StepResult,
)
from s2d_serve.engine.pairing import Pairing, SequenceRecord
from s2d_serve.engine.trials import Trials
from s2d_serve.speculation.draft_length import DraftLengthPolicy
from s2d_serve.speculation.exits import LOOKUP_EXIT
from s2d_serve.speculation.lookup import SuffixLookup
from s2d_serve.speculation.reading import Reading, num_worth_reading


@dataclass(slots=True)
class Drafter:
    """One sorted draft shared by many targets."""

    draft: SortedDraft
    pairings: Mapping[str, Pairing]
    """By target."""
    cores: AbstractContextManager[None] = field(default_factory=nullcontext)
    """Entered wherever the draft computes, and only there: its decisions wait for nobody."""
    seconds_waiting: float = field(default=0.0, init=False)
    """Spent on entering `cores` so far."""
    seconds_reading: float = field(default=0.0, init=False)
    """Spent in `prefill` so far."""
    trials: Trials = field(init=False)
    _records: dict[str, SequenceRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.trials = Trials(self.draft, self.pairings, self._computing)

    def open(self, start: SequenceStart, target: str) -> None:
        """Take up a sequence of a target; without a slot nothing is drafted for it."""
        record = self._records.get(start.sequence_id)
        if record is None:
            self._records[start.sequence_id] = SequenceRecord(
                start, target, SuffixLookup(start.token_ids)
            )
        elif tuple(record.text.token_ids) != start.token_ids:
            record.start, record.text = start, SuffixLookup(start.token_ids)
        if self.draft.is_open(start.sequence_id):
            self.draft.open(start, self.pairings[target].exits)
        self._share_slots()

    def close(self, sequence_id: str) -> None:
        """Forget a sequence; an unknown id is fine."""
        self.draft.close(sequence_id)
        self._records.pop(sequence_id, None)

    def learn(
        self, target: str, result: StepResult, round_s: float | None = None
    ) -> tuple[str, ...]:
        """Take in what the target made of a round; the sequences that must be opened again.

        `round_s`: what all of it took, if it had proposals, without reading.
        """
        pairing = self.pairings[target]
        if result.num_tokens:
            pairing.lengths.verify_s.record(result.num_tokens, result.seconds)
        if round_s is not None:
            _record_round(pairing.lengths, result, round_s)
        unknown = []
        for sequence_id, outcome in result.outcomes.items():
            record = self._records.get(sequence_id)
            if record is not None:
                self._learn_round(pairing, record, outcome)
            if outcome.finish_reason is not None:
                if record is not None:
                    num_output = record.num_output_tokens + len(outcome.token_ids)
                    pairing.lengths.record_end(num_output)
                self.close(sequence_id)
            elif outcome.token_ids and (record is None or not record.follow(outcome)):
                unknown.append(sequence_id)
            elif outcome.token_ids and not self.draft.commit(
                sequence_id, outcome.base_length, outcome.token_ids
            ):
                self.draft.close(sequence_id)  # a slot with another text: it is read anew
        return tuple(unknown)

    def propose(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """Draft for the sequences of several targets in the same forward passes."""
        self._share_slots()
        lengths: dict[str, int] = {}
        found: dict[str, Proposal] = {}
        rests: list[int] = []
        for request in requests:
            pairing = self.pairings[request.target]
            policy, recent = pairing.lengths, pairing.num_sequences
            recent += [*(cost.num_sequences for cost in request.alone_costs), len(request.limits)]
            has_rested = pairing.seconds_reading == self.seconds_reading  # its cores were free
            pairing.seconds_reading = self.seconds_reading
            for cost in request.alone_costs:
                policy.verify_s.record(cost.num_tokens, cost.seconds)
                if cost.num_tokens == cost.num_sequences and has_rested:
                    policy.record_alone(cost.num_sequences, cost.round_s)
            for num_output_tokens in request.ended_lengths:
                policy.record_end(num_output_tokens)
            if request.is_probe and not pairing.is_settled:
                self.trials.plan()
                pairing.is_settled = self.trials.measure_next()
            ready = {i: self._records[i] for i in request.limits if self.draft.is_ready(i)}
            chosen = policy.choose(
                [ready[i].drafted if i in ready else None for i in request.limits],
                request.is_probe,
            )
            drafted = {
                i: length for i, length in zip(request.limits, chosen, strict=True) if i in ready
            }
            found_here = self._look_up(request, drafted)
            found |= found_here
            lagging = self._weigh_reading(request)
            is_idle = (ready or lagging) and not (any(chosen) or found_here or any(lagging))
            rests.append(policy.rest(request.is_probe, len(request.limits)) if is_idle else 0)
            for sequence_id in drafted.keys() - found_here.keys():
                lengths[sequence_id] = min(drafted[sequence_id], request.limits[sequence_id])
        costs: list[tuple[int, float]] = []
        with self._computing() if any(lengths.values()) else nullcontext():
            proposals = self.draft.propose(lengths, costs) | found
        for target in {request.target for request in requests}:
            for num_sequences, seconds in costs:
                self.pairings[target].lengths.draft_step_s.record(num_sequences, seconds)
        return [
            Draft({i: proposals[i] for i in request.limits if i in proposals}, rest)
            for request, rest in zip(requests, rests, strict=True)
        ]

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot; safe to ask from any thread."""
        return max(len(self._records) - len(self.draft.sequences), 0)

    def is_open(self, sequence_id: str) -> bool:
        """Whether the sequence was opened here (even if it found no slot)."""
        return sequence_id in self._records

    def prefill(self) -> bool:
        """Read a chunk of the sequences that lag behind; False if there is nothing to read.

        Not of one that suffix lookup serves, nor of one that is not wanted: it would take longer to
        read than drafting saves, or the target has yet to read its prompt, and on shared cores
        would wait for the draft (first token of the 1.5B on 2 cores: 9% later).
        """
        targets = {
            i: record.target
            for i, record in self._records.items()
            if record.is_wanted and not record.is_looked_up
            if self.draft.num_lagging(i)
        }
        if not targets:
            return False
        lengths = [self.pairings[target].lengths for target in sorted(set(targets.values()))]
        with self._computing():
            started = time.perf_counter()
            num_read = self.draft.prefill(targets, lengths[0].reading_s.max_tokens)
            seconds = time.perf_counter() - started
        self.seconds_reading += seconds
        for policy in lengths:
            policy.reading_s.record(num_read, seconds)
        return True

    @contextmanager
    def _computing(self) -> Iterator[None]:
        started = time.perf_counter()
        with self.cores:
            self.seconds_waiting += time.perf_counter() - started
            yield

    def _weigh_reading(self, request: DraftRequest) -> list[bool]:
        """Decide which of the sequences that lag behind are worth reading, the shorter ones first:
        for each of them, whether it may be ready soon.

        Those whose prompt the target has yet to read are weighed after it, with those that join in
        the same round: one pass reads them all.
        """
        pairing = self.pairings[request.target]
        records = {i: self._records[i] for i in request.limits if self.draft.is_open(i)}
        unread = {i: self.draft.num_lagging(i) for i in records}
        for sequence_id, record in records.items():
            if not unread[sequence_id]:
                record.is_wanted = False  # whether it pays to read is another question next time
        lagging = sorted(
            (i for i, record in records.items() if unread[i] and record.num_output_tokens),
            key=lambda i: (not records[i].is_wanted, unread[i]),
        )
        ready = [records[i].drafted for i in records if not unread[i]]
        num_others = max(pairing.num_sequences) - len(lagging)
        num_wanted = num_worth_reading(
            pairing.lengths,
            ready + [None] * (num_others - len(ready)),
            [
                Reading(r.drafted, unread[i], r.num_output_tokens, r.room + 1, r.is_wanted)
                for i, r in ((i, records[i]) for i in lagging)
            ],
            request.is_probe,
        )
        for order, sequence_id in enumerate(lagging):
            records[sequence_id].is_wanted = order < num_wanted
        return [r.is_wanted or not r.num_output_tokens for i, r in records.items() if unread[i]]

    def _share_slots(self) -> None:
        """Give slots to the sequences that have none: free ones, or where none is, one of a target
        that holds at least two more.
        """
        waiting = [i for i in self._records if not self.draft.is_open(i)]
        if not waiting:
            return
        holders = Counter(r.target for i, r in self._records.items() if self.draft.is_open(i))
        for sequence_id in sorted(waiting, key=lambda i: holders[self._records[i].target]):
            record = self._records[sequence_id]
            if not self.draft.fits(record.text.token_ids):
                continue
            if not self.draft.num_free_slots:
                richest = max(holders, key=lambda target: holders[target], default=record.target)
                if holders[richest] < holders[record.target] + 2:
                    return
                last = [i for i, r in self._records.items() if r.target == richest]
                self.draft.close(next(i for i in reversed(last) if self.draft.is_open(i)))
                holders[richest] -= 1
            start = replace(record.start, token_ids=tuple(record.text.token_ids))
            self.draft.open(start, self.pairings[record.target].exits)
            holders[record.target] += 1

    def _learn_round(self, pairing: Pairing, record: SequenceRecord, outcome: Outcome) -> None:
        if LOOKUP_EXIT not in outcome.exits:
            pairing.lengths.record(
                record.drafted,
                len(outcome.exits),
                outcome.num_accepted,
                self.draft.gave_up(record.start.sequence_id),
            )
        is_next = outcome.base_length == len(record.text.token_ids)
        if pairing.lookup is not None and record.match is not None and is_next:
            pairing.lookup.record(record.match, record.found, outcome.token_ids)

    def _look_up(self, request: DraftRequest, drafted: Mapping[str, int]) -> dict[str, Proposal]:
        """Found tokens for the sequences that do better with them than with so many drafted."""
        pairing = self.pairings[request.target]
        records = {i: self._records[i] for i in request.limits if i in self._records}
        if pairing.lookup is None or not records:
            return {}
        reached = []
        for sequence_id, record in records.items():
            limit = min(request.limits[sequence_id], pairing.lengths.max_draft_tokens, record.room)
            record.match = record.text.find(pairing.lengths.max_draft_tokens)
            reached.append(
                pairing.lookup.reach(record.match, record.found)[: max(limit, 0)]
                if record.match is not None
                else []
            )
        chosen = pairing.lengths.look_up(
            [record.drafted if i in drafted else None for i, record in records.items()],
            [drafted.get(i, 0) for i in records],
            reached,
        )
        proposals = {}
        for (sequence_id, record), num_found in zip(records.items(), chosen, strict=True):
            record.is_looked_up = num_found > 0
            if num_found:
                proposals[sequence_id] = record.propose(num_found)
        return proposals


def _record_round(policy: DraftLengthPolicy, result: StepResult, seconds: float) -> None:
    """Tell the policy what a round with proposals took; not one in which prompts were read."""
    outcomes = [outcome for outcome in result.outcomes.values() if outcome.token_ids]
    if result.num_tokens == sum(1 + len(outcome.exits) for outcome in outcomes):
        policy.record_round(
            len(outcomes),
            sum(len(outcome.token_ids) for outcome in outcomes),
            sum(len(outcome.token_ids) for outcome in outcomes if outcome.exits),
            seconds,
        )
