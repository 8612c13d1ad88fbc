"""The processing of logits once more, in plain Python and float64: slow, and easy to check by eye.

Bias, repetition, temperature, min-p, top-k and top-p as transformers has them; frequency and
presence penalties as OpenAI has them: they count output tokens only.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from s2d_serve.speculation.params import SamplingParams


def penalized(
    logits: Sequence[float], params: SamplingParams, prompt: Iterable[int], output: Sequence[int]
) -> list[float]:
    """Logits after bias, min_tokens mask and penalties."""
    logits = list(logits)
    for token_id, amount in params.logit_bias:
        logits[token_id] += amount
    if len(output) < params.min_tokens:
        for token_id in params.stop_token_ids:
            if token_id < len(logits):
                logits[token_id] = -math.inf
    for token_id in {*prompt, *output}:
        if logits[token_id] > 0:
            logits[token_id] /= params.repetition_penalty
        else:
            logits[token_id] *= params.repetition_penalty
    for token_id in set(output):
        logits[token_id] -= params.frequency_penalty * output.count(token_id)
        logits[token_id] -= params.presence_penalty
    return logits


def survivors(logits: Sequence[float], params: SamplingParams) -> dict[int, float]:
    """Probabilities of the tokens that pass temperature, min-p, top-k and top-p."""
    probs = softmax({i: logit / params.temperature for i, logit in enumerate(logits)})
    if params.min_p > 0:
        best = max(probs.values())
        probs = softmax_of({i: p for i, p in probs.items() if p >= params.min_p * best})
    if 0 < params.top_k < len(probs):
        least = sorted(probs.values(), reverse=True)[params.top_k - 1]
        probs = softmax_of({i: p for i, p in probs.items() if p >= least})
    if params.top_p < 1:
        kept: dict[int, float] = {}
        for i in sorted(probs, key=lambda i: (-probs[i], i)):
            if kept and math.fsum(kept.values()) >= params.top_p:
                break
            kept[i] = probs[i]
        probs = softmax_of(kept)
    return probs


def softmax(scores: Mapping[int, float]) -> dict[int, float]:
    """Probabilities of these scores."""
    best = max(scores.values())
    return softmax_of({i: math.exp(score - best) for i, score in scores.items()})


def softmax_of(weights: Mapping[int, float]) -> dict[int, float]:
    """Weights, divided by their sum."""
    total = math.fsum(weights.values())
    return {i: weight / total for i, weight in weights.items()}


def is_close_call(logits: Sequence[float], params: SamplingParams) -> bool:
    """Whether float32 may decide otherwise than float64: a limit of min-p or top-p is hit almost
    exactly.
    """
    for amount in (-1e-4, 1e-4):
        moved = SamplingParams(
            temperature=params.temperature,
            min_p=params.min_p * (1 + amount),
            top_k=params.top_k,
            top_p=min(params.top_p + amount, 1.0) if params.top_p < 1 else 1.0,
        )
        if survivors(logits, moved).keys() != survivors(logits, params).keys():
            return True
    return False
