"""KV cache with one slot per sequence, and attention over ragged rows that copies none of it.

A forward pass takes the new tokens of all its rows packed into one sequence of N tokens: no
padding, so linear layers do no work twice, and no row can write past its own tokens. `RaggedBatch`
says which tokens belong to whom; the decoder layers of transformers carry it to the attention
function registered here under `ATTENTION`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache

ATTENTION = "s2d_ragged"
"""Name of the attention function, for `attn_implementation`."""

PROMPT_BLOCK = 64
"""Positions of a prompt that are attended together."""


@dataclass(frozen=True, slots=True)
class Row:
    """New tokens of one sequence in a forward pass: they get the positions start, start + 1, ..."""

    slot: int
    start: int
    """Tokens of this sequence that the layers to be run have cached."""
    num_tokens: int
    num_prompt_tokens: int = 0
    """Positions before this one are attended in blocks, the others one by one."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens that share one attention call."""

    slot: int
    num_tokens: int
    length: int
    """Cached tokens that the last of them sees, itself included."""
    mask: Tensor | None
    """[G * T, length], added to the scores; None where one token sees everything."""


class RaggedBatch:
    """Where each of N packed tokens belongs: its slot, its position, and what it may attend to.

    Attributes:
        rows: the rows, in the order of their tokens.
        position_ids: [1, N] int64.
        flat_index: [N] int64, index of each token in a cache laid out as [slots * capacity].
        last_token: [B] int64, index of each row's last token.
        pieces: the attention calls, in the order of the tokens. How positions are cut into pieces
            depends on the sequence alone, never on the pass: the same token is always computed
            by the same call, so that bfloat16 texts do not depend on proposals or on the batch.
            (In one call for all new tokens of a row, half of 20 SmolLM2 texts of 48 tokens came
            out different with speculation; linear layers give equal rows at any batch size here.)
    """

    def __init__(self, rows: Sequence[Row], capacity: int, groups: int, like: Tensor) -> None:
        """`groups`: query heads per key-value head; `like`: a tensor of the model's device and
        type.
        """
        device = like.device
        self.rows = tuple(rows)
        positions: list[int] = []
        flat: list[int] = []
        for row in self.rows:
            stop = row.start + row.num_tokens
            assert 0 <= row.start < stop <= capacity, "a row must stay inside its slot"
            positions.extend(range(row.start, stop))
            flat.extend(range(row.slot * capacity + row.start, row.slot * capacity + stop))
        self.position_ids = torch.tensor([positions], device=device)
        self.flat_index = torch.tensor(flat, device=device)
        ends = torch.tensor([row.num_tokens for row in self.rows], device=device).cumsum(0)
        self.last_token = ends - 1
        self.pieces = [piece for row in self.rows for piece in _pieces(row, groups, like)]


def _pieces(row: Row, groups: int, like: Tensor) -> Iterator[Piece]:
    """Aligned blocks of the prompt, then single tokens."""
    start, stop = row.start, row.start + row.num_tokens
    while start < stop:
        end = start + 1
        if start < row.num_prompt_tokens:
            block_end = (start // PROMPT_BLOCK + 1) * PROMPT_BLOCK
            end = min(block_end, row.num_prompt_tokens, stop)
        yield Piece(row.slot, end - start, end, _causal_mask(start, end, groups, like))
        start = end


def _causal_mask(start: int, end: int, groups: int, like: Tensor) -> Tensor | None:
    """Of the tokens from `start` to `end`: 0 where a token may look, else -inf."""
    if end - start == 1:
        return None
    return like.new_full((end - start, end), -torch.inf).triu_(start + 1).repeat(groups, 1)


class SlotCache(Cache):
    """Keys and values of all sequences: one [slots, capacity, H, D] pair per layer, allocated at
    first use.

    The buffers take their heads and type from the states they are given, so that a rank of a
    sharded model holds its own heads only. Who owns a sequence keeps its length; rollback is to go
    on from a smaller `Row.start`.
    """

    def __init__(self, num_slots: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.num_slots = num_slots
        self.capacity = capacity
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._flat_index = torch.empty(0, dtype=torch.int64)

    def begin(self, batch: RaggedBatch) -> None:
        """Set where the next forward pass writes: `update` gets no positions from the layers."""
        self._flat_index = batch.flat_index

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the packed states ([1, H, N, D]) of one layer; returns its whole buffers."""
        if layer_idx not in self._buffers:
            self._buffers[layer_idx] = (self._allocate(key_states), self._allocate(value_states))
        for buffer, states in zip(
            self._buffers[layer_idx], (key_states, value_states), strict=True
        ):
            buffer.flatten(0, 1).index_copy_(0, self._flat_index, states[0].transpose(0, 1))
        return self._buffers[layer_idx]

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers allocated so far."""
        return sum(buffer.nbytes for pair in self._buffers.values() for buffer in pair)

    def _allocate(self, states: Tensor) -> Tensor:
        _, heads, _, head_size = states.shape
        return states.new_zeros(self.num_slots, self.capacity, heads, head_size)


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    batch: RaggedBatch,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Each row attends to its own slot, cut at its own length.

    Query heads that share a key-value head are folded into the token dimension, so that
    grouped-query attention repeats no keys.

    Args:
        query: [1, H, N, D] packed.
        key: [slots, capacity, Hkv, D], a layer's buffer; `value` alike.
        batch: the rows of this pass.

    Returns:
        [1, N, H, D], and no weights.
    """
    _, heads, num_tokens, head_size = query.shape
    kv_heads = key.shape[2]
    output = query.new_empty(num_tokens, heads, head_size)
    offset = 0
    for piece in batch.pieces:
        stop = offset + piece.num_tokens
        attended = scaled_dot_product_attention(
            query[:, :, offset:stop].reshape(1, kv_heads, -1, head_size),
            key[piece.slot, : piece.length].transpose(0, 1)[None],
            value[piece.slot, : piece.length].transpose(0, 1)[None],
            attn_mask=piece.mask,
            scale=scaling,
        )
        output[offset:stop] = attended.reshape(heads, piece.num_tokens, -1).transpose(0, 1)
        offset = stop
    return output[None], None


AttentionInterface.register(ATTENTION, ragged_attention)
