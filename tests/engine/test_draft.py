import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from s2d_serve.engine.cache import Row
from s2d_serve.engine.draft import MAX_UNREAD_TOKENS, SortedDraft
from s2d_serve.engine.draft_sequence import DraftSequence
from s2d_serve.engine.messages import Proposal, SequenceStart
from s2d_serve.engine.trunk import Trunk
from s2d_serve.speculation.exits import ExitPolicy
from s2d_serve.speculation.params import SamplingParams, TokenCounts
from s2d_serve.speculation.sampling import sample
from tests.engine.tiny import VOCAB_SIZE, Family, Shape, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

EXITS = (1, 3, 4)
SHAPE = Shape(num_layers=4, hidden=32)
CAPACITY = 56
NUM_SLOTS = 3

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.9, top_k=40, seed=3)
PENALISED = SamplingParams(
    temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.5, min_tokens=4, seed=5
)
ENDING = SamplingParams(temperature=1.0, stop_token_ids=tuple(range(0, VOCAB_SIZE, 5)), seed=8)

NEVER, ALWAYS = 1.5, 0.0
"""Thresholds."""
WHOLE = ExitPolicy((NEVER, NEVER))
"""Every token from the whole draft."""


@dataclass(frozen=True)
class Full:
    """A whole forward over one sequence, without a cache of ours."""

    keys: list[Tensor]
    """[T, H, D] by layer; `values` alike."""
    values: list[Tensor]
    hidden: list[Tensor]
    """[T, hidden] by exit."""
    logits: list[Tensor]
    """[T, V] by exit: those of the sub-model of these layers."""


class Oracle:
    """The draft's weights in the stock model, run from scratch each time."""

    def __init__(self, model: PreTrainedModel, exit_layers: Sequence[int]) -> None:
        self.model = model
        self.exit_layers = tuple(exit_layers)
        self._outputs: list[Tensor] = []
        self._known: dict[tuple[int, ...], Full] = {}
        for layer in model.model.layers:
            layer.register_forward_hook(self._keep)

    def full(self, token_ids: Sequence[int]) -> Full:
        """A whole forward; of the same tokens only once."""
        key = tuple(token_ids)
        if key not in self._known:
            self._known[key] = self._forward(key)
        return self._known[key]

    @torch.inference_mode()
    def _forward(self, token_ids: Sequence[int]) -> Full:
        self._outputs.clear()
        answer = self.model(input_ids=torch.tensor([token_ids]), use_cache=True)
        hidden = [self._outputs[n - 1][0] for n in self.exit_layers]
        logits = [self.model.lm_head(self.model.model.norm(h))[:, :VOCAB_SIZE] for h in hidden]
        layers = answer.past_key_values.layers
        return Full(
            [layer.keys[0].transpose(0, 1) for layer in layers],
            [layer.values[0].transpose(0, 1) for layer in layers],
            hidden,
            logits,
        )

    def proposal(
        self, start: SequenceStart, committed: Sequence[int], policy: ExitPolicy, limit: int
    ) -> Proposal:
        """What has to be proposed: each sub-model from scratch, the first that is sure emits."""
        tokens, exits = list(committed), list[int]()
        num_prompt = start.num_prompt_tokens
        params = start.params
        while len(exits) < limit:
            if exits and tokens[-1] in params.stop_token_ids:
                break
            logits = self.full(tokens).logits
            confidences = [float(row[-1].softmax(-1).amax()) for row in logits]
            exit_index = next(
                i
                for i in range(policy.deepest + 1)
                if i == policy.deepest or confidences[i] >= policy.thresholds[i]
            )
            output = tokens[num_prompt:]
            counts = TokenCounts(frozenset(tokens[:num_prompt]), dict(Counter(output)))
            tokens.append(sample(logits[exit_index][-1], params, len(output), counts))
            exits.append(self.exit_layers[exit_index])
        return Proposal(len(committed), tuple(tokens[len(committed) :]), tuple(exits))

    def _keep(self, layer: nn.Module, args: object, output: Tensor) -> None:
        self._outputs.append(output)


def new_draft(
    family: Family = "llama",
    exit_layers: Sequence[int] = EXITS,
    *,
    prefill_chunk: int = 256,
    max_parked_tokens: int = 64,
) -> SortedDraft:
    model = tiny_model(family, seed=4, **SHAPE)
    trunk = Trunk(model, VOCAB_SIZE, NUM_SLOTS, CAPACITY)
    return SortedDraft(trunk, exit_layers, prefill_chunk, max_parked_tokens)


def new_oracle(family: Family = "llama", exit_layers: Sequence[int] = EXITS) -> Oracle:
    return Oracle(tiny_model(family, seed=4, **SHAPE), exit_layers)


def new_start(
    sequence_id: str,
    num_prompt: int = 5,
    params: SamplingParams = GREEDY,
    max_tokens: int = 40,
) -> SequenceStart:
    rng = random.Random(f"{sequence_id} {num_prompt}")
    prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(num_prompt))
    return SequenceStart(sequence_id, 0, prompt, num_prompt, params, max_tokens)


def assert_cached_as_by(oracle: Oracle, draft: SortedDraft) -> None:
    """Every cached position and every parked state equals that of a whole fresh forward."""
    for sequence in draft.sequences.values():
        full = oracle.full(sequence.token_ids)
        filled = sequence.filled
        assert filled == sorted(filled, reverse=True)
        assert filled[0] <= len(sequence.token_ids)
        for segment, num_filled in enumerate(filled):
            first = draft.exit_layers[segment - 1] if segment else 0
            for layer in range(first, draft.exit_layers[segment]):
                if num_filled == 0:
                    continue
                key, value = draft.trunk.cache._buffers[layer]
                assert_near(key[sequence.slot, :num_filled], full.keys[layer][:num_filled])
                assert_near(value[sequence.slot, :num_filled], full.values[layer][:num_filled])
        assert len(sequence.parked) == len(filled) - 1
        for segment, parked in enumerate(sequence.parked):
            between = slice(filled[segment + 1], filled[segment])
            assert_near(parked, full.hidden[segment][between])
        output = sequence.token_ids[sequence.start.num_prompt_tokens :]
        assert sequence.counts.output == Counter(output)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4), (ours - theirs).abs().max()


def propose(draft: SortedDraft, lengths: dict[str, int]) -> dict[str, Proposal]:
    return draft.propose(lengths, [])


class AnyInterleaving:
    """Joins, leaves, prefill, proposals and outcomes of all kinds, in random order."""

    def __init__(self, family: Family, seed: int) -> None:
        self.rng = random.Random(seed)
        self.draft = new_draft(family, prefill_chunk=9, max_parked_tokens=4)
        self.oracle = new_oracle(family)
        self.starts: dict[str, SequenceStart] = {}
        self.policies: dict[str, ExitPolicy] = {}
        self.tokens: dict[str, list[int]] = {}
        """Prompt and committed tokens."""
        self.seen: Counter[str] = Counter()
        """How often what happened."""

    def run(self, num_operations: int) -> None:
        """Some operations, each followed by a look at all that the draft holds."""
        weights = {
            self.propose: 10,
            self.commit: 7,
            self.prefill: 4,
            self.join: 3,
            self.leave: 1,
            self.lag: 1,
            self.reopen: 1,
        }
        for _ in range(num_operations):
            (operation,) = self.rng.choices(list(weights), list(weights.values()))
            if self.tokens or operation == self.join:
                operation()
                self.check()

    def join(self) -> None:
        name = self.rng.choice([i for i in "abcd" if i not in self.tokens])
        num_prompt = self.rng.choice([1, 4, 6, 15, 16, 17, 30])
        params = self.rng.choice([GREEDY, SAMPLED, PENALISED, ENDING])
        start = new_start(name, num_prompt, params, self.rng.choice([3, 20, 50]))
        thresholds = self.rng.choices([ALWAYS, 0.1, 0.15, 0.2, 0.3, NEVER], k=len(EXITS) - 1)
        policy = ExitPolicy(tuple(thresholds[: self.rng.choice([0, 1, 2, 2, 2])]))
        is_open = self.draft.open(start, policy)
        assert is_open == (len(self.tokens) < NUM_SLOTS)
        if is_open:
            self.starts[name], self.policies[name] = start, policy
            self.tokens[name] = list(start.token_ids)

    def leave(self) -> None:
        self.forget(self.any_name())

    def prefill(self) -> None:
        before = {i: own.num_missing for i, own in self.draft.sequences.items()}
        lagging = [i for i, missing in before.items() if missing > MAX_UNREAD_TOKENS]
        name = (lagging or sorted(self.tokens))[0]
        is_lagging = bool(lagging)
        assert self.draft.num_lagging(name) == (before[name] - 1 if is_lagging else 0)
        assert self.draft.prefill([name]) == (9 if is_lagging else 0)
        after = {i: own.num_missing for i, own in self.draft.sequences.items()}
        if is_lagging:
            before[name] -= 9
            assert len(set(self.draft.sequences[name].filled)) == 1
            self.seen["chunk"] += 1
        assert after == before

    def propose(self) -> None:
        chosen = self.rng.sample(sorted(self.tokens), self.rng.randint(1, len(self.tokens)))
        lengths = {i: self.rng.randint(0, 4) for i in chosen}
        ready = [i for i in lengths if self.draft.is_ready(i)]
        proposals = propose(self.draft, lengths)
        assert list(proposals) == ready
        for i, proposal in proposals.items():
            limit = min(lengths[i], self.num_left(i) - 1, CAPACITY - len(self.tokens[i]))
            expected = self.oracle.proposal(self.starts[i], self.tokens[i], self.policies[i], limit)
            assert proposal == expected
            self.seen["drafted"] += len(proposal.token_ids)
        exits = {proposal.exits[:1] for proposal in proposals.values()} - {()}
        self.seen["mixed exits"] += len(exits) > 1

    def commit(self) -> None:
        """What a target may answer: some of the drafted tokens, then others, or none of them."""
        name = self.any_name()
        tokens = self.tokens[name]
        base_length = len(tokens)
        drafted = self.draft.sequences[name].token_ids[base_length:]
        kept = drafted[: self.rng.randint(0, len(drafted))]
        new = [*kept, *self.any_tokens(self.rng.choice([0, 1, 1, 1, 3]))][: self.num_left(name)]
        if not new:
            return
        assert not self.draft.commit(name, base_length + self.rng.choice([-1, 1]), new)
        fits = base_length + len(new) <= CAPACITY
        assert self.draft.commit(name, base_length, new) == fits
        tokens += new
        self.seen["accepted"] += len(kept)
        self.seen["rejected"] += len(drafted) - len(kept)
        self.seen["outgrown"] += not fits
        if not fits or self.num_left(name) == 0:
            self.forget(name)
        else:
            assert self.draft.sequences[name].num_missing > 0

    def lag(self) -> None:
        """The target went on alone for long."""
        name = self.any_name()
        new = self.any_tokens(self.rng.randint(5, 20))[: self.num_left(name) - 1]
        if new and len(self.tokens[name]) + len(new) <= CAPACITY:
            assert self.draft.commit(name, len(self.tokens[name]), new)
            self.tokens[name] += new

    def reopen(self) -> None:
        """A new epoch with other committed tokens, or a repeated join that must change nothing."""
        name = self.any_name()
        start = self.starts[name]
        if self.rng.random() < 0.5:
            num_prompt = start.num_prompt_tokens
            output = self.tokens[name][num_prompt:]
            output = output[: self.rng.randint(0, len(output))] + self.any_tokens(1)
            tokens = [*start.token_ids[:num_prompt], *output[: start.max_tokens - 1]]
            start = replace(start, epoch=start.epoch + 1, token_ids=tuple(tokens))
            self.starts[name], self.tokens[name] = start, tokens
        assert self.draft.open(start, self.policies[name])

    def check(self) -> None:
        """Tokens are the expected ones, and cached is what a full forward gives."""
        assert_cached_as_by(self.oracle, self.draft)
        assert set(self.draft.sequences) == set(self.tokens)
        slots = [sequence.slot for sequence in self.draft.sequences.values()]
        assert len(set(slots)) == len(slots)
        for name, sequence in self.draft.sequences.items():
            num_committed = len(self.tokens[name])
            assert sequence.num_committed == num_committed
            assert sequence.token_ids[:num_committed] == self.tokens[name]
            assert len(sequence.exits) == len(sequence.token_ids) - num_committed
            for segment, parked in enumerate(sequence.parked):
                # Full ones are read before a step, which parks what it reads.
                step = self.draft.max_parked_tokens - 1 + MAX_UNREAD_TOKENS
                assert parked.shape[0] <= (segment + 1) * step
                self.seen["parked overflow"] += parked.shape[0] > self.draft.max_parked_tokens

    def any_name(self) -> str:
        return self.rng.choice(sorted(self.tokens))

    def any_tokens(self, number: int) -> list[int]:
        return [self.rng.randrange(VOCAB_SIZE) for _ in range(number)]

    def num_left(self, name: str) -> int:
        start = self.starts[name]
        return start.max_tokens - (len(self.tokens[name]) - start.num_prompt_tokens)

    def forget(self, name: str) -> None:
        self.draft.close(name)
        self.draft.close(name)
        for held in (self.starts, self.policies, self.tokens):
            del held[name]


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_lazy_catch_up_equals_a_full_forward_in_any_interleaving(family: Family) -> None:
    """At each step, every proposal is the reference's and every cached state a full forward's."""
    total: Counter[str] = Counter()

    @settings(deadline=None, derandomize=True, max_examples=6, database=None)
    @given(seed=st.integers(0, 2**32))
    def any_seed(seed: int) -> None:
        interleaving = AnyInterleaving(family, seed)
        interleaving.run(80)
        total.update(interleaving.seen)

    any_seed()
    kinds = ("drafted", "accepted", "rejected", "mixed exits", "parked overflow", "chunk")
    assert all(total[kind] >= 10 for kind in kinds), total
    assert total["outgrown"] > 0


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return new_oracle()


def test_rows_of_one_batch_leave_at_their_own_exits(oracle: Oracle) -> None:
    draft = new_draft()
    policy = ExitPolicy((0.2, 0.2))
    starts = {i: new_start(i, 4 + n, SAMPLED) for n, i in enumerate("abc")}
    for start in starts.values():
        draft.open(start, policy)
    costs: list[tuple[int, float]] = []
    proposals = draft.propose(dict.fromkeys("abc", 8), costs)
    assert [num_sequences for num_sequences, _ in costs] == [3] * 8
    assert all(seconds > 0 for _, seconds in costs)
    mixed = set()
    for i, start in starts.items():
        assert proposals[i] == oracle.proposal(start, start.token_ids, policy, 8)
    for exits in zip(*(proposal.exits for proposal in proposals.values()), strict=True):
        mixed.add(frozenset(exits))
    assert {len(exits) for exits in mixed} >= {2, 3}, "rows must have left at different exits"
    assert frozenset(EXITS) in mixed
    assert_cached_as_by(oracle, draft)


def test_targets_with_different_deepest_exits_share_a_batch(oracle: Oracle) -> None:
    draft = new_draft()
    deepest = {"a": ExitPolicy(()), "b": ExitPolicy((NEVER,)), "c": WHOLE}
    for i, policy in deepest.items():
        draft.open(new_start(i), policy)
    for buffer in poisoned_buffers(draft):
        buffer.fill_(math.nan)
    proposals = propose(draft, dict.fromkeys("abc", 3))
    for exit_layer, (i, policy) in zip(EXITS, deepest.items(), strict=True):
        start = new_start(i)
        assert proposals[i] == oracle.proposal(start, start.token_ids, policy, 3)
        assert set(proposals[i].exits) == {exit_layer}
        slot = draft.sequences[i].slot
        for layer, (key, value) in draft.trunk.cache._buffers.items():
            is_run = layer < exit_layer
            for buffer in (key, value):
                assert bool(buffer[slot, 0].isfinite().all()) == is_run, "layers beyond are not run"
                assert buffer[slot, 7:].isnan().all()


def poisoned_buffers(draft: SortedDraft) -> list[Tensor]:
    """All buffers of the cache, allocated by a pass."""
    trunk = draft.trunk
    trunk.run(trunk.layers, trunk.embed([0]), trunk.batch([Row(0, 0, 1)]))
    return [buffer for pair in trunk.cache._buffers.values() for buffer in pair]


def record_calls(
    draft: SortedDraft, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[int], list[int]]:
    """(rows of each call of the head, first layer of each run), as they come."""
    heads: list[int] = []
    runs: list[int] = []
    trunk = draft.trunk
    logits, run = draft.heads.logits, trunk.run

    def counted_logits(exit_index: int, hidden: Tensor) -> Tensor:
        heads.append(hidden.shape[0])
        return logits(exit_index, hidden)

    def counted_run(layers: Sequence[nn.Module], hidden: Tensor, batch: object) -> Tensor:
        runs.append(list(trunk.layers).index(layers[0]))
        return run(layers, hidden, batch)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(draft.heads, "logits", counted_logits)
    monkeypatch.setattr(trunk, "run", counted_run)
    return heads, runs


def test_the_head_of_an_exit_that_never_emits_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = new_draft()
    for i, policy in {"a": WHOLE, "b": ExitPolicy((NEVER, 1.0)), "c": WHOLE}.items():
        draft.open(new_start(i), policy)
    heads, runs = record_calls(draft, monkeypatch)
    proposals = propose(draft, {"a": 2, "b": 2, "c": 2})
    assert heads == [1, 3] * 2  # exit 3 is tried for b alone
    assert runs == [0, 1, 3] * 2
    assert all(proposal.exits == (4, 4) for proposal in proposals.values())


def test_deeper_segments_wait_until_enough_is_parked(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = new_draft(max_parked_tokens=6)
    draft.open(new_start("a", 4), ExitPolicy((ALWAYS, ALWAYS)))
    heads, runs = record_calls(draft, monkeypatch)
    propose(draft, {"a": 9})
    sequence = draft.sequences["a"]
    # Tokens parked before each step: 0, 4, 5, 6 (read), 1, 2, 3, 4, 5.
    assert runs == [0, 0, 0, 1, 3, 0, 0, 0, 0, 0, 0]
    assert heads == [1] * 9
    assert (sequence.filled, [p.shape[0] for p in sequence.parked]) == ([12, 6, 6], [6, 0])
    assert_cached_as_by(oracle, draft)
    propose(draft, {"a": 10})
    assert sequence.filled == [13, 12, 12]
    assert_cached_as_by(oracle, draft)


def test_rejected_tokens_leave_all_segments(oracle: Oracle) -> None:
    draft = new_draft()
    policy = ExitPolicy((0.15, 0.2))
    start = new_start("a", 6, SAMPLED)
    draft.open(start, policy)
    drafted = propose(draft, {"a": 7})["a"].token_ids
    other = (drafted[3] + 1) % VOCAB_SIZE
    assert draft.commit("a", 6, [*drafted[:3], other])
    sequence = draft.sequences["a"]
    assert sequence.token_ids == [*start.token_ids, *drafted[:3], other]
    assert max(sequence.filled) == 9
    assert_cached_as_by(oracle, draft)
    again = propose(draft, {"a": 4})["a"]
    assert again == oracle.proposal(start, sequence.token_ids[:10], policy, 4)


def test_tokens_that_saw_no_outcome_are_proposed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = new_draft()
    draft.open(new_start("a", params=SAMPLED), WHOLE)
    first = propose(draft, {"a": 4})["a"]
    _, runs = record_calls(draft, monkeypatch)
    assert propose(draft, {"a": 4})["a"] == first
    shorter = propose(draft, {"a": 2})["a"]
    assert (shorter.token_ids, shorter.exits) == (first.token_ids[:2], first.exits[:2])
    assert propose(draft, {"a": 0})["a"] == Proposal(5)
    assert runs == []
    longer = propose(draft, {"a": 5})["a"]
    assert longer.token_ids[:4] == first.token_ids
    assert runs == [0, 1, 3]


@pytest.mark.parametrize("num_kept", [1, 2, 3, 4])
def test_a_target_that_commits_a_part_of_what_was_drafted_can_be_drafted_for_at_once(
    oracle: Oracle, num_kept: int
) -> None:
    draft = new_draft()
    start = new_start("a", params=SAMPLED)
    draft.open(start, WHOLE)
    drafted = propose(draft, {"a": 4})["a"].token_ids
    assert draft.commit("a", 5, drafted[:num_kept])
    assert draft.is_ready("a")
    assert propose(draft, {"a": 2})["a"] == oracle.proposal(
        start, [*start.token_ids, *drafted[:num_kept]], WHOLE, 2
    )


def test_an_outcome_for_another_length_is_not_guessed_at() -> None:
    draft = new_draft()
    draft.open(new_start("a"), WHOLE)
    drafted = propose(draft, {"a": 3})["a"]
    for base_length in (4, 6, 0, 8):
        assert not draft.commit("a", base_length, drafted.token_ids)
    assert not draft.commit("nobody", 5, drafted.token_ids)
    assert propose(draft, {"a": 3})["a"] == drafted
    assert draft.commit("a", 5, drafted.token_ids)
    assert not draft.commit("a", 5, drafted.token_ids)


@pytest.mark.parametrize("num_left", [1, 2, 4])
def test_the_last_token_is_never_drafted(num_left: int) -> None:
    draft = new_draft()
    start = new_start("a", max_tokens=6 + num_left)
    draft.open(replace(start, token_ids=(*start.token_ids, *range(6))), WHOLE)
    assert len(propose(draft, {"a": 9})["a"].token_ids) == num_left - 1


@pytest.mark.parametrize("num_free", [0, 1, 3])
def test_a_proposal_ends_where_the_slot_does(num_free: int) -> None:
    draft = new_draft()
    draft.open(new_start("a", CAPACITY - num_free, max_tokens=40), WHOLE)
    while draft.prefill(["a"]):
        pass
    if num_free == 0:
        assert propose(draft, {"a": 9})["a"].token_ids == ()
        assert not draft.commit("a", CAPACITY, [1])
        return
    assert draft.commit("a", CAPACITY - num_free, [1])
    proposal = propose(draft, {"a": 9})["a"]
    assert len(proposal.token_ids) == num_free - 1


def test_a_sequence_that_outgrows_its_slot_gives_it_back() -> None:
    draft = new_draft()
    start = new_start("a", CAPACITY - 2)
    draft.open(start, WHOLE)
    assert draft.commit("a", CAPACITY - 2, [1, 2])
    assert not draft.commit("a", CAPACITY, [3])
    assert draft.sequences == {}
    assert draft.num_lagging("a") == draft.prefill(["a"]) == 0
    longer = replace(start, epoch=1, token_ids=(*start.token_ids, 1, 2, 3))
    assert not draft.open(longer, WHOLE)
    assert all(draft.open(new_start(i), WHOLE) for i in "bcd"), "all slots are free"
    assert not draft.open(new_start("e"), WHOLE)


def test_a_join_that_outgrows_the_slot_of_an_open_sequence_closes_it() -> None:
    draft = new_draft()
    start = new_start("a", CAPACITY - 2)
    draft.open(start, WHOLE)
    assert not draft.open(replace(start, token_ids=(*start.token_ids, 1, 2, 3)), WHOLE)
    assert draft.sequences == {}


def test_an_end_token_ends_a_proposal(oracle: Oracle) -> None:
    draft = new_draft()
    start = new_start("a", params=SAMPLED)
    text = oracle.proposal(start, start.token_ids, WHOLE, 8).token_ids
    assert text[3] not in text[:3]
    ending = replace(start, params=replace(SAMPLED, stop_token_ids=(text[3],)))
    draft.open(ending, WHOLE)
    assert propose(draft, {"a": 8})["a"].token_ids == text[:4]
    assert propose(draft, {"a": 8})["a"].token_ids == text[:4], "nor is one drafted later"


def test_a_long_prompt_is_read_in_chunks_and_delays_nobody(oracle: Oracle) -> None:
    draft = new_draft(prefill_chunk=8)
    long, short = new_start("long", 30), new_start("short", 3)
    draft.open(long, WHOLE)
    draft.open(short, WHOLE)
    assert not draft.is_ready("long")
    proposals = propose(draft, {"long": 2, "short": 2})
    assert proposals == {"short": oracle.proposal(short, short.token_ids, WHOLE, 2)}
    assert draft.sequences["long"].filled == [0, 0, 0]
    num_chunks = 0
    while not draft.is_ready("long"):
        assert draft.num_lagging("long") == 29 - 8 * num_chunks
        assert draft.prefill(["long"]) == 8
        num_chunks += 1
        assert draft.sequences["long"].filled == [8 * num_chunks] * 3
        assert_cached_as_by(oracle, draft)
    assert num_chunks == 2  # 14 are left, which a proposal may read itself
    assert draft.num_lagging("long") == draft.prefill(["long"]) == 0
    assert propose(draft, {"long": 2})["long"] == oracle.proposal(long, long.token_ids, WHOLE, 2)


def test_sequences_share_a_chunk_and_the_first_ones_come_first(oracle: Oracle) -> None:
    draft = new_draft()
    starts = [new_start("a", 30), new_start("b", 30), new_start("c", 30)]
    for start, policy in zip(starts, (ExitPolicy(()), WHOLE, WHOLE), strict=True):
        draft.open(start, policy)
    assert draft.prefill(["a", "b", "c"], max_tokens=40) == 40
    assert [draft.sequences[i].filled for i in "abc"] == [[29], [11] * 3, [0] * 3]
    assert_cached_as_by(oracle, draft)
    assert draft.prefill(["a", "b", "c"]) == 18 + 29
    assert draft.prefill(["a", "b", "c"]) == 0
    proposals = propose(draft, {"a": 2, "b": 3, "c": 1})
    for start, policy, length in zip(
        starts, (ExitPolicy(()), WHOLE, WHOLE), (2, 3, 1), strict=True
    ):
        expected = oracle.proposal(start, start.token_ids, policy, length)
        assert proposals[start.sequence_id] == expected


def test_a_prompt_that_fits_in_one_chunk_is_gone_on_from_at_once(oracle: Oracle) -> None:
    draft = new_draft()
    start = new_start("a", 30)
    draft.open(start, WHOLE)
    assert draft.prefill(["a"]) == 29
    assert draft.prefill(["a"]) == 0
    assert propose(draft, {"a": 3})["a"] == oracle.proposal(start, start.token_ids, WHOLE, 3)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, PENALISED])
def test_a_plain_small_model_is_a_draft_of_one_exit(params: SamplingParams) -> None:
    draft = new_draft("qwen2", (4,))
    oracle = new_oracle("qwen2", (4,))
    start = new_start("a", params=params)
    draft.open(start, ExitPolicy(()))
    proposal = propose(draft, {"a": 12})["a"]
    assert proposal == oracle.proposal(start, start.token_ids, ExitPolicy(()), 12)
    assert proposal.exits == (4,) * 12
    assert draft.sequences["a"].parked == []
    assert_cached_as_by(oracle, draft)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_sub_models_of_other_shapes(tie: bool, kv_heads: int) -> None:
    shape = Shape(
        num_layers=4,
        hidden=32,
        tie=tie,
        kv_heads=kv_heads,
        padded_vocab_size=VOCAB_SIZE + 9,
    )
    draft = SortedDraft(
        Trunk(tiny_model("mistral", seed=6, **shape), VOCAB_SIZE, NUM_SLOTS, CAPACITY), (2, 4)
    )
    oracle = Oracle(tiny_model("mistral", seed=6, **shape), (2, 4))
    policy = ExitPolicy((0.2,))
    start = new_start("a", params=SAMPLED)
    draft.open(start, policy)
    proposal = propose(draft, {"a": 10})["a"]
    assert proposal == oracle.proposal(start, start.token_ids, policy, 10)
    assert set(proposal.exits) == {2, 4}
    assert_cached_as_by(oracle, draft)


def test_layers_beyond_the_last_exit_are_never_run() -> None:
    draft = new_draft(exit_layers=(1, 2))
    draft.open(new_start("a"), ExitPolicy((NEVER,)))
    assert propose(draft, {"a": 2})["a"].exits == (2, 2)
    assert set(draft.trunk.cache._buffers) == {0, 1}


def reopened(change: Callable[[SequenceStart, DraftSequence], SequenceStart]) -> list[int]:
    """Committed tokens after a join is repeated in another form; 4 tokens are committed before."""
    draft = new_draft()
    start = new_start("a")
    draft.open(start, WHOLE)
    assert draft.commit("a", 5, [1, 2, 3, 4])
    propose(draft, {"a": 2})
    sequence = draft.sequences["a"]
    assert draft.open(change(start, sequence), WHOLE)
    assert len(draft.sequences) == 1
    return sequence.token_ids[5 : sequence.num_committed]


def test_a_repeated_join_takes_nothing_back() -> None:
    assert reopened(lambda start, _: start) == [1, 2, 3, 4]


def test_a_join_of_the_same_epoch_that_knows_more_is_followed() -> None:
    assert reopened(
        lambda start, _: replace(start, token_ids=(*start.token_ids, 1, 2, 9, 9, 9))
    ) == [1, 2, 9, 9, 9]


def test_a_new_epoch_is_followed_even_if_it_knows_less() -> None:
    assert reopened(lambda start, _: replace(start, epoch=1, token_ids=(*start.token_ids, 1))) == [
        1
    ]


def test_a_proposal_ends_where_its_exit_is_unsure() -> None:
    draft = new_draft()
    draft.open(new_start("a"), WHOLE)
    draft.open(new_start("b"), ExitPolicy((NEVER, NEVER), min_confidence=1.0))
    proposals = propose(draft, {"a": 4, "b": 4})
    assert len(proposals["a"].token_ids) == 4
    assert len(proposals["b"].token_ids) == 1  # the one that it doubts is proposed
    assert (draft.gave_up("a"), draft.gave_up("b"), draft.gave_up("c")) == (False, True, False)
    assert len(propose(draft, {"b": 4})["b"].token_ids) == 1
    base = draft.sequences["b"].num_committed
    assert draft.commit("b", base, [1])
    assert not draft.gave_up("b")
    assert len(propose(draft, {"b": 4})["b"].token_ids) == 1
