"""Table models: next-token logits for every output so far, small enough to know all probabilities.

An output of t tokens is row r of entry t, with r its tokens read as a number in base `VOCAB`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s2d_serve.speculation.params import SamplingParams, TokenCounts
from s2d_serve.speculation.sampling import penalize, sample
from s2d_serve.speculation.verification import Verification, verify
from tests.speculation.examples import counted, kept
from tests.speculation.reference import penalized, survivors
from tests.speculation.slow_noise import keys, slow_mix

VOCAB = 5
DEPTH = 4
"""Tokens drawn: the three that are tested, and one after them for a bonus."""
PROMPT = (1, 3)

Table = tuple[Tensor, ...]
"""Entry t: [VOCAB^t, VOCAB], logits (float32), or log-probabilities up to a constant (float64)."""


def random_model(seed: int) -> Table:
    """A model without any structure."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(VOCAB**t, VOCAB, generator=generator) * 0.6 for t in range(DEPTH))


def near(model: Table, seed: int) -> Table:
    """A draft for the model: mostly of its opinion."""
    noise = random_model(seed)
    return tuple(own + 0.7 * other for own, other in zip(model, noise, strict=True))


def outputs(length: int) -> Iterator[tuple[int, ...]]:
    """All outputs of a length, in the order of their rows."""
    return itertools.product(range(VOCAB), repeat=length)


def row_of(output: Sequence[int]) -> int:
    """The output as a number in base `VOCAB`."""
    row = 0
    for token_id in output:
        row = row * VOCAB + token_id
    return row


def product_scores(model: Table, params: SamplingParams, num_counted: int = DEPTH) -> Table:
    """Log-probabilities as the product's own processing leaves them, -inf where a filter cut.

    Penalties count the first `num_counted` tokens of an output.
    """

    def processed(logits: Tensor, output: Sequence[int]) -> Tensor:
        if not params.is_plain:
            counts = counted(output[:num_counted], PROMPT)
            logits = penalize(logits, params, len(output), counts)
        return _log(kept(logits, params))

    return tuple(
        torch.stack([processed(logits[row_of(o)], o) for o in outputs(length)])
        for length, logits in enumerate(model)
    )


def reference_scores(model: Table, params: SamplingParams) -> Table:
    """The same from plain Python."""
    return tuple(
        torch.stack(
            [
                _log(survivors(penalized(logits[row_of(o)].tolist(), params, PROMPT, o), params))
                for o in outputs(length)
            ]
        )
        for length, logits in enumerate(model)
    )


def _log(probs: dict[int, float]) -> Tensor:
    logs = [math.log(probs[i]) if probs.get(i) else -math.inf for i in range(VOCAB)]
    return torch.tensor(logs, dtype=torch.float64)


def joint_probs(scores: Table, length: int) -> Tensor:
    """Probability of every output of a length: [VOCAB^length] float64, by row."""
    joint = torch.ones(1, dtype=torch.float64)
    for step in scores[:length]:
        joint = (joint[:, None] * step.softmax(-1)).flatten()
    return joint


def joint_counts(tokens: Tensor) -> Tensor:
    """How often each output came: [VOCAB^T] int64 of tokens [N, T]."""
    rows = torch.zeros_like(tokens[:, 0])
    for column in tokens.unbind(1):
        rows = rows * VOCAB + column
    return torch.bincount(rows, minlength=VOCAB ** tokens.shape[1])


def noise_table(num_seeds: int) -> Tensor:
    """The noise of seeds 0, 1, ...: [N, DEPTH, VOCAB] float64, from the slow path, all at once."""
    pairs = [keys(seed, position) for seed in range(num_seeds) for position in range(DEPTH)]
    first, second = torch.tensor(pairs).T[:, :, None]  # [N * DEPTH, 1]
    bits = slow_mix((slow_mix(torch.arange(VOCAB) ^ first) + second) % 2**32)
    uniform = (bits.double() + 0.5) / 2**32
    return -torch.log(-torch.log1p(-uniform)).reshape(num_seeds, DEPTH, VOCAB)


def draw(scores: Table, noise: Tensor, first_row: Tensor | None = None, start: int = 0) -> Tensor:
    """Tokens of positions `start`, start + 1, ...: [N, T] for noise [N, T, VOCAB]."""
    row = noise.new_zeros(len(noise), dtype=torch.int64) if first_row is None else first_row
    tokens = []
    for offset in range(noise.shape[1]):
        tokens.append((scores[start + offset][row] + noise[:, offset]).argmax(-1))
        row = row * VOCAB + tokens[-1]
    return torch.stack(tokens, 1)


def judge(scores: Table, noise: Tensor, proposal: Tensor, row: Tensor, start: int) -> Tensor:
    """The target's own token at each place of the proposal and the one after: [N, K + 1]."""
    tokens = []
    for offset in range(noise.shape[1]):
        tokens.append((scores[start + offset][row] + noise[:, offset]).argmax(-1))
        if offset < proposal.shape[1]:
            row = row * VOCAB + proposal[:, offset]
    return torch.stack(tokens, 1)


@dataclass(slots=True)
class Run:
    """What speculative decoding gave."""

    tokens: Tensor
    """[N, 3] int64."""
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def acceptance_rate(self) -> float:
        return self.num_accepted / self.num_drafted


def speculate_all(target: Table, draft: Table, noise: Tensor, draft_noise: Tensor) -> Run:
    """Three tokens for every seed at once, in rounds of three draft tokens and `verify`."""
    tokens = torch.zeros(len(noise), DEPTH, dtype=torch.int64)
    lengths = torch.zeros(len(noise), dtype=torch.int64)
    run = Run(tokens[:, : DEPTH - 1])
    for start in range(DEPTH - 1):
        (chosen,) = torch.nonzero(lengths == start, as_tuple=True)
        row = torch.zeros_like(chosen)
        for column in tokens[chosen, :start].unbind(1):
            row = row * VOCAB + column
        proposal = draw(draft, draft_noise[chosen, start : DEPTH - 1], row, start)
        own = judge(target, noise[chosen, start:], proposal, row, start)
        num_accepted, committed = _verify_all(proposal, own)
        tokens[chosen, start:] = committed
        lengths[chosen] += num_accepted + 1
        run.num_drafted += proposal.numel()
        run.num_accepted += int(num_accepted.sum())
    return run


def _verify_all(proposal: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """`verify` for every row: accepted tokens [N], committed ones [N, K + 1], padded with 0."""
    num_drafted = proposal.shape[1]
    code = torch.cat([proposal, own], 1) @ VOCAB ** torch.arange(2 * num_drafted + 1)
    example = torch.full((int(code.max()) + 1,), -1)
    example[code] = torch.arange(len(code))
    (seen,) = torch.nonzero(example >= 0, as_tuple=True)
    pairs = zip(proposal[example[seen]].tolist(), own[example[seen]].tolist(), strict=True)
    verified = [verify(drafted, judged) for drafted, judged in pairs]
    num_accepted = torch.zeros_like(example)
    committed = torch.zeros(len(example), own.shape[1], dtype=torch.int64)
    for place, verification in zip(seen.tolist(), verified, strict=True):
        num_accepted[place] = verification.num_accepted
        tokens = verification.committed_token_ids
        committed[place, : len(tokens)] = torch.tensor(tokens)
    return num_accepted[code], committed[code]


def generate(model: Table, params: SamplingParams) -> list[int]:
    """Three tokens, one at a time, by the product's `sample` alone."""
    counts = counted([], PROMPT)
    tokens: list[int] = []
    for position in range(DEPTH - 1):
        tokens.append(sample(model[position][row_of(tokens)], params, position, counts))
        counts.add(tokens[-1:])
    return tokens


def speculate(target: Table, draft: Table, params: SamplingParams, draft_seed: int) -> Run:
    """The same three by `sample` and `verify`, with counts that roll back as in the engine."""
    counts, draft_counts = counted([], PROMPT), counted([], PROMPT)
    tokens: list[int] = []
    run = Run(torch.empty(0))
    while len(tokens) < DEPTH - 1:
        proposal: list[int] = []
        for position in range(len(tokens), DEPTH - 1):
            logits = draft[position][row_of(tokens + proposal)]
            draft_params = replace(params, seed=draft_seed)
            proposal.append(sample(logits, draft_params, position, draft_counts))
            draft_counts.add(proposal[-1:])
        verification = _verified(target, params, tokens, proposal, counts)
        draft_counts.remove(proposal)
        for either in (counts, draft_counts):
            either.add(verification.committed_token_ids)
        tokens += verification.committed_token_ids
        run.num_drafted += len(proposal)
        run.num_accepted += verification.num_accepted
    run.tokens = torch.tensor(tokens[: DEPTH - 1])
    return run


def _verified(
    target: Table,
    params: SamplingParams,
    tokens: list[int],
    proposal: list[int],
    counts: TokenCounts,
) -> Verification:
    before = dict(counts.output)
    added: list[int] = []

    def own_tokens() -> Iterator[int]:
        for slot in range(len(proposal) + 1):
            logits = target[len(tokens) + slot][row_of(tokens + proposal[:slot])]
            yield sample(logits, params, len(tokens) + slot, counts)
            added.extend(proposal[slot : slot + 1])
            counts.add(proposal[slot : slot + 1])

    verification = verify(proposal, own_tokens())
    counts.remove(added)
    assert counts.output == before
    return verification
