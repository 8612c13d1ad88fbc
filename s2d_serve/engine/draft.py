"""The sorted draft: one small model whose every exit is a usable sub-model.

A *segment* is the layers between two exits. A token runs segment 0; if the exit's head is confident
it is emitted, else the next segment goes on from the same hidden states. Tokens that left early are
*parked* at the exit where they left, and read by the deeper segment, all at once, when it is next
needed: the KV cache of a deeper segment lags behind and is caught up lazily.

Source: S2D, arXiv:2407.01955.
"""

import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from s2d_serve.engine.cache import Row
from s2d_serve.engine.draft_sequence import DraftSequence
from s2d_serve.engine.heads import ExitHeads, confidences
from s2d_serve.engine.messages import Proposal, SequenceStart
from s2d_serve.engine.trunk import Trunk
from s2d_serve.speculation.exits import ExitPolicy
from s2d_serve.speculation.params import TokenCounts
from s2d_serve.speculation.sampling import sample

MAX_UNREAD_TOKENS = 16
"""A sequence with more unread tokens is prefilled in idle time before it gets proposals again."""


class SortedDraft:
    """Drafts for many sequences at once; each row of a batch leaves at its own exit."""

    def __init__(
        self,
        trunk: Trunk,
        exit_layers: Sequence[int],
        prefill_chunk: int = 256,
        max_parked_tokens: int = 64,
        heads: ExitHeads | None = None,
    ) -> None:
        """
        Args:
            exit_layers: layers run by each sub-model, increasing, counted in the trunk's.
            heads: one per exit; None: the base's own for all.
        """
        self.trunk = trunk
        self.heads = heads or trunk.exit_heads([None] * len(exit_layers))
        self.exit_layers = tuple(exit_layers)
        self.prefill_chunk = prefill_chunk
        self.max_parked_tokens = max_parked_tokens
        self.sequences: dict[str, DraftSequence] = {}
        self._free_slots = list(range(trunk.cache.num_slots))
        starts = (0, *self.exit_layers[:-1])
        self.segments: list[Sequence[nn.Module]] = [
            self.trunk.layers[start:stop]
            for start, stop in zip(starts, self.exit_layers, strict=True)
        ]

    def open(self, start: SequenceStart, policy: ExitPolicy) -> bool:
        """Take a sequence up; False if it fits in no slot, and then it runs without a draft.

        One that is open already keeps what is cached of the tokens that are the same.
        """
        if not self.fits(start.token_ids):
            self.close(start.sequence_id)
            return False
        sequence = self.sequences.get(start.sequence_id)
        if sequence is not None:
            self._resume(sequence, start)
            return True
        if not self._free_slots:
            return False
        sequence = DraftSequence(
            start,
            policy,
            self._free_slots.pop(),
            list(start.token_ids),
            len(start.token_ids),
            TokenCounts(frozenset(start.token_ids[: start.num_prompt_tokens])),
            [0] * (policy.deepest + 1),
            [self.trunk.embed([]) for _ in range(policy.deepest)],
        )
        sequence.counts.add(start.token_ids[start.num_prompt_tokens :])
        self.sequences[start.sequence_id] = sequence
        return True

    @property
    def num_free_slots(self) -> int:
        """Sequences that can still be opened."""
        return len(self._free_slots)

    def fits(self, token_ids: Sequence[int]) -> bool:
        """Whether a text fits in a slot."""
        return len(token_ids) <= self.trunk.cache.capacity

    def is_open(self, sequence_id: str) -> bool:
        """Whether the sequence holds a slot."""
        return sequence_id in self.sequences

    def close(self, sequence_id: str) -> None:
        """Free a sequence's slot; an unknown id is fine."""
        sequence = self.sequences.pop(sequence_id, None)
        if sequence is not None:
            self._free_slots.append(sequence.slot)

    def commit(self, sequence_id: str, base_length: int, token_ids: Sequence[int]) -> bool:
        """The target's tokens after `base_length`: keep what was drafted of them, drop the rest.

        False if the sequence is not open, or stands at another length: it must be opened again.
        One that outgrows its slot is closed.
        """
        sequence = self.sequences.get(sequence_id)
        if sequence is None or sequence.num_committed != base_length:
            return False
        if base_length + len(token_ids) > self.trunk.cache.capacity:
            self.close(sequence_id)
            return False
        self._agree(sequence, base_length, token_ids)
        return True

    def is_ready(self, sequence_id: str) -> bool:
        """Whether a proposal costs no prefill: the sequence is open and nearly all read."""
        sequence = self.sequences.get(sequence_id)
        return sequence is not None and 0 < sequence.num_missing <= MAX_UNREAD_TOKENS

    def num_lagging(self, sequence_id: str) -> int:
        """Tokens that must be read before a proposal; 0 if it is ready, or not open."""
        sequence = self.sequences.get(sequence_id)
        if sequence is None or self.is_ready(sequence_id):
            return 0
        return max(sequence.num_missing - 1, 0)

    def gave_up(self, sequence_id: str) -> bool:
        """Whether the sequence's last proposal ended because its exit was too unsure."""
        sequence = self.sequences.get(sequence_id)
        return sequence is not None and not sequence.is_sure

    @torch.inference_mode()
    def prefill(self, sequence_ids: Iterable[str], max_tokens: int | None = None) -> int:
        """Read a chunk of the sequences that lag behind, the first ones first, in all their
        segments: the tokens read, all together.

        The last token of each is left for the draft to go on from.

        `max_tokens`: at most so many, where `prefill_chunk` is more.
        """
        budget = min(self.prefill_chunk, max_tokens or self.prefill_chunk)
        chunks: dict[str, int] = {}
        for sequence_id in sequence_ids:
            if chunk := min(self.num_lagging(sequence_id), budget):
                chunks[sequence_id] = chunk
                budget -= chunk
        sequences = [self.sequences[i] for i in chunks]
        for segment in range(max((len(s.filled) for s in sequences), default=0)):
            deep = [s for s in sequences if segment < len(s.filled)]
            self._run_segment(segment, deep, chunks)
        return sum(chunks.values())

    @torch.inference_mode()
    def propose(
        self, lengths: Mapping[str, int], step_costs: list[tuple[int, float]]
    ) -> dict[str, Proposal]:
        """Draft up to so many tokens for each sequence; an end token ends a proposal, and so does
        one that its exit is too unsure of.

        What was drafted before and has seen no outcome is proposed again.

        Args:
            lengths: draft tokens wanted, by sequence; those not ready get an empty proposal.
            step_costs: (sequences, seconds) of each draft step is appended.
        """
        ready = {i: self.sequences[i] for i in lengths if self.is_ready(i)}
        limits = {
            id(sequence): min(lengths[i], self._room(sequence)) for i, sequence in ready.items()
        }
        while active := [s for s in ready.values() if _goes_on(s, limits[id(s)])]:
            started = time.perf_counter()
            for sequence, exit_index in self._step(active):
                sequence.exits.append(self.exit_layers[exit_index])
            step_costs.append((len(active), time.perf_counter() - started))
        return {
            i: Proposal(
                sequence.num_committed,
                tuple(sequence.token_ids[sequence.num_committed :][: limits[id(sequence)]]),
                tuple(sequence.exits[: limits[id(sequence)]]),
            )
            for i, sequence in ready.items()
        }

    def _room(self, sequence: DraftSequence) -> int:
        """Tokens that can be drafted: the rest of the output but the last, or of the slot."""
        return min(
            sequence.start.num_left(sequence.num_committed) - 1,
            self.trunk.cache.capacity - sequence.num_committed,
        )

    def _step(self, active: Sequence[DraftSequence]) -> list[tuple[DraftSequence, int]]:
        """Draft one token for each sequence; which exit emitted it."""
        for segment in range(1, len(self.segments)):
            full = [
                sequence
                for sequence in active
                if segment <= sequence.policy.deepest
                and sequence.parked[segment - 1].shape[0] >= self.max_parked_tokens
            ]
            self._run_segment(segment, full)
        emitted: list[tuple[DraftSequence, int]] = []
        undecided = list(active)
        for exit_index in range(len(self.segments)):
            hidden = self._run_segment(exit_index, undecided)
            leaving = self._emit(exit_index, undecided, hidden)
            emitted += [(undecided[i], exit_index) for i in leaving]
            undecided = [s for i, s in enumerate(undecided) if i not in leaving]
        assert not undecided, "the deepest exit of a policy always emits"
        return emitted

    def _emit(
        self, exit_index: int, sequences: Sequence[DraftSequence], hidden: Tensor
    ) -> set[int]:
        """Append a token to each sequence that leaves at this exit; their indices.

        `hidden`: [B, hidden], each sequence's last token after this exit's segment.
        """
        tried = [i for i, s in enumerate(sequences) if s.policy.tries(exit_index)]
        if not tried:
            return set()
        logits = self.heads.logits(exit_index, hidden[tried])
        sure = confidences(logits).tolist()  # sync
        greedy = self.heads.greedy(logits)  # sync
        leaving = set()
        for row, i in enumerate(tried):
            sequence = sequences[i]
            if sequence.policy.emits(exit_index, sure[row]):
                params = sequence.start.params
                position = len(sequence.token_ids) - sequence.start.num_prompt_tokens
                is_simple = params.is_plain and params.is_greedy
                if is_simple:
                    token_id = greedy[row]
                else:
                    every_id = self.heads.over_all_ids(logits[row])
                    token_id = sample(every_id, params, position, sequence.counts)
                sequence.extend([token_id])
                sequence.is_sure = sure[row] >= sequence.policy.min_confidence
                leaving.add(i)
        return leaving

    def _run_segment(
        self, segment: int, sequences: Sequence[DraftSequence], chunks: Mapping[str, int] = {}
    ) -> Tensor:
        """Bring a segment up to date with the one before: [B, hidden], each one's last token.

        `chunks`: tokens that the first one reads, by sequence; all there are of those not in it.
        """
        if not sequences:
            return self.trunk.embed([])
        rows, inputs = [], []
        for sequence in sequences:
            if segment == 0:
                chunk = chunks.get(sequence.start.sequence_id)
                new = self.trunk.embed(sequence.token_ids[sequence.filled[0] :][:chunk])
            else:
                new = sequence.parked[segment - 1]
                sequence.parked[segment - 1] = new.new_empty(0, new.shape[1])
            inputs.append(new)
            prompt = sequence.start.num_prompt_tokens
            rows.append(Row(sequence.slot, sequence.filled[segment], new.shape[0], prompt))
            sequence.filled[segment] += new.shape[0]
        batch = self.trunk.batch(rows)
        hidden = self.trunk.run(self.segments[segment], torch.cat(inputs), batch)
        sizes = [row.num_tokens for row in rows]
        for sequence, own in zip(sequences, torch.split(hidden, sizes), strict=True):
            if segment < sequence.policy.deepest:
                sequence.parked[segment] = torch.cat([sequence.parked[segment], own])
        return hidden[batch.last_token]

    def _resume(self, sequence: DraftSequence, start: SequenceStart) -> None:
        is_newer = start.epoch > sequence.start.epoch
        if is_newer or len(start.token_ids) > sequence.num_committed:
            sequence.start = start
            prompt = start.num_prompt_tokens
            self._agree(sequence, prompt, start.token_ids[prompt:])

    def _agree(self, sequence: DraftSequence, base_length: int, token_ids: Sequence[int]) -> None:
        """Make the tokens after `base_length` these; what was right already stays cached."""
        num_same = 0
        for held, token_id in zip(sequence.token_ids[base_length:], token_ids, strict=False):
            if held != token_id:
                break
            num_same += 1
        last = base_length + len(token_ids) - 1  # unread, so that drafting can go on from it
        sequence.truncate(base_length + num_same, last)
        sequence.extend(token_ids[num_same:])
        sequence.exits.clear()
        sequence.is_sure = True
        sequence.num_committed = len(sequence.token_ids)


def _goes_on(sequence: DraftSequence, limit: int) -> bool:
    """Whether to draft another token."""
    if not sequence.exits:
        return limit > 0
    is_end = sequence.token_ids[-1] in sequence.start.params.stop_token_ids
    return sequence.is_sure and len(sequence.exits) < limit and not is_end
