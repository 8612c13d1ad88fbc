"""Writes a tiny model and its tokenizer as a GGUF file, as llama.cpp's converter would."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from transformers import PreTrainedModel

from s2d_serve.engine.gguf import MODULES
from tests.engine.tiny import BYTES, CHAT_TEMPLATE, EOS_ID, MERGES, SPECIALS, VOCAB_SIZE

F32 = GGMLQuantizationType.F32

GGUF_NAMES = {module: name for name, module in MODULES.items()}

USER_DEFINED = "<tool_call>"
"""An added token that is not special; the id after the special ones, if the model has room."""


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    pre: str = "smollm",
    kind: GGMLQuantizationType = F32,
    settings: Mapping[str, int | str | bool] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
    """Write the file; returns its path.

    Args:
        kind: how matrices are stored; norms and biases are always float32.
        settings: keys to write over the usual ones, or beside them.
        tensors: tensors to write beside the model's, or None to leave one out.
    """
    writer = GGUFWriter(path, model.config.model_type)
    for key, value in (_settings(model, pre) | dict(settings or {})).items():
        _add(writer, key, value)
    _add_tokens(writer, model.config.vocab_size)
    state = {_gguf_name(name): value for name, value in _state(model).items()}
    for name, values in (state | dict(tensors or {})).items():
        if values is not None:
            stored = kind if values.ndim == 2 else F32
            writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _settings(model: PreTrainedModel, pre: str) -> dict[str, int | str | bool | float]:
    config = model.config
    arch = config.model_type
    return {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.eos_token_id": EOS_ID,
        "tokenizer.ggml.bos_token_id": EOS_ID - 1,
        "tokenizer.ggml.padding_token_id": EOS_ID - 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _add(writer: GGUFWriter, key: str, value: int | str | bool | float) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _add_tokens(writer: GGUFWriter, num_rows: int) -> None:
    words = [*BYTES, *("".join(pair) for pair in MERGES)]
    tokens = [*words, *SPECIALS, USER_DEFINED][:num_rows]
    types = [TokenType.NORMAL] * len(words) + [TokenType.CONTROL] * len(SPECIALS)
    types += [TokenType.USER_DEFINED] * (len(tokens) - VOCAB_SIZE)
    padding = num_rows - len(tokens)
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in range(padding)])
    writer.add_token_types(types + [TokenType.UNUSED] * padding)
    writer.add_token_merges([" ".join(pair) for pair in MERGES])


def _state(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The model's tensors, q and k of Llama in ggml's order of rows."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    for name, value in state.items() if model.config.model_type == "llama" else ():
        if "q_proj" in name or "k_proj" in name:
            key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            num_heads = getattr(model.config, key)
            halves = value.reshape(num_heads, 2, -1, value.shape[1])
            state[name] = halves.swapaxes(1, 2).reshape(value.shape)
    return state


def _gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{GGUF_NAMES[module]}.{kind}"
    layer, _, rest = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"
