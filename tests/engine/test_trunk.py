import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from s2d_serve.engine.cache import Row
from s2d_serve.engine.trunk import Trunk
from tests.engine.tiny import VOCAB_SIZE, Family, Shape, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "mistral")
NUM_SLOTS, CAPACITY = 4, 40
NUM_HEADS: tuple[tuple[int, int], ...] = ((4, 4), (4, 2), (4, 1))
"""(query, key-value) heads: every token its own, shared by two, shared by all."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of several blocks in these small slots."""
    monkeypatch.setattr("s2d_serve.engine.cache.PROMPT_BLOCK", 8)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def poisoned(trunk: Trunk) -> Trunk:
    """The trunk with NaN in all of its cache."""
    trunk.run(trunk.layers, trunk.embed([0]), trunk.batch([Row(0, 0, 1)]))
    for pair in trunk.cache._buffers.values():
        for buffer in pair:
            buffer.fill_(math.nan)
    return trunk


def cached(trunk: Trunk, slot: int, start: int, stop: int) -> list[Tensor]:
    """Keys and values of some positions, all layers."""
    return [
        buffer[slot, start:stop].clone()
        for pair in trunk.cache._buffers.values()
        for buffer in pair
    ]


def stock_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """[T, V]: transformers' own forward over one sequence, its own attention and cache."""
    assert model.config._attn_implementation != "s2d_ragged"
    logits: Tensor = model(input_ids=torch.tensor([token_ids])).logits[0]
    return logits


def forward(trunk: Trunk, rows: Sequence[Row], token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """One packed pass over all layers; logits of each row."""
    packed = [token_id for own in token_ids for token_id in own]
    hidden = trunk.run(trunk.layers, trunk.embed(packed), trunk.batch(rows))
    return list(torch.split(trunk.logits(hidden), [row.num_tokens for row in rows]))


def in_chunks(sequence: Sequence[int], rng: random.Random) -> list[Sequence[int]]:
    """The sequence cut at random places."""
    cuts = sorted(rng.sample(range(1, len(sequence)), rng.randint(0, min(5, len(sequence) - 1))))
    return [sequence[a:b] for a, b in pairwise([0, *cuts, len(sequence)])]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), NUM_HEADS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ragged_passes_give_the_logits_of_the_stock_forward(
    family: Family, tie: bool, heads: int, kv_heads: int, attention: str
) -> None:
    """Several sequences in random chunks, slots and orders; the rest of the cache is NaN."""
    shape = Shape(num_layers=3, tie=tie, heads=heads, kv_heads=kv_heads)
    stock = tiny_model(family, seed=3, **shape)
    stock.set_attn_implementation(attention)
    trunk = poisoned(Trunk(tiny_model(family, seed=3, **shape), VOCAB_SIZE, NUM_SLOTS, CAPACITY))
    rng = random.Random(f"{family} {tie} {heads} {kv_heads} {attention}")
    slots = rng.sample(range(NUM_SLOTS), 3)
    lengths = [CAPACITY, rng.randint(2, CAPACITY), rng.randint(2, 12)]
    sequences = [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in lengths]
    num_prompt = [rng.randint(0, length) for length in lengths]
    chunks = [in_chunks(sequence, rng) for sequence in sequences]
    logits: list[list[Tensor]] = [[] for _ in sequences]
    starts = [0] * len(sequences)
    num_passes = 0
    while waiting := [i for i, own in enumerate(chunks) if own]:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        token_ids = [chunks[i].pop(0) for i in chosen]
        rows = [
            Row(slots[i], starts[i], len(own), num_prompt[i])
            for i, own in zip(chosen, token_ids, strict=True)
        ]
        for i, new in zip(chosen, forward(trunk, rows, token_ids), strict=True):
            logits[i].append(new)
            starts[i] += new.shape[0]
        num_passes += 1
    assert num_passes > 1
    for parts, sequence in zip(logits, sequences, strict=True):
        torch.testing.assert_close(
            torch.cat(parts), stock_logits(stock, sequence), rtol=1e-4, atol=1e-4
        )
    for slot in range(NUM_SLOTS):
        length = starts[slots.index(slot)] if slot in slots else 0
        assert all(states.isfinite().all() for states in cached(trunk, slot, 0, length))
        assert all(states.isnan().all() for states in cached(trunk, slot, length, CAPACITY))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_that_was_rolled_back_equals_a_fresh_prefill(family: Family) -> None:
    trunk = poisoned(Trunk(tiny_model(family, seed=1), VOCAB_SIZE, NUM_SLOTS, CAPACITY))
    rng = random.Random(family)
    right = [rng.randrange(VOCAB_SIZE) for _ in range(20)]
    wrong = [rng.randrange(VOCAB_SIZE) for _ in range(9)]
    forward(trunk, [Row(2, 0, 12, 12)], [right[:12]])
    forward(trunk, [Row(2, 12, 9, 12)], [wrong])
    (logits,) = forward(trunk, [Row(2, 12, 8, 12)], [right[12:]])
    (fresh,) = forward(trunk, [Row(0, 0, 20, 15)], [right])
    torch.testing.assert_close(logits, fresh[12:], rtol=1e-4, atol=1e-4)
    for rolled_back, expected in zip(cached(trunk, 2, 0, 20), cached(trunk, 0, 0, 20), strict=True):
        torch.testing.assert_close(rolled_back, expected, rtol=1e-4, atol=1e-4)


def test_a_row_beyond_the_capacity_is_refused_before_anything_is_written() -> None:
    trunk = poisoned(Trunk(tiny_model("llama", seed=1), VOCAB_SIZE, NUM_SLOTS, CAPACITY))
    forward(trunk, [Row(1, 0, CAPACITY - 2)], [[5] * (CAPACITY - 2)])
    forward(trunk, [Row(1, CAPACITY - 2, 2)], [[5, 5]])
    with pytest.raises(AssertionError, match="inside its slot"):
        forward(trunk, [Row(1, CAPACITY - 1, 2)], [[5, 5]])
    assert all(states.isnan().all() for states in cached(trunk, 2, 0, CAPACITY))


def test_segments_in_turn_give_what_all_layers_give() -> None:
    trunk = Trunk(tiny_model("qwen2", seed=1), VOCAB_SIZE, NUM_SLOTS, CAPACITY)
    token_ids = [3, 1, 4, 1, 5]
    batch = trunk.batch([Row(0, 0, 5, 5)])
    halfway = trunk.run(trunk.layers[:2], trunk.embed(token_ids), batch)
    in_turn = trunk.run(trunk.layers[2:], halfway, batch)
    at_once = trunk.run(trunk.layers, trunk.embed(token_ids), trunk.batch([Row(1, 0, 5, 5)]))
    torch.testing.assert_close(in_turn, at_once)
    for ours, theirs in zip(cached(trunk, 0, 0, 5), cached(trunk, 1, 0, 5), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tie", [True, False])
def test_rows_of_the_head_beyond_the_tokenizer_are_not_computed(tie: bool) -> None:
    model = tiny_model("qwen2", seed=2, padded_vocab_size=VOCAB_SIZE + 37, tie=tie)
    stock = tiny_model("qwen2", seed=2, padded_vocab_size=VOCAB_SIZE + 37, tie=tie)
    trunk = Trunk(model, VOCAB_SIZE, NUM_SLOTS, CAPACITY)
    (logits,) = forward(trunk, [Row(0, 0, 4)], [[9, 8, 7, 6]])
    assert logits.shape == (4, VOCAB_SIZE)
    torch.testing.assert_close(logits, stock_logits(stock, [9, 8, 7, 6])[:, :VOCAB_SIZE])


def test_logits_of_half_precision_models_are_float32() -> None:
    model = tiny_model("llama", seed=2).bfloat16()
    trunk = Trunk(model, VOCAB_SIZE, NUM_SLOTS, CAPACITY)
    (logits,) = forward(trunk, [Row(0, 0, 3)], [[1, 2, 3]])
    assert logits.dtype == torch.float32
    key, _ = trunk.cache._buffers[0]
    assert key.dtype == torch.bfloat16


def test_nothing_to_embed_gives_no_rows() -> None:
    trunk = Trunk(tiny_model("llama", seed=2), VOCAB_SIZE, NUM_SLOTS, CAPACITY)
    assert trunk.embed([]).shape == (0, trunk.hidden_size)
    assert trunk.logits(trunk.embed([])).shape == (0, VOCAB_SIZE)
