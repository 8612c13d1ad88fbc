"""Executors in this process: what asking them how they are leaves behind."""

import asyncio
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from s2d_serve.config import AppConfig
from s2d_serve.engine.messages import Draft, DraftRequest, Outcome, SequenceStart, StepResult
from s2d_serve.serving import target_executor
from s2d_serve.serving.draft_executor import DraftExecutor
from s2d_serve.serving.messages import (
    DraftCall,
    DraftReply,
    SequenceRef,
    VerifyCall,
    VerifyReply,
)
from s2d_serve.serving.target_executor import TargetExecutor
from s2d_serve.speculation.account import START_ROUNDS
from s2d_serve.speculation.params import SamplingParams


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


async def test_a_round_sent_ahead_may_arrive_first(target: TargetExecutor) -> None:
    """Ray starts calls in any order; its draft is asked once the round before it is over."""
    await target.load()
    start = SequenceStart("a", 0, (1, 2, 3), 3, SamplingParams(temperature=0.0), 30)
    ref = (SequenceRef("a", 0),)
    asked: asyncio.Future[DraftReply] = asyncio.get_running_loop().create_future()
    ahead = asyncio.create_task(target.verify(VerifyCall("lane", 2, (), ref, 1, 5.0, 0), [asked]))
    await asyncio.sleep(0.05)
    reply = await asyncio.wait_for(
        target.verify(VerifyCall("lane", 1, (start,), ref, 1, 5.0, 0), []), 4.0
    )
    asked.set_result(DraftReply(Draft({}), (), 0.0))
    assert reply.results[0].outcomes["a"].base_length == 3
    assert (await ahead).draft_state == "ok"
    assert (await ahead).results[0].outcomes["a"].base_length == 4


async def test_tokens_decoded_in_one_call_come_soon(
    target: TargetExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several passes save the way to the router, as long as nobody waits to read them."""
    await target.load()
    start = SequenceStart("a", 0, (1, 2, 3), 3, SamplingParams(temperature=0.0), 30)
    ref = (SequenceRef("a", 0),)
    await target.verify(VerifyCall("lane", 1, (start,), ref, 1, 0.0, 0), [])
    for number, seconds, num_passes in ((2, 100.0, 4), (3, 0.0, 1)):
        monkeypatch.setattr(target_executor, "MAX_DECODE_S", seconds)
        reply = await target.verify(VerifyCall("lane", number, (), ref, 4, 0.0, 0), [])
        assert len(reply.results) == num_passes


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


async def test_waiting_for_the_cores_is_told_apart_from_the_round(
    target: TargetExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_s = 0.1
    await target.load()

    class Busy(nullcontext[None]):
        def __enter__(self) -> None:
            time.sleep(wait_s)

    monkeypatch.setattr(target._batcher, "_cores", Busy())
    start = SequenceStart("waits", 0, (1, 2), 2, SamplingParams(temperature=0.0), 9)
    refs = (SequenceRef("waits", 0),)
    for number, num_passes in ((1, 1), (2, 3)):
        started = time.perf_counter()
        reply = await target.verify(VerifyCall("waiting", number, (start,), refs, 3, 1.0, 0), [])
        took_s = time.perf_counter() - started
        assert len(reply.results) == num_passes
        passes_s = sum(result.seconds for result in reply.results)
        assert num_passes * wait_s <= reply.waited_s <= took_s - passes_s
    await target.leave("waits")


@pytest.mark.parametrize("waited_s", [0.0, 0.15])
async def test_a_round_with_proposals_is_booked_by_the_clock(
    config: AppConfig, waited_s: float
) -> None:
    """From asking to the outcomes, whoever took the time; but waiting for others is no cost of it.
    The next round is another one.
    """
    assert config.draft is not None
    draft = DraftExecutor(config.draft, {"tiny": config.targets["tiny"].speculation})
    await draft.load()
    lengths = draft._drafter.pairings["tiny"].lengths
    assert 0 < lengths.reading_s(1) < 1
    assert set(lengths.draft_step_s.seconds) == {1, 2, 4, 8, 16}
    away_s, pass_s = 0.3, 0.1
    lengths.record_alone(1, pass_s)
    lengths.verify_s.record(1, pass_s)
    lengths.record_overhead(60.0)  # one alone says nothing
    start = SequenceStart("a", 0, (1, 2, 3), 3, SamplingParams(temperature=0.0), 30)
    call = DraftCall("lane", 1, (start,), DraftRequest("tiny", {"a": 9}))
    reply = await draft.propose(call, [])
    proposal = reply.draft.proposals["a"]
    assert len(proposal.token_ids) > 1
    await asyncio.sleep(away_s)
    outcome = Outcome(3, (*proposal.token_ids, 7), len(proposal.token_ids), proposal.exits)
    result = StepResult({"a": outcome}, 1 + len(proposal.exits), pass_s)
    verified = VerifyReply((result,), waited_s=waited_s)
    await draft.receive("lane", 1, verified)
    nothing: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    before = time.perf_counter()
    await draft.propose(replace(call, round=2, joins=()), [nothing])
    took_s = time.perf_counter() - before
    account = lengths.accounts[1]
    away_s -= waited_s
    saved_s = len(outcome.token_ids) * pass_s - away_s
    saved_before_s = START_ROUNDS * pass_s
    booked_s = account.balance_s - saved_before_s
    assert saved_s - reply.seconds - took_s - 0.1 < booked_s <= saved_s
    assert away_s - pass_s - 0.01 < lengths.overhead_s < away_s - pass_s + took_s + 0.1
