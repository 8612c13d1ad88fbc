import pytest
import torch

from s2d_serve.training.objective import exit_loss, num_agreeing, ridge
from s2d_serve.training.rows import Row
from s2d_serve.training.targets import NOT_DRAFTABLE, frequent_ids, learned_tokens

ROWS = [
    Row((1, 5, 7, 9), 2, "a", (((7, -0.2), (3, -2.0)), ((9, -0.1), (4, -3.0)))),
    Row((2, 7, 7), 1, "b"),
]


def test_the_most_frequent_ids_are_kept_and_ends_always() -> None:
    assert frequent_ids(ROWS, 3, 12, frozenset({11})) == [7, 9, 11]
    assert frequent_ids(ROWS, 6, 12, frozenset()) == [0, 1, 3, 4, 7, 9]  # ties: lower ids first
    assert frequent_ids(ROWS, None, 12, frozenset()) is None
    assert frequent_ids(ROWS, 12, 12, frozenset()) is None


def test_learned_tokens_are_laid_out_over_the_drafts_vocabulary() -> None:
    tokens = learned_tokens(ROWS, [3, 7, 9], 12)
    assert tokens.offsets == (0, 2, 4)
    assert tokens.labels.tolist() == [1, 2, 1, 1]
    assert tokens.top_ids.tolist() == [[1, 0], [2, 0], [0, 0], [0, 0]]
    probs = torch.tensor([-0.2, -2.0, -0.1]).exp()
    assert torch.allclose(tokens.top_probs[0], probs[:2])
    assert torch.allclose(tokens.top_probs[1], torch.tensor([float(probs[2]), 0.0]))  # 4 is cut
    assert tokens.top_probs[2:].sum() == 0
    assert learned_tokens(ROWS, [3], 12).labels.tolist() == [NOT_DRAFTABLE] * 4


def test_the_loss_mixes_text_and_teacher() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    logprobs = logits.log_softmax(-1)
    labels = torch.tensor([2, NOT_DRAFTABLE, 1])
    top_ids = torch.tensor([[2, 0], [3, 0], [0, 0]])
    top_probs = torch.tensor([[0.6, 0.3], [0.5, 0.0], [0.0, 0.0]])
    by_hand = (
        -0.75 * logprobs[0, 2]
        - 0.25 * (0.6 * logprobs[0, 2] + 0.3 * logprobs[0, 0])
        - 0.25 * 0.5 * logprobs[1, 3]
        - logprobs[2, 1]
    ) / 3
    assert exit_loss(logits, labels, top_ids, top_probs, 0.25) == pytest.approx(by_hand.item())
    none = torch.zeros(3, 0)
    text_only = -(logprobs[0, 2] + logprobs[2, 1]) / 2
    assert exit_loss(logits, labels, none.long(), none, 0.25) == pytest.approx(text_only.item())
    assert num_agreeing(logits, logits.argmax(-1)) == 3
    assert num_agreeing(logits, torch.full((3,), NOT_DRAFTABLE)) == 0


def test_ridge_finds_the_affine_map() -> None:
    drawn = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(5, 8, generator=drawn), torch.randn(5, generator=drawn)
    inputs = torch.randn(400, 8, generator=drawn)
    found = ridge(inputs, inputs @ weight.T + bias, strength=1e-6)
    assert torch.allclose(found[0], weight, atol=1e-3)
    assert torch.allclose(found[1], bias, atol=1e-3)
    weaker = ridge(inputs, inputs @ weight.T + bias, strength=1.0)
    assert weaker[0].norm() < weight.norm()
