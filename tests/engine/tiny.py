"""Tiny random models and a tiny tokenizer, made in code: real architectures, no weights to fetch.

model = tiny_model("llama", seed=0)
save_tiny(tmp_path, model)
load_checkpoint(tiny_config(tmp_path))
"""

from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from s2d_serve.config import ModelConfig

Family = Literal["llama", "qwen2", "mistral"]

CONFIGS: dict[Family, type[LlamaConfig] | type[Qwen2Config] | type[MistralConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "mistral": MistralConfig,
}

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
"""The 256 bytes as byte-level BPE writes them; a token's id is its place."""

MERGES = [
    *[("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("s", "t"), ("o", "p")],
    *[("st", "op"), ("Ġ", "stop"), ("ð", "Ł"), ("Ã", "©")],  # half an emoji; the two bytes of é
]

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

VOCAB_SIZE = len(BYTES) + len(MERGES) + len(SPECIALS)

EOS_ID = VOCAB_SIZE - 1
"""The id of <|im_end|>."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Shape(TypedDict, total=False):
    """What may differ from the default shape."""

    num_layers: int
    hidden: int
    heads: int
    kv_heads: int
    vocab_size: int
    """Ids that the tokenizer knows."""
    padded_vocab_size: int | None
    """Rows of the embedding and the head; None: as many as ids."""
    tie: bool
    max_positions: int


def tiny_model(family: Family, *, seed: int, **shape: Unpack[Shape]) -> PreTrainedModel:
    """A random model in float32: the same weights for the same arguments.

    Weights are large enough that tokens differ much in probability, that the layers outweigh the
    residual stream, and that norms and biases matter.
    """
    config = _config(family, shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # untyped
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    eos = [EOS_ID] if config.eos_token_id is not None else None
    model.generation_config = GenerationConfig(eos_token_id=eos)  # type: ignore[no-untyped-call]  # untyped
    return model.requires_grad_(False).eval()  # type: ignore[no-any-return,no-untyped-call]  # untyped


def nested_model(
    family: Family, *, seed: int, exit_layer: int, agreement_scale: float, **shape: Unpack[Shape]
) -> PreTrainedModel:
    """A random model whose early exits agree with the whole, as if it had been trained so.

    What the layers from `exit_layer` on write to the residual stream is scaled: 0 makes them
    nothing, so that every exit agrees; 1 is `tiny_model`.
    """
    model = tiny_model(family, seed=seed, **shape)
    for layer in model.model.layers[exit_layer:]:
        layer.self_attn.o_proj.weight.mul_(agreement_scale)
        layer.mlp.down_proj.weight.mul_(agreement_scale)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 256 bytes, a few merges and three special tokens, with a chat template."""
    words = [*BYTES, *("".join(pair) for pair in MERGES)]
    backend = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIALS]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped
        tokenizer_object=backend,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_tiny(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """Write model and tokenizer as a folder that `load_checkpoint` reads; returns the folder."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def tiny_config(folder: Path) -> ModelConfig:
    """The config that loads such a folder in float32."""
    return ModelConfig(source=str(folder), dtype="float32", num_threads=1)


def _config(family: Family, shape: Shape) -> PreTrainedConfig:
    hidden = shape.get("hidden", 64)
    vocab_size = shape.get("vocab_size", VOCAB_SIZE)
    config = CONFIGS[family](
        vocab_size=shape.get("padded_vocab_size") or vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=shape.get("num_layers", 4),
        num_attention_heads=shape.get("heads", 4),
        num_key_value_heads=shape.get("kv_heads", 2),
        max_position_embeddings=shape.get("max_positions", 512),
        tie_word_embeddings=shape.get("tie", True),
        initializer_range=2 * hidden**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=EOS_ID if vocab_size > EOS_ID else None,
        pad_token_id=None,
    )
    if isinstance(config, MistralConfig):
        config.sliding_window = None
    return config
