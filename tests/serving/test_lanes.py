"""Rounds between real executors: the reference loop's text, whatever a draft says."""

import asyncio
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from s2d_serve.config import AppConfig, RouterConfig, TargetConfig
from s2d_serve.engine.assemble import load_target
from s2d_serve.engine.messages import Draft, Outcome, Proposal, SequenceStart, StepResult
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.observability.meter import Meter
from s2d_serve.serving.draft_executor import DraftExecutor
from s2d_serve.serving.lanes import MIN_WIRE_SHARE, Lane, LaneEnds
from s2d_serve.serving.live_sequence import LiveSequence
from s2d_serve.serving.messages import (
    DraftCall,
    DraftReply,
    DraftState,
    SequenceRef,
    VerifyCall,
    VerifyReply,
)
from s2d_serve.serving.target_executor import TargetExecutor
from s2d_serve.speculation.params import SamplingParams

pytestmark = pytest.mark.ray

PROMPTS = [(5, 9, 11), (1, 2, 3, 4) * 30, (100, 7)]
MAX_TOKENS = 60


def starts() -> list[SequenceStart]:
    """Three sequences with different parameters."""
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.9, seed=3),
        SamplingParams(temperature=0.7, seed=4, repetition_penalty=1.2, top_p=0.9),
    ]
    return [
        SequenceStart(f"s{i}", 0, prompt, len(prompt), param, MAX_TOKENS, 1)
        for i, (prompt, param) in enumerate(zip(PROMPTS, params, strict=True))
    ]


@dataclass
class Bench:
    """Executors, and the texts that the target gives alone."""

    config: AppConfig
    target: Any
    draft: Any
    expected: dict[str, list[int]]


@pytest.fixture(scope="module")
def bench(base_url: str, tiny_args: dict[str, Any]) -> Iterator[Bench]:
    """One target and one draft executor."""
    config = AppConfig.model_validate(tiny_args)
    target_config = config.targets["tiny"]
    pairs = {"tiny": target_config.speculation}
    several = {"max_concurrency": 100}
    target: Any = ray.remote(TargetExecutor).options(**several).remote("tiny", target_config)
    draft: Any = ray.remote(DraftExecutor).options(**several).remote(config.draft, pairs)
    ray.get([target.load.remote(), draft.load.remote()])
    yield Bench(config, target, draft, alone(target_config))
    ray.kill(target)
    ray.kill(draft)


def alone(config: TargetConfig) -> dict[str, list[int]]:
    """What the reference loop generates without a draft."""
    texts: dict[str, list[int]] = {start.sequence_id: [] for start in starts()}
    for sequence_id, outcome in ReferenceLoop(load_target(config)[0]).generate(starts()):
        texts[sequence_id] += outcome.token_ids
    return texts


async def through_lane(
    bench: Bench, draft: Any | None, tag: str
) -> tuple[dict[str, list[int]], list[Outcome]]:
    """The same sequences through a lane over these executors: texts, and all outcomes."""
    ends = LaneEnds("tiny", bench.target, draft, 4, bench.config.router, Meter().of("tiny"))
    lane = Lane(f"lane-{tag}", ends)
    live = [
        LiveSequence(
            f"{tag}-{s.sequence_id}",
            list(s.token_ids),
            s.num_prompt_tokens,
            s.params,
            s.max_tokens,
            s.num_logprobs,
            4,
        )
        for s in starts()
    ]
    for sequence in live:
        lane.add(sequence)
        await asyncio.sleep(0.01)
    outcomes: list[Outcome] = []
    for sequence in live:
        while True:
            outcome = await asyncio.wait_for(sequence.outcomes.get(), 30)
            assert isinstance(outcome, Outcome)
            outcomes.append(outcome)
            if outcome.finish_reason is not None:
                break
    texts = {
        sequence.sequence_id.removeprefix(f"{tag}-"): sequence.token_ids[
            sequence.num_prompt_tokens :
        ]
        for sequence in live
    }
    return texts, outcomes


async def test_a_lane_gives_the_reference_loops_text(bench: Bench) -> None:
    """With the draft: drafted and accepted; without: decoded several tokens a call."""
    texts, outcomes = await through_lane(bench, bench.draft, "drafted")
    assert texts == bench.expected
    assert sum(outcome.num_accepted for outcome in outcomes) > 20
    assert all(len(outcome.logprobs) == len(outcome.token_ids) for outcome in outcomes)
    assert all(
        o.draft_token_ids[: o.num_accepted] == o.token_ids[: o.num_accepted] for o in outcomes
    )
    assert all(o.times.verify_s > 0 and o.times.round_s > 0 for o in outcomes)
    assert any(o.times.draft_s > 0 for o in outcomes)
    texts, outcomes = await through_lane(bench, None, "alone")
    assert texts == bench.expected
    assert not any(outcome.exits or outcome.times.draft_s for outcome in outcomes)
    assert all(0 < o.times.round_s < 30 for o in outcomes), "a share of the call's time"


async def test_two_lanes_merge_at_one_executor(bench: Bench) -> None:
    """As two router replicas do it, one with and one without the draft, at the same time."""
    (first, _), (second, _) = await asyncio.gather(
        through_lane(bench, bench.draft, "router-a"), through_lane(bench, None, "router-b")
    )
    assert first == second == bench.expected


IDS: dict[str, tuple[int, ...]] = {
    "wrong ids": (1, 1, 1, 1),
    "out of vocabulary": (10**9, 2, 3),
    "negative": (-1, -5),
    "too many": tuple(range(200)),
    "other base": (1, 2),
    "exits missing": (1, 2, 3),
}
KINDS = [*IDS, "no reply at all", "unknown sequence", "an exception"]


class Liar:
    """Stands where a DraftExecutor would; knows each sequence's length and lies about the rest."""

    def __init__(self) -> None:
        self.kind = ""
        self.lengths: dict[str, int] = {}

    async def become(self, kind: str) -> None:
        """Lie in this way from now on."""
        self.kind = kind

    async def propose(self, call: DraftCall, refs: list[Any]) -> Any:
        """A reply that is wrong in one way."""
        for start in call.joins:
            self.lengths[start.sequence_id] = len(start.token_ids)
        for ref in refs:
            for result in (await ref).results:
                for sequence_id, outcome in result.outcomes.items():
                    self.lengths[sequence_id] = outcome.base_length + len(outcome.token_ids)
        if self.kind == "an exception":
            raise RuntimeError("a broken draft")
        if self.kind == "no reply at all":
            return "what?"
        if self.kind == "unknown sequence":
            return DraftReply(Draft({"nobody": Proposal(3, (1,), (4,))}), ("nobody",), 0.0)
        tokens = IDS[self.kind]
        exits = () if self.kind == "exits missing" else (4,) * len(tokens)
        shift = 7 if self.kind == "other base" else 0
        proposals = {
            i: Proposal(self.lengths[i] + shift, tokens, exits) for i in call.request.limits
        }
        return DraftReply(Draft(proposals), (), 0.0)

    async def status(self) -> None:
        """Alive, as a real one would say."""


@pytest.fixture(scope="module")
def liar(base_url: str) -> Iterator[Any]:
    """One lying draft for all ways to lie."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    actor: Any = ray.remote(Liar).remote()
    yield actor
    ray.kill(actor)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_lying_draft_changes_no_token(bench: Bench, liar: Any, kind: str) -> None:
    """Whatever it sends, the text is the target's own."""
    await liar.become.remote(kind)
    texts, outcomes = await through_lane(bench, liar, f"liar-{KINDS.index(kind)}")
    assert texts == bench.expected
    was_verified = any(outcome.exits for outcome in outcomes)
    assert was_verified == (kind in ("wrong ids", "too many"))


class Sleeper:
    """A draft that always would rather rest, and remembers about whom it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[set[str], bool, list[int]]] = []
        self.ended: list[int] = []

    async def propose(self, call: DraftCall, refs: list[Any]) -> DraftReply:
        """Rest for ever."""
        num_output = [len(s.token_ids) - s.num_prompt_tokens for s in call.joins]
        self.asked.append((set(call.request.limits), call.request.is_probe, num_output))
        self.ended += call.request.ended_lengths
        return DraftReply(Draft({}, rest_rounds=10_000), (), 0.0)

    async def seen(self) -> list[tuple[set[str], bool, list[int]]]:
        """The calls so far: sequences, whether they were probes, output tokens of new ones."""
        return self.asked

    async def told(self) -> list[int]:
        """Lengths of outputs that ended while it rested."""
        return self.ended


async def test_a_rest_does_not_hold_for_a_sequence_that_the_draft_has_not_weighed(
    bench: Bench,
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    sleeper: Any = ray.remote(Sleeper).remote()
    ends = LaneEnds("tiny", bench.target, sleeper, 4, bench.config.router, Meter().of("tiny"))
    lane = Lane("lane-sleeper", ends)
    for number in range(2):
        sequence = LiveSequence(
            f"sleeper-{number}", [1, 2, 3], 3, SamplingParams(temperature=0.0), 40, None, 4
        )
        lane.add(sequence)
        finish_reason = None
        while finish_reason is None:
            outcome = await asyncio.wait_for(sequence.outcomes.get(), 30)
            assert isinstance(outcome, Outcome)
            finish_reason = outcome.finish_reason
    asked, ended = await asyncio.gather(sleeper.seen.remote(), sleeper.told.remote())
    ray.kill(sleeper)
    assert ended == [40], "of the first one, which ended before the draft was asked again"
    assert not any(is_probe for _, is_probe, _ in asked), "a first token alone was no rest"
    for number in range(2):
        num_calls = sum(ids == {f"sleeper-{number}"} for ids, _, _ in asked)
        assert 1 <= num_calls <= 2, "rounds are submitted two at a time"
    assert {n for _, _, num_output in asked for n in num_output} == {1}, "once the prompt was read"


class Timed:
    """Stands for both executors: each round gives a token and takes so long, and by turns so long
    on the wire; half of that if it was sent ahead.
    """

    def __init__(self, pass_s: float, wires_s: Sequence[float]) -> None:
        self.num_ahead = 0
        self.verify = SimpleNamespace(remote=self._verify)
        self.propose = SimpleNamespace(remote=lambda call, refs: call.request)
        self._pass_s = pass_s
        self._wires_s = itertools.cycle(wires_s)
        self._under_way: list[asyncio.Task[VerifyReply]] = []

    def _verify(self, call: VerifyCall, refs: list[Any]) -> asyncio.Task[VerifyReply]:
        before = [task for task in self._under_way if not task.done()]
        round_ = asyncio.create_task(self._round(call, bool(refs), before))
        self._under_way = [*before, round_]
        self.num_ahead += bool(before)
        return round_

    async def _round(
        self, call: VerifyCall, is_drafted: bool, before: list[asyncio.Task[VerifyReply]]
    ) -> VerifyReply:
        await asyncio.gather(*before)
        wire_s = next(self._wires_s)
        await asyncio.sleep(self._pass_s + (wire_s / 2 if before else wire_s))
        base = 2 + call.round
        outcomes = {ref.sequence_id: Outcome(base, (7,)) for ref in call.sequences}
        state: DraftState = "ok" if is_drafted else "none"
        return VerifyReply((StepResult(outcomes, 1, self._pass_s),), (), state)


@pytest.mark.parametrize(
    ("wires_s", "is_ahead"), [([0.06], True), ([0.01], False), ([0.06, 0.01], False)]
)
async def test_rounds_are_sent_ahead_where_they_spend_much_time_on_the_wire(
    wires_s: list[float], is_ahead: bool
) -> None:
    both = Timed(0.14, wires_s)
    assert 0.01 / 0.15 < MIN_WIRE_SHARE < 0.06 / 0.2
    ends = LaneEnds("tiny", both, both, 4, RouterConfig(), Meter().of("tiny"))
    lane = Lane("lane-timed", ends)
    params = SamplingParams(temperature=0.0)
    sequence = LiveSequence("one", [1, 2, 3], 3, params, 100, None, 4)
    lane.add(sequence)
    for _ in range(8):
        assert isinstance(await asyncio.wait_for(sequence.outcomes.get(), 30), Outcome)
    lane.remove(sequence)
    assert (both.num_ahead > 4) == is_ahead


async def test_a_repeated_call_gets_the_same_reply(bench: Bench) -> None:
    """Rounds are idempotent: a call whose reply was lost can be sent again."""
    start = starts()[0]
    refs = (SequenceRef(start.sequence_id, 0),)
    tokens: list[int] = []
    for number, num_tokens in ((1, 1), (2, 4)):
        call = VerifyCall("lane-repeat", number, (start,), refs, 4, 1.0, 0)
        first = await bench.target.verify.remote(call, [])
        again = await bench.target.verify.remote(call, [])
        assert first == again
        own = [i for result in first.results for i in result.outcomes["s0"].token_ids]
        assert len(own) == num_tokens, "the first token waits for no other"
        tokens += own
    assert tokens == bench.expected["s0"][:5]
    await bench.target.leave.remote(start.sequence_id)
    late = VerifyCall("lane-repeat", 3, (start,), (SequenceRef(start.sequence_id, 0),), 4, 1.0, 0)
    reply = await bench.target.verify.remote(late, [])
    assert reply.unknown == (SequenceRef("s0", 0),), "a join that arrives after the leave is void"
