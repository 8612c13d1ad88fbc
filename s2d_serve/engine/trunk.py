"""A decoder-only checkpoint, opened up: embedding, any run of its layers, head. The modules are
transformers' own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from s2d_serve.engine.cache import ATTENTION, RaggedBatch, Row, SlotCache
from s2d_serve.engine.heads import ExitHeads, Translator
from s2d_serve.engine.linears import Quantization, as_linear, prepare, prepare_layers


class Trunk:
    """Runs layers of one checkpoint over packed ragged rows, with a cache of its own."""

    def __init__(
        self, model: PreTrainedModel, vocab_size: int, num_slots: int, capacity: int
    ) -> None:
        """`vocab_size`: the tokenizer's; rows of the head beyond it are never computed."""
        model.set_attn_implementation(ATTENTION)
        self.layers: Sequence[nn.Module] = list(model.model.layers)
        self.vocab_size = vocab_size
        self.cache = SlotCache(num_slots, capacity)
        self.hidden_size: int = model.config.hidden_size
        self.norm_eps: float = model.config.rms_norm_eps
        self._embed = model.model.embed_tokens
        self._rotary = model.model.rotary_emb
        self._norm = model.model.norm
        self._head_weight: Tensor = model.lm_head.weight[:vocab_size]
        self._head: nn.Module = as_linear(self._head_weight)
        self._groups = model.config.num_attention_heads // model.config.num_key_value_heads

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return self._head_weight.device

    def batch(self, rows: Sequence[Row]) -> RaggedBatch:
        """Lay out a forward pass."""
        return RaggedBatch(rows, self.cache.capacity, self._groups, self._head_weight)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """[N] ids -> [N, hidden]."""
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self.device)
        embedded: Tensor = self._embed(ids)
        return embedded

    def run(self, layers: Sequence[nn.Module], hidden: Tensor, batch: RaggedBatch) -> Tensor:
        """Hidden states after these layers: [N, hidden] -> [N, hidden]; writes the cache of each
        layer run.
        """
        self.cache.begin(batch)
        states = hidden[None]
        position_embeddings = self._rotary(states, batch.position_ids)
        for layer in layers:
            states = layer(
                states,
                past_key_values=self.cache,
                position_ids=batch.position_ids,
                position_embeddings=position_embeddings,
                batch=batch,
            )
        return states[0]

    def forward(self, rows: Sequence[Row], token_ids: Sequence[int]) -> Tensor:
        """Run all layers: [N, hidden], of the N tokens of these rows, in their order."""
        return self.run(self.layers, self.embed(token_ids), self.batch(rows))

    def prepare(self) -> None:
        """Bring layers and LM head into the layout that this device runs best."""
        prepare_layers(self.layers)
        self.prepare_head()

    def prepare_head(self) -> None:
        """Bring the LM head alone into that layout."""
        self._head = prepare(as_linear(self._head_weight))

    def exit_heads(
        self,
        translators: Sequence[Translator | None],
        vocabulary: Sequence[int] | None = None,
        quantization: Quantization = "none",
    ) -> ExitHeads:
        """Heads for a draft's exits around this checkpoint's own norm and LM head."""
        return ExitHeads(self._norm, self._head_weight, translators, vocabulary, quantization)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, hidden] -> [N, V] float32, after the final norm."""
        logits: Tensor = self._head(self._norm(hidden))
        return logits.float()
