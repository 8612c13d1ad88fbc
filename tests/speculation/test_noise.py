import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d_serve.speculation.noise import MAX_NOISE, choice_seed, gumbel_noise, noise_bits
from tests.speculation.examples import fixed_examples
from tests.speculation.slow_noise import id_with_bits, slow_bits

GOLDEN = {
    (0, 0, 0): 4142808266,
    (0, 0, 1): 3290362210,
    (0, 1, 0): 2694132878,
    (1, 0, 0): 1341237471,
    (42, 7, 151_935): 4093003404,
    (123, 4095, 49_151): 1676183110,
    (7, 100_000, 128_255): 2332363100,
    (-1, 0, 5): 3680482412,
    (2**64 - 1, 0, 5): 3680482412,
    (-(2**63), 1, 2): 2802914362,
    (2**63, 3, 9): 446839128,
    (2**64, 0, 0): 4142808266,
    (10**29, 2, 31_999): 1788368302,
}
"""(seed, position, token id) -> bits. A sequence that moves to a replica of another version goes on
with the same noise: these never change.
"""

GOLDEN_CHOICES = {
    (0, 1): 17322498659188913399,
    (42, 3): 3845113316472043466,
    (-1, 1): 11139705857237816490,
    (2**64 - 1, 1): 11139705857237816490,
    (2**63, 127): 11775883592304036002,
}

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

any_seed = st.integers(-(2**70), 2**70)
any_position = st.integers(0, 2**40)


@pytest.mark.parametrize(("seed", "position", "token_id"), GOLDEN)
def test_bits_never_change(seed: int, position: int, token_id: int) -> None:
    bits = noise_bits(seed, position, torch.tensor([token_id]))
    assert bits.tolist() == [GOLDEN[seed, position, token_id]]


@pytest.mark.parametrize(("seed", "choice"), GOLDEN_CHOICES)
def test_seeds_of_choices_never_change(seed: int, choice: int) -> None:
    assert choice_seed(seed, choice) == GOLDEN_CHOICES[seed, choice]


@fixed_examples
@given(any_seed)
def test_seeds_of_choices_differ_and_the_first_is_the_requests(seed: int) -> None:
    assert choice_seed(seed, 0) == seed
    seeds = {choice_seed(seed, choice) % 2**64 for choice in range(16)}
    assert len(seeds) == 16
    assert choice_seed(seed + 2**64, 5) == choice_seed(seed, 5)


def test_a_choice_has_other_noise_than_a_position_of_the_request() -> None:
    token_ids = torch.arange(8)
    assert not torch.equal(noise_bits(choice_seed(7, 1), 0, token_ids), noise_bits(7, 1, token_ids))
    assert not torch.equal(noise_bits(choice_seed(7, 1), 0, token_ids), noise_bits(7, 0, token_ids))


@fixed_examples
@given(any_seed, any_position, st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_bits_are_those_of_plain_integers(seed: int, position: int, token_ids: list[int]) -> None:
    bits = noise_bits(seed, position, torch.tensor(token_ids)).tolist()
    assert bits == [slow_bits(seed, position, token_id) for token_id in token_ids]
    assert all(0 <= value < 2**32 for value in bits)


@fixed_examples
@given(any_seed, any_position)
def test_seeds_count_modulo_two_to_the_64(seed: int, position: int) -> None:
    token_ids = torch.arange(5)
    bits = noise_bits(seed, position, token_ids)
    assert torch.equal(bits, noise_bits(seed % 2**64, position, token_ids))
    assert torch.equal(bits, noise_bits(seed - 2**64, position, token_ids))
    assert not torch.equal(bits, noise_bits(seed + 2**63, position, token_ids))


@fixed_examples
@given(any_seed, any_position, st.integers(0, 2**32 - 1))
def test_every_value_belongs_to_one_id(seed: int, position: int, bits: int) -> None:
    token_id = id_with_bits(seed, position, bits)
    assert noise_bits(seed, position, torch.tensor([token_id])).tolist() == [bits]


@pytest.mark.parametrize("device", DEVICES)
@settings(fixed_examples, max_examples=20)
@given(seed=any_seed, position=any_position, chunk=st.integers(1, 100), data=st.data())
def test_noise_does_not_depend_on_how_it_is_asked_for(
    device: str, seed: int, position: int, chunk: int, data: st.DataObject
) -> None:
    token_ids = torch.arange(200)
    bits, noise = noise_bits(seed, position, token_ids), gumbel_noise(seed, position, token_ids)
    order = torch.tensor(data.draw(st.permutations(range(20))))
    views = {
        "chunks": torch.cat([noise_bits(seed, position, c) for c in torch.split(token_ids, chunk)]),
        "shape": noise_bits(seed, position, token_ids.reshape(20, 10)[order])[order.argsort()],
        "stride": noise_bits(seed, position, token_ids.reshape(20, 10).T).T,
        "int32": noise_bits(seed, position, token_ids.int()),
        "device": noise_bits(seed, position, token_ids.to(device)).cpu(),
    }
    for name, view in views.items():
        assert torch.equal(view.reshape(-1), bits), name
    chunks = torch.cat(
        [gumbel_noise(seed, position, c) for c in torch.split(token_ids.to(device), chunk)]
    )
    torch.testing.assert_close(chunks.cpu(), noise, rtol=0.0, atol=1e-12)
    assert noise.dtype == torch.float64


@pytest.mark.parametrize("num_threads", [1, 2])
def test_noise_does_not_depend_on_threads(num_threads: int) -> None:
    before = torch.get_num_threads()
    token_ids = torch.arange(200_000)
    try:
        torch.set_num_threads(num_threads)
        bits = noise_bits(5, 1, token_ids)
    finally:
        torch.set_num_threads(before)
    picked = [0, 1, 32_767, 32_768, 99_999, 199_999]
    assert bits[picked].tolist() == [slow_bits(5, 1, token_id) for token_id in picked]


@fixed_examples
@given(any_seed, any_position)
def test_noise_is_the_gumbel_quantile_of_the_bits_even_at_the_ends(
    seed: int, position: int
) -> None:
    values = [0, 1, 2**31, 2**32 - 2, 2**32 - 1]
    token_ids = torch.tensor([id_with_bits(seed, position, value) for value in values])
    noise = gumbel_noise(seed, position, token_ids).tolist()
    expected = [-math.log(-math.log1p(-(value + 0.5) / 2**32)) for value in values]
    assert noise == pytest.approx(expected, rel=0, abs=1e-12)
    assert noise == sorted(noise, reverse=True)
    assert all(-3.2 < value <= MAX_NOISE for value in noise)
    assert noise[0] == MAX_NOISE


def test_the_largest_noise_is_what_32_bits_give() -> None:
    assert pytest.approx(33 * math.log(2), abs=1e-9) == MAX_NOISE
