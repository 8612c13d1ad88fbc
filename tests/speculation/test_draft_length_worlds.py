"""The policy at work: what it loses against the best fixed length, and against no draft at all."""

import math
from collections.abc import Callable
from statistics import fmean

import pytest

from s2d_serve.speculation.draft_length import DraftLengthPolicy
from s2d_serve.speculation.estimates import CostCurve
from tests.speculation.world import World, flat, rising, saturating

MAX_DRAFT_TOKENS = 8

SHARED_CORES = CostCurve({1: 0.068, 4: 0.072, 8: 0.088, 16: 0.115, 24: 0.14, 48: 0.22, 96: 0.4})
"""Seconds of a pass of Qwen2.5-Coder-0.5B in bfloat16 on two cores with AVX512-BF16."""

HOPEFUL = [
    # acceptance by position, draft step, verification, rows
    ([0.95], 0.05, flat, 1),
    ([0.95], 0.3, flat, 1),
    ([0.9], 0.3, flat, 1),
    ([0.9], 0.1, rising, 4),
    ([0.8], 0.1, flat, 4),
    ([0.8], 0.2, saturating, 4),
    ([0.7], 0.05, saturating, 1),
    ([0.7], 0.3, flat, 1),
    ([0.9, 0.8, 0.7, 0.5, 0.3], 0.1, flat, 1),
    ([0.9, 0.8, 0.7, 0.5, 0.3], 0.1, saturating, 4),
    ([0.5], 0.05, flat, 4),
]

HOPELESS = [
    ([0.0], 0.05, flat, 1),
    ([0.0], 1.0, flat, 4),
    ([0.0], 3.0, flat, 1),
    ([0.05], 0.3, rising, 1),
    ([0.1], 1.0, saturating, 4),
    ([0.3], 0.5, rising, 4),
    ([0.6], 0.7, flat, 1),
    ([0.97], 1.2, flat, 1),  # accepted, and too slow to be of use
    ([0.97], 3.0, saturating, 4),
]


@pytest.mark.parametrize(("acceptance", "draft_step_s", "verify_s", "num_rows"), HOPEFUL)
def test_the_length_comes_close_to_the_best(
    acceptance: list[float], draft_step_s: float, verify_s: Callable[[int], float], num_rows: int
) -> None:
    world = World(DraftLengthPolicy(MAX_DRAFT_TOKENS), acceptance, draft_step_s, verify_s, num_rows)
    assert world.best_rate() > 1.1 * world.rate_of(0)
    world.run(300)
    assert world.run(1000) > 0.93 * world.best_rate()


@pytest.mark.parametrize(("acceptance", "draft_step_s", "verify_s", "num_rows"), HOPELESS)
def test_a_hopeless_draft_costs_little_from_the_start(
    acceptance: list[float], draft_step_s: float, verify_s: Callable[[int], float], num_rows: int
) -> None:
    world = World(DraftLengthPolicy(MAX_DRAFT_TOKENS), acceptance, draft_step_s, verify_s, num_rows)
    assert world.best_rate() < 1.01 * world.rate_of(0)
    assert world.run(1000) > 0.95 * world.rate_of(0)
    assert world.run(2000) > 0.97 * world.rate_of(0)
    lengths = world.lengths[-2000:]
    assert sum(length > 0 for length in lengths) < 0.05 * len(lengths)
    assert any(lengths), "it must be tried now and then"


@pytest.mark.parametrize("seed", range(5))
def test_it_gives_up_and_comes_back_as_acceptance_falls_and_rises(seed: int) -> None:
    world = World(DraftLengthPolicy(MAX_DRAFT_TOKENS), [0.9], 0.1, seed=seed)
    world.run(300)
    assert world.run(100) > 0.97 * world.best_rate()
    world.acceptance = [0.03]
    world.run(150)
    assert world.run(600) > 0.97 * world.rate_of(0)
    assert world.lengths[-100:].count(0) >= 95
    world.acceptance = [0.9]
    world.run(600)  # the longest rest, twice
    assert world.run(200) > 0.95 * world.best_rate()
    assert fmean(world.lengths[-200:]) > 5


@pytest.mark.parametrize("seed", range(3))
def test_it_gives_up_when_the_draft_becomes_slow(seed: int) -> None:
    world = World(DraftLengthPolicy(MAX_DRAFT_TOKENS), [0.9], 0.1, seed=seed)
    world.run(300)
    world.draft_step_s = 2.0
    world.run(50)
    assert world.run(1000) > 0.95 * world.rate_of(0)
    world.draft_step_s = 0.1
    world.run(2000)  # a few probes: the cost is a running mean
    assert world.run(200) > 0.95 * world.best_rate()


@pytest.mark.parametrize("seed", range(3))
def test_deep_positions_are_tried_again(seed: int) -> None:
    """What was learnt of them when they failed does not stay for good."""
    world = World(DraftLengthPolicy(MAX_DRAFT_TOKENS), [0.95, 0.95, 0.95, 0.2], 0.1, seed=seed)
    world.run(500)
    assert fmean(world.lengths[-200:]) < 4.5
    world.acceptance = [0.95]
    world.run(150)
    assert world.run(200) > 0.95 * world.best_rate()


def test_a_batch_that_fills_the_device_is_drafted_for_less() -> None:
    mean_lengths = []
    for num_rows in (1, 8, 32):
        policy = DraftLengthPolicy(MAX_DRAFT_TOKENS)
        world = World(policy, [0.8], 0.05, saturating, num_rows)
        world.run(100)
        world.run(300)
        mean_lengths.append(fmean(world.lengths[-300:]))
    assert mean_lengths[0] > mean_lengths[1] + 1 > mean_lengths[2] + 1.5


@pytest.mark.parametrize("num_rows", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("slowness", [1.0, 2.3])
@pytest.mark.parametrize(
    ("acceptance", "others"), [([0.67, 0.5, 0.6, 0.7], None), ([0.4], None), ([0.3], [0.95])]
)
def test_a_draft_on_the_targets_own_cores_costs_little_however_many_there_are(
    num_rows: int, slowness: float, acceptance: list[float], others: list[float] | None
) -> None:
    """Short outputs after prompts that must be read, where a draft step costs by the sequence."""
    policy = DraftLengthPolicy(5)
    policy.reading_s.record(63, 63 * 0.0045)
    policy.draft_step_s.record(1, 0.02)
    world = World(
        policy,
        acceptance,
        0.015,
        lambda num_tokens: slowness * SHARED_CORES(num_tokens),
        num_rows,
        others=others,
        draft_token_s=0.0055,
        overhead_s=0.010,
        prompt_length=50,
        output_length=48,
        jitter=0.1,
    )
    assert world.run(150) > 0.93 * world.rate_of(0)
    assert world.run(500) > 0.96 * world.rate_of(0)


@pytest.mark.parametrize("seed", range(3))
def test_a_good_draft_is_found_out_although_it_reads_slowly(seed: int) -> None:
    """Nothing is known before it reads its first prompt: it is given a good chance, once."""
    policy = DraftLengthPolicy(5)
    policy.reading_s.record(63, 63 * 0.015)
    policy.draft_step_s.record(1, 0.07)
    world = World(
        policy,
        [0.93],
        0.065,
        lambda num_tokens: 2.4 * SHARED_CORES(num_tokens),
        seed=seed,
        draft_token_s=0.005,
        overhead_s=0.010,
        prompt_length=62,
        output_length=48,
    )
    assert world.run(150) > 1.1 * world.rate_of(0)


def shared_with_others(acceptance: list[float], seed: int) -> World:
    """One client with short outputs, on a machine where times scatter."""
    policy = DraftLengthPolicy(5)
    policy.reading_s.record(31, 0.15)
    policy.reading_s.tell_apart(31, 127, 0.25)
    policy.draft_step_s.record(1, 0.05)
    return World(
        policy,
        acceptance,
        0.042,
        lambda num_tokens: 0.14 + 0.002 * num_tokens,
        seed=seed,
        jitter=0.3,
        draft_token_s=0.003,
        overhead_s=0.01,
        prompt_length=80,
        output_length=28,
    )


def test_bad_luck_in_the_first_rounds_seldom_sends_a_good_draft_to_rest() -> None:
    worlds = [shared_with_others([0.75, 0.7], seed) for seed in range(40)]
    num_drafting = sum(world.run(150) > 1.02 * world.rate_of(0) for world in worlds)
    assert num_drafting > 0.75 * len(worlds)


def test_one_text_that_it_does_badly_at_seldom_sends_a_good_draft_to_rest() -> None:
    worlds = [shared_with_others([0.35, 0.3], seed) for seed in range(40)]
    for world in worlds:
        while math.isinf(world.policy.output_tokens):  # no output has ended
            world.run(1)
        world.acceptance = [0.8, 0.75]
    num_drafting = sum(world.run(150) > 1.02 * world.rate_of(0) for world in worlds)
    assert num_drafting > 0.6 * len(worlds)
