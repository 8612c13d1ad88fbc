"""Sampled output follows the target's distribution, with and without a draft, for every option.

G-tests over the three tokens jointly, with fixed seeds. Probabilities come from plain Python, the
draws from the product's processing with noise for all seeds at once; `sample` and `verify` must
then give exactly these tokens, seed by seed.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from s2d_serve.speculation.noise import gumbel_noise
from s2d_serve.speculation.params import SamplingParams
from tests.speculation.soundness import g_test, power
from tests.speculation.tables import (
    DEPTH,
    VOCAB,
    Table,
    draw,
    generate,
    joint_counts,
    joint_probs,
    judge,
    near,
    noise_table,
    product_scores,
    random_model,
    reference_scores,
    speculate,
    speculate_all,
)

NUM_SEEDS = 100_000
NUM_EXACT = 400
"""Seeds on which `sample` itself runs. A bias of total variation d makes it differ from unbiased
draws with the same noise on a share d of the seeds at least, and 0.98^400 < 0.0005.
"""
BIAS = 0.02
"""Total variation that is found with a power above 0.99."""
ALPHA = 1e-4

OPTIONS = {
    "plain": SamplingParams(),
    "temperature": SamplingParams(temperature=0.7),
    "top_k": SamplingParams(top_k=3),
    "top_p": SamplingParams(top_p=0.8),
    "min_p": SamplingParams(min_p=0.3),
    "frequency": SamplingParams(frequency_penalty=0.9),
    "presence": SamplingParams(presence_penalty=0.9),
    "repetition": SamplingParams(repetition_penalty=1.6),
    "bias": SamplingParams(logit_bias=((1, 0.8), (3, -0.6))),
    "min_tokens": SamplingParams(min_tokens=2, stop_token_ids=(4,)),
    "combination": SamplingParams(
        temperature=0.8,
        top_p=0.9,
        top_k=4,
        min_p=0.05,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=0.2,
        logit_bias=((2, 0.5),),
        min_tokens=1,
        stop_token_ids=(0,),
    ),
}

TARGET = random_model(1)
DRAFT = near(TARGET, 2)


@cache
def noise() -> Tensor:
    return noise_table(NUM_SEEDS)


@cache
def target_scores(option: str) -> Table:
    return product_scores(TARGET, OPTIONS[option])


@cache
def target_probs(option: str) -> Tensor:
    return joint_probs(reference_scores(TARGET, OPTIONS[option]), 3)


@cache
def direct(option: str) -> Tensor:
    """[N, 3]: one token at a time, without a draft."""
    return draw(target_scores(option), noise()[:, :3])


def p_value(tokens: Tensor, option: str) -> float:
    return g_test(joint_counts(tokens), target_probs(option))


def test_the_noise_of_all_seeds_is_the_products() -> None:
    for seed in [*range(200), *range(200, NUM_SEEDS, 997)]:
        for position in range(DEPTH):
            own = gumbel_noise(seed, position, torch.arange(VOCAB))
            torch.testing.assert_close(own, noise()[seed, position], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("option", OPTIONS)
def test_output_follows_the_target(option: str) -> None:
    assert power(target_probs(option), NUM_SEEDS, BIAS, ALPHA) > 0.99
    assert p_value(direct(option), option) > ALPHA


@pytest.mark.parametrize("option", OPTIONS)
def test_sample_draws_these_tokens(option: str) -> None:
    params = OPTIONS[option]
    tokens = [generate(TARGET, replace(params, seed=seed)) for seed in range(NUM_EXACT)]
    assert torch.equal(torch.tensor(tokens), direct(option)[:NUM_EXACT])


@pytest.mark.parametrize("option", OPTIONS)
def test_speculation_gives_the_same_tokens(option: str) -> None:
    draft_scores = product_scores(DRAFT, OPTIONS[option])
    run = speculate_all(target_scores(option), draft_scores, noise(), noise())
    assert torch.equal(run.tokens, direct(option))
    assert p_value(run.tokens, option) > ALPHA
    assert 0.4 < run.acceptance_rate < 0.95


@pytest.mark.parametrize("option", OPTIONS)
def test_sample_and_verify_give_these_tokens(option: str) -> None:
    params, num_drafted, num_accepted = OPTIONS[option], 0, 0
    for seed in range(100):
        run = speculate(TARGET, DRAFT, replace(params, seed=seed), draft_seed=seed)
        assert torch.equal(run.tokens, direct(option)[seed])
        num_drafted += run.num_drafted
        num_accepted += run.num_accepted
    assert 0.4 < num_accepted / num_drafted < 0.97


@pytest.mark.parametrize("option", OPTIONS)
def test_greedy_speculation_gives_the_greedy_tokens(option: str) -> None:
    params = replace(OPTIONS[option], temperature=0.0)
    num_accepted = 0
    for seed in range(10):
        target = random_model(100 + seed)
        run = speculate(target, near(target, 200 + seed), params, draft_seed=seed)
        assert run.tokens.tolist() == generate(target, params)
        num_accepted += run.num_accepted
    assert num_accepted > 5


def test_other_noise_in_the_draft_only_lowers_acceptance() -> None:
    draft_scores = product_scores(DRAFT, SamplingParams())
    shared = speculate_all(target_scores("plain"), draft_scores, noise(), noise())
    other = speculate_all(target_scores("plain"), draft_scores, noise(), noise().roll(1, 0))
    assert torch.equal(other.tokens, shared.tokens)
    assert 0.1 < other.acceptance_rate < shared.acceptance_rate - 0.2
    for seed in range(50):
        run = speculate(TARGET, DRAFT, SamplingParams(seed=seed), draft_seed=seed + 1000)
        assert torch.equal(run.tokens, shared.tokens[seed])


@pytest.mark.parametrize("pair", range(8))
def test_acceptance_is_near_the_optimum(pair: int) -> None:
    """Between (1 - TV) / (1 + TV) and 1 - TV, as arXiv:2408.07978 has it."""
    own = random_model(10 + pair)[0]
    other = (own + (pair + 1) * 0.25 * random_model(30 + pair)[0]).double()
    own = own.double()
    distance = float((own.softmax(-1) - other.softmax(-1)).abs().sum() / 2)
    first = noise()[:, :1]
    accepted = float((draw((own,), first) == draw((other,), first)).double().mean())
    error = 4 * (0.25 / NUM_SEEDS) ** 0.5
    assert 0.01 < distance < 0.8
    assert (1 - distance) / (1 + distance) - error < accepted < 1 - distance + error


def biased_at_first(option: str) -> Tensor:
    """Two percent of the first token's mass goes to another one."""
    first, *rest = reference_scores(TARGET, OPTIONS[option])
    return draw((_moved(first), *rest), noise()[:, :3])


def biased_at_third(option: str) -> Tensor:
    """Two percent of the third token's mass, after every prefix."""
    first, second, third, _ = reference_scores(TARGET, OPTIONS[option])
    return draw((first, second, _moved(third)), noise()[:, :3])


def _moved(scores: Tensor) -> Tensor:
    probs = scores.softmax(-1)
    order = probs.argsort(-1)
    probs.scatter_add_(-1, order[:, -1:], torch.full_like(probs[:, :1], -BIAS))
    probs.scatter_add_(-1, order[:, -2:-1], torch.full_like(probs[:, :1], BIAS))
    return probs.log()


def biased_all_over(option: str) -> Tensor:
    """The hardest to see: half of the mass is scaled up, half down."""
    probs = target_probs(option)
    order = probs.argsort(descending=True)
    is_up = torch.zeros(len(probs), dtype=torch.bool)
    is_up[order[::2]] = True
    mass = float(probs[is_up].sum())
    biased = torch.where(is_up, probs * (1 + BIAS / mass), probs * (1 - BIAS / (1 - mass)))
    assert float((biased - probs).abs().sum() / 2) == pytest.approx(BIAS)
    third = biased.reshape(-1, VOCAB)
    second = third.sum(-1).reshape(-1, VOCAB)
    return draw((second.sum(-1)[None].log(), second.log(), third.log()), noise()[:, :3])


def noise_reused_across_positions(option: str) -> Tensor:
    return draw(target_scores(option), noise()[:, :1].expand(-1, 3, -1))


def noise_reused_across_seeds(option: str) -> Tensor:
    return draw(target_scores(option), noise()[: NUM_SEEDS // 4, :3].repeat(4, 1, 1))


def correction_drawn_anew(option: str) -> Tensor:
    """Unequal tokens are replaced by a fresh draw instead of the target's own: the mistake of
    mixing equality with rejection sampling.
    """
    draft_scores = product_scores(DRAFT, OPTIONS[option])
    row, tokens = torch.zeros(NUM_SEEDS, dtype=torch.int64), []
    fresh = noise().roll(1, 0)
    for position in range(3):
        here = noise()[:, position : position + 1]
        drafted = draw(draft_scores, here, row, position)
        own = judge(target_scores(option), here, drafted, row, position)
        anew = judge(target_scores(option), fresh[:, position : position + 1], own, row, position)
        tokens.append(torch.where(drafted == own, own, anew)[:, 0])
        row = row * VOCAB + tokens[-1]
    return torch.stack(tokens, 1)


def unverified(option: str) -> Tensor:
    """The draft's own tokens."""
    return draw(product_scores(DRAFT, OPTIONS[option]), noise()[:, :3])


PLANTED: list[Callable[[str], Tensor]] = [
    *[biased_at_first, biased_at_third, biased_all_over],
    *[noise_reused_across_positions, noise_reused_across_seeds],
    *[correction_drawn_anew, unverified],
]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("planted", PLANTED)
def test_planted_defects_are_seen(option: str, planted: Callable[[str], Tensor]) -> None:
    assert p_value(planted(option), option) < ALPHA


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "plain"])
def test_an_option_that_does_nothing_is_seen(option: str) -> None:
    assert p_value(direct("plain"), option) < ALPHA


@pytest.mark.parametrize("option", ["frequency", "presence", "repetition", "combination"])
def test_penalties_that_do_not_count_the_proposal_are_seen(option: str) -> None:
    stale = product_scores(TARGET, OPTIONS[option], num_counted=0)[2]
    tokens = draw((*target_scores(option)[:2], stale), noise()[:, :3])
    assert p_value(tokens, option) < ALPHA


def ratio_rule(probs: Tensor, draft_probs: Tensor, draft_tokens: Tensor) -> Tensor:
    """Rejection sampling: keep with probability p/q, else draw from what q lacks."""
    generator = torch.Generator().manual_seed(0)
    kept = (
        torch.rand(len(draft_tokens), generator=generator, dtype=torch.float64)
        < ((probs / draft_probs)[draft_tokens])
    )
    residual = (probs - draft_probs).clamp(min=0)
    other = torch.multinomial(residual, len(draft_tokens), replacement=True, generator=generator)
    return torch.where(kept, draft_tokens, other)


def test_the_ratio_rule_with_argmax_draft_tokens_is_seen() -> None:
    """The scheme of the paper's own code: (.6, .4) drafted by (.7, .3) becomes (.857, .143)."""
    probs = torch.tensor([0.6, 0.4], dtype=torch.float64)
    draft_probs = torch.tensor([0.7, 0.3], dtype=torch.float64)
    most_probable = torch.zeros(NUM_SEEDS, dtype=torch.int64)
    wrong = torch.bincount(ratio_rule(probs, draft_probs, most_probable))
    assert (wrong / NUM_SEEDS).tolist() == pytest.approx([6 / 7, 1 / 7], abs=0.005)
    assert g_test(wrong, torch.tensor([6 / 7, 1 / 7], dtype=torch.float64)) > ALPHA
    assert g_test(wrong, probs) < ALPHA

    generator = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(draft_probs, NUM_SEEDS, replacement=True, generator=generator)
    assert g_test(torch.bincount(ratio_rule(probs, draft_probs, drawn)), probs) > ALPHA

    two = noise()[:, :1, :2]
    own = draw((probs.log()[None],), two)
    proposal = draw((draft_probs.log()[None],), two)
    assert g_test(torch.bincount(own[:, 0]), probs) > ALPHA
    assert 0.8 < float((proposal == own).double().mean()) < 0.91
