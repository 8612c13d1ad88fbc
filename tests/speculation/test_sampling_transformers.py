import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.sampling import penalize
from tests.speculation.examples import (
    PROMPT,
    any_output,
    any_params,
    counted,
    fixed_examples,
    kept,
    spread,
    tie_laden,
)
from tests.speculation.reference import is_close_call, penalized

NEGLIGIBLE = 1e-30
"""Probabilities of this size are zero to some of theirs, who take a softmax in float32."""


@settings(fixed_examples, max_examples=200)
@given(st.one_of(tie_laden, spread), any_params, any_output)
def test_processing_is_that_of_transformers(
    values: list[float], params: SamplingParams, output: list[int]
) -> None:
    processors = LogitsProcessorList()
    if params.logit_bias:
        biases: list[list[list[int] | float]] = [[[i], amount] for i, amount in params.logit_bias]
        processors.append(SequenceBiasLogitsProcessor(biases))
    ends = list(params.stop_token_ids)
    if ends:
        processors.append(
            MinNewTokensLengthLogitsProcessor(len(PROMPT), params.min_tokens, ends, "cpu")
        )
    processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    processors.append(TemperatureLogitsWarper(params.temperature))
    processors.append(MinPLogitsWarper(params.min_p))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    processors.append(TopPLogitsWarper(params.top_p))
    params = replace(params, frequency_penalty=0.0, presence_penalty=0.0)
    after_penalties = penalized(values, params, PROMPT, output)
    assume(not is_close_call(after_penalties, params))

    input_ids = torch.LongTensor([[*PROMPT, *output]])
    (theirs,) = processors(input_ids, torch.FloatTensor([values]))
    own = kept(penalize(torch.tensor(values), params, len(output), counted(output)), params)
    # where a tie straddles the edge of top-p they keep other ones of it, but as many
    own_probs = sorted(p for p in own.values() if p > NEGLIGIBLE)
    expected = theirs.double().softmax(0)
    assert own_probs == pytest.approx(sorted(expected[expected > NEGLIGIBLE].tolist()), rel=1e-4)
    for token_id, prob in own.items():
        assert math.isfinite(theirs[token_id]) or prob <= max(NEGLIGIBLE, own_probs[0])
