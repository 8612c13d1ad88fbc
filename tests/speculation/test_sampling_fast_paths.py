"""Work that is skipped changes nothing: the fast paths of sampling equal the full computation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from s2d_serve.speculation import sampling
from s2d_serve.speculation.noise import MAX_NOISE, gumbel_noise
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.sampling import _argmax_with_noise, _nucleus, sample
from tests.speculation.examples import fixed_examples
from tests.speculation.slow_noise import id_with_bits

SHAPES = ["flat", "narrow", "wide", "huge", "steps", "peaked", "two peaks", "holes", "bands"]


def logits_of(shape: str, vocab_size: int, seed: int) -> Tensor:
    """[V] float32: the shapes that a shortcut could stumble over."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(vocab_size, generator=generator)
    chosen = torch.randint(vocab_size, (3,), generator=generator)
    if shape == "flat":
        return torch.full_like(normal, 7.0)
    if shape == "steps":  # few values, so that large groups tie
        return normal.round()
    if shape == "peaked":
        return normal.index_fill(0, chosen[:1], 60.0)
    if shape == "two peaks":
        return normal.index_fill(0, chosen[:1], 30.0).index_fill(0, chosen[1:2], 30.0 - 1e-3)
    if shape == "holes":
        return normal.masked_fill(torch.rand(vocab_size, generator=generator) < 0.9, -torch.inf)
    if shape == "bands":  # tokens just inside and just outside of the bound below the best
        distance = MAX_NOISE + 10.0 * normal
        return (-distance).index_fill(0, chosen[:1], 0.0)
    return normal * {"narrow": 1e-3, "wide": 5.0, "huge": 1e4}[shape]


def full_argmax(ids: Tensor, scores: Tensor, seed: int, position: int) -> int:
    """Noise for every token, and the smallest id of the best."""
    noisy = scores + gumbel_noise(seed, position, ids)
    return int(ids[noisy == noisy.max()].min())


def full_nucleus(scores: Tensor, top_p: float) -> list[int]:
    """Everything sorted."""
    order = torch.sort(scores, descending=True, stable=True).indices
    log_probs = scores.double() - scores.double().logsumexp(0)
    num_below = int((log_probs[order].exp().cumsum(0) < top_p).sum())
    return [int(i) for i in order[: num_below + 1]]


@settings(fixed_examples, max_examples=150)
@given(
    st.sampled_from(SHAPES),
    st.integers(2, 2000) | st.sampled_from([127, 128, 129, 130]),
    st.integers(0, 2**32),
)
def test_pruning_changes_no_token(shape: str, vocab_size: int, seed: int) -> None:
    scores = logits_of(shape, vocab_size, seed).double()
    scores[0] = max(float(scores[0]), -50.0)
    everything = torch.arange(vocab_size)
    for position in range(4):
        expected = full_argmax(everything, scores, seed, position)
        assert _argmax_with_noise(None, scores, seed, position) == expected
        assert _argmax_with_noise(everything.flip(0), scores.flip(0), seed, position) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_pruning_changes_no_token_of_a_large_vocabulary(shape: str) -> None:
    scores = logits_of(shape, 200_000, seed=1).double()
    scores[0] = max(float(scores[0]), -50.0)
    expected = full_argmax(torch.arange(200_000), scores, 5, 1)
    assert _argmax_with_noise(None, scores, 5, 1) == expected


@fixed_examples
@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.integers(130, 400))
def test_the_luckiest_token_wins_from_just_inside_the_bound(
    seed: int, position: int, vocab_size: int
) -> None:
    """A token with the largest noise there is, as far below the others' best as it can win from."""
    lucky = id_with_bits(seed, position, 0)
    ids = torch.cat([torch.arange(vocab_size - 1), torch.tensor([lucky])])
    scores = torch.zeros(vocab_size, dtype=torch.float64)
    best = float(gumbel_noise(seed, position, ids[:-1]).max())
    for gap, wins in ((-1e-6, True), (1e-6, False)):
        scores[-1] = best - MAX_NOISE - gap
        token = _argmax_with_noise(ids, scores, seed, position)
        assert token == full_argmax(ids, scores, seed, position)
        assert (token == lucky) == wins


def test_ties_go_to_the_smallest_id() -> None:
    num_ties = 0
    for position in range(200):
        first, second = gumbel_noise(3, position, torch.tensor([4, 7])).tolist()
        ids = torch.tensor([7, 4])
        scores = torch.tensor([first - second, 0.0], dtype=torch.float64)
        if scores[0] + second == first:
            num_ties += 1
            assert _argmax_with_noise(ids, scores, 3, position) == 4
            assert _argmax_with_noise(ids.flip(0), scores.flip(0), 3, position) == 4
    assert num_ties > 50


def test_noise_of_hopeless_tokens_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    num_hashed = []

    def counting(seed: int, position: int, token_ids: Tensor) -> Tensor:
        num_hashed.append(token_ids.numel())
        return gumbel_noise(seed, position, token_ids)

    monkeypatch.setattr(sampling, "gumbel_noise", counting)
    for shape, limit in (("peaked", 200), ("two peaks", 200), ("flat", 32_100)):
        num_hashed.clear()
        sample(logits_of(shape, 32_000, 1), SamplingParams(seed=2), 0, None)
        assert sum(num_hashed) <= limit, shape
    num_hashed.clear()
    sample(logits_of("flat", 32_000, 1), SamplingParams(top_p=0.01), 0, None)
    assert 320 <= sum(num_hashed) <= 500


@settings(fixed_examples, max_examples=100)
@given(
    st.sampled_from(SHAPES),
    st.integers(1, 40) | st.integers(1000, 1100) | st.integers(1025, 6000),
    st.integers(0, 2**32),
    st.floats(0.001, 0.9999),
)
def test_the_nucleus_is_that_of_a_full_sort(
    shape: str, vocab_size: int, seed: int, top_p: float
) -> None:
    scores = logits_of(shape, vocab_size, seed)
    scores[0] = max(float(scores[0]), -50.0)
    assert _nucleus(scores, top_p).tolist() == full_nucleus(scores, top_p)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("top_p", [0.05, 0.99])
def test_the_nucleus_of_a_large_vocabulary(shape: str, top_p: float) -> None:
    scores = logits_of(shape, 40_000, seed=1)
    scores[0] = max(float(scores[0]), -50.0)
    assert _nucleus(scores, top_p).tolist() == full_nucleus(scores, top_p)


@pytest.mark.parametrize("num_leading", [1000, 1023, 1024, 1025, 1500])
def test_equal_scores_at_the_edge_of_the_sorted_leaders(num_leading: int) -> None:
    """The group that straddles the 1024th place is taken in order of ids, or not at all."""
    scores = torch.full((5000,), -3.0)
    scores[torch.arange(num_leading) * 3 % 5000] = 2.0
    scores[4999] = 2.5
    for top_p in (0.01, 0.5, 0.9, 0.95, 0.99, 0.9999):
        assert _nucleus(scores, top_p).tolist() == full_nucleus(scores, top_p)
