"""Exit heads: from the hidden states at an exit of the draft to logits over the draft's vocabulary.

The LM head is the base's own and shared by all exits. An exit that was trained has a *translator*
before it, which maps its hidden states to what the base's last layer would give: a linear map and a
small MLP, then a norm of its own.

Source: the translator is the affine map of the tuned lens (Belrose et al., arXiv:2303.08112) with
an MLP beside it; the cut vocabulary is FR-Spec's (arXiv:2502.14856).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from s2d_serve.engine.linears import Quantization, as_linear, prepare, prepare_layers


class Translator(nn.Module):
    """[B, hidden] at an exit -> [B, hidden] as the LM head wants it, normed."""

    def __init__(self, hidden_size: int, mlp_size: int, eps: float) -> None:
        super().__init__()
        self.input_norm = nn.Parameter(torch.ones(hidden_size))
        self.map = nn.Linear(hidden_size, hidden_size)
        self.down = nn.Linear(hidden_size, mlp_size, bias=False)
        self.up = nn.Linear(mlp_size, hidden_size, bias=False)
        self.norm = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Translate; norms in their weights' type, whatever autocasting gives the layers."""
        kind = self.norm.dtype
        normed = rms_norm(hidden.to(kind), hidden.shape[-1:], self.input_norm, self.eps)
        translated = self.map(normed) + self.up(silu(self.down(normed)))
        return rms_norm(translated.to(kind), hidden.shape[-1:], self.norm, self.eps)


def confidences(logits: Tensor) -> Tensor:
    """[B, V] -> [B]: how probable each row's likeliest token is."""
    return (logits.amax(-1) - logits.logsumexp(-1)).exp()


class ExitHeads:
    """The heads of all exits of one draft."""

    def __init__(
        self,
        final_norm: nn.Module,
        head_weight: Tensor,
        translators: Sequence[Translator | None],
        vocabulary: Sequence[int] | None = None,
        quantization: Quantization = "none",
    ) -> None:
        """
        Args:
            final_norm: the base's own, for exits without translator.
            head_weight: [V, hidden], the base's LM head.
            translators: one per exit.
            vocabulary: ids that can be drafted, increasing; None: all.
        """
        self.vocab_size = head_weight.shape[0]
        self._final_norm = final_norm
        self._translators = tuple(translators)
        prepare_layers([t for t in self._translators if t is not None], quantization)
        self._vocabulary: Tensor | None = None
        if vocabulary is not None:
            self._vocabulary = torch.tensor(vocabulary, device=head_weight.device)
            head_weight = head_weight[self._vocabulary]
        self._head = prepare(as_linear(head_weight), quantization)

    def logits(self, exit_index: int, hidden: Tensor) -> Tensor:
        """[B, hidden] after this exit's segment -> [B, ids that can be drafted] float32."""
        translator = self._translators[exit_index]
        normed = self._final_norm(hidden) if translator is None else translator(hidden)
        logits: Tensor = self._head(normed)
        return logits.float()

    def greedy(self, logits: Tensor) -> list[int]:
        """The most probable token id of each row of `logits`."""
        best = logits.argmax(-1)
        found: list[int] = (best if self._vocabulary is None else self._vocabulary[best]).tolist()
        return found  # sync

    def over_all_ids(self, logits: Tensor) -> Tensor:
        """[ids that can be drafted] -> [V], -inf where nothing can be drafted."""
        if self._vocabulary is None:
            return logits
        whole = logits.new_full((self.vocab_size,), -torch.inf)
        whole[self._vocabulary] = logits
        return whole
