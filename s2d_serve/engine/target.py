"""A target: verifies proposals and decodes, many sequences in one forward pass."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from s2d_serve.engine.cache import PROMPT_BLOCK, Row
from s2d_serve.engine.messages import (
    FinishReason,
    Outcome,
    Proposal,
    SequenceStart,
    StepResult,
    TokenLogprobs,
)
from s2d_serve.engine.trunk import Trunk
from s2d_serve.speculation.params import TokenCounts
from s2d_serve.speculation.sampling import sample
from s2d_serve.speculation.verification import verify


@dataclass(slots=True)
class TargetSequence:
    """A sequence that holds a slot. The tokens from `num_cached` on are not in the KV cache yet."""

    start: SequenceStart
    slot: int
    token_ids: list[int]
    counts: TokenCounts
    num_cached: int = 0
    finish_reason: FinishReason | None = None

    @property
    def num_output_tokens(self) -> int:
        """Committed so far."""
        return len(self.token_ids) - self.start.num_prompt_tokens

    @property
    def num_remaining(self) -> int:
        """Output tokens still allowed."""
        return self.start.num_left(len(self.token_ids))


class TargetModel:
    """The model whose text the clients see; it computes its own token at every position of a
    proposal.
    """

    def __init__(self, trunk: Trunk, prefill_chunk: int) -> None:
        """`prefill_chunk`: prompt tokens read in one forward pass, all sequences together."""
        self.trunk = trunk
        self.prefill_chunk = prefill_chunk
        self.sequences: dict[str, TargetSequence] = {}
        self._free_slots = list(range(trunk.cache.num_slots))

    @property
    def num_free_slots(self) -> int:
        """Sequences that can still be opened."""
        return len(self._free_slots)

    def open(self, start: SequenceStart) -> None:
        """Give a sequence a slot, in place of one of its id. Needs `num_free_slots` > 0."""
        self.close(start.sequence_id)
        assert len(start.token_ids) - start.num_prompt_tokens < start.max_tokens
        assert start.num_prompt_tokens + start.max_tokens <= self.trunk.cache.capacity
        prompt, output = _split(start)
        sequence = TargetSequence(
            start, self._free_slots.pop(), list(start.token_ids), TokenCounts(frozenset(prompt))
        )
        sequence.counts.add(output)
        self.sequences[start.sequence_id] = sequence

    def close(self, sequence_id: str) -> None:
        """Free a sequence's slot; an unknown id is fine."""
        sequence = self.sequences.pop(sequence_id, None)
        if sequence is not None:
            self._free_slots.append(sequence.slot)

    @torch.inference_mode()
    def step(self, proposals: Mapping[str, Proposal]) -> StepResult:
        """One forward pass over these sequences: read a prompt chunk, or verify a proposal (empty:
        decode one token).

        A proposal that continues other tokens than the sequence's is ignored, one that holds
        impossible ids or runs over the limit is cut: a draft can only cost time. Finished
        sequences, and those that wait for their prompt to be read, get an outcome without tokens.
        """
        started = time.perf_counter()
        work = self._plan(proposals)
        outcomes = {
            sequence_id: Outcome(len(sequence.token_ids), finish_reason=sequence.finish_reason)
            for sequence_id in proposals
            for sequence in (self.sequences[sequence_id],)
        }
        logits = self._logits(work)
        greedy: list[int] = logits.argmax(-1).tolist()  # sync
        offset = 0
        for item in work:
            if item.reaches_end:
                stop = offset + 1 + len(item.proposal.token_ids)
                outcome = _commit(item, logits[offset:stop], greedy[offset:stop])
                outcomes[item.sequence.start.sequence_id] = outcome
                offset = stop
        num_tokens = sum(item.num_new + len(item.proposal.token_ids) for item in work)
        return StepResult(outcomes, num_tokens, time.perf_counter() - started)

    def _plan(self, proposals: Mapping[str, Proposal]) -> list["_Work"]:
        """What each sequence brings: its new tokens (prompts share `prefill_chunk`), then its
        usable proposal.
        """
        work = []
        budget = self.prefill_chunk
        for sequence_id, proposal in proposals.items():
            sequence = self.sequences[sequence_id]
            num_missing = len(sequence.token_ids) - sequence.num_cached
            num_new = num_missing if num_missing == 1 else self._chunk(sequence, budget)
            if sequence.finish_reason is not None or num_new == 0:
                continue
            budget -= num_new if num_missing > 1 else 0
            usable = Proposal(len(sequence.token_ids))
            if num_new == num_missing:
                usable = self._usable(sequence, proposal)
            work.append(_Work(sequence, num_new, usable))
        return work

    def _chunk(self, sequence: TargetSequence, budget: int) -> int:
        """New tokens that a sequence may read now: all, or up to a block's end, where one fits."""
        cached, missing = sequence.num_cached, len(sequence.token_ids) - sequence.num_cached
        if missing <= budget:
            return missing
        aligned = (cached + budget) // PROMPT_BLOCK * PROMPT_BLOCK - cached
        return budget if aligned <= 0 and budget == self.prefill_chunk else max(aligned, 0)

    def _usable(self, sequence: TargetSequence, proposal: Proposal) -> Proposal:
        """The part of a proposal that can be verified."""
        length = len(sequence.token_ids)
        if proposal.base_length != length or len(proposal.exits) != len(proposal.token_ids):
            return Proposal(length)
        num_usable = min(len(proposal.token_ids), sequence.num_remaining - 1)
        for i, token_id in enumerate(proposal.token_ids[:num_usable]):
            if not 0 <= token_id < self.trunk.vocab_size:
                num_usable = i
                break
        return Proposal(length, proposal.token_ids[:num_usable], proposal.exits[:num_usable])

    def _logits(self, work: Sequence["_Work"]) -> Tensor:
        """Run the pass; logits [positions to sample, V], a sequence's own ones side by side."""
        rows: list[Row] = []
        token_ids: list[int] = []
        sampled: list[int] = []
        for item in work:
            cached = item.sequence.num_cached
            new = item.sequence.token_ids[cached : cached + item.num_new]
            rows.append(
                Row(
                    item.sequence.slot,
                    cached,
                    item.num_new + len(item.proposal.token_ids),
                    item.sequence.start.num_prompt_tokens,
                )
            )
            token_ids += [*new, *item.proposal.token_ids]
            item.sequence.num_cached += item.num_new
            if item.reaches_end:
                first = len(token_ids) - 1 - len(item.proposal.token_ids)
                sampled += range(first, len(token_ids))
        hidden = self.trunk.forward(rows, token_ids) if rows else self.trunk.embed([])
        return self.trunk.logits(hidden[sampled])


@dataclass(frozen=True, slots=True)
class _Work:
    """One sequence's share of a forward pass."""

    sequence: TargetSequence
    num_new: int
    proposal: Proposal

    @property
    def reaches_end(self) -> bool:
        """All tokens so far are read (after this pass), so the next one can be sampled."""
        return self.sequence.num_cached == len(self.sequence.token_ids)


def _commit(work: _Work, logits: Tensor, greedy: Sequence[int]) -> Outcome:
    """Verify a proposal against logits [K + 1, V] and commit; `greedy` holds their argmax."""
    sequence, proposal = work.sequence, work.proposal
    params = sequence.start.params
    base_length = len(sequence.token_ids)
    if params.is_plain and params.is_greedy:
        verification = verify(proposal.token_ids, greedy)
    else:
        with closing(_sampled(sequence, proposal, logits)) as target_token_ids:
            verification = verify(proposal.token_ids, target_token_ids)
    committed = verification.committed_token_ids
    ends = [i for i, token_id in enumerate(committed) if token_id in params.stop_token_ids]
    if ends:
        committed = committed[: ends[0] + 1]
        sequence.finish_reason = "stop"
    elif len(committed) == sequence.num_remaining:
        sequence.finish_reason = "length"
    sequence.token_ids += committed
    sequence.counts.add(committed)
    sequence.num_cached = base_length + min(verification.num_accepted, len(committed) - 1)
    return Outcome(
        base_length,
        committed,
        min(verification.num_accepted, len(committed)),
        proposal.exits,
        proposal.token_ids,
        sequence.finish_reason,
        _logprobs(logits[: len(committed)], committed, sequence.start.num_logprobs),
    )


def _sampled(
    sequence: TargetSequence, proposal: Proposal, logits: Tensor
) -> Generator[int, None, None]:
    """The target's own token at each position, given the proposal's earlier ones; lazily."""
    position = sequence.num_output_tokens
    counted: list[int] = []
    try:
        for slot, row in enumerate(logits):
            yield sample(row, sequence.start.params, position + slot, sequence.counts)
            if slot < len(proposal.token_ids):
                counted.append(proposal.token_ids[slot])
                sequence.counts.add(counted[-1:])
    finally:
        sequence.counts.remove(counted)


def _logprobs(
    logits: Tensor, token_ids: Sequence[int], num_logprobs: int | None
) -> tuple[TokenLogprobs, ...]:
    if num_logprobs is None:
        return ()
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(max(num_logprobs, 1), -1)
    return tuple(
        TokenLogprobs(
            float(logprobs[i, token_id]),  # sync
            tuple(zip(top.indices[i].tolist(), top.values[i].tolist(), strict=True))[:num_logprobs],
        )
        for i, token_id in enumerate(token_ids)
    )


def _split(start: SequenceStart) -> tuple[Sequence[int], Sequence[int]]:
    """Prompt and committed output."""
    return (
        start.token_ids[: start.num_prompt_tokens],
        start.token_ids[start.num_prompt_tokens :],
    )
