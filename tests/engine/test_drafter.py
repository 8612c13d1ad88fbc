import math
import random
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace

import pytest

from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.drafter import Drafter
from s2d_serve.engine.messages import (
    AloneCost,
    DraftRequest,
    Outcome,
    Proposal,
    SequenceStart,
    StepResult,
)
from s2d_serve.engine.pairing import NUM_RECENT_ROUNDS, Pairing
from s2d_serve.engine.trunk import Trunk
from s2d_serve.speculation.account import START_ROUNDS
from s2d_serve.speculation.draft_length import MIN_REST_ROUNDS, PROBE_TOKENS, DraftLengthPolicy
from s2d_serve.speculation.estimates import MAX_READ_S, MIN_READ_TOKENS, ReadingCost
from s2d_serve.speculation.exits import LOOKUP_EXIT, ExitPolicy
from s2d_serve.speculation.lookup import LookupEstimate
from s2d_serve.speculation.params import SamplingParams
from tests.engine.tiny import VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

CAPACITY = 40
SHALLOW, DEEP = ExitPolicy(()), ExitPolicy((1.5,))


def new_pairing(exits: ExitPolicy = DEEP, max_draft_tokens: int = 4) -> Pairing:
    return Pairing(exits, DraftLengthPolicy(max_draft_tokens, adaptive=False))


def new_drafter(pairings: Mapping[str, Pairing] | None = None, num_slots: int = 4) -> Drafter:
    trunk = Trunk(tiny_model("llama", seed=4, hidden=32), VOCAB_SIZE, num_slots, CAPACITY)
    return Drafter(SortedDraft(trunk, (2, 4)), pairings or {"target": new_pairing()})


def new_start(sequence_id: str, num_prompt: int = 5, epoch: int = 0) -> SequenceStart:
    rng = random.Random(sequence_id)
    prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(num_prompt))
    params = SamplingParams(temperature=0.0)
    return SequenceStart(sequence_id, epoch, prompt, num_prompt, params, 30)


def ask(drafter: Drafter, *sequence_ids: str, limit: int = 9) -> Mapping[str, Proposal]:
    """One target's proposals."""
    request = DraftRequest("target", dict.fromkeys(sequence_ids, limit))
    return drafter.propose([request])[0].proposals


def outcome_of(proposal: Proposal, num_accepted: int) -> Outcome:
    """What a target that accepts so many answers."""
    accepted = proposal.token_ids[:num_accepted]
    other = 7 if proposal.token_ids[num_accepted : num_accepted + 1] != (7,) else 8
    return Outcome(proposal.base_length, (*accepted, other), num_accepted, proposal.exits)


def result(**outcomes: Outcome) -> StepResult:
    return StepResult(outcomes, num_tokens=5, seconds=0.25)


def test_limits_cap_what_the_policy_chooses() -> None:
    drafter = new_drafter()
    drafter.open(new_start("a"), "target")
    drafter.open(new_start("b"), "target")
    request = DraftRequest("target", {"a": 2, "b": 9})
    (draft,) = drafter.propose([request])
    assert {i: len(p.token_ids) for i, p in draft.proposals.items()} == {"a": 2, "b": 4}
    assert draft.rest_rounds == 0


def test_targets_share_the_passes_and_keep_their_own_exits() -> None:
    pairings = {
        "small": new_pairing(SHALLOW, 2),
        "large": new_pairing(DEEP, 3),
        "idle": new_pairing(),
    }
    drafter = new_drafter(pairings)
    drafter.open(new_start("a"), "small")
    drafter.open(new_start("b"), "large")
    small, large = drafter.propose(
        [DraftRequest("small", {"a": 9}), DraftRequest("large", {"b": 9})]
    )
    assert {i: p.exits for i, p in small.proposals.items()} == {"a": (2, 2)}
    assert {i: p.exits for i, p in large.proposals.items()} == {"b": (4, 4, 4)}
    for target in ("small", "large"):
        assert set(pairings[target].lengths.draft_step_s.seconds) == {2, 1}, "sequences of a step"
    assert pairings["idle"].lengths.draft_step_s.seconds == {}


def test_a_sequence_whose_prompt_is_being_read_gets_no_proposal() -> None:
    drafter = new_drafter()
    drafter.open(new_start("long", 30), "target")
    drafter.open(new_start("short"), "target")
    assert set(ask(drafter, "long", "short")) == {"short"}
    assert not drafter.prefill(), "the target reads it first"
    assert drafter.learn("target", result(long=Outcome(30, (7,)))) == ()
    assert set(ask(drafter, "long", "short")) == {"short"}
    assert drafter.prefill()
    assert not drafter.prefill()
    assert set(ask(drafter, "long", "short")) == {"long", "short"}


def test_cores_are_taken_to_compute_and_not_to_decide() -> None:
    entered: list[str] = []

    class Cores(nullcontext[None]):
        def __enter__(self) -> None:
            entered.append(doing)

    drafter = new_drafter()
    drafter.cores = Cores()
    doing = "nothing"
    drafter.open(new_start("long", 30), "target")
    drafter.learn("target", result(long=Outcome(30, (7,))))
    assert ask(drafter, "long", "unknown") == {}
    assert entered == []
    doing = "read"
    assert drafter.prefill()
    assert not drafter.prefill()
    doing = "draft"
    assert ask(drafter, "long")
    doing = "try out"
    assert drafter.trials.try_out()
    assert entered == ["read", "draft", "try out"]


def test_outcomes_are_followed() -> None:
    drafter = new_drafter()
    drafter.open(new_start("a"), "target")
    first = ask(drafter, "a")["a"]
    outcome = outcome_of(first, 2)
    assert drafter.learn("target", result(a=outcome)) == ()
    assert ask(drafter, "a")["a"].base_length == 5 + 3
    sequence = drafter.draft.sequences["a"]
    assert sequence.token_ids[5:8] == list(outcome.token_ids)
    lengths = drafter.pairings["target"].lengths
    assert lengths.verify_s.seconds == {5: 0.25}
    assert (lengths.acceptance.tried[:3], lengths.acceptance.accepted[:3]) == (
        [1.0, 1.0, 1.0],
        [1.0, 1.0, 0.0],
    )


def test_an_outcome_of_another_round_asks_for_the_sequence_again() -> None:
    drafter = new_drafter()
    drafter.open(new_start("a"), "target")
    drafter.open(new_start("b"), "target")
    late = result(a=Outcome(6, (1,)), b=Outcome(5, (1,)), unheard_of=Outcome(3, (1,)))
    assert drafter.learn("target", late) == ("a", "unheard_of")
    assert drafter.learn("target", result(a=Outcome(9))) == (), "nothing was committed"
    tokens = (*new_start("a").token_ids, 1, 2)
    drafter.open(replace(new_start("a"), epoch=1, token_ids=tokens), "target")
    assert drafter.learn("target", result(a=Outcome(7, (1,)))) == ()
    assert drafter.draft.sequences["a"].token_ids == [*tokens, 1]


def test_a_finished_sequence_gives_its_slot_back() -> None:
    drafter = new_drafter(num_slots=1)
    drafter.open(new_start("a"), "target")
    end = Outcome(5, (1,), finish_reason="stop")
    assert drafter.learn("target", result(a=end)) == ()
    assert not drafter.is_open("a")
    assert ask(drafter, "a") == {}
    drafter.open(new_start("b"), "target")
    assert set(ask(drafter, "b")) == {"b"}
    drafter.close("b")
    drafter.close("b")
    drafter.close("nobody")
    assert drafter.draft.sequences == {}


def test_without_a_slot_a_sequence_runs_without_a_draft() -> None:
    drafter = new_drafter(num_slots=1)
    drafter.open(new_start("a"), "target")
    drafter.open(new_start("b"), "target")
    assert drafter.is_open("b")
    assert set(ask(drafter, "a", "b")) == {"a"}
    assert drafter.learn("target", result(b=Outcome(5, (1,)))) == (), "it is not asked for again"
    assert drafter.learn("target", result(b=Outcome(6, (2,)))) == ()
    drafter.close("b")
    assert not drafter.is_open("b")


def test_a_sequence_that_gets_a_slot_later_is_followed_again() -> None:
    drafter = new_drafter(num_slots=1)
    drafter.open(new_start("a"), "target")
    drafter.open(new_start("b"), "target")
    drafter.close("a")
    drafter.open(new_start("b", epoch=1), "target")
    outcome = outcome_of(ask(drafter, "b")["b"], 1)
    assert drafter.learn("target", result(b=outcome)) == ()
    assert ask(drafter, "b")["b"].base_length == 7


def test_a_sequence_that_outgrows_the_draft_goes_on_without() -> None:
    drafter = new_drafter()
    start = new_start("a", CAPACITY - 1)
    drafter.open(start, "target")
    assert drafter.learn("target", result(a=Outcome(CAPACITY - 1, (1,)))) == ()
    assert drafter.learn("target", result(a=Outcome(CAPACITY, (2,)))) == ()
    assert drafter.draft.num_free_slots == 4
    assert drafter.learn("target", result(a=Outcome(CAPACITY + 1, (3,)))) == ()
    assert not drafter.prefill()
    assert ask(drafter, "a") == {}


def holders(drafter: Drafter) -> str:
    """Who holds a slot, by first letter."""
    return "".join(sorted(drafter.draft.sequences))


def test_slots_are_shared_evenly_between_targets() -> None:
    drafter = new_drafter({"hot": new_pairing(), "cold": new_pairing()})
    for name in ("h1", "h2", "h3", "h4", "h5"):
        drafter.open(new_start(name), "hot")
    assert holders(drafter) == "h1h2h3h4"
    drafter.open(new_start("c1"), "cold")
    assert holders(drafter) == "c1h1h2h3", "the hot target gives up its last one"
    drafter.open(new_start("c2"), "cold")
    drafter.open(new_start("c3"), "cold")
    assert holders(drafter) == "c1c2h1h2", "and no more than an even share"


def test_a_free_slot_goes_to_a_sequence_that_waits_for_one() -> None:
    drafter = new_drafter(num_slots=1)
    drafter.open(new_start("a"), "target")
    drafter.open(new_start("b"), "target")
    assert set(ask(drafter, "a", "b")) == {"a"}
    drafter.learn("target", result(b=Outcome(5, (7, 8))))
    drafter.close("a")
    assert ask(drafter, "b")["b"].base_length == 7, "what came meanwhile is read"


def slow_draft(target: Pairing) -> None:
    """Costs by which nothing pays."""
    for num_tokens in (1, 8):
        target.lengths.verify_s.record(num_tokens, 0.001)
    target.lengths.record_alone(1, 0.001)
    target.lengths.draft_step_s.record(1, 0.002)
    target.is_settled = True


def test_where_nothing_pays_the_draft_rests_until_it_is_probed() -> None:
    pairing = Pairing(DEEP, DraftLengthPolicy(4))
    drafter = new_drafter({"target": pairing})
    drafter.open(new_start("a"), "target")
    slow_draft(pairing)
    (rest,) = drafter.propose([DraftRequest("target", {"a": 9})])
    assert rest.rest_rounds > 0
    assert not any(proposal.token_ids for proposal in rest.proposals.values())
    probe = rest
    rests = [rest.rest_rounds]
    while probe.rest_rounds:  # until the rests have paid for it
        rested = (AloneCost(1, 1, 0.001, 0.001),) * probe.rest_rounds
        (probe,) = drafter.propose([DraftRequest("target", {"a": 9}, True, rested)])
        rests.append(probe.rest_rounds)
    assert rests[:3] == [MIN_REST_ROUNDS, 2 * MIN_REST_ROUNDS, 4 * MIN_REST_ROUNDS]
    assert len(probe.proposals["a"].token_ids) == PROBE_TOKENS
    drafter.learn("target", result(a=outcome_of(probe.proposals["a"], 0)))
    (longer,) = drafter.propose([DraftRequest("target", {"a": 9})])
    assert longer.rest_rounds > rest.rest_rounds


def test_nothing_is_drafted_before_the_target_was_seen_alone() -> None:
    pairing = Pairing(DEEP, DraftLengthPolicy(4))
    drafter = new_drafter({"target": pairing})
    drafter.open(new_start("a"), "target")
    (draft,) = drafter.propose([DraftRequest("target", {"a": 9})])
    assert draft.rest_rounds == MIN_REST_ROUNDS
    alone = tuple(AloneCost(1, 1, 1.0, 1.0) for _ in range(3))
    (draft,) = drafter.propose([DraftRequest("target", {"a": 9}, alone_costs=alone)])
    assert len(draft.proposals["a"].token_ids) == PROBE_TOKENS


def test_a_draft_that_loses_rests_whatever_it_promises() -> None:
    """By its estimates it pays; by the clock it does not."""
    drafter = costly_reading()
    drafter.open(new_start("a"), "target")
    lengths = drafter.pairings["target"].lengths
    num_rounds = 0
    while any(proposal.token_ids for proposal in ask(drafter, "a").values()):
        proposal = ask(drafter, "a")["a"]
        outcome = outcome_of(proposal, 1)
        num_tokens = 1 + len(proposal.exits)
        assert drafter.learn("target", StepResult({"a": outcome}, num_tokens, 1.0), 3.0) == ()
        num_rounds += 1
    assert num_rounds == START_ROUNDS + 1, "each loses a second"
    assert lengths.accounts[1].balance_s < 0


def test_nobody_rests_while_prompts_are_being_read() -> None:
    pairing = Pairing(DEEP, DraftLengthPolicy(4))
    drafter = new_drafter({"target": pairing})
    drafter.open(new_start("long", 30), "target")
    slow_draft(pairing)
    before = pairing.lengths.rest_rounds
    for _ in range(3):
        (draft,) = drafter.propose([DraftRequest("target", {"long": 9}, is_probe=True)])
        assert (draft.proposals, draft.rest_rounds) == ({}, 0)
    assert pairing.lengths.rest_rounds == before


def costly_reading(num_left: int = 100) -> Drafter:
    """A draft that saves about half a second per token, where reading a token costs as much, and
    a sequence of 30 tokens whose first output token is there.
    """
    pairing = Pairing(DEEP, DraftLengthPolicy(4))
    for num_tokens in (1, 9):
        pairing.lengths.verify_s.record(num_tokens, 1.0)
    pairing.lengths.record_alone(1, 1.0)
    pairing.lengths.draft_step_s.record(1, 0.1)
    pairing.lengths.reading_s.record(10, 5.0)
    pairing.is_settled = True
    drafter = new_drafter({"target": pairing})
    drafter.open(replace(new_start("long", 30), max_tokens=num_left + 1), "target")
    drafter.learn("target", StepResult({"long": Outcome(30, (7,))}, 1, 1.0))
    return drafter


def rest_of(drafter: Drafter, probe: bool = False, num_rested: int = 0) -> int:
    """The rest that follows on so many rounds of rest."""
    rested = (AloneCost(1, 1, 1.0, 1.0),) * num_rested
    (draft,) = drafter.propose([DraftRequest("target", {"long": 9}, probe, rested)])
    assert draft.proposals == {}
    return draft.rest_rounds


@pytest.mark.parametrize(("num_left", "pays"), [(100, True), (10, False)])
def test_a_sequence_is_read_where_drafting_saves_more_than_that(num_left: int, pays: bool) -> None:
    drafter = costly_reading(num_left)
    assert (rest_of(drafter) == 0) == pays
    assert drafter.prefill() == pays


def test_a_slow_draft_reads_in_small_chunks_so_that_no_round_waits_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drafter = costly_reading()
    drafter.propose([DraftRequest("target", {"long": 9})])
    asked: list[tuple[list[str], int | None]] = []

    def prefill(_: SortedDraft, sequence_ids: Iterable[str], max_tokens: int | None) -> int:
        asked.append((list(sequence_ids), max_tokens))
        return 1

    monkeypatch.setattr(SortedDraft, "prefill", prefill)
    lengths = drafter.pairings["target"].lengths
    for token_s in (math.nan, 0.5, MAX_READ_S / 100):
        lengths.reading_s = ReadingCost(token_s)
        assert drafter.prefill()
    assert asked == [(["long"], None), (["long"], MIN_READ_TOKENS), (["long"], 100)]


def test_sequences_of_several_targets_are_read_in_one_pass() -> None:
    drafter = new_drafter(
        {name: Pairing(DEEP, DraftLengthPolicy(4, adaptive=False)) for name in ("one", "two")}
    )
    for name in ("one", "two"):
        drafter.open(new_start(name, 30), name)
        drafter.learn(name, StepResult({name: Outcome(30, (7,))}, 1, 1.0))
        drafter.propose([DraftRequest(name, {name: 9})])
    assert drafter.prefill()
    assert drafter.draft.is_ready("one")
    assert drafter.draft.is_ready("two")
    costs = [pairing.lengths.reading_s(60) for pairing in drafter.pairings.values()]
    assert costs[0] == costs[1] > 0


def test_reading_must_pay_with_as_many_as_there_were_lately() -> None:
    drafter = costly_reading()
    for num_sequences in range(1, 9):
        drafter.pairings["target"].lengths.record_alone(num_sequences, 1.0)
    crowd = tuple(AloneCost(8, 8, 1.0, 1.0) for _ in range(3))
    drafter.propose([DraftRequest("target", {"long": 9}, alone_costs=crowd)])
    assert not drafter.prefill()
    lonely = tuple(AloneCost(1, 1, 1.0, 1.0) for _ in range(NUM_RECENT_ROUNDS))
    drafter.propose([DraftRequest("target", {"long": 9}, alone_costs=lonely)])
    assert drafter.prefill()


@pytest.mark.parametrize(("num_idle", "num_read"), [(0, 4), (9, 0)])
def test_sequences_are_read_together_where_drafting_pays_for_most_of_them_only(
    num_idle: int, num_read: int
) -> None:
    """16.4 tokens in 3 s, not 12; yet 25.4 in 3 s, not 39."""
    drafter, names = slow_steps_for_four(num_idle)
    begin(drafter, names)
    drafter.propose([DraftRequest("target", dict.fromkeys(names, 9))])
    while drafter.prefill():
        pass
    assert sum(drafter.draft.is_ready(name) for name in names) == num_read


def test_sequences_are_weighed_once_the_target_has_read_their_prompts() -> None:
    drafter, names = slow_steps_for_four()
    begin(drafter, names[:1])
    (draft,) = drafter.propose([DraftRequest("target", dict.fromkeys(names, 9))])
    assert draft.rest_rounds == 0
    assert not drafter.prefill(), "one of four alone does not pay"
    begin(drafter, names[1:])
    drafter.propose([DraftRequest("target", dict.fromkeys(names, 9))])
    assert drafter.prefill()
    assert all(drafter.draft.is_ready(name) for name in names)


def slow_steps_for_four(num_idle: int = 0) -> tuple[Drafter, list[str]]:
    """Steps of half a pass of the target, and four sequences; others that are never drafted for."""
    pairing = Pairing(DEEP, DraftLengthPolicy(4))
    for num_tokens in (1, 32):
        pairing.lengths.verify_s.record(num_tokens, 1.0)
    pairing.lengths.record_alone(4 + num_idle, 1.0)
    pairing.lengths.draft_step_s.record(1, 0.5)
    pairing.lengths.reading_s.record(10, 0.001)
    pairing.num_sequences.append(4 + num_idle)
    drafter = new_drafter({"target": pairing})
    names = [f"sequence-{i}" for i in range(4)]
    for name in names:
        drafter.open(replace(new_start(name, 30), max_tokens=9), "target")
    return drafter, names


def begin(drafter: Drafter, names: Iterable[str]) -> None:
    """The target reads their prompts, of 30 tokens."""
    for name in names:
        drafter.learn("target", StepResult({name: Outcome(30, (7,))}, 1, 1.0))


def test_rounds_beside_a_draft_that_reads_say_nothing_of_the_target_alone() -> None:
    drafter = costly_reading()
    lengths = drafter.pairings["target"].lengths
    lengths.reading_s = ReadingCost(0.001)
    slow, fast = (AloneCost(1, 1, pass_s, pass_s) for pass_s in (9.0, 1.0))
    drafter.propose([DraftRequest("target", {"long": 9})])
    assert drafter.prefill()
    drafter.propose([DraftRequest("target", {"long": 9}, alone_costs=(slow, slow))])
    assert list(lengths.alone_s.rounds[1]) == [1.0]
    drafter.propose([DraftRequest("target", {"long": 9}, alone_costs=(fast,))])
    assert list(lengths.alone_s.rounds[1]) == [1.0, 1.0]


def test_costs_of_a_busy_start_are_corrected_when_they_forbid_drafting() -> None:
    drafter = costly_reading()
    pairing = drafter.pairings["target"]
    pairing.is_settled = False
    pairing.lengths.draft_step_s.seconds = {1: 50.0, 2: 100.0}
    assert rest_of(drafter) > 0
    assert pairing.lengths.reading_s(1) == 0.5
    assert rest_of(drafter, probe=True) == 0
    assert pairing.lengths.reading_s(1) < 0.05
    one, two = (pairing.lengths.draft_step_s.seconds[n] for n in (1, 2))
    assert one < 0.5
    assert two == pytest.approx(2 * one)
    assert drafter.prefill(), "it pays now"
    while drafter.trials.measure_next():
        pass
    measured = pairing.lengths.draft_step_s.seconds
    assert sorted(measured) == [1, 2]
    assert measured[2] != two, "in idle time"


def test_what_is_too_costly_to_read_is_probed_ever_more_rarely() -> None:
    drafter = costly_reading(25)
    rests = [rest_of(drafter, probe=True) for _ in range(3)]
    assert rests == [2 * MIN_REST_ROUNDS, 4 * MIN_REST_ROUNDS, 8 * MIN_REST_ROUNDS]
    assert rest_of(drafter) == rests[-1]
    assert not drafter.prefill()
    while rests[-1]:
        assert not drafter.prefill()
        rests.append(rest_of(drafter, True, rests[-1]))
    assert rest_of(drafter, probe=True) == 0, "begun is not given up"
    assert drafter.prefill(), "the rests have paid for it"


@pytest.mark.parametrize("is_resting", [False, True])
def test_outputs_that_end_early_leave_little_to_save(is_resting: bool) -> None:
    drafter = costly_reading(100)
    assert rest_of(drafter) == 0
    if is_resting:
        drafter.propose([DraftRequest("target", {}, ended_lengths=(2,) * 20)])
    for i in range(0 if is_resting else 20):
        short = f"short-{i}"
        drafter.open(new_start(short), "target")
        drafter.learn(
            "target", StepResult({short: Outcome(5, (7, 8), finish_reason="stop")}, 1, 1.0)
        )
    assert rest_of(drafter) > 0
    assert not drafter.prefill()


def test_reading_is_timed() -> None:
    drafter = new_drafter()
    drafter.open(new_start("long", 30), "target")
    drafter.learn("target", result(long=Outcome(30, (7,))))
    ask(drafter, "long")
    assert drafter.prefill()
    assert 0 < drafter.pairings["target"].lengths.reading_s(1) < 1


def test_costs_of_passes_without_the_draft_are_learned() -> None:
    drafter = new_drafter()
    alone = AloneCost(2, 30, 0.5, 0.6), AloneCost(1, 1, 0.25, 0.3)
    drafter.propose([DraftRequest("target", {}, alone_costs=alone)])
    lengths = drafter.pairings["target"].lengths
    assert lengths.verify_s.seconds == {30: 0.5, 1: 0.25}
    assert lengths.alone_s(1) == 0.3
    assert math.isnan(lengths.alone_s(2)), "prompts were read"


def lookup_pairing() -> Pairing:
    """Adaptive, with a target as fast for nine tokens as for one, and a draft slower than it."""
    pairing = Pairing(DEEP, DraftLengthPolicy(4), LookupEstimate())
    for num_tokens in (1, 9):
        pairing.lengths.verify_s.record(num_tokens, 1.0)
    for num_sequences in (1, 2):
        pairing.lengths.record_alone(num_sequences, 1.0)
    pairing.lengths.draft_step_s.record(1, 10.0)
    return pairing


def new_song(sequence_id: str = "a", num_prompt: int = 9, max_tokens: int = 30) -> SequenceStart:
    """A prompt that repeats."""
    prompt = tuple((1, 2, 3)[i % 3] for i in range(num_prompt))
    params = SamplingParams(temperature=0.0, stop_token_ids=(9,))
    return SequenceStart(sequence_id, 0, prompt, num_prompt, params, max_tokens)


def test_a_text_that_repeats_is_looked_up_and_nobody_rests() -> None:
    drafter = new_drafter({"target": lookup_pairing()})
    drafter.open(new_song(), "target")
    (draft,) = drafter.propose([DraftRequest("target", {"a": 3})])
    assert draft.proposals["a"] == Proposal(9, (1, 2), (LOOKUP_EXIT,) * 2)
    assert draft.rest_rounds == 0
    for base in range(9, 21, 3):
        outcome = Outcome(base, (1, 2, 3), 2, (LOOKUP_EXIT,) * 2)
        assert drafter.learn("target", result(a=outcome)) == ()
        assert ask(drafter, "a")["a"].base_length == base + 3
    assert ask(drafter, "a")["a"].token_ids == (1, 2, 3, 1), "it was right each time"
    assert drafter.pairings["target"].lengths.acceptance.tried == [], "the draft made none of them"


def test_found_tokens_need_no_slot_and_no_reading() -> None:
    drafter = new_drafter({"target": lookup_pairing()}, num_slots=1)
    drafter.open(new_song("a", 30), "target")
    drafter.open(new_song("b", 30), "target")
    assert not drafter.draft.is_ready("a")
    assert set(ask(drafter, "a", "b")) == {"a", "b"}
    assert not drafter.prefill(), "what copies is not read"
    changed = StepResult({"a": Outcome(30, (5,), 0, (0, 0)), "b": Outcome(30, (5,))}, 6, 1.0)
    assert drafter.learn("target", changed) == ()
    assert ask(drafter, "a", "b") == {}
    assert drafter.prefill()


def test_found_tokens_end_with_the_output_or_an_end_token() -> None:
    drafter = new_drafter({"target": lookup_pairing()})
    drafter.open(new_song("short", max_tokens=2), "target")
    drafter.open(new_song("none", max_tokens=1), "target")
    ends = replace(new_song("ends"), token_ids=(1, 2, 9, 3, 1, 2), num_prompt_tokens=6)
    drafter.open(ends, "target")
    found = ask(drafter, "short", "none", "ends")
    assert {i: p.token_ids for i, p in found.items() if p.token_ids} == {
        "short": (1,),
        "ends": (9,),
    }


def test_a_sequence_opened_anew_is_looked_up_in_its_new_text() -> None:
    drafter = new_drafter({"target": lookup_pairing()})
    drafter.open(new_song(), "target")
    assert drafter.learn("target", result(a=Outcome(12, (1,)))) == ("a",)
    again = replace(new_song(), epoch=1, token_ids=(*new_song().token_ids, 4, 3, 1))
    drafter.open(again, "target")
    assert ask(drafter, "a")["a"] == Proposal(12, (2, 3), (LOOKUP_EXIT,) * 2)


def test_nothing_is_looked_up_where_it_is_switched_off() -> None:
    pairing = replace(lookup_pairing(), lookup=None)
    drafter = new_drafter({"target": pairing})
    drafter.open(new_song(), "target")
    assert not any(proposal.token_ids for proposal in ask(drafter, "a").values())
