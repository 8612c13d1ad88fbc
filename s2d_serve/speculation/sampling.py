"""From logits to a token: processing in a fixed order, then the largest of log-probability plus
shared noise.

    token(seed, position) = argmax over v of  log_prob[v] + gumbel_noise(seed, position, v)

Draft and target call the same functions on their own logits, so that they agree as often as their
distributions allow. A token's score needs its log-probability up to a constant only, so no softmax
is taken where none is needed.
"""

import math

import torch
from torch import Tensor

from s2d_serve.speculation.noise import MAX_NOISE, gumbel_noise
from s2d_serve.speculation.params import SamplingParams, TokenCounts

NUM_LEADERS = 64
"""Tokens tried first, so that the noise of hopeless ones is never computed."""


def sample(
    logits: Tensor, params: SamplingParams, position: int, counts: TokenCounts | None
) -> int:
    """The token of one output position.

    Args:
        logits: [V] float32, not modified; V is the tokenizer's size (padding already cut).
        params: the sequence's parameters.
        position: index of the output token, from 0.
        counts: what prompt and output hold before this position; needed unless `params.is_plain`.
    """
    if not params.is_plain:
        assert counts is not None
        logits = penalize(logits, params, position, counts)
    if params.is_greedy:
        return int(logits.argmax())  # sync
    ids, scores = _filter(logits / params.temperature, params)
    return _argmax_with_noise(ids, scores.double(), params.seed, position)


def penalize(logits: Tensor, params: SamplingParams, position: int, counts: TokenCounts) -> Tensor:
    """Logits after bias, min_tokens mask, repetition, frequency and presence penalties, in this
    order: a copy.
    """
    logits = logits.clone()
    if params.logit_bias:
        biased, amounts = zip(*params.logit_bias, strict=True)
        logits[list(biased)] += logits.new_tensor(amounts)
    if position < params.min_tokens and params.stop_token_ids:
        logits[[i for i in params.stop_token_ids if i < logits.shape[0]]] = -torch.inf
    seen = list(counts.prompt.union(counts.output))
    if params.repetition_penalty != 1.0 and seen:
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if counts.output and (params.frequency_penalty or params.presence_penalty):
        times = logits.new_tensor(list(counts.output.values()))
        logits[list(counts.output)] -= params.frequency_penalty * times + params.presence_penalty
    return logits


def _filter(scores: Tensor, params: SamplingParams) -> tuple[Tensor | None, Tensor]:
    """Survivors of min-p, top-k and top-p: their ids ([C] int64; None: all, in order) and scores
    ([C] float32).

    Each filter sees what the one before it left, renormalised, as transformers and vLLM do.
    """
    ids: Tensor | None = None
    if params.min_p > 0.0:
        ids = torch.nonzero(scores >= scores.max() + math.log(params.min_p)).squeeze(-1)  # sync
        scores = scores[ids]
    if 0 < params.top_k < scores.shape[0]:
        least = torch.topk(scores, params.top_k).values[-1]
        kept = torch.nonzero(scores >= least).squeeze(-1)  # sync
        ids, scores = kept if ids is None else ids[kept], scores[kept]
    if params.top_p < 1.0:
        kept = _nucleus(scores, params.top_p)
        ids, scores = kept if ids is None else ids[kept], scores[kept]
    return ids, scores


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Indices of the smallest set of most probable entries whose probabilities reach `top_p`.

    Equal scores rank by index. Only the leaders are sorted where they suffice: a full sort of 152k
    logits costs more than all other steps together.
    """
    total = scores.double().logsumexp(0)
    for num_sorted in (1024, scores.shape[0]):
        if num_sorted > scores.shape[0]:
            continue
        if num_sorted < scores.shape[0]:
            least = torch.topk(scores, num_sorted).values[-1]
            head = torch.nonzero(scores > least).squeeze(-1)  # whole groups of equal scores, sync
        else:
            head = torch.arange(scores.shape[0], device=scores.device)
        order = head[torch.sort(scores[head], descending=True, stable=True).indices]
        reached = (scores[order].double() - total).exp().cumsum(0) >= top_p
        if bool(reached.any()):  # sync
            return order[: int(reached.int().argmax()) + 1]
    return torch.arange(scores.shape[0], device=scores.device)


def _argmax_with_noise(ids: Tensor | None, scores: Tensor, seed: int, position: int) -> int:
    """Id of the largest score plus noise.

    The leaders' best result bounds the rest: an entry more than `MAX_NOISE` below it cannot win,
    whatever its noise, so its noise is not computed. Exact. Ties, of probability 2^-32, go to the
    smallest id.
    """
    if ids is None:
        ids = torch.arange(scores.shape[0], device=scores.device)
    if scores.shape[0] > 2 * NUM_LEADERS:
        leaders = torch.topk(scores, NUM_LEADERS).indices
        best = (scores[leaders] + gumbel_noise(seed, position, ids[leaders])).max()
        hopeful = torch.nonzero(scores >= best - MAX_NOISE).squeeze(-1)  # sync
        ids, scores = ids[hopeful], scores[hopeful]
    noisy = scores + gumbel_noise(seed, position, ids)
    winners = ids[noisy == noisy.max()]
    return int(winners.min())  # sync
