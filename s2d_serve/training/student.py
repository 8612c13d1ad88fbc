"""What is trained: the translators of the exits, and the trunk below them unless it is frozen."""

from collections.abc import Iterator, Sequence
from typing import cast

import peft
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from s2d_serve.engine.heads import Translator
from s2d_serve.engine.trained import layer_change, layer_weight, translator_tensors
from s2d_serve.training.objective import exit_loss, num_agreeing
from s2d_serve.training.rows import Row
from s2d_serve.training.settings import TrainingSettings
from s2d_serve.training.targets import LearnedTokens
from s2d_serve.training.trunk_states import exit_states

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Student(nn.Module):
    """Translators before a frozen LM head; above a frozen trunk, or one that learns as well."""

    def __init__(
        self,
        model: PreTrainedModel,
        exit_layers: Sequence[int],
        vocabulary: Sequence[int] | None,
        vocab_size: int,
        settings: TrainingSettings,
    ) -> None:
        """`model`: cut down to the draft's layers already; they are changed in place by LoRA."""
        super().__init__()
        self.exit_layers = tuple(exit_layers)
        self.translators = nn.ModuleList(
            new_translator(model, settings.mlp_size) for _ in exit_layers
        )
        self.register_buffer("head", draft_head(model, vocabulary, vocab_size), False)
        self.teacher_weight = settings.teacher_weight
        self.decoder: nn.Module | None = None
        if settings.method != "heads":
            self.decoder = _learning(model.model, settings)

    def forward(
        self, states: Tensor | Sequence[Row], tokens: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Each exit's loss ([E]) and number of agreeing tokens ([E]).

        Args:
            states: [n, E, hidden] of a frozen trunk, or the rows that a learning one is to read.
            tokens: labels [n], top_ids and top_probs [n, k].
        """
        labels, top_ids, top_probs = tokens
        if not isinstance(states, Tensor):
            assert self.decoder is not None
            layers = self.exit_layers
            states = torch.stack(exit_states(self.decoder, layers, states, labels.device), 1)
        losses, agreeing = [], []
        for i, translator in enumerate(self.translators):
            logits = linear(translator(states[:, i].float()), cast(Tensor, self.head))
            losses.append(exit_loss(logits, labels, top_ids, top_probs, self.teacher_weight))
            agreeing.append(num_agreeing(logits, labels))
        return torch.stack(losses), torch.stack(agreeing)

    def trainable(self) -> dict[str, nn.Parameter]:
        """What the optimizer changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def tensors(self) -> dict[str, Tensor]:
        """What was learned, as a trained draft's folder holds it."""
        found: dict[str, Tensor] = {}
        for n, translator in zip(self.exit_layers, self.translators, strict=True):
            found |= translator_tensors(n, cast(Translator, translator))
        if self.decoder is not None:
            found |= dict(_trunk_changes(self.decoder))
        return found


def draft_head(model: PreTrainedModel, vocabulary: Sequence[int] | None, vocab_size: int) -> Tensor:
    """The LM head's rows for the ids that can be drafted, in float32: [V, hidden]."""
    head: Tensor = model.lm_head.weight[:vocab_size].detach().float()
    return head if vocabulary is None else head[list(vocabulary)]


def new_translator(model: PreTrainedModel, mlp_size: int) -> Translator:
    """One that hands the states on to the base's own norm as they are."""
    hidden_size = model.config.hidden_size
    translator = Translator(hidden_size, mlp_size, model.config.rms_norm_eps)
    with torch.no_grad():
        translator.map.weight.copy_(torch.eye(hidden_size))
        translator.map.bias.zero_()
        translator.up.weight.zero_()
        translator.norm.copy_(model.model.norm.weight)
    return translator


def batch_tokens(
    tokens: LearnedTokens, rows: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels and the target's probabilities of these rows, one after the other."""
    return tuple(  # type: ignore[return-value]  # three of them
        torch.cat([values[tokens.span(i)] for i in rows]).to(device)
        for values in (tokens.labels, tokens.top_ids, tokens.top_probs)
    )


def _learning(decoder: nn.Module, settings: TrainingSettings) -> nn.Module:
    """The trunk with gradients for its layers' linear weights."""
    decoder.float()
    if settings.method == "lora":
        config = peft.LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules=LORA_TARGETS,
        )
        peft.inject_adapter_in_model(config, decoder)
        return decoder
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(name.startswith("layers."))
    return decoder


def _trunk_changes(decoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each layer's changed weights, or low-rank changes to them with their scale in B."""
    for i, layer in enumerate(cast(nn.ModuleList, decoder.layers)):
        adapted: set[str] = set()
        for name, module in layer.named_modules():
            if isinstance(module, peft.tuners.lora.Linear):
                adapted.add(name)
                first = cast(Tensor, module.lora_A["default"].weight)
                second = cast(Tensor, module.lora_B["default"].weight) * module.scaling["default"]
                yield from layer_change(i, name, first, second)
        if not adapted:
            for name, parameter in layer.named_parameters():
                if parameter.requires_grad:
                    yield layer_weight(i, name, parameter)
