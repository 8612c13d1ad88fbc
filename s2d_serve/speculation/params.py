"""How a sequence's tokens are chosen, as plain values: no tensors here, so that all processes can
hold it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a sequence's tokens are chosen. The defaults leave the distribution as it is."""

    temperature: float = 1.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit)."""
    min_tokens: int = 0
    """Output tokens before any of `stop_token_ids` or the end of sequence may come."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the sequence (the model's own end tokens included, unless ignored)."""
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        """No randomness: the most probable token after penalties and bias."""
        return self.temperature == 0.0

    @property
    def is_plain(self) -> bool:
        """The logits are used as they come: no bias, mask or penalty."""
        return (
            not self.logit_bias
            and self.min_tokens == 0
            and self.repetition_penalty == 1.0
            and self.frequency_penalty == 0.0
            and self.presence_penalty == 0.0
        )


@dataclass(slots=True)
class TokenCounts:
    """What a sequence holds, for penalties: grows by `add`, shrinks by `remove` (rollback)."""

    prompt: frozenset[int]
    output: dict[int, int] = field(default_factory=dict)

    def add(self, token_ids: Sequence[int]) -> None:
        """Count tokens appended to the output."""
        for token_id in token_ids:
            self.output[token_id] = self.output.get(token_id, 0) + 1

    def remove(self, token_ids: Sequence[int]) -> None:
        """Forget tokens that were added and did not stay."""
        for token_id in token_ids:
            self.output[token_id] -= 1
            if self.output[token_id] == 0:
                del self.output[token_id]
