import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from s2d_serve.engine.cache import RaggedBatch
from s2d_serve.engine.messages import Outcome, Proposal, SequenceStart
from s2d_serve.engine.target import TargetModel
from s2d_serve.engine.trunk import Trunk
from s2d_serve.speculation.params import SamplingParams, TokenCounts
from s2d_serve.speculation.sampling import sample
from tests.engine.tiny import VOCAB_SIZE, Family, Shape, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "mistral")
CAPACITY = 96
PADDED = Shape(num_layers=3, padded_vocab_size=VOCAB_SIZE + 50)
"""More rows than the tokenizer has ids."""

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=7)
PENALISED = SamplingParams(
    temperature=0.9,
    repetition_penalty=1.3,
    frequency_penalty=0.4,
    presence_penalty=0.3,
    logit_bias=((17, 3.0), (40, -100.0)),
    seed=11,
)
PENALISED_GREEDY = replace(PENALISED, temperature=0.0)
ALL_PARAMS = (GREEDY, SAMPLED, PENALISED, PENALISED_GREEDY)

bounded = settings(deadline=None, derandomize=True, max_examples=40)

Propose = Callable[[str, Sequence[int]], Proposal]
"""From a sequence's id and its tokens so far to its next proposal."""


def new_target(
    model: PreTrainedModel, *, prefill_chunk: int = 256, num_slots: int = 8
) -> TargetModel:
    return TargetModel(Trunk(model, VOCAB_SIZE, num_slots, CAPACITY), prefill_chunk)


def new_start(
    sequence_id: str,
    prompt: Sequence[int],
    params: SamplingParams = GREEDY,
    max_tokens: int = 16,
    num_logprobs: int | None = None,
) -> SequenceStart:
    return SequenceStart(
        sequence_id, 0, tuple(prompt), len(prompt), params, max_tokens, num_logprobs
    )


def new_prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB_SIZE) for _ in range(length)]


def alone(sequence_id: str, token_ids: Sequence[int]) -> Proposal:
    """No proposal: the target decodes alone."""
    return Proposal(len(token_ids))


def serve(
    target: TargetModel, starts: Sequence[SequenceStart], propose: Propose = alone
) -> dict[str, list[Outcome]]:
    """All outcomes of these sequences, served together to their ends."""
    tokens = {start.sequence_id: list(start.token_ids) for start in starts}
    outcomes: dict[str, list[Outcome]] = {sequence_id: [] for sequence_id in tokens}
    for start in starts:
        target.open(start)
    live = set(tokens)
    while live:
        result = target.step({i: propose(i, tokens[i]) for i in tokens if i in live})
        for sequence_id, outcome in result.outcomes.items():
            assert outcome.base_length == len(tokens[sequence_id])
            tokens[sequence_id] += outcome.token_ids
            outcomes[sequence_id].append(outcome)
            if outcome.finish_reason is not None:
                live.remove(sequence_id)
    for sequence_id in tokens:
        target.close(sequence_id)
    return outcomes


def texts(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, list[int]]:
    """Committed tokens by sequence."""
    return {i: [t for outcome in own for t in outcome.token_ids] for i, own in outcomes.items()}


def stock_text(
    model: PreTrainedModel, prompt: Sequence[int], max_tokens: int, **settings: object
) -> list[int]:
    """Greedy text of transformers' own `generate`, end tokens kept, padding ids ruled out."""
    beyond = list(range(VOCAB_SIZE, model.config.vocab_size))
    input_ids = torch.tensor([prompt])
    output: Tensor = model.generate(  # type: ignore[operator]  # untyped
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        suppress_tokens=beyond or None,
        pad_token_id=0,
        **settings,
    )
    text: list[int] = output[0, len(prompt) :].tolist()
    return text


def sampled_text(
    model: PreTrainedModel, prompt: Sequence[int], params: SamplingParams, max_tokens: int
) -> list[int]:
    """What the stock model's own logits give, one token after the other, without a cache."""
    text: list[int] = []
    for position in range(max_tokens):
        counts = TokenCounts(frozenset(prompt), dict(Counter(text)))
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *text]])).logits[0, -1]
        text.append(sample(logits[:VOCAB_SIZE], params, position, counts))
    return text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [True, False])
def test_greedy_texts_of_a_batch_are_those_of_generate(family: Family, tie: bool) -> None:
    shape = Shape(num_layers=3, padded_vocab_size=VOCAB_SIZE + 50, tie=tie)
    stock = tiny_model(family, seed=5, **shape)
    target = new_target(tiny_model(family, seed=5, **shape))
    prompts = {str(n): new_prompt(n, seed=n) for n in (1, 2, 9, 33)}
    starts = [new_start(i, prompt, max_tokens=24) for i, prompt in prompts.items()]
    outcomes = texts(serve(target, starts))
    beyond = 0
    for i, prompt in prompts.items():
        expected = stock_text(stock, prompt, 24, eos_token_id=-1)
        assert outcomes[i] == expected
        with torch.inference_mode():
            raw = stock(input_ids=torch.tensor([prompt + expected])).logits[0].argmax(-1)
        beyond += int((raw >= VOCAB_SIZE).sum())
    assert beyond, "ids beyond the tokenizer must have been tempting"


@pytest.mark.parametrize("params", ALL_PARAMS)
def test_texts_are_samples_of_the_stock_logits(params: SamplingParams) -> None:
    stock = tiny_model("qwen2", seed=6, **PADDED)
    target = new_target(tiny_model("qwen2", seed=6, **PADDED))
    prompt = new_prompt(7)
    outcomes = serve(target, [new_start("a", prompt, params, 20)])
    assert texts(outcomes)["a"] == sampled_text(stock, prompt, params, 20)


@pytest.mark.parametrize("prefill_chunk", [1, 2, 3, 7, 16, 40, 41, 256])
def test_the_chunk_size_changes_no_token(prefill_chunk: int) -> None:
    target = new_target(tiny_model("llama", seed=5), prefill_chunk=prefill_chunk)
    prompts = {str(n): new_prompt(n, seed=n) for n in (1, 40, 17, 3)}
    starts = [new_start(i, prompt) for i, prompt in prompts.items()]
    stock = tiny_model("llama", seed=5)
    expected = {i: stock_text(stock, p, 16, eos_token_id=-1) for i, p in prompts.items()}
    assert texts(serve(target, starts)) == expected


def small_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for room in ("cache", "target"):
        monkeypatch.setattr(f"s2d_serve.engine.{room}.PROMPT_BLOCK", size)


def test_prompts_share_a_chunk_and_delay_no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 4)
    target = new_target(tiny_model("llama", seed=5), prefill_chunk=12)
    for name, length in (("short", 1), ("long", 17), ("later", 6), ("last", 9)):
        target.open(new_start(name, new_prompt(length)))
    passes = []
    for _ in range(5):
        result = target.step({i: Proposal(0) for i in ("long", "later", "last", "short")})
        committed = {i: len(outcome.token_ids) for i, outcome in result.outcomes.items()}
        passes.append((result.num_tokens, *committed.values()))
    assert passes == [
        (1 + 12, 0, 0, 0, 1),
        (1 + 5 + 6, 1, 1, 0, 1),  # 1 of 12 is left, and a prompt is cut at the ends of blocks
        (1 + 1 + 1 + 9, 1, 1, 1, 1),
        (4, 1, 1, 1, 1),
        (4, 1, 1, 1, 1),
    ]


@pytest.mark.parametrize("prefill_chunk", [4, 8, 12, 40])
@pytest.mark.parametrize("length", [0, 3])
def test_positions_are_always_cut_into_the_same_pieces(
    monkeypatch: pytest.MonkeyPatch, prefill_chunk: int, length: int
) -> None:
    """Whatever the chunks, the batch, the proposals, and also after a recovery."""
    small_blocks(monkeypatch, 4)
    target = new_target(tiny_model("llama", seed=5), prefill_chunk=prefill_chunk)
    seen: dict[int, set[tuple[int, int]]] = {}
    run = target.trunk.run

    def watched(layers: Sequence[nn.Module], hidden: Tensor, batch: RaggedBatch) -> Tensor:
        for piece in batch.pieces:
            first = piece.length - piece.num_tokens
            seen.setdefault(piece.slot, set()).add((first, piece.length))
        return run(layers, hidden, batch)

    monkeypatch.setattr(target.trunk, "run", watched)
    starts = [new_start(str(n), new_prompt(n, seed=n)) for n in (1, 3, 14, 21)]
    starts[2] = replace(starts[2], token_ids=(*starts[2].token_ids, *range(9)))
    slots = {8 - n: start for n, start in enumerate(starts, 1)}

    def wrong(sequence_id: str, token_ids: Sequence[int]) -> Proposal:
        return Proposal(len(token_ids), (5,) * length, (3,) * length)

    serve(target, starts, wrong)
    for slot, start in slots.items():
        prompt = start.num_prompt_tokens
        blocks = [(first, min(first + 4, prompt)) for first in range(0, prompt, 4)]
        last = prompt + start.max_tokens - 1
        assert seen[slot] == {*blocks, *((n, n + 1) for n in range(prompt, last))}


def test_a_proposal_that_comes_with_the_last_chunk_is_verified() -> None:
    target = new_target(tiny_model("llama", seed=5), prefill_chunk=8)
    prompt = new_prompt(12)
    (outcome, *_) = serve(target, [new_start("a", prompt)])["a"][1:]
    target.open(new_start("a", prompt))
    right = texts({"a": [outcome]})["a"]
    proposal = Proposal(12, (right[0],), (3,))
    assert target.step({"a": proposal}).outcomes["a"].token_ids == ()
    outcome = target.step({"a": proposal}).outcomes["a"]
    assert (outcome.num_accepted, len(outcome.token_ids), outcome.exits) == (1, 2, (3,))


SHARED = new_target(tiny_model("qwen2", seed=9, **PADDED), prefill_chunk=10)
"""One target for all examples: what an example leaves behind must not matter."""

PROMPTS = {"a": new_prompt(5, seed=1), "b": new_prompt(23, seed=2)}


@pytest.fixture(scope="module")
def right_texts() -> dict[SamplingParams, dict[str, list[int]]]:
    """Texts of the prompts without proposals, by parameters."""
    return {
        params: texts(serve(SHARED, [new_start(i, p, params) for i, p in PROMPTS.items()]))
        for params in ALL_PARAMS
    }


@bounded
@given(data=st.data(), params=st.sampled_from(ALL_PARAMS))
def test_no_proposal_changes_the_text(
    right_texts: dict[SamplingParams, dict[str, list[int]]],
    data: st.DataObject,
    params: SamplingParams,
) -> None:
    """Right, wrong, impossible, too long, another's, for another length, with odd exits."""
    right = {i: PROMPTS[i] + text for i, text in right_texts[params].items()}
    impossible = st.sampled_from([-1, -VOCAB_SIZE, VOCAB_SIZE, VOCAB_SIZE + 49, 2**40, -(2**63)])
    wrong = st.integers(0, VOCAB_SIZE - 1)

    def propose(sequence_id: str, token_ids: Sequence[int]) -> Proposal:
        whose = data.draw(st.sampled_from([sequence_id, sequence_id, "a", "b"]))
        proposed = right[whose][len(token_ids) :][: data.draw(st.integers(0, 20))]
        for _ in range(data.draw(st.integers(0, 2))):
            place = data.draw(st.integers(0, len(proposed)))
            proposed[place : place + data.draw(st.integers(0, 1))] = [data.draw(wrong | impossible)]
        base_length = len(token_ids) + data.draw(st.sampled_from([0, 0, 0, 0, 1, -1, -99]))
        num_exits = len(proposed) + data.draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        return Proposal(base_length, tuple(proposed), (3,) * num_exits)

    starts = [new_start(i, prompt, params) for i, prompt in PROMPTS.items()]
    outcomes = serve(SHARED, starts, propose)
    assert texts(outcomes) == right_texts[params]
    for own in outcomes.values():
        for outcome in own:
            assert outcome.num_accepted <= len(outcome.exits)
            assert outcome.num_accepted <= len(outcome.token_ids) <= outcome.num_accepted + 1
    assert SHARED.num_free_slots == 8


def proposing(text: Sequence[int], prompt: Sequence[int], length: int) -> Propose:
    """Proposals that are right: so many of the tokens to come."""

    def propose(sequence_id: str, token_ids: Sequence[int]) -> Proposal:
        first = len(token_ids) - len(prompt)
        proposed = tuple(text[first : first + length])
        return Proposal(len(token_ids), proposed, (3,) * len(proposed))

    return propose


@pytest.mark.parametrize("params", ALL_PARAMS)
def test_right_proposals_are_accepted_whole(
    right_texts: dict[SamplingParams, dict[str, list[int]]], params: SamplingParams
) -> None:
    text = right_texts[params]["a"]
    propose = proposing(text, PROMPTS["a"], 4)
    outcomes = serve(SHARED, [new_start("a", PROMPTS["a"], params)], propose)["a"]
    assert [(len(o.token_ids), o.num_accepted, len(o.exits)) for o in outcomes] == [
        (5, 4, 4),
        (5, 4, 4),
        (5, 4, 4),
        (1, 0, 0),  # nothing may be proposed before the last token
    ]
    assert texts({"a": outcomes})["a"] == text


@pytest.mark.parametrize("wrong_place", [0, 1, 3])
def test_the_first_difference_is_corrected(
    right_texts: dict[SamplingParams, dict[str, list[int]]], wrong_place: int
) -> None:
    text = right_texts[SAMPLED]["a"]
    proposed = text[:4]
    proposed[wrong_place] = (proposed[wrong_place] + 1) % VOCAB_SIZE
    SHARED.open(new_start("a", PROMPTS["a"], SAMPLED))
    outcome = SHARED.step({"a": Proposal(5, tuple(proposed), (1, 2, 3, 3))}).outcomes["a"]
    SHARED.close("a")
    assert outcome.token_ids == tuple(text[: wrong_place + 1])
    assert outcome.num_accepted == wrong_place
    assert outcome.exits == (1, 2, 3, 3)
    assert outcome.draft_token_ids == tuple(proposed), "the wrong guess too"


@pytest.mark.parametrize(("surplus", "num_exits"), [(1, 4), (-1, 4), (-5, 4), (0, 3), (0, 5)])
def test_a_proposal_for_another_length_or_with_odd_exits_is_ignored(
    right_texts: dict[SamplingParams, dict[str, list[int]]], surplus: int, num_exits: int
) -> None:
    text = right_texts[SAMPLED]["a"]
    SHARED.open(new_start("a", PROMPTS["a"], SAMPLED))
    proposal = Proposal(5 + surplus, tuple(text[:4]), (3,) * num_exits)
    result = SHARED.step({"a": proposal})
    SHARED.close("a")
    assert result.outcomes["a"] == Outcome(5, (text[0],))
    assert result.num_tokens == 5


@pytest.mark.parametrize("impossible", [-1, VOCAB_SIZE, VOCAB_SIZE + 49, 2**40])
def test_a_proposal_is_cut_before_an_impossible_id(
    right_texts: dict[SamplingParams, dict[str, list[int]]], impossible: int
) -> None:
    """Rows of the padded vocabulary are no tokens either."""
    text = right_texts[SAMPLED]["a"]
    SHARED.open(new_start("a", PROMPTS["a"], SAMPLED))
    proposal = Proposal(5, (text[0], text[1], impossible, text[3]), (1, 2, 3, 3))
    result = SHARED.step({"a": proposal})
    SHARED.close("a")
    assert result.outcomes["a"] == Outcome(5, tuple(text[:3]), 2, (1, 2), (text[0], text[1]))
    assert result.num_tokens == 5 + 2


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 16])
@pytest.mark.parametrize("length", [0, 1, 3, 20])
def test_max_tokens_is_exact(
    right_texts: dict[SamplingParams, dict[str, list[int]]], max_tokens: int, length: int
) -> None:
    text = right_texts[GREEDY]["a"]
    start = new_start("a", PROMPTS["a"], max_tokens=max_tokens)
    outcomes = serve(SHARED, [start], proposing(text, PROMPTS["a"], length))["a"]
    assert texts({"a": outcomes})["a"] == text[:max_tokens]
    assert outcomes[-1].finish_reason == "length"
    assert all(len(outcome.exits) == outcome.num_accepted for outcome in outcomes)


def test_a_sequence_may_fill_its_slot_to_the_last_token() -> None:
    target = new_target(tiny_model("llama", seed=5))
    prompt = new_prompt(30)
    start = new_start("a", prompt, max_tokens=CAPACITY - 30)
    expected = stock_text(tiny_model("llama", seed=5), prompt, CAPACITY - 30, eos_token_id=-1)
    assert texts(serve(target, [start]))["a"] == expected
    assert texts(serve(target, [start], proposing(expected, prompt, 99)))["a"] == expected
    with pytest.raises(AssertionError):
        target.open(replace(start, max_tokens=CAPACITY - 29))


def first_seen(text: Sequence[int], least: int) -> int:
    """Place of a token, at least so far in, that the text did not hold before."""
    return next(i for i in range(least, len(text)) if text[i] not in text[:i])


@pytest.mark.parametrize("length", [0, 2, 15])
def test_an_end_token_ends_the_text_wherever_it_is(
    right_texts: dict[SamplingParams, dict[str, list[int]]], length: int
) -> None:
    text = right_texts[SAMPLED]["a"]
    place = first_seen(text, 5)
    params = replace(SAMPLED, stop_token_ids=(text[place], VOCAB_SIZE + 3))
    start = new_start("a", PROMPTS["a"], params, num_logprobs=0)
    outcomes = serve(SHARED, [start], proposing(text, PROMPTS["a"], length))["a"]
    assert texts({"a": outcomes})["a"] == text[: place + 1]
    last = outcomes[-1]
    assert last.finish_reason == "stop"
    assert last.num_accepted <= len(last.token_ids) == len(last.logprobs)
    if length == 15:
        assert last.num_accepted == len(last.token_ids) == place + 1


def test_an_end_token_at_the_limit_is_a_stop(
    right_texts: dict[SamplingParams, dict[str, list[int]]],
) -> None:
    text = right_texts[GREEDY]["b"]
    place = first_seen(text, 1)
    params = replace(GREEDY, stop_token_ids=(text[place],))
    start = new_start("b", PROMPTS["b"], params, max_tokens=place + 1)
    assert serve(SHARED, [start])["b"][-1].finish_reason == "stop"


@pytest.mark.parametrize("length", [0, 3])
def test_no_end_token_comes_before_min_tokens(
    right_texts: dict[SamplingParams, dict[str, list[int]]], length: int
) -> None:
    """The tempting end token is proposed by a draft that knows nothing of the minimum."""
    stock = tiny_model("qwen2", seed=9, **PADDED)
    text = right_texts[GREEDY]["a"]
    ends = (text[0], text[1], text[2])
    params = replace(GREEDY, stop_token_ids=ends, min_tokens=6)
    start = new_start("a", PROMPTS["a"], params, max_tokens=12)
    expected = stock_text(stock, PROMPTS["a"], 12, eos_token_id=list(ends), min_new_tokens=6)
    propose = proposing(text, PROMPTS["a"], length)
    assert texts(serve(SHARED, [start], propose))["a"] == expected
    assert len(expected) >= 6
    assert not set(expected[:6]) & set(ends)


@pytest.mark.parametrize("num_logprobs", [None, 0, 3])
@pytest.mark.parametrize("params", [GREEDY, PENALISED])
@pytest.mark.parametrize("length", [0, 3])
def test_logprobs_are_the_raw_log_softmax(
    right_texts: dict[SamplingParams, dict[str, list[int]]],
    num_logprobs: int | None,
    params: SamplingParams,
    length: int,
) -> None:
    text = right_texts[params]["a"]
    start = new_start("a", PROMPTS["a"], params, num_logprobs=num_logprobs)
    outcomes = serve(SHARED, [start], proposing(text, PROMPTS["a"], length))["a"]
    reported = [logprobs for outcome in outcomes for logprobs in outcome.logprobs]
    if num_logprobs is None:
        assert reported == []
        return
    stock = tiny_model("qwen2", seed=9, **PADDED)
    with torch.inference_mode():
        logits = stock(input_ids=torch.tensor([PROMPTS["a"] + text])).logits[0]
    expected = logits[len(PROMPTS["a"]) - 1 : -1, :VOCAB_SIZE].log_softmax(-1)
    chosen = expected[range(len(text)), text]
    torch.testing.assert_close(torch.tensor([own.logprob for own in reported]), chosen)
    for own, row in zip(reported, expected, strict=True):
        top = row.topk(num_logprobs)
        assert [token_id for token_id, _ in own.top] == top.indices.tolist()
        torch.testing.assert_close(torch.tensor([value for _, value in own.top]), top.values)


def test_penalties_roll_back_with_rejected_tokens(
    right_texts: dict[SamplingParams, dict[str, list[int]]],
) -> None:
    """Proposals that are right at first, then full of the token that penalties touch most."""
    text = right_texts[PENALISED]["a"]
    SHARED.open(new_start("a", PROMPTS["a"], PENALISED))
    tokens, num_rejected = list(PROMPTS["a"]), 0
    while len(tokens) < len(PROMPTS["a"]) + len(text):
        right = text[len(tokens) - len(PROMPTS["a"]) :][:2]
        proposed = (*right, *[17] * 4)
        proposal = Proposal(len(tokens), proposed, (3,) * len(proposed))
        outcome = SHARED.step({"a": proposal}).outcomes["a"]
        num_rejected += len(outcome.exits) - outcome.num_accepted
        tokens += outcome.token_ids
        counts = SHARED.sequences["a"].counts
        assert counts.output == Counter(tokens[len(PROMPTS["a"]) :])
        assert counts.prompt == set(PROMPTS["a"])
    SHARED.close("a")
    assert tokens == PROMPTS["a"] + text
    assert num_rejected > 0


def test_slots_are_freed_and_used_again() -> None:
    target = new_target(tiny_model("llama", seed=5), num_slots=2)
    prompts = {str(n): new_prompt(n, seed=n) for n in (20, 4, 11, 2)}
    expected = texts(
        serve(
            new_target(tiny_model("llama", seed=5)),
            [new_start(i, prompt) for i, prompt in prompts.items()],
        )
    )
    for pair in (("20", "4"), ("11", "2"), ("2", "20")):
        assert target.num_free_slots == 2
        own = texts(serve(target, [new_start(i, prompts[i]) for i in pair]))
        assert own == {i: expected[i] for i in pair}
    target.open(new_start("20", prompts["20"]))
    target.open(new_start("20", prompts["20"]))
    assert target.num_free_slots == 1
    target.close("nobody")
    target.close("20")
    target.close("20")
    assert target.num_free_slots == 2
    assert target.sequences == {}


def test_a_sequence_opened_in_the_middle_goes_on_with_its_text(
    right_texts: dict[SamplingParams, dict[str, list[int]]],
) -> None:
    for params in ALL_PARAMS:
        text = right_texts[params]["b"]
        start = new_start("b", PROMPTS["b"], params)
        for num_committed in (1, 6, 15):
            committed = tuple(text[:num_committed])
            again = replace(start, epoch=1, token_ids=start.token_ids + committed)
            assert texts(serve(SHARED, [again]))["b"] == text[num_committed:]


def test_a_finished_sequence_gets_nothing_more() -> None:
    target = new_target(tiny_model("llama", seed=5))
    target.open(new_start("a", new_prompt(4), max_tokens=1))
    first = target.step({"a": Proposal(4)}).outcomes["a"]
    again = target.step({"a": Proposal(5, (1,), (3,))})
    assert (len(first.token_ids), first.finish_reason) == (1, "length")
    assert again.outcomes["a"] == Outcome(5, finish_reason="length")
    assert again.num_tokens == 0
    assert target.step({}).outcomes == {}
