"""From one GGUF file to a folder of config.json, safetensors and tokenizer files.

The conversion is written out here instead of going through transformers' loader, which refuses to
save what it loaded, drops tensors that it does not know without a word, and leaves out the
splitting of digits (SmolLM2) and the NFC normaliser (Qwen2). The tests compare every tensor with
that loader's. Whatever is not handled here is refused by name.

Precision: float tensors keep their type. Quantised ones become bfloat16: its rounding (2^-9) is far
below theirs (2^-5 for 4 bits), files are half as large, and executors share them as mapped memory.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, TokenType, dequantize
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from s2d_serve.errors import UnsupportedModelError, WeightsError

Metadata = dict[str, Any]
"""The file's keys and values, as the GGUF specification names them."""

Config = LlamaConfig | Qwen2Config

CONFIGS: dict[str, type[LlamaConfig] | type[Qwen2Config]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
}
"""GGUF's names of architectures -> transformers' configs."""

KNOWN_KEYS = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
}
"""Settings of an architecture that are read here; another could change the maths."""

MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of modules -> transformers'."""

TENSOR_NAME = re.compile(r"(?P<block>blk\.(?P<layer>\d+)\.)?(?P<module>\w+)\.(?P<kind>weight|bias)")

FLOAT_TYPES = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text before BPE."""

END_OF_TEXT = ("<|im_end|>", "<|endoftext|>")
"""Control tokens that end a text, whether or not the file lists them: it has room for one only."""


def convert(file: Path, folder: Path) -> None:
    """Write the model in the GGUF `file` to `folder`, which exists and is empty.

    Raises:
        UnsupportedModelError: an architecture, setting, tensor or tokenizer that is not handled.
        WeightsError: the file is damaged.
    """
    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise WeightsError(f"{file} cannot be read as GGUF: {error}") from error
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    config = _config(metadata, [tensor.name for tensor in reader.tensors])
    tokenizer = _tokenizer(metadata)
    tensors = _named(reader.tensors, config)
    _check_shapes(tensors, config)
    weights = folder / "model.safetensors"
    save_file(_values(tensors, config), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes for the owner only; a cache may be shared
    config.save_pretrained(folder)
    _generation_config(metadata).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _required(metadata: Metadata, key: str) -> Any:
    value = metadata.get(key)
    if value is None:
        raise WeightsError(f"the GGUF file lacks {key}")
    return value


def _config(metadata: Metadata, tensor_names: Sequence[str]) -> Config:
    """The transformers config; every setting of the architecture is read or refused."""
    arch = _required(metadata, "general.architecture")
    if arch not in CONFIGS:
        raise UnsupportedModelError(
            f"GGUF architecture {arch!r}: {', '.join(CONFIGS)} are supported"
        )
    for key, value in metadata.items():
        if key.startswith(f"{arch}.") and key.removeprefix(f"{arch}.") not in KNOWN_KEYS:
            raise UnsupportedModelError(f"GGUF setting {key} = {value!r} is not supported")

    def get(key: str) -> Any:
        return _required(metadata, f"{arch}.{key}")

    num_heads = get("attention.head_count")
    head_dim = get("embedding_length") // num_heads
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if metadata.get(f"{arch}.{key}", head_dim) != head_dim:
            raise UnsupportedModelError(f"GGUF setting {arch}.{key}: only {head_dim} is supported")
    return CONFIGS[arch](
        architectures=[f"{CONFIGS[arch].__name__.removesuffix('Config')}ForCausalLM"],
        vocab_size=len(_required(metadata, "tokenizer.ggml.tokens")),
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=num_heads,
        num_key_value_heads=metadata.get(f"{arch}.attention.head_count_kv", num_heads),
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base")},
        tie_word_embeddings="output.weight" not in tensor_names,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        dtype=torch.bfloat16,
    )


def _named(tensors: Sequence[ReaderTensor], config: Config) -> dict[str, ReaderTensor]:
    """The file's tensors under transformers' names."""
    named = {}
    for tensor in tensors:
        match = TENSOR_NAME.fullmatch(tensor.name)
        if match is None or match["module"] not in MODULES:
            raise UnsupportedModelError(
                f"GGUF tensor {tensor.name} has no place in {type(config).__name__}"
            )
        layer = f"model.layers.{match['layer']}." if match["block"] else ""
        named[f"{layer}{MODULES[match['module']]}.{match['kind']}"] = tensor
    return named


def _check_shapes(tensors: dict[str, ReaderTensor], config: Config) -> None:
    """The file fills each parameter of the model, and holds nothing else.

    A file without `output.weight` has a tied LM head, which is no parameter of its own.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # untyped
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    found = {name: tuple(map(int, reversed(tensor.shape))) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted:
            raise UnsupportedModelError(
                f"GGUF tensor {tensors[name].name} has no place in {type(config).__name__}"
            )
        if wanted[name] != found.get(name):
            raise WeightsError(f"GGUF file: {name} has shape {found.get(name)}, not {wanted[name]}")


def _values(tensors: dict[str, ReaderTensor], config: Config) -> dict[str, Tensor]:
    """The tensors' values, in transformers' order of rows."""
    console = Console(stderr=True)
    values = {}
    for name, tensor in track(
        tensors.items(),
        "converting GGUF, once",
        console=console,
        disable=not console.is_terminal,
    ):
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if config.model_type == "llama" and "q_proj" in name:
            value = _in_halves(value, config.num_attention_heads)
        if config.model_type == "llama" and "k_proj" in name:
            value = _in_halves(value, config.num_key_value_heads or config.num_attention_heads)
        values[name] = value.to(FLOAT_TYPES.get(tensor.tensor_type, torch.bfloat16))
    return values


def _in_halves(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of a Llama projection whose heads ggml has reordered, in transformers' order.

    ggml rotates neighbours, (0, 1), (2, 3), ...; transformers rotates halves, (0, D / 2), ...
    """
    pairs = rows.view(num_heads, -1, 2, rows.shape[1])  # [H, D / 2, 2, hidden]
    return pairs.transpose(1, 2).reshape(rows.shape)


def _generation_config(metadata: Metadata) -> GenerationConfig:
    """Every id that ends a text: those the file names, and the control tokens known for it."""
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens = _required(metadata, "tokenizer.ggml.tokens")
    types = _required(metadata, "tokenizer.ggml.token_type")
    ends += [i for i, t in enumerate(types) if t == TokenType.CONTROL and tokens[i] in END_OF_TEXT]
    return GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=list(dict.fromkeys(index for index in ends if index is not None)),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )


def _tokenizer(metadata: Metadata) -> PreTrainedTokenizerFast:
    """The tokenizer that the file describes, with a chat template where it has one."""
    tokens = _required(metadata, "tokenizer.ggml.tokens")

    def text(name: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else str(tokens[index])

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=_backend(metadata),
        bos_token=text("bos"),
        eos_token=text("eos"),
        unk_token=text("unknown"),
        pad_token=text("padding"),
        chat_template=metadata.get("tokenizer.chat_template"),
        model_max_length=metadata[f"{metadata['general.architecture']}.context_length"],
        clean_up_tokenization_spaces=False,
    )


def _backend(metadata: Metadata) -> Tokenizer:
    """Byte-level BPE. Unused ids, which pad the vocabulary, are no tokens of it."""
    model, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2" or pre not in ("smollm", "qwen2"):
        raise UnsupportedModelError(
            f"GGUF tokenizer {model!r} with pre-tokenizer {pre!r}: byte-level BPE ('gpt2') "
            "with 'smollm' or 'qwen2' is supported; use the model's safetensors folder"
        )
    for key in ("add_bos_token", "add_eos_token"):
        if metadata.get(f"tokenizer.ggml.{key}"):
            raise UnsupportedModelError(f"GGUF setting tokenizer.ggml.{key} is not supported")
    types = _required(metadata, "tokenizer.ggml.token_type")
    tokens = enumerate(_required(metadata, "tokenizer.ggml.tokens"))
    vocab = {token: index for index, token in tokens if types[index] != TokenType.UNUSED}
    merges = [tuple(merge.split(" ")) for merge in _required(metadata, "tokenizer.ggml.merges")]
    try:
        backend = Tokenizer(BPE(vocab=vocab, merges=merges))
    except Exception as error:  # tokenizers raises nothing narrower
        raise WeightsError(f"the GGUF file's tokenizer is damaged: {error}") from error
    _set_pre_tokenizer(backend, pre)
    backend.decoder = decoders.ByteLevel()
    added = (TokenType.CONTROL, TokenType.USER_DEFINED)
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=types[index] == TokenType.CONTROL)
            for token, index in vocab.items()
            if types[index] in added
        ]
    )
    return backend


def _set_pre_tokenizer(backend: Tokenizer, pre: str) -> None:
    """Cut text before BPE as the model's own tokenizer.json does."""
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
