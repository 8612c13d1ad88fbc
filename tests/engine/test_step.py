import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.drafter import Drafter
from s2d_serve.engine.messages import DraftRequest, Outcome, Proposal, SequenceStart, TokenLogprobs
from s2d_serve.engine.pairing import Pairing
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.engine.target import TargetModel
from s2d_serve.engine.trunk import Trunk
from s2d_serve.speculation.draft_length import DraftLengthPolicy
from s2d_serve.speculation.estimates import AcceptanceEstimate
from s2d_serve.speculation.exits import LOOKUP_EXIT, ExitPolicy
from s2d_serve.speculation.lookup import LookupEstimate
from s2d_serve.speculation.params import SamplingParams
from s2d_serve.speculation.sampling import sample
from s2d_serve.speculation.statistics import SpeculationStatistics
from tests.engine.tiny import VOCAB_SIZE, Family, Shape, nested_model, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "mistral")
EXITS = (1, 2, 4)
CAPACITY = 72
MAX_TOKENS = 15
NEVER, ALWAYS = 1.5, 0.0
FIXED = {1: ExitPolicy(()), 2: ExitPolicy((NEVER,)), 4: ExitPolicy((NEVER, NEVER))}
"""By the exit that emits every token."""
SURE = ExitPolicy((0.2, 0.15))
"""Adaptive: every exit emits now and then."""

PARAMS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0),
    "nucleus": SamplingParams(temperature=0.8, top_p=0.95, seed=1),
    "penalties": SamplingParams(
        temperature=0.7,
        repetition_penalty=1.1,
        frequency_penalty=1.0,
        presence_penalty=0.5,
        logit_bias=((7, 6.0), (8, 6.0), (9, 6.0)),  # tokens that come again
        seed=2,
    ),
    "min_tokens": SamplingParams(
        min_tokens=8, stop_token_ids=tuple(range(0, VOCAB_SIZE, 4)), seed=3
    ),
    "bias": SamplingParams(temperature=0.0, logit_bias=((5, 2.5), (6, -100.0))),
    "filters": SamplingParams(temperature=1.3, top_k=30, min_p=0.02, seed=2**70 + 1),
}
NUM_LOGPROBS = {"bias": 0, "filters": 3}


def new_prompt(length: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(VOCAB_SIZE) for _ in range(length))


def all_starts() -> list[SequenceStart]:
    """One sequence for each set of parameters, prompts short and long."""
    lengths = (1, 7, 12, 16, 17, 40)
    return [
        SequenceStart(
            name, 0, new_prompt(length, length), length, params, MAX_TOKENS, NUM_LOGPROBS.get(name)
        )
        for length, (name, params) in zip(lengths, PARAMS.items(), strict=True)
    ]


def half_trained(family: Family) -> PreTrainedModel:
    """A model whose exits agree with the whole now and then."""
    return nested_model(family, seed=2, exit_layer=1, agreement_scale=0.3, num_layers=4)


def new_target(model: PreTrainedModel, prefill_chunk: int = 256, num_slots: int = 6) -> TargetModel:
    return TargetModel(Trunk(model, VOCAB_SIZE, num_slots, CAPACITY), prefill_chunk)


def new_draft(
    model: PreTrainedModel,
    kind: type[SortedDraft] = SortedDraft,
    *,
    capacity: int = CAPACITY,
    num_slots: int = 6,
) -> SortedDraft:
    exit_layers = [n for n in EXITS if n <= len(model.model.layers)]
    trunk = Trunk(model, VOCAB_SIZE, num_slots, capacity)
    return kind(trunk, exit_layers, prefill_chunk=16, max_parked_tokens=5)


def new_drafter(draft: SortedDraft, exits: ExitPolicy, lengths: DraftLengthPolicy) -> Drafter:
    return Drafter(draft, {"target": Pairing(exits, lengths)})


@dataclass(slots=True)
class Played:
    """What a loop gave."""

    texts: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    statistics: SpeculationStatistics = field(default_factory=SpeculationStatistics)


def play(
    loop: ReferenceLoop, starts: Sequence[SequenceStart], batch_size: int = len(PARAMS)
) -> Played:
    """Serve the sequences, so many at a time."""
    played = Played()
    for first in range(0, len(starts), batch_size):
        for sequence_id, outcome in loop.generate(starts[first : first + batch_size]):
            played.texts.setdefault(sequence_id, []).extend(outcome.token_ids)
            played.logprobs.setdefault(sequence_id, []).extend(outcome.logprobs)
            if outcome.token_ids:
                played.statistics.record(
                    len(outcome.token_ids), outcome.num_accepted, outcome.exits
                )
            if outcome.finish_reason:
                played.reasons[sequence_id] = outcome.finish_reason
    return played


@cache
def baseline(family: Family) -> Played:
    """Each sequence alone, without a draft."""
    return play(ReferenceLoop(new_target(half_trained(family))), all_starts(), batch_size=1)


def assert_same(played: Played, expected: Played) -> None:
    """Same texts and ends; same log-probabilities but for rounding."""
    assert played.texts == expected.texts
    assert played.reasons == expected.reasons
    for name, ours in played.logprobs.items():
        theirs = expected.logprobs[name]
        assert len(ours) == len(theirs)
        for own, other in zip(ours, theirs, strict=True):
            assert own.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [i for i, _ in own.top] == [i for i, _ in other.top]


def num_rejected(statistics: SpeculationStatistics) -> int:
    return statistics.num_draft_tokens - statistics.num_accepted_tokens


def test_the_baseline_tells_parameters_apart() -> None:
    played = baseline("llama")
    assert max(Counter(played.texts["penalties"]).values()) > 2
    assert len({tuple(text) for text in played.texts.values()}) == len(PARAMS)
    assert played.reasons["min_tokens"] == "stop"
    assert 8 < len(played.texts["min_tokens"]) < MAX_TOKENS
    assert {len(text) for name, text in played.texts.items() if name != "min_tokens"} == {
        MAX_TOKENS
    }
    assert {name: len(own) for name, own in played.logprobs.items() if own} == {
        "bias": MAX_TOKENS,
        "filters": MAX_TOKENS,
    }
    assert {len(own.top) for own in played.logprobs["filters"]} == {3}
    assert played.statistics.mean_accepted_tokens == 1.0


@dataclass(frozen=True)
class Variant:
    """One way to speculate."""

    exits: ExitPolicy = SURE
    max_draft_tokens: int = 3
    adaptive: bool = False
    batch_size: int = len(PARAMS)
    prefill_chunk: int = 256


VARIANTS = {
    "adaptive exits": Variant(),
    "exit 1": Variant(FIXED[1]),
    "exit 2": Variant(FIXED[2]),
    "exit 4": Variant(FIXED[4]),
    "1 token": Variant(max_draft_tokens=1),
    "8 tokens": Variant(max_draft_tokens=8),
    "adaptive length": Variant(max_draft_tokens=8, adaptive=True),
    "batch of 1": Variant(batch_size=1),
    "batch of 4, 8 tokens": Variant(max_draft_tokens=8, batch_size=4),
    "prompts in chunks of 5": Variant(prefill_chunk=5),
    "prompts token by token": Variant(FIXED[4], 8, prefill_chunk=1),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", VARIANTS)
def test_speculation_changes_no_text(family: Family, name: str) -> None:
    variant = VARIANTS[name]
    lengths = DraftLengthPolicy(variant.max_draft_tokens, variant.adaptive)
    for num_sequences in range(1, len(PARAMS) + 1):
        lengths.record_alone(num_sequences, 1000.0)  # beside such a target any draft pays
    loop = ReferenceLoop(
        new_target(half_trained(family), variant.prefill_chunk),
        new_drafter(new_draft(half_trained(family)), variant.exits, lengths),
    )
    played = play(loop, all_starts(), variant.batch_size)
    assert_same(played, baseline(family))
    assert played.statistics.num_accepted_tokens > 0
    if variant.exits == FIXED[4]:
        assert num_rejected(played.statistics) == 0, "the whole draft is the target itself"
        assert set(played.statistics.exit_counts) == {4}
    elif variant.exits == SURE and not variant.adaptive:
        assert num_rejected(played.statistics) > 0
        assert set(played.statistics.exit_counts) == set(EXITS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_draft_there", [True, False])
def test_another_device_changes_no_text(family: Family, is_draft_there: bool, device: str) -> None:
    """The CPU's own texts, also where draft and target live apart."""
    if device == "cpu":
        pytest.skip("for --device cuda")
    where = torch.device(device), torch.device(device if is_draft_there else "cpu")
    target, draft = (half_trained(family).to(place) for place in where)  # type: ignore[arg-type]  # untyped
    drafter = new_drafter(new_draft(draft), SURE, DraftLengthPolicy(8, adaptive=False))
    played = play(ReferenceLoop(new_target(target), drafter), all_starts())
    assert_same(played, baseline(family))
    assert played.statistics.num_accepted_tokens > 0
    assert num_rejected(played.statistics) > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefill_chunk", [6, 256])
def test_batches_and_chunks_change_no_text_without_a_draft(
    family: Family, prefill_chunk: int
) -> None:
    loop = ReferenceLoop(new_target(half_trained(family), prefill_chunk))
    assert_same(play(loop, all_starts()), baseline(family))
    assert_same(play(loop, all_starts()[::-1], batch_size=4), baseline(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_suffix_lookup_changes_no_text(family: Family) -> None:
    """Where drafting would not pay, prompts that repeat and outputs that do are looked up."""
    lengths = DraftLengthPolicy(8)
    lengths.draft_step_s.record(1, 10.0)
    lengths.verify_s.record(1, 1.0)
    lengths.verify_s.record(30, 1.0)
    lengths.record_alone(1, 2.0)
    drafter = new_drafter(new_draft(half_trained(family)), SURE, lengths)
    drafter.pairings["target"].lookup = LookupEstimate()
    song = (5, 9) * 12
    always_5 = SamplingParams(temperature=0.0, logit_bias=((5, 50.0),))
    start = SequenceStart("song", 0, song, len(song), always_5, 40)
    expected = play(ReferenceLoop(new_target(half_trained(family))), [start])
    loop = ReferenceLoop(new_target(half_trained(family)), drafter)
    played = play(loop, [start])
    assert_same(played, expected)
    found = played.statistics
    assert set(found.exit_counts) >= {LOOKUP_EXIT}
    assert found.num_accepted_tokens > 5
    assert num_rejected(found) > 0
    assert_same(play(loop, all_starts()), baseline(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_another_models_draft_changes_no_text(family: Family) -> None:
    draft = new_draft(tiny_model(family, seed=77, num_layers=2))
    lengths = DraftLengthPolicy(4, adaptive=False)
    loop = ReferenceLoop(
        new_target(half_trained(family)), new_drafter(draft, ExitPolicy((0.15,)), lengths)
    )
    played = play(loop, all_starts())
    assert_same(played, baseline(family))
    assert played.statistics.num_draft_tokens > 100
    assert played.statistics.acceptance_rate < 0.2


class RandomTokens(SortedDraft):
    """Proposes anything that the vocabulary holds."""

    rng = random.Random(0)

    def propose(
        self, lengths: Mapping[str, int], step_costs: list[tuple[int, float]]
    ) -> dict[str, Proposal]:
        proposals = super().propose(lengths, step_costs)
        return {i: self.lie(i, proposals) for i in proposals}

    def lie(self, sequence_id: str, proposals: Mapping[str, Proposal]) -> Proposal:
        true = proposals[sequence_id]
        return replace(true, token_ids=tuple(self.rng.randrange(VOCAB_SIZE) for _ in true.exits))


class OneWrongToken(RandomTokens):
    """Changes one token of what it would have proposed."""

    def lie(self, sequence_id: str, proposals: Mapping[str, Proposal]) -> Proposal:
        true = proposals[sequence_id]
        tokens = list(true.token_ids)
        if tokens:
            tokens[self.rng.randrange(len(tokens))] = self.rng.randrange(VOCAB_SIZE)
        return replace(true, token_ids=tuple(tokens))


class ImpossibleTokens(RandomTokens):
    """Proposes ids that no model has, after what it would have proposed."""

    def lie(self, sequence_id: str, proposals: Mapping[str, Proposal]) -> Proposal:
        true = proposals[sequence_id]
        impossible = self.rng.choice([-1, VOCAB_SIZE, 2**62, -(2**62)])
        return replace(true, token_ids=(*true.token_ids, impossible), exits=(*true.exits, 4))


class AnothersTokens(RandomTokens):
    """Hands each sequence the next one's proposal."""

    def lie(self, sequence_id: str, proposals: Mapping[str, Proposal]) -> Proposal:
        names = sorted(proposals)
        other = proposals[names[(names.index(sequence_id) + 1) % len(names)]]
        return replace(other, base_length=proposals[sequence_id].base_length)


class WrongLength(RandomTokens):
    """Continues tokens that the sequence does not have."""

    def lie(self, sequence_id: str, proposals: Mapping[str, Proposal]) -> Proposal:
        true = proposals[sequence_id]
        return replace(true, base_length=true.base_length + self.rng.choice([-1, 1]))


class TooLong(RandomTokens):
    """Proposes more than is left of the text, the slot and the prompt's row."""

    def lie(self, sequence_id: str, proposals: Mapping[str, Proposal]) -> Proposal:
        true = proposals[sequence_id]
        return Proposal(true.base_length, true.token_ids + (3,) * 500, true.exits + (4,) * 500)


class TooFewExits(RandomTokens):
    """Forgets an exit."""

    def lie(self, sequence_id: str, proposals: Mapping[str, Proposal]) -> Proposal:
        return replace(proposals[sequence_id], exits=proposals[sequence_id].exits[1:])


@pytest.mark.parametrize(
    ("kind", "is_read", "is_right_at_times"),
    [
        (RandomTokens, True, False),
        (OneWrongToken, True, True),
        (ImpossibleTokens, True, True),
        (AnothersTokens, True, False),
        (WrongLength, False, False),
        (TooLong, True, True),
        (TooFewExits, False, False),
    ],
)
def test_a_lying_draft_changes_no_text(
    kind: type[SortedDraft], is_read: bool, is_right_at_times: bool
) -> None:
    draft = new_draft(half_trained("qwen2"), kind)
    lengths = DraftLengthPolicy(4, adaptive=False)
    loop = ReferenceLoop(new_target(half_trained("qwen2")), new_drafter(draft, FIXED[4], lengths))
    played = play(loop, all_starts())
    assert_same(played, baseline("qwen2"))
    assert (played.statistics.num_draft_tokens > 0) == is_read
    if is_right_at_times:
        assert played.statistics.num_accepted_tokens > 20
    if is_read and kind is not ImpossibleTokens:
        assert num_rejected(played.statistics) > 20


def test_a_sequence_that_outgrows_the_draft_goes_on_without() -> None:
    starts = [replace(start, max_tokens=32) for start in all_starts()]
    expected = play(ReferenceLoop(new_target(half_trained("llama"))), starts)
    drafter = new_drafter(
        new_draft(half_trained("llama"), capacity=20), SURE, DraftLengthPolicy(4, adaptive=False)
    )
    played = play(ReferenceLoop(new_target(half_trained("llama")), drafter), starts)
    assert_same(played, expected)
    assert played.statistics.num_accepted_tokens > 0


@pytest.mark.parametrize("num_committed", [1, 5, 14])
@pytest.mark.parametrize("is_drafted", [True, False])
def test_a_sequence_opened_in_the_middle_goes_on_with_its_text(
    num_committed: int, is_drafted: bool
) -> None:
    """As after the loss of a target: nothing but prompt and committed tokens is left."""
    expected = baseline("mistral")
    lengths = DraftLengthPolicy(3, adaptive=False)
    drafter = new_drafter(new_draft(half_trained("mistral")), SURE, lengths)
    loop = ReferenceLoop(new_target(half_trained("mistral")), drafter if is_drafted else None)
    starts = [
        replace(
            start,
            epoch=1,
            token_ids=(*start.token_ids, *expected.texts[start.sequence_id][:num_committed]),
        )
        for start in all_starts()
        if len(expected.texts[start.sequence_id]) > num_committed
    ]
    assert len(starts) >= 5
    played = play(loop, starts)
    for start in starts:
        name = start.sequence_id
        assert played.texts[name] == expected.texts[name][num_committed:]
        assert played.reasons[name] == expected.reasons[name]
    if is_drafted and num_committed < 14:
        assert played.statistics.num_accepted_tokens > 0


def test_a_draft_that_outlives_a_target_goes_on_with_the_next_one() -> None:
    """The new target knows less than the draft has drafted, and less than it has seen committed."""
    expected = baseline("llama")
    lengths = DraftLengthPolicy(3, adaptive=False)
    drafter = new_drafter(new_draft(half_trained("llama")), SURE, lengths)
    first = ReferenceLoop(new_target(half_trained("llama")), drafter)
    names = list(PARAMS)
    for start in all_starts():
        first.target.open(start)
        drafter.open(start, "target")
    for _ in range(3):
        first.step(names)
    while drafter.prefill():
        pass
    drafter.propose([DraftRequest("target", dict.fromkeys(names, 9))])
    assert all(sequence.exits for sequence in drafter.draft.sequences.values())
    second = ReferenceLoop(new_target(half_trained("llama")), drafter)
    texts: dict[str, list[int]] = {}
    for start in all_starts():
        known = first.target.sequences[start.sequence_id].num_output_tokens
        texts[start.sequence_id] = expected.texts[start.sequence_id][: max(known - 1, 0)]
        again = replace(start, epoch=1, token_ids=(*start.token_ids, *texts[start.sequence_id]))
        second.target.open(again)
        drafter.open(again, "target")
    live, num_accepted = names, 0
    while live:
        outcomes = second.step(live)
        for name, outcome in outcomes.items():
            texts[name] += outcome.token_ids
            num_accepted += outcome.num_accepted
        live = [name for name in live if outcomes[name].finish_reason is None]
    assert texts == expected.texts
    assert num_accepted > 0


def resized(model: PreTrainedModel, family: Family, padded: int) -> PreTrainedModel:
    """The same weights in a model of another padded vocabulary; its extra rows are tempting."""
    shape = Shape(num_layers=4, padded_vocab_size=padded, tie=False)
    other = tiny_model(family, seed=8, **shape)
    own = other.state_dict()
    for name, weight in model.state_dict().items():
        own[name][: VOCAB_SIZE if "embed" in name or "head" in name else None].copy_(
            weight[:VOCAB_SIZE] if "embed" in name or "head" in name else weight
        )
    other.lm_head.weight[VOCAB_SIZE:] *= 3
    return other


@pytest.mark.parametrize("pads", [(50, 9), (0, 64), (64, 0)])
def test_padded_vocabularies_may_differ(pads: tuple[int, int]) -> None:
    base = nested_model("qwen2", seed=2, exit_layer=1, agreement_scale=0.3, num_layers=4, tie=False)
    target, draft = (resized(base, "qwen2", VOCAB_SIZE + pad) for pad in pads)
    expected = play(ReferenceLoop(new_target(base)), all_starts())
    lengths = DraftLengthPolicy(3, adaptive=False)
    whole = ReferenceLoop(new_target(target), new_drafter(new_draft(draft), FIXED[4], lengths))
    played = play(whole, all_starts())
    assert_same(played, expected)
    assert played.statistics.acceptance_rate == 1.0


def nested_acceptance(
    scale: float, exits: ExitPolicy, params: SamplingParams
) -> tuple[float, float]:
    """(acceptance in the loop, agreement of sub-model and whole over the same texts).

    Agreement is measured without cache, loop or draft; whatever was accepted has to agree.
    """

    def model() -> PreTrainedModel:
        return nested_model("llama", seed=1, exit_layer=2, agreement_scale=scale, num_layers=4)

    starts = [
        SequenceStart(str(n), 0, new_prompt(4, n), 4, replace(params, seed=n), 18)
        for n in range(16)
    ]
    draft = new_draft(model(), num_slots=16)
    drafter = new_drafter(draft, exits, DraftLengthPolicy(1, adaptive=False))
    loop = ReferenceLoop(new_target(model(), num_slots=16), drafter)
    texts: dict[str, list[int]] = {start.sequence_id: [] for start in starts}
    accepted: dict[tuple[str, int], bool] = {}
    for name, outcome in loop.generate(starts):
        if outcome.exits:
            accepted[name, outcome.base_length - 4] = outcome.num_accepted == 1
        texts[name] += outcome.token_ids
    whole, cut = model(), model()
    cut.model.layers = cut.model.layers[: EXITS[exits.deepest]]
    cut.config.num_hidden_layers = EXITS[exits.deepest]
    agreed: dict[tuple[str, int], bool] = {}
    for start in starts:
        text = texts[start.sequence_id]
        with torch.inference_mode():
            ids = torch.tensor([[*start.token_ids, *text]])
            logits = [own(input_ids=ids).logits[0, 3:-1] for own in (whole, cut)]
        for position, token_id in enumerate(text):
            ours, theirs = (sample(own[position], start.params, position, None) for own in logits)
            assert ours == token_id
            agreed[start.sequence_id, position] = ours == theirs
    assert len(accepted) > 130
    assert accepted == {place: agreed[place] for place in accepted}
    return sum(accepted.values()) / len(accepted), sum(agreed.values()) / len(agreed)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_acceptance_of_a_nested_model_is_as_designed(temperature: float) -> None:
    """A fixed exit is accepted as often as it agrees; the smaller the scale, the more often."""
    params = SamplingParams(temperature=temperature)
    measured = [nested_acceptance(scale, FIXED[2], params) for scale in (0.03, 0.3, 1.0)]
    for accepted, agreed in measured:
        assert accepted == pytest.approx(agreed, abs=0.06)
    for own in zip(*measured, strict=True):
        assert own[0] > own[1] + 0.1 > own[2] + 0.2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_deepest_exit_of_the_same_model_is_always_accepted(temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    assert nested_acceptance(0.5, FIXED[4], params) == (1.0, 1.0)
    assert nested_acceptance(0.0, FIXED[2], params) == (1.0, 1.0)


class Scripted(DraftLengthPolicy):
    """Says nothing pays, three rounds long, and remembers when it was asked for a probe."""

    def choose(
        self,
        sequences: Sequence[AcceptanceEstimate | None],
        probe: bool = False,
    ) -> list[int]:
        if sequences:
            self.rest_rounds = 3
            ASKED.append(probe)
        return [2 if probe else 0] * len(sequences)


ASKED: list[bool] = []


def test_a_resting_draft_is_left_alone_and_then_probed() -> None:
    ASKED.clear()
    drafter = new_drafter(new_draft(half_trained("llama")), FIXED[4], Scripted(4))
    loop = ReferenceLoop(new_target(half_trained("llama")), drafter)
    start = replace(all_starts()[1], max_tokens=12)
    drafted = [len(outcome.exits) for _, outcome in loop.generate([start])]
    assert drafted == [0, 0, 0, 0, 2, 0, 0, 0, 0, 0][: len(drafted)]
    assert ASKED[:3] == [False, True, False]


def test_a_rest_does_not_hold_for_a_new_sequence() -> None:
    ASKED.clear()
    drafter = new_drafter(new_draft(half_trained("llama")), FIXED[4], Scripted(4))
    loop = ReferenceLoop(new_target(half_trained("llama")), drafter)
    for max_tokens, asked in ((2, [False]), (3, [False, False]), (2, [False] * 3)):
        start = replace(all_starts()[1], max_tokens=max_tokens)
        assert all(outcome.exits == () for _, outcome in loop.generate([start]))
        assert asked == ASKED, "once per sequence, the rest goes on"


def test_a_loop_that_is_broken_off_leaves_nothing_behind() -> None:
    lengths = DraftLengthPolicy(3, adaptive=False)
    drafter = new_drafter(new_draft(half_trained("llama")), SURE, lengths)
    loop = ReferenceLoop(new_target(half_trained("llama")), drafter)
    outcomes = loop.generate(all_starts())
    assert isinstance(next(iter(outcomes))[1], Outcome)
    outcomes.close()  # type: ignore[attr-defined]  # a generator
    assert loop.target.num_free_slots == 6
    assert drafter.draft.sequences == {}
    assert not drafter.is_open("greedy")
    assert_same(play(loop, all_starts()), baseline("llama"))


def test_the_loops_cap_on_the_draft_length_holds() -> None:
    drafter = new_drafter(
        new_draft(half_trained("llama")), FIXED[4], DraftLengthPolicy(8, adaptive=False)
    )
    loop = ReferenceLoop(new_target(half_trained("llama")), drafter, max_draft_tokens=2)
    played = play(loop, all_starts())
    assert len(played.statistics.drafted_by_position) == 2
    assert_same(played, baseline("llama"))
