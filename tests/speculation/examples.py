"""Logits, parameters and outputs to try, and how to look at what sampling makes of them."""

import math
from collections.abc import Mapping, Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from s2d_serve.speculation.params import SamplingParams, TokenCounts
from s2d_serve.speculation.sampling import _filter

fixed_examples = settings(derandomize=True, deadline=None, max_examples=50)
"""The same examples in every run, however busy the machine."""

VOCAB = 9
PROMPT = (1, 1, 4)

tie_laden = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]), min_size=VOCAB, max_size=VOCAB)
spread = st.lists(st.integers(-80, 80).map(lambda i: i / 8), min_size=VOCAB, max_size=VOCAB)
with_holes = st.lists(
    st.sampled_from([-math.inf, -1.0, 0.5, 3.0]), min_size=VOCAB - 1, max_size=VOCAB - 1
).map(lambda rest: [*rest, 0.0])
extreme = st.lists(st.sampled_from([-1e4, -8.0, 0.0, 1e4]), min_size=VOCAB, max_size=VOCAB)
any_logits = st.one_of(tie_laden, spread, with_holes, extreme)
any_output = st.lists(st.integers(0, VOCAB - 1), max_size=6)
any_params = st.builds(
    SamplingParams,
    # values that float32 divides and multiplies as float64 does
    temperature=st.sampled_from([0.5, 0.75, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.8, 0.5, 0.1, 1e-3]),
    top_k=st.sampled_from([0, 1, 2, 4, VOCAB, 50]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 0.7, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.25, 2.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5, 2.0, -0.25]),
    presence_penalty=st.sampled_from([0.0, 0.75, 2.0, -1.0]),
    logit_bias=st.sampled_from([(), ((0, 1.5),), ((3, -100.0), (4, 2.0))]),
    min_tokens=st.sampled_from([0, 2, 9]),
    stop_token_ids=st.sampled_from([(), (2,), (0, 5, 1000)]),
    seed=st.integers(0, 2**64 - 1),
)


def counted(output: Sequence[int], prompt: Sequence[int] = PROMPT) -> TokenCounts:
    """What a sequence holds."""
    counts = TokenCounts(frozenset(prompt))
    counts.add(output)
    return counts


def kept(logits: Tensor, params: SamplingParams) -> dict[int, float]:
    """Probabilities of the tokens that the filters leave."""
    ids, scores = _filter(logits / params.temperature, params)
    if ids is None:
        ids = torch.arange(logits.shape[0])
    probs = scores.double().softmax(0)
    return dict(zip(ids.tolist(), probs.tolist(), strict=True))


def possible(probs: Mapping[int, float]) -> dict[int, float]:
    """Without the tokens of probability 0, by id."""
    return {i: p for i, p in sorted(probs.items()) if p > 0.0}
