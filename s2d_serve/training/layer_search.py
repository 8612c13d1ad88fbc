"""Which layers of its base a draft keeps: the one that is missed least is dropped, time and again.

Source: SLEB (Song et al., arXiv:2402.09025), which judges layers by perplexity; here it is the loss
that the draft is trained with, after the base's own norm and head.

It does not always pay. SmolLM2-135M, 30 layers, held-out acceptance, found / the first ones:

    kept   own norm and head   closed-form start
    12     0.21 / 0.09         0.23 / 0.29
    16     0.36 / 0.13         0.34 / 0.31
    20     0.55 / 0.22         0.46 / 0.46
    24     0.69 / 0.42         0.62 / 0.72

The linear map makes up for layers missing at the end, not for gaps; after an epoch of `heads`
at 12 layers it is 0.27 / 0.33. From 16 kept on, found layers start without the map (see
`closed_form`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from s2d_serve.engine.checkpoint import Checkpoint
from s2d_serve.training.objective import exit_loss
from s2d_serve.training.rows import Row
from s2d_serve.training.student import draft_head
from s2d_serve.training.targets import LearnedTokens, learned_tokens
from s2d_serve.training.trunk_states import laid_out, layer_states, next_rows

FILE = "layers.json"
NUM_TOKENS = 1024
"""Learned tokens by which layers are judged; a search's time grows with them (30 layers of
SmolLM2-135M down to 12: about 19 minutes of one core).
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """Text by which layers are judged, and how."""

    rows: Sequence[Row]
    tokens: LearnedTokens
    """Of these rows."""
    head: Tensor
    """[V, hidden]: LM head over the draft's vocabulary."""
    teacher_weight: float

    @classmethod
    def of(
        cls,
        rows: Iterable[Row],
        base: Checkpoint,
        vocabulary: Sequence[int] | None,
        teacher_weight: float,
    ) -> Self:
        """The first rows with `NUM_TOKENS` learned tokens, or a little more."""
        taken: list[Row] = []
        num_tokens = 0
        for row in rows:
            if num_tokens >= NUM_TOKENS:
                break
            taken.append(row)
            num_tokens += len(row.token_ids) - row.num_prompt_tokens
        tokens = learned_tokens(taken, vocabulary, base.vocab_size)
        head = draft_head(base.model, vocabulary, base.vocab_size)
        return cls(taken, tokens, head, teacher_weight)

    def loss(self, states: Tensor) -> float:
        """Of normed last states at the learned tokens, [n, hidden]."""
        logits = linear(states.float(), self.head)
        tokens = (self.tokens.labels, self.tokens.top_ids, self.tokens.top_probs)
        labels, top_ids, top_probs = (values.to(logits.device) for values in tokens)
        return float(exit_loss(logits, labels, top_ids, top_probs, self.teacher_weight))  # sync


@dataclass(frozen=True, slots=True)
class LayerDrops:
    """What a search has dropped so far."""

    base_loss: float
    """Of the whole base."""
    layers: tuple[int, ...] = ()
    """In the order in which they were dropped."""
    losses: tuple[float, ...] = ()
    """Of what was left, after each."""

    def kept(self, num_base_layers: int) -> tuple[int, ...]:
        """The base's other layers, increasing."""
        return tuple(i for i in range(num_base_layers) if i not in self.layers)


@dataclass(frozen=True, slots=True)
class DropsFile:
    """A search on disk, so that one that was cut off goes on."""

    path: Path
    run: str
    """Names what the search depends on; another run's is not read."""

    def read(self) -> LayerDrops | None:
        """What this run's search has dropped; None if it has not begun."""
        written = json.loads(self.path.read_text()) if self.path.exists() else {}
        if written.pop("run", None) != self.run:
            return None
        return LayerDrops(written["base_loss"], tuple(written["layers"]), tuple(written["losses"]))

    def write(self, drops: LayerDrops) -> None:
        """Write in one step."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"run": self.run} | asdict(drops)) + "\n")
        partial.rename(self.path)


@torch.no_grad()
def search(
    decoder: nn.Module,
    sample: Sample,
    num_kept: int,
    file: DropsFile,
    progress: Callable[[int, int], None],
) -> LayerDrops:
    """Drop layers until `num_kept` are left; of equally harmless ones the lowest goes first.

    Args:
        decoder: the whole base in float32; it is left as it was.
        progress: called with (layers dropped, of how many).
    """
    num_layers = len(decoder.layers)  # type: ignore[arg-type]  # a ModuleList
    num_drops = num_layers - num_kept
    drops = file.read()
    if drops is not None and len(drops.layers) == num_drops:
        return drops
    left = RemainingLayers(decoder, sample, drops.layers if drops else ())
    drops = drops or LayerDrops(left.loss())
    progress(len(drops.layers), num_drops)
    while len(drops.layers) < num_drops:
        losses = [left.loss_without(place) for place in range(len(left.kept))]
        place = losses.index(min(losses))
        drops = LayerDrops(
            drops.base_loss, (*drops.layers, left.kept[place]), (*drops.losses, losses[place])
        )
        left.drop(place)
        file.write(drops)
        progress(len(drops.layers), num_drops)
    return drops


@dataclass(slots=True)
class _Pass:
    """Some of the sample's rows, and their states before each layer that is left."""

    states: list[Tensor]
    """[B, T, hidden] each."""
    learned: Tensor
    """[B, T] bool: where a learned token is predicted."""


class RemainingLayers:
    """A base without some layers.

    States before each layer are kept: what comes before a change is not run again, which is half of
    the work.
    """

    def __init__(self, decoder: nn.Module, sample: Sample, dropped: Sequence[int] = ()) -> None:
        self._decoder = decoder
        self._sample = sample
        self._layers: list[nn.Module] = list(decoder.layers)  # type: ignore[arg-type]  # a ModuleList
        self.kept = [i for i in range(len(self._layers)) if i not in dropped]
        """The base's layers that are left."""
        self._passes = []
        rest = sample.rows
        while rest:
            rows = next_rows(rest)
            ids, learned = laid_out(rows, sample.head.device)
            self._passes.append(_Pass([decoder.embed_tokens(ids)], learned))  # type: ignore[operator]  # an Embedding
            rest = rest[len(rows) :]
        self._fill(0)

    def loss(self) -> float:
        """Of what is left."""
        return self._loss(0, self.kept)

    def loss_without(self, place: int) -> float:
        """Of what is left without the layer at this place of `kept`."""
        return self._loss(place, self.kept[place + 1 :])

    def drop(self, place: int) -> None:
        """Leave out the layer at this place of `kept`."""
        del self.kept[place]
        self._fill(place)

    def _loss(self, place: int, layers: Sequence[int]) -> float:
        """After `layers`, from the states before the layer at `place` on."""
        normed = []
        with self._only(layers):
            for one in self._passes:
                output = self._decoder(inputs_embeds=one.states[place], use_cache=False)
                normed.append(output.last_hidden_state[one.learned])
        return self._sample.loss(torch.cat(normed))

    def _fill(self, place: int) -> None:
        """Bring the states before the layers after `place` up to date."""
        later = self.kept[place:]
        with self._only(later[:-1]):
            for one in self._passes:
                one.states[place + 1 :] = layer_states(
                    self._decoder, range(1, len(later)), inputs_embeds=one.states[place]
                )

    @contextmanager
    def _only(self, layers: Iterable[int]) -> Iterator[None]:
        whole = self._decoder.layers
        self._decoder.layers = nn.ModuleList(self._layers[i] for i in layers)
        try:
            yield
        finally:
            self._decoder.layers = whole
