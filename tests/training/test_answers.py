from collections.abc import Callable

import torch

from s2d_serve.engine.checkpoint import Checkpoint
from s2d_serve.training.rows import Row
from tests.training.conftest import PROMPTS


def test_answers_are_what_the_target_says(rows: list[Row], base: Callable[[], Checkpoint]) -> None:
    """Greedy tokens, each with the likeliest ids; more prompts than slots."""
    assert [row.key for row in rows] == [f"{i:02}" for i in range(len(PROMPTS))]
    model = base().model
    for row in rows:
        logits = model(torch.tensor([row.token_ids])).logits[0, row.num_prompt_tokens - 1 : -1]
        learned = list(row.token_ids[row.num_prompt_tokens :])
        assert learned == logits.argmax(-1).tolist()
        assert [entry[0][0] for entry in row.top] == learned
        expected = logits.log_softmax(-1).topk(3).values
        found = torch.tensor([[logprob for _, logprob in entry] for entry in row.top])
        assert torch.allclose(found, expected, atol=1e-3)
