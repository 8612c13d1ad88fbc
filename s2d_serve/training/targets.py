"""What each learned token of the rows asks of the draft, as tensors over its own vocabulary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from s2d_serve.training.rows import Row

NOT_DRAFTABLE = -1


@dataclass(frozen=True, slots=True)
class LearnedTokens:
    """The learned tokens of all rows, one after the other (N in all)."""

    offsets: tuple[int, ...]
    """Where each row's tokens begin, and the end."""
    labels: Tensor
    """[N] int64: the text's own token in the draft's vocabulary, or `NOT_DRAFTABLE`."""
    top_ids: Tensor
    """[N, k] int64: the target's likeliest ones; 0 where there are fewer or they are cut off."""
    top_probs: Tensor
    """[N, k] float32: their probabilities; 0 where there are none."""

    def span(self, row: int) -> slice:
        """A row's tokens."""
        return slice(self.offsets[row], self.offsets[row + 1])


def frequent_ids(
    rows: Sequence[Row], size: int | None, vocab_size: int, always: frozenset[int]
) -> list[int] | None:
    """The most frequent token ids, increasing; None for all.

    Among ids that the rows hold equally often the lower comes first: byte-pair vocabularies number
    their tokens by frequency.
    """
    if size is None or size >= vocab_size:
        return None
    counts = Counter(i for row in rows for i in row.token_ids[row.num_prompt_tokens :])
    for row in rows:
        counts.update(i for entry in row.top for i, _ in entry)
    ranked = sorted(range(vocab_size), key=lambda i: (i not in always, -counts[i], i))
    return sorted(ranked[:size])


def learned_tokens(
    rows: Sequence[Row], vocabulary: Sequence[int] | None, vocab_size: int
) -> LearnedTokens:
    """Lay out the rows' learned tokens."""
    place = torch.arange(vocab_size)
    if vocabulary is not None:
        place = torch.full((vocab_size,), NOT_DRAFTABLE)
        place[torch.tensor(vocabulary)] = torch.arange(len(vocabulary))
    num_learned = [len(row.token_ids) - row.num_prompt_tokens for row in rows]
    labels = place[[i for row in rows for i in row.token_ids[row.num_prompt_tokens :]]]
    num_top = max((len(entry) for row in rows for entry in row.top), default=0)
    top_ids = torch.zeros(len(labels), num_top, dtype=torch.int64)
    top_probs = torch.zeros(len(labels), num_top)
    offsets = (0, *accumulate(num_learned))
    for row, start in zip(rows, offsets, strict=False):
        for i, entry in enumerate(row.top):
            ids = place[[token_id for token_id, _ in entry]]
            probs = torch.tensor([logprob for _, logprob in entry]).exp()
            top_ids[start + i, : len(entry)] = ids.clamp_min(0)
            top_probs[start + i, : len(entry)] = probs * (ids != NOT_DRAFTABLE)
    return LearnedTokens(offsets, labels, top_ids, top_probs)
