"""A tiny base and rows that it wrote itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s2d_serve.config import ModelConfig, TargetConfig
from s2d_serve.engine.assemble import load_target
from s2d_serve.engine.checkpoint import Checkpoint, load_checkpoint
from s2d_serve.training.answers import AnswerOptions, answer
from s2d_serve.training.rows import Row
from tests.engine.tiny import nested_model, save_tiny

PROMPTS = tuple(f"{word} {i}" for i in range(12) for word in ("the", "stop", "thing", "é"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers; the last two add little."""
    model = nested_model("llama", seed=3, exit_layer=2, agreement_scale=0.5, num_layers=4)
    return save_tiny(tmp_path_factory.mktemp("base"), model)


@pytest.fixture(scope="session")
def rows(folder: Path) -> list[Row]:
    return own_answers(folder)


def own_answers(folder: Path) -> list[Row]:
    """A model's answer to each prompt, with the three likeliest ids at each position."""
    config = TargetConfig(
        source=str(folder), dtype="float32", num_threads=1, max_context=96, max_sequences=12
    )
    before = torch.get_num_threads()
    target, checkpoint = load_target(config)
    prompts = [(f"{i:02}", prompt) for i, prompt in enumerate(PROMPTS)]
    found = sorted(answer(target, checkpoint, prompts, AnswerOptions(48, 3)), key=lambda r: r.key)
    torch.set_num_threads(before)
    return found


@pytest.fixture
def base(folder: Path) -> Callable[[], Checkpoint]:
    """Loads the base anew: training changes it in place."""
    return lambda: load_checkpoint(ModelConfig(source=str(folder), dtype="float32"))
