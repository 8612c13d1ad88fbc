import pytest
import torch
from hypothesis import given

from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.sampling import sample
from tests.speculation.examples import PROMPT, any_output, counted, fixed_examples


@pytest.mark.parametrize(
    ("params", "is_plain"),
    [
        (SamplingParams(), True),
        (SamplingParams(temperature=0.0, top_p=0.5, top_k=3, min_p=0.1, seed=9), True),
        (SamplingParams(stop_token_ids=(3,)), True),
        (SamplingParams(min_tokens=1), False),
        (SamplingParams(logit_bias=((0, 1.0),)), False),
        (SamplingParams(repetition_penalty=1.1), False),
        (SamplingParams(frequency_penalty=0.1), False),
        (SamplingParams(presence_penalty=-0.1), False),
    ],
)
def test_only_plain_parameters_need_no_counts(params: SamplingParams, is_plain: bool) -> None:
    assert params.is_plain == is_plain
    if is_plain:
        sample(torch.zeros(5), params, 0, None)
    else:
        with pytest.raises(AssertionError):
            sample(torch.zeros(5), params, 0, None)


@fixed_examples
@given(any_output, any_output)
def test_counts_grow_and_roll_back(first: list[int], second: list[int]) -> None:
    counts = counted(first)
    counts.add(second)
    assert counts.output == {i: [*first, *second].count(i) for i in {*first, *second}}
    counts.remove(second)
    assert counts == counted(first)
    counts.remove(first)
    assert counts.output == {}
    assert counts.prompt == frozenset(PROMPT)


def test_what_was_never_added_cannot_be_removed() -> None:
    with pytest.raises(KeyError):
        counted([1]).remove([1, 1])
