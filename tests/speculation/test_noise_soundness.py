"""The noise is as good as random; what measures it sees planted defects."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from s2d_serve.speculation.noise import gumbel_noise, noise_bits
from tests.speculation.soundness import chi_square, gumbel_test, z_test

Bits = Callable[[int, int, Tensor], Tensor]
"""(seed, position, token ids) -> 32 bits for each id."""
Measure = Callable[[Bits], float]
"""A p-value: small if the bits lack a property."""

MASK = 2**32 - 1
LAGS = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, -1), (1, 0, -1), (1, -1, 0), (1, 1, 0), (1, 1, -2)]
"""Distances in seed, position and token id between two values with nothing in common."""


def table(bits: Bits, seeds: Iterable[int], positions: Iterable[int], token_ids: Tensor) -> Tensor:
    """[seeds, positions, tokens] int64."""
    places = list(positions)
    return torch.stack([torch.stack([bits(s, p, token_ids) for p in places]) for s in seeds])


def uniform_over_tokens(bits: Bits) -> float:
    return _uniform(table(bits, [3], [5], torch.arange(2**17)))


def uniform_over_positions(bits: Bits) -> float:
    return _uniform(table(bits, [3], range(1000), torch.tensor([5])))


def uniform_over_seeds(bits: Bits) -> float:
    return _uniform(table(bits, range(1000), [3], torch.tensor([5])))


def _uniform(values: Tensor) -> float:
    """Every nibble takes its 16 values equally often."""
    nibbles = [values.reshape(1, -1) >> shift & 15 for shift in range(0, 32, 4)]
    return min(chi_square(_counts(nibble, 16)) for nibble in nibbles) * len(nibbles)


def independent_pairs(bits: Bits) -> float:
    """The leading and the trailing bits of two values, at any distance, fall where they like."""
    values = table(bits, range(3), range(4), torch.arange(4096))
    p_values = []
    for lag in LAGS:
        for shift in (0, 28):
            first, second = (v >> shift & 15 for v in _apart(values, lag))
            p_values.append(chi_square(_counts((first * 16 + second).flatten(0, 1), 256)))
    return min(p_values) * len(p_values)


def uncorrelated(bits: Bits) -> float:
    """Two values, at any distance, have no linear correlation."""
    values = table(bits, range(3), range(4), torch.arange(4096))
    z = []
    for lag in LAGS:
        first, second = ((v.double() / 2**32 - 0.5) * 12**0.5 for v in _apart(values, lag))
        z.append((first * second).sum(-1).flatten() / first.shape[-1] ** 0.5)
    return z_test(torch.cat(z))


def avalanche_of_tokens(bits: Bits) -> float:
    token_ids = torch.randint(2**31, (2000,), generator=torch.Generator().manual_seed(0))
    return _avalanche(
        [bits(3, 5, token_ids) ^ bits(3, 5, token_ids ^ (1 << bit)) for bit in range(31)]
    )


def avalanche_of_positions(bits: Bits) -> float:
    token_ids = torch.arange(1000)
    return _avalanche(
        [bits(3, 5, token_ids) ^ bits(3, 5 ^ (1 << bit), token_ids) for bit in range(32)]
    )


def avalanche_of_seeds(bits: Bits) -> float:
    token_ids = torch.arange(1000)
    return _avalanche(
        [bits(3, 5, token_ids) ^ bits(3 ^ (1 << bit), 5, token_ids) for bit in range(64)]
    )


def _avalanche(flips: list[Tensor]) -> float:
    """One flipped input bit flips every output bit half of the time."""
    flipped = torch.stack(flips).unsqueeze(-1) >> torch.arange(32) & 1
    return z_test((flipped.double().mean(1) - 0.5) * 2 * flipped.shape[1] ** 0.5)


def _counts(values: Tensor, num_values: int) -> Tensor:
    """How often each value comes, in each row: [rows, values]."""
    return torch.stack([torch.bincount(row, minlength=num_values) for row in values.flatten(0, -2)])


def _apart(values: Tensor, lag: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """All pairs of values at this distance."""
    first = second = values
    for dim, step in enumerate(lag):
        size = values.shape[dim] - abs(step)
        first = first.narrow(dim, max(-step, 0), size)
        second = second.narrow(dim, max(step, 0), size)
    return first, second


def mixed(values: Tensor) -> Tensor:
    """A mixer that nothing is wrong with."""
    return noise_bits(1, 1, values & MASK)


def key(seed: int, position: int) -> int:
    return int(noise_bits(seed, position, torch.tensor([0])))


def the_inputs_themselves(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return seed + position + token_ids & MASK


def a_single_multiply(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return (token_ids & MASK ^ key(seed, position)) * 0x21F0AAAD & MASK


def half_a_mixer(seed: int, position: int, token_ids: Tensor) -> Tensor:
    product = a_single_multiply(seed, position, token_ids)
    return product ^ product >> 16


def reused_across_positions(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return noise_bits(seed, 0, token_ids)


def reused_across_seeds(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return noise_bits(0, position, token_ids)


def seeds_of_32_bits(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return noise_bits(seed & MASK, position, token_ids)


def positions_of_16_bits(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return noise_bits(seed, position & 0xFFFF, token_ids)


def token_ids_of_16_bits(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return noise_bits(seed, position, token_ids & 0xFFFF)


def seed_plus_position(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return noise_bits(seed + position, 0, token_ids)


def position_plus_token(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return mixed(key(seed, 0) + position + token_ids)


def key_added_last(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return mixed(token_ids) + key(seed, position) & MASK


def key_mixed_in_last(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return mixed(token_ids) ^ key(seed, position)


def low_bits_dead(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return noise_bits(seed, position, token_ids) & 0xFFFFFF00


def middle_bits_dead(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return noise_bits(seed, position, token_ids) & 0xFFF00FFF


def never_quite_one(seed: int, position: int, token_ids: Tensor) -> Tensor:
    return noise_bits(seed, position, token_ids) * 15 // 16


MEASURES: list[Measure] = [
    *[uniform_over_tokens, uniform_over_positions, uniform_over_seeds],
    *[independent_pairs, uncorrelated],
    *[avalanche_of_tokens, avalanche_of_positions, avalanche_of_seeds],
]

DEFECTS: list[tuple[Bits, Measure]] = [
    (the_inputs_themselves, uniform_over_tokens),
    (the_inputs_themselves, uncorrelated),
    (the_inputs_themselves, avalanche_of_tokens),
    (a_single_multiply, independent_pairs),
    (a_single_multiply, avalanche_of_tokens),
    (half_a_mixer, avalanche_of_tokens),
    (reused_across_positions, uniform_over_positions),
    (reused_across_positions, independent_pairs),
    (reused_across_positions, uncorrelated),
    (reused_across_positions, avalanche_of_positions),
    (reused_across_seeds, uniform_over_seeds),
    (reused_across_seeds, independent_pairs),
    (reused_across_seeds, uncorrelated),
    (reused_across_seeds, avalanche_of_seeds),
    (seeds_of_32_bits, avalanche_of_seeds),
    (positions_of_16_bits, avalanche_of_positions),
    (token_ids_of_16_bits, avalanche_of_tokens),
    (seed_plus_position, independent_pairs),
    (seed_plus_position, uncorrelated),
    (position_plus_token, independent_pairs),
    (position_plus_token, uncorrelated),
    (key_added_last, independent_pairs),
    (key_added_last, avalanche_of_positions),
    (key_mixed_in_last, independent_pairs),
    (key_mixed_in_last, avalanche_of_seeds),
    (low_bits_dead, uniform_over_tokens),
    (middle_bits_dead, uniform_over_seeds),
    (never_quite_one, uniform_over_tokens),
]


@pytest.mark.parametrize("measure", MEASURES)
def test_bits_pass_for_random(measure: Measure) -> None:
    assert measure(noise_bits) > 1e-3


@pytest.mark.parametrize(("defect", "measure"), DEFECTS)
def test_planted_defects_are_seen(defect: Bits, measure: Measure) -> None:
    assert measure(defect) < 1e-9


def test_noise_is_gumbel() -> None:
    assert gumbel_test(gumbel_noise(3, 5, torch.arange(50_000))) > 1e-3
    over_positions = [gumbel_noise(3, position, torch.arange(50)) for position in range(400)]
    assert gumbel_test(torch.cat(over_positions)) > 1e-3


@pytest.mark.parametrize("defect", ["scaled", "shifted", "exponential", "of 4 bits"])
def test_noise_that_is_not_gumbel_is_seen(defect: str) -> None:
    noise = gumbel_noise(3, 5, torch.arange(50_000))
    coarse = ((noise_bits(3, 5, torch.arange(50_000)) >> 28).double() + 0.5) / 16
    planted = {
        "scaled": noise * 1.1,
        "shifted": noise + 0.05,
        "exponential": -noise.neg().exp().log1p(),
        "of 4 bits": -torch.log(-torch.log1p(-coarse)),
    }
    assert gumbel_test(planted[defect]) < 1e-9
