import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from s2d_serve.engine.cache import RaggedBatch, Row, SlotCache, ragged_attention

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_SLOTS, CAPACITY, HEAD_SIZE = 5, 14, 8
BLOCK = 4

bounded = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Prompts of several blocks in these small slots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2d_serve.engine.cache.PROMPT_BLOCK", BLOCK)
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_tokens_get_the_positions_and_places_of_their_rows() -> None:
    batch = RaggedBatch([Row(3, 4, 2), Row(0, 0, 3, 2), Row(1, 13, 1)], CAPACITY, 1, torch.empty(0))
    assert batch.position_ids.tolist() == [[4, 5, 0, 1, 2, 13]]
    assert batch.flat_index.tolist() == [46, 47, 0, 1, 2, 27]
    assert batch.last_token.tolist() == [1, 4, 5]


def test_a_row_may_end_exactly_at_capacity() -> None:
    batch = RaggedBatch([Row(1, 12, 2)], CAPACITY, 1, torch.empty(0))
    assert batch.flat_index.tolist() == [26, 27]


@pytest.mark.parametrize(
    "row", [Row(0, 12, 3), Row(0, 14, 1), Row(0, -1, 2), Row(0, 3, 0), Row(0, 0, 15, 15)]
)
def test_a_row_outside_its_slot_is_refused(row: Row) -> None:
    with pytest.raises(AssertionError, match="inside its slot"):
        RaggedBatch([Row(1, 0, 1), row], CAPACITY, 1, torch.empty(0))


@st.composite
def ragged_rows(draw: st.DrawFn) -> list[Row]:
    """Rows of different slots, with any start and length that fit."""
    slots = draw(st.lists(st.integers(0, NUM_SLOTS - 1), min_size=1, unique=True))
    rows = []
    for slot in slots:
        start = draw(st.integers(0, CAPACITY - 1))
        num_tokens = draw(st.integers(1, CAPACITY - start))
        rows.append(Row(slot, start, num_tokens, draw(st.integers(0, CAPACITY))))
    return rows


def filled_cache(kv_heads: int, rows: list[Row]) -> SlotCache:
    """One layer; NaN everywhere but in the tokens that the rows have cached."""
    cache = SlotCache(NUM_SLOTS, CAPACITY)
    cache.begin(RaggedBatch([Row(0, 0, 1)], CAPACITY, 1, torch.empty(0)))
    states = random(1, kv_heads, 1, HEAD_SIZE)
    for seed, buffer in enumerate(cache.update(states, states, 0)):
        buffer.fill_(math.nan)
        for row in rows:
            shape = (row.start, kv_heads, HEAD_SIZE)
            buffer[row.slot, : row.start] = random(*shape, seed=100 * seed + row.slot)
    return cache


@bounded
@given(rows=ragged_rows(), kv_heads=st.sampled_from([1, 2, 4]))
def test_rows_write_their_own_places_only(rows: list[Row], kv_heads: int) -> None:
    cache = filled_cache(kv_heads, rows)
    batch = RaggedBatch(rows, CAPACITY, 1, torch.empty(0))
    states = random(2, 1, kv_heads, batch.flat_index.shape[0], HEAD_SIZE)
    before = [buffer.clone() for buffer in cache._buffers[0]]
    cache.begin(batch)
    after = cache.update(states[0], states[1], 0)
    for kind in range(2):
        expected, offset = before[kind], 0
        for row in rows:
            new = states[kind, 0, :, offset : offset + row.num_tokens].transpose(0, 1)
            expected[row.slot, row.start : row.start + row.num_tokens] = new
            offset += row.num_tokens
        torch.testing.assert_close(after[kind], expected, rtol=0, atol=0, equal_nan=True)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
    """Query [H, T, D] from position `start` on, key and value [H, L, D]: a loop over tokens."""
    outputs = []
    for t in range(query.shape[1]):
        seen = start + t + 1
        scores = (key[:, :seen] @ query[:, t, :, None]).squeeze(-1) / math.sqrt(HEAD_SIZE)
        outputs.append((scores.softmax(-1)[:, None] @ value[:, :seen]).squeeze(1))
    return torch.stack(outputs)


@bounded
@given(rows=ragged_rows(), kv_heads=st.sampled_from([1, 2, 4]))
def test_each_row_attends_to_its_own_past_only(rows: list[Row], kv_heads: int) -> None:
    heads = 4
    cache = filled_cache(kv_heads, rows)
    batch = RaggedBatch(rows, CAPACITY, heads // kv_heads, torch.empty(0))
    num_tokens = batch.flat_index.shape[0]
    cache.begin(batch)
    states = random(2, 1, kv_heads, num_tokens, HEAD_SIZE, seed=1)
    key, value = cache.update(states[0], states[1], 0)
    query = random(1, heads, num_tokens, HEAD_SIZE, seed=2)
    output, weights = ragged_attention(nn.Module(), query, key, value, None, batch=batch)
    assert weights is None
    assert output.shape == (1, num_tokens, heads, HEAD_SIZE)
    offset = 0
    for row in rows:
        stop = offset + row.num_tokens
        length = row.start + row.num_tokens
        own = [
            kind[row.slot, :length].transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
            for kind in (key, value)
        ]
        expected = plain_attention(query[0, :, offset:stop], own[0], own[1], row.start)
        torch.testing.assert_close(output[0, offset:stop], expected)
        offset = stop


@bounded
@given(data=st.data(), num_prompt=st.integers(0, CAPACITY))
def test_a_token_is_the_same_bit_for_bit_in_whichever_pass_it_comes(
    data: st.DataObject, num_prompt: int
) -> None:
    """A prompt is cut at the ends of blocks, the rest anywhere, beside other rows."""
    cuts = [*range(BLOCK, num_prompt, BLOCK), *range(num_prompt, CAPACITY)]
    chosen = sorted(data.draw(st.sets(st.sampled_from(cuts or [CAPACITY]))) - {0, CAPACITY})
    key = random(NUM_SLOTS, CAPACITY, 2, HEAD_SIZE)
    query = random(1, 4, CAPACITY, HEAD_SIZE, seed=1)
    other = random(1, 4, 5, HEAD_SIZE, seed=2)

    def attend(start: int, stop: int) -> Tensor:
        rows = [Row(3, 0, 5, 3), Row(1, start, stop - start, num_prompt)]
        batch = RaggedBatch(rows, CAPACITY, 2, torch.empty(0))
        packed = torch.cat([other, query[:, :, start:stop]], dim=2)
        output, _ = ragged_attention(nn.Module(), packed, key, -key, None, batch=batch)
        return output[0, 5:]

    stops = [*chosen, CAPACITY]
    parts = [attend(start, stop) for start, stop in zip([0, *chosen], stops, strict=True)]
    assert torch.equal(torch.cat(parts), attend(0, CAPACITY))


def test_pieces_are_blocks_of_the_prompt_then_single_tokens() -> None:
    rows = [Row(2, 2, 9, 9), Row(0, 7, 2, 3), Row(1, 0, 3, 9)]
    pieces = RaggedBatch(rows, CAPACITY, 1, torch.empty(0)).pieces
    assert [(piece.slot, piece.num_tokens, piece.length) for piece in pieces] == [
        *[(2, 2, 4), (2, 4, 8), (2, 1, 9), (2, 1, 10), (2, 1, 11)],
        *[(0, 1, 8), (0, 1, 9)],
        (1, 3, 3),
    ]


def test_scaling_is_the_one_asked_for() -> None:
    rows = [Row(0, 0, 2, 2)]
    batch = RaggedBatch(rows, CAPACITY, 1, torch.empty(0))
    key = random(NUM_SLOTS, CAPACITY, 1, HEAD_SIZE)
    query = random(1, 1, 2, HEAD_SIZE, seed=1)
    flat, _ = ragged_attention(nn.Module(), query, key, key, None, batch=batch, scaling=0.0)
    torch.testing.assert_close(flat[0, 1, 0], key[0, :2, 0].mean(0))


def test_an_attention_that_answers_in_another_layout_is_read_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock = torch.nn.functional.scaled_dot_product_attention

    def transposed(*args: Any, **kwargs: Any) -> Tensor:
        """Tokens before heads in memory, as some GPU kernels write."""
        answer = stock(*args, **kwargs)
        return answer.transpose(1, 2).contiguous().transpose(1, 2)

    batch = RaggedBatch([Row(0, 0, 3, 3)], CAPACITY, 2, torch.empty(0))
    key = random(NUM_SLOTS, CAPACITY, 2, HEAD_SIZE)
    query = random(1, 4, 3, HEAD_SIZE, seed=1)
    expected, _ = ragged_attention(nn.Module(), query, key, key, None, batch=batch)
    monkeypatch.setattr("s2d_serve.engine.cache.scaled_dot_product_attention", transposed)
    output, _ = ragged_attention(nn.Module(), query, key, key, None, batch=batch)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_buffers_take_heads_and_type_from_the_states() -> None:
    cache = SlotCache(NUM_SLOTS, CAPACITY)
    assert cache.num_bytes == 0
    cache.begin(RaggedBatch([Row(2, 5, 1)], CAPACITY, 1, torch.empty(0)))
    states = random(1, 3, 1, HEAD_SIZE).bfloat16()
    key, value = cache.update(states, -states, 7)
    assert key.shape == (NUM_SLOTS, CAPACITY, 3, HEAD_SIZE)
    assert key.dtype == torch.bfloat16
    assert torch.equal(value[2, 5], -states[0, :, 0])
    assert cache.num_bytes == 2 * key.numel() * 2
    again, _ = cache.update(states, states, 7)
    assert again.data_ptr() == key.data_ptr()
