"""The loss of one exit, and how often a target would accept its token."""

import torch
from torch import Tensor

from s2d_serve.training.targets import NOT_DRAFTABLE


def exit_loss(
    logits: Tensor, labels: Tensor, top_ids: Tensor, top_probs: Tensor, teacher_weight: float
) -> Tensor:
    """Mean cross-entropy against a mix of the text's token and the target's probabilities.

    A token that cannot be drafted asks for nothing; where no target was asked, the text's token
    counts alone.

    Args:
        logits: [n, V] over the draft's vocabulary.
        labels: [n]; top_ids, top_probs: [n, k], as in `LearnedTokens`.

    Source: the mean over exits of such losses is SoFT (Sorted LLaMA, arXiv:2309.08968).
    """
    logprobs = logits.float().log_softmax(-1)
    can_be_drafted = labels != NOT_DRAFTABLE
    text_loss = -logprobs.gather(1, labels.clamp_min(0)[:, None])[:, 0] * can_be_drafted
    if top_probs.shape[1] == 0:
        return text_loss.sum() / can_be_drafted.sum().clamp_min(1)
    teacher_loss = -(logprobs.gather(1, top_ids) * top_probs).sum(1)
    weight = teacher_weight * (top_probs.sum(1) > 0)
    mixed = (1 - weight) * text_loss + weight * teacher_loss
    return mixed.sum() / (can_be_drafted | (weight > 0)).sum().clamp_min(1)


def num_agreeing(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the exit's likeliest tokens are the text's own: [] int64."""
    agreeing: Tensor = (logits.argmax(-1) == labels).sum()
    return agreeing


def ridge(inputs: Tensor, outputs: Tensor, strength: float = 1e-2) -> tuple[Tensor, Tensor]:
    """The affine map from inputs [n, in] to outputs [n, out] with the least squared error.

    `strength`: penalty on the weights, as a share of the inputs' mean square.

    Returns: weight [out, in] and bias [out].
    """
    means = inputs.mean(0), outputs.mean(0)
    centred, wanted = inputs - means[0], outputs - means[1]
    gram = centred.T @ centred
    gram.diagonal().add_(strength * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, centred.T @ wanted).T.contiguous()
    return weight, means[1] - weight @ means[0]
