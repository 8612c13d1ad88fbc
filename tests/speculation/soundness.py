"""Tests of fit whose power is known."""

import torch
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no types
from torch import Tensor

LEAST_EXPECTED = 10.0
"""Cells that expect fewer are counted as one: below, the statistic is no longer chi-square."""


def g_test(counts: Tensor, probs: Tensor) -> float:
    """p-value of these counts under these probabilities; 0 if the impossible was seen.

    Args:
        counts: [C] int64.
        probs: [C] float64, their sum is 1.
    """
    if bool((counts[probs == 0.0] > 0).any()):
        return 0.0
    observed, expected = _pooled(counts.double(), probs * counts.sum())
    ratio = torch.where(observed > 0, observed / expected, 1.0)
    statistic = float(2.0 * (observed * ratio.log()).sum())
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def power(probs: Tensor, num_samples: int, total_variation: float, alpha: float) -> float:
    """Chance, at least, that `g_test` finds a p-value below `alpha` when the samples are this far
    from `probs`.

    Of all distributions at a total variation d, chi-square sees the one worst that scales half of
    the mass up and half down: its distance is 4 d^2. Pooled cells may hide as much as they weigh.
    """
    _, expected = _pooled(torch.zeros_like(probs), probs * num_samples)
    is_rare = (probs > 0) & (probs * num_samples < LEAST_EXPECTED)
    seen = total_variation - float(probs[is_rare].sum())
    freedom = len(expected) - 1
    limit = stats.chi2.isf(alpha, freedom)
    return float(stats.ncx2.sf(limit, freedom, num_samples * 4.0 * seen**2))


def chi_square(counts: Tensor) -> float:
    """p-value of independent tables of counts, each expected to be flat: [tables, C] int64."""
    expected = counts.sum(-1, keepdim=True) / counts.shape[-1]
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return float(stats.chi2.sf(statistic, counts.numel() - counts.shape[0]))


def z_test(values: Tensor) -> float:
    """p-value of values that should be independent standard normals."""
    return float(stats.chi2.sf(float((values**2).sum()), values.numel()))


def gumbel_test(noise: Tensor) -> float:
    """p-value of a Kolmogorov-Smirnov test against the standard Gumbel distribution."""
    return float(stats.kstest(noise.numpy(), "gumbel_r").pvalue)


def _pooled(observed: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    is_rare = expected < LEAST_EXPECTED
    rare = expected[is_rare].sum(0, keepdim=True)
    if float(rare) == 0.0:
        return observed[~is_rare], expected[~is_rare]
    return (
        torch.cat([observed[~is_rare], observed[is_rare].sum(0, keepdim=True)]),
        torch.cat([expected[~is_rare], rare]),
    )
