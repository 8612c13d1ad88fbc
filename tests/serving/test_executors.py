"""Executors in this process: what asking them how they are leaves behind."""

import asyncio
from typing import Any

import pytest

from s2d_serve.config import AppConfig
from s2d_serve.serving.draft_executor import DraftExecutor
from s2d_serve.serving.target_executor import TargetExecutor


@pytest.fixture
def config(tiny_args: dict[str, Any]) -> AppConfig:
    return AppConfig.model_validate(tiny_args)


@pytest.fixture
def target(config: AppConfig) -> TargetExecutor:
    return TargetExecutor("tiny", config.targets["tiny"])


async def test_a_target_that_loads_answers_when_it_has_and_keeps_no_slot(
    target: TargetExecutor,
) -> None:
    early = [asyncio.create_task(target.status()) for _ in range(2)]
    await asyncio.wait(early, timeout=0.2)
    assert not any(task.done() for task in early)
    await target.load()
    await asyncio.gather(*early)
    assert (await target.status()).num_sequences == 0


def fail(*_: object) -> None:
    raise RuntimeError("no memory")


async def test_a_failed_self_test_keeps_no_slot(
    target: TargetExecutor, config: AppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.draft is not None
    pairs = {"tiny": config.targets["tiny"].speculation}
    draft = DraftExecutor(config.draft, pairs)
    for executor, model, step in (
        (target, lambda: target._model, "step"),
        (draft, lambda: draft._drafter.draft, "propose"),
    ):
        await executor.load()
        executor._last_decode = 0.0
        with monkeypatch.context() as patch:
            patch.setattr(model(), step, fail)
            with pytest.raises(RuntimeError, match="no memory"):
                await executor.status()
        assert (await executor.status()).num_sequences == 0
