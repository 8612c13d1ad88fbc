import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from s2d_serve.speculation.noise import gumbel_noise
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.sampling import penalize, sample
from tests.speculation.examples import (
    PROMPT,
    VOCAB,
    any_logits,
    any_output,
    any_params,
    counted,
    fixed_examples,
    kept,
    possible,
)
from tests.speculation.reference import is_close_call, penalized, survivors

BIASED_END = SamplingParams(logit_bias=((0, 100.0),), min_tokens=2, stop_token_ids=(0,))


@settings(fixed_examples, max_examples=400)
@given(any_logits, any_params, any_output)
def test_processing_is_the_references(
    values: list[float], params: SamplingParams, output: list[int]
) -> None:
    logits = torch.tensor(values)
    after_penalties = penalized(values, params, PROMPT, output)
    assume(max(after_penalties) > -math.inf)
    assume(not is_close_call(after_penalties, params))
    expected = possible(survivors(after_penalties, params))

    own = penalize(logits, params, len(output), counted(output))
    assert own.tolist() == pytest.approx(after_penalties, rel=1e-6, abs=1e-6)
    found = possible(kept(own, params))
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4)

    noise = dict(enumerate(gumbel_noise(params.seed, len(output), torch.arange(VOCAB)).tolist()))
    token = sample(logits, params, len(output), counted(output))
    assert token == max(expected, key=lambda i: math.log(expected[i]) + noise[i])
    assert logits.tolist() == values


@pytest.mark.parametrize(
    ("values", "params", "output", "expected"),
    [
        # bias, then the mask: no bias brings an end token back
        ([0, 99], BIASED_END, [1], [1]),
        ([0, 99], BIASED_END, [1, 1], [0, 1]),
        # the mask goes as soon as min_tokens are there
        ([0, -9], SamplingParams(min_tokens=1, stop_token_ids=(0,)), [1], [0, 1]),
        # temperature, then min-p: e^-2 < 0.2 < e^-1
        ([0, -1], SamplingParams(temperature=0.5, min_p=0.2), [], [0]),
        ([0, -1], SamplingParams(temperature=1.0, min_p=0.2), [], [0, 1]),
        # a token at exactly min-p times the best stays
        ([0, 0, -1], SamplingParams(min_p=1.0), [], [0, 1]),
        # top-k keeps all that tie with the last one
        ([3, 2, 2, 1], SamplingParams(top_k=2), [], [0, 1, 2]),
        # top-k, then top-p of what is left: 4/7 reach 0.55, 4/10 would not
        ([math.log(4), math.log(3), math.log(2), 0], SamplingParams(top_k=2, top_p=0.55), [], [0]),
        ([math.log(4), math.log(3), math.log(2), 0], SamplingParams(top_p=0.55), [], [0, 1]),
        # min-p, then top-p of what is left: 5/8 reach 0.6, 5/10 would not
        ([math.log(5), math.log(3), math.log(2)], SamplingParams(min_p=0.5, top_p=0.6), [], [0]),
        # top-p keeps the token that reaches it, and of equal ones the smaller ids
        ([0, 0, 0, 0], SamplingParams(top_p=0.4), [], [0, 1]),
        ([0, 1], SamplingParams(top_p=1e-9), [], [1]),
        # one that reaches it exactly is the last
        ([0, 0], SamplingParams(top_p=0.5), [], [0]),
    ],
)
def test_survivors(
    values: list[float], params: SamplingParams, output: list[int], expected: list[int]
) -> None:
    logits = torch.tensor(values, dtype=torch.float32)
    logits = penalize(logits, params, len(output), counted(output))
    assert list(possible(kept(logits, params))) == expected


@pytest.mark.parametrize(
    ("value", "params", "output", "expected"),
    [
        # bias, then repetition: the sign that counts is the biased one's
        (-1.0, SamplingParams(logit_bias=((1, 2.0),), repetition_penalty=2.0), [], 0.5),
        # repetition, then frequency and presence
        (2.0, SamplingParams(repetition_penalty=2.0, frequency_penalty=0.5), [1], 0.5),
        (2.0, SamplingParams(repetition_penalty=2.0, presence_penalty=0.5), [1], 0.5),
        # repetition counts the prompt and once only; negative logits are multiplied
        (-2.0, SamplingParams(repetition_penalty=1.5), [1, 1], -3.0),
        (0.0, SamplingParams(repetition_penalty=1.5), [1], 0.0),
        # frequency counts every time, presence once, and both the output only
        (2.0, SamplingParams(frequency_penalty=0.5), [1, 3, 1, 1], 0.5),
        (2.0, SamplingParams(presence_penalty=0.5), [1, 3, 1, 1], 1.5),
        (2.0, SamplingParams(frequency_penalty=0.5, presence_penalty=0.5), [3], 2.0),
        (2.0, SamplingParams(frequency_penalty=-0.5, presence_penalty=-1.0), [1, 1], 4.0),
    ],
)
def test_penalties(
    value: float, params: SamplingParams, output: list[int], expected: float
) -> None:
    logits = torch.tensor([0.5, value, 0.5, 9.0, 9.0])
    assert penalize(logits, params, len(output), counted(output))[1].item() == expected
    assert logits[1] == value


@settings(fixed_examples, max_examples=200)
@given(any_logits, any_params, any_output)
def test_greedy_takes_the_smallest_of_the_most_probable(
    values: list[float], params: SamplingParams, output: list[int]
) -> None:
    greedy = replace(params, temperature=0.0)
    assert greedy.is_greedy
    logits = torch.tensor(values)
    after_penalties = penalized(values, params, PROMPT, output)
    assume(max(after_penalties) > -math.inf)
    token = sample(logits, greedy, len(output), counted(output))
    assert token == after_penalties.index(max(after_penalties))
    assert logits.tolist() == values


@pytest.mark.parametrize("temperature", [1e-5, 1.0, 2.0])
@pytest.mark.parametrize("largest", [1e4, -1e4])
def test_extreme_logits_give_the_greedy_token(temperature: float, largest: float) -> None:
    logits = torch.full((300,), -1e4 - 100)
    logits[[17, 40]] = torch.tensor([largest, largest - 50])
    for params in (
        SamplingParams(temperature=temperature),
        SamplingParams(temperature=temperature, min_p=0.1, top_k=20, top_p=0.9),
        SamplingParams(temperature=temperature, repetition_penalty=1.0001, presence_penalty=0.1),
    ):
        tokens = {sample(logits, params, position, counted([])) for position in range(20)}
        assert tokens == {17}


@pytest.mark.parametrize("vocab_size", [2, 128, 129, 1024, 1025, 3000])
def test_a_tiny_temperature_picks_among_equals_at_random(vocab_size: int) -> None:
    logits = torch.full((vocab_size,), -1.0)
    best = [0, vocab_size - 1]
    logits[best] = 1e4
    for params in (SamplingParams(temperature=1e-5), SamplingParams(temperature=1e-5, top_p=0.9)):
        tokens = [sample(logits, params, position, None) for position in range(40)]
        assert set(tokens) == set(best)


@settings(fixed_examples, max_examples=100)
@given(
    st.sampled_from([2, 3, 64, 127, 128, 129, 1024, 1025, 5000]),
    st.sampled_from([1e-3, 1.0, 100.0, 1e4]),
    st.integers(0, 2**32),
    any_params,
)
def test_the_token_is_always_one_that_may_come(
    vocab_size: int, scale: float, seed: int, params: SamplingParams
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocab_size, generator=generator) * scale
    logits[torch.rand(vocab_size, generator=generator) < 0.3] = -torch.inf
    logits[-1] = 0.0
    plain = SamplingParams(
        temperature=params.temperature, top_p=params.top_p, top_k=params.top_k, min_p=params.min_p
    )
    before = logits.clone()
    token = sample(logits, plain, 3, None)
    assert 0 <= token < vocab_size
    assert math.isfinite(logits[token])
    assert torch.equal(logits, before)


def test_the_seed_and_the_position_decide() -> None:
    logits = torch.zeros(50)
    by_position = [sample(logits, SamplingParams(seed=1), position, None) for position in range(30)]
    by_seed = [sample(logits, SamplingParams(seed=seed), 0, None) for seed in range(30)]
    again = [sample(logits, SamplingParams(seed=1), position, None) for position in range(30)]
    assert by_position == again
    assert len(set(by_position)) > 10
    assert len(set(by_seed)) > 10
