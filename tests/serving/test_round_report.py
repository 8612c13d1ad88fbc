"""What a lane tells of its rounds, over executors that say what they are told to."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from s2d_serve.config import RouterConfig
from s2d_serve.engine.messages import Outcome, StepResult
from s2d_serve.observability.exposition import Samples
from s2d_serve.observability.meter import Meter
from s2d_serve.observability.table import FALLBACKS
from s2d_serve.observability.tracing import Trace, Tracing
from s2d_serve.serving.lanes import Lane, LaneEnds
from s2d_serve.serving.live_sequence import LiveSequence
from s2d_serve.serving.messages import DraftState, VerifyCall, VerifyReply
from s2d_serve.speculation.params import SamplingParams
from tests.serving.scraped import total

PASS_S = 0.02
DRAFT_S = 0.01
STARTED_S = 1_700_000_000.0


class Scripted:
    """A target that commits a token per round and reports these draft states in turn."""

    def __init__(self, states: Sequence[DraftState]) -> None:
        self._states = list(states)
        self._length = 3
        self.verify = SimpleNamespace(remote=self._verify)
        self.propose = SimpleNamespace(remote=lambda *_: None)
        self.status = SimpleNamespace(remote=asyncio.Event().wait)

    async def _verify(self, call: VerifyCall, proposals: list[Any]) -> VerifyReply:
        await asyncio.sleep(PASS_S + DRAFT_S)
        state = self._states.pop(0)
        finish_reason = None if self._states else "length"
        outcome = Outcome(self._length, (7,), finish_reason=finish_reason)  # type: ignore[arg-type]
        self._length += 1
        results = (StepResult({call.sequences[0].sequence_id: outcome}, 5, PASS_S),)
        rest_rounds = 1 if state == "ok" and self._states[:1] == ["none"] else 0
        return VerifyReply(
            results, (), state, (), rest_rounds, DRAFT_S, STARTED_S - DRAFT_S, STARTED_S
        )


async def rounds(
    states: Sequence[DraftState],
    has_draft: bool = True,
    max_draft_tokens: int = 4,
    trace: Trace | None = None,
) -> Samples:
    """Run one sequence through a lane: what was counted."""
    meter, scripted = Meter(), Scripted(states)
    draft = scripted if has_draft else None
    ends = LaneEnds("tiny", scripted, draft, 1, RouterConfig(), meter.of("tiny"))
    sequence = LiveSequence(
        "s", [1, 2, 3], 3, SamplingParams(), 99, None, max_draft_tokens, trace=trace
    )
    lane = Lane("lane", ends)
    lane.add(sequence)
    for _ in states:
        await asyncio.wait_for(sequence.outcomes.get(), 5)
    return meter.samples()


@pytest.mark.parametrize(
    ("states", "has_draft", "max_draft_tokens", "expected"),
    [
        (["none", "ok", "ok", "ok"], True, 4, {}),
        (["none", "ok", "late", "none"], True, 4, {"late": 1, "lost": 1}),
        (["none", "dead", "none", "none"], True, 4, {"dead": 1, "lost": 2}),
        (["none", "none", "none"], False, 4, {"absent": 2}),
        (["none", "none"], False, 0, {}),
    ],
)
async def test_rounds_without_the_draft_are_counted_by_reason(
    states: list[DraftState], has_draft: bool, max_draft_tokens: int, expected: dict[str, int]
) -> None:
    """None where the sequence may not use it, and none in the first, which reads the prompt."""
    samples = await rounds(states, has_draft, max_draft_tokens)
    found = {r: total(samples, "s2d:draft_fallback_total", reason=r) for r in FALLBACKS}
    assert {reason: number for reason, number in found.items() if number} == expected


async def test_times_of_rounds_add_up_to_the_time_that_passed() -> None:
    """Though each is sent off before the last one is read."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    samples = await rounds(["ok"] * 10)
    passed = loop.time() - started
    assert total(samples, "s2d:round_seconds_count") == 10
    assert total(samples, "s2d:draft_seconds_sum") == pytest.approx(10 * DRAFT_S)
    assert total(samples, "s2d:verify_seconds_sum") == pytest.approx(10 * PASS_S)
    assert total(samples, "s2d:verify_batch_tokens_sum") == 50
    assert 0.5 * passed < total(samples, "s2d:round_seconds_sum") <= passed


async def test_a_round_is_a_span_with_the_work_of_draft_and_target_in_it() -> None:
    """Times by the clocks of those that worked; without a draft no span of it."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(1.0, "", exporter)
    trace = tracing.begin({}, "id")
    assert trace is not None
    await rounds(["ok", "late"], trace=trace)
    trace.end({})
    tracing.flush()
    spans = exporter.get_finished_spans()
    names = [span.name for span in spans]
    assert sorted(names) == ["propose", "request", "round", "round", "verify", "verify"]
    by_id = {span.context.span_id: span for span in spans if span.context}
    for span in spans:
        parent = by_id[span.parent.span_id].name if span.parent else None
        expected = {"request": None, "round": "request", "propose": "round", "verify": "round"}
        assert parent == expected[span.name]
        assert span.start_time is not None
        assert span.end_time is not None
        if span.name == "propose":
            assert span.start_time == int((STARTED_S - DRAFT_S) * 1e9)
            assert (span.end_time - span.start_time) / 1e9 == pytest.approx(DRAFT_S)
        if span.name == "verify":
            assert (span.end_time - span.start_time) / 1e9 == pytest.approx(PASS_S)
    services = {span.name: span.resource.attributes["service.name"] for span in spans}
    assert services["propose"] == "s2d-draft"
    assert services["verify"] == "s2d-target"
