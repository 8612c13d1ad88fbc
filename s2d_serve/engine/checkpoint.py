"""From a model's local folder to a transformers model and its tokenizer, or a refusal by name.

The list of architectures is the list of tested ones. A setting that would make the text depend on
anything but prompt, parameters and seed (a sliding window that is in use, rotary frequencies that
change with the longest row) is refused here, before any weight is read.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging as transformers_logging

from s2d_serve.config import ModelConfig
from s2d_serve.engine.digests import weights_sha256
from s2d_serve.engine.linears import give_back_freed, int8_scale
from s2d_serve.engine.sources import resolve
from s2d_serve.errors import ConfigError, UnsupportedModelError, WeightsError

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM")
"""The tested architectures."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies are fixed at load, not recomputed from the rows at hand."""

WHOLE_ON_EACH_RANK = {"model.embed_tokens": "replicate", "lm_head": "replicate"}
"""Parts of a sharded model that are not split: two matrices, which rank 0 reads a row of, and after
the last layer.
"""

REFUSED_SETTINGS = (
    "auto_map",
    "quantization_config",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Keys of config.json that ask for remote code or for maths that is not handled."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that is ready to run, and what its text depends on."""

    model: PreTrainedModel
    """In eval mode, without gradients, in the type and on the device asked for."""
    tokenizer: PreTrainedTokenizerFast
    vocab_size: int
    """The tokenizer's largest id + 1; the model may have more rows, which are never emitted."""
    eos_token_ids: frozenset[int]
    """Ids that end a text: of config, generation config, tokenizer and chat template."""
    max_positions: int
    """Longest sequence that the model was made for."""
    digest: str
    """Names the weights: the sha256 of their files, "+int8" where they were rounded."""


def load_checkpoint(
    model: ModelConfig,
    *,
    max_context: int | None = None,
    attention: str = "sdpa",
    num_ranks: int = 1,
) -> Checkpoint:
    """Load the model that the config names, converting or fetching it first if need be.

    Args:
        max_context: longest sequence that will be served; None: all that the model allows.
        attention: transformers' name of the attention function.
        num_ranks: processes of this process's group that each load their part of the layers.

    Raises:
        UnsupportedModelError: an architecture or setting that is not handled.
        WeightsError: missing, damaged or incomplete weights, or a tokenizer that does not fit them.
        ConfigError: `max_context` is longer than the model's positions, or the ranks do not divide
            its heads.
    """
    folder = resolve(model)
    config = checked_config(folder, max_context)
    tokenizer = load_tokenizer(folder)
    vocab_size = _vocab_size(tokenizer)
    if vocab_size > config.vocab_size:
        raise WeightsError(
            f"{folder}: the tokenizer has {vocab_size} ids, the model rows for {config.vocab_size}"
        )
    check_split(config, num_ranks, model.source)
    network = _load(folder, config, model, attention, num_ranks)
    return Checkpoint(
        model=network,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        eos_token_ids=_eos_token_ids(network, tokenizer, vocab_size),
        max_positions=config.max_position_embeddings,
        digest=weights_sha256(folder) + ("+int8" if model.weight_rounding == "int8" else ""),
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a model's local folder, without its weights.

    It is what tokenizer.json says: transformers' own classes, which AutoTokenizer prefers, build
    another pre-tokenizer for some model types.

    Raises:
        WeightsError: the folder holds no tokenizer.json, or a damaged one.
    """
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(
            f"{folder} holds no tokenizer.json; transformers' AutoTokenizer can load other files "
            "and save one there"
        )
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True
        )
    except Exception as error:  # tokenizers raises nothing narrower
        raise WeightsError(f"{folder}: the tokenizer cannot be read: {error}") from error
    return tokenizer


def same_vocabulary(draft: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> str | None:
    """How the draft's tokens differ from the target's; None if each id means the same to both.

    Rows of the models beyond the tokenizers' ids play no part: they are never emitted.
    """
    ours, theirs = draft.get_vocab(), target.get_vocab()
    differing = [token for token, _ in ours.items() ^ theirs.items()]
    if differing:
        token = min(differing)
        return (
            f"{len(set(differing))} tokens differ, such as {token!r}: "
            f"id {ours.get(token)} in the draft, {theirs.get(token)} in the target"
        )
    special, expected = _special_ids(draft), _special_ids(target)
    if special != expected:
        return f"these ids are special in only one of the two: {sorted(special ^ expected)}"
    if draft.eos_token_id != target.eos_token_id:
        return f"EOS is {draft.eos_token_id} in the draft, {target.eos_token_id} in the target"
    return None


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def set_up_torch(model: ModelConfig) -> int:
    """Before the first tensor: threads from the config, 0 being every core of the machine, and huge
    pages for large tensors (Linux), unless `THP_MEM_ALLOC_ENABLE` is set. Returns the threads.

    Ray exports OMP_NUM_THREADS from `num_cpus`, which torch would follow. Small pages cost address
    translation, most of all inside a virtual machine: on 2 cores with AVX2 Qwen2.5-Coder-0.5B, as a
    draft in 4 bits, takes 46 ms a step instead of 60, and as a target in float32 151 instead of 169
    over one token, the same over four (geometric means of eight runs each, in turn).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    count = model.num_threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    return count


def checked_config(folder: Path, max_context: int | None) -> PreTrainedConfig:
    """The folder's config, if each of its settings is handled.

    Raises: UnsupportedModelError, WeightsError, ConfigError as `load_checkpoint` does.
    """
    settings = _read_json(folder / "config.json")
    architecture = (settings.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{folder}: architecture {architecture} is not supported; "
            f"{', '.join(ARCHITECTURES)} are"
        )
    for key in REFUSED_SETTINGS:
        if settings.get(key) is not None:
            raise UnsupportedModelError(f"{folder}: {key} in config.json is not supported")
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    rope_type = config.rope_parameters.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"{folder}: rope_type {rope_type} is not supported; {', '.join(ROPE_TYPES)} are"
        )
    positions = config.max_position_embeddings
    context = positions if max_context is None else max_context
    if context > positions:
        raise ConfigError(
            f"{folder}: max_context {context} exceeds the model's {positions} positions"
        )
    _switch_window_off(folder, config, context)
    return config


def _switch_window_off(folder: Path, config: PreTrainedConfig, context: int) -> None:
    """Make all layers attend to everything, if no served sequence outgrows the sliding window."""
    window = getattr(config, "sliding_window", None)
    if window is None:
        return
    if window < context:
        raise UnsupportedModelError(
            f"{folder}: a sliding window of {window} is shorter than the {context} positions "
            f"served; set max_context to {window} or less"
        )
    config.sliding_window = None
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * config.num_hidden_layers


def _load(
    folder: Path, config: PreTrainedConfig, model: ModelConfig, attention: str, num_ranks: int
) -> PreTrainedModel:
    dtype: torch.dtype = getattr(torch, model.dtype)
    rounded = model.weight_rounding == "int8"
    # A bar that lasts a second is noise in a replica's log.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32 if rounded else dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
            **_placement(model, num_ranks),
        )
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{folder}: the weights cannot be read: {error}") from error
    network: PreTrainedModel = loaded[0]
    report: dict[str, Any] = loaded[1]
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            named = ", ".join(map(str, sorted(report[problem])[:3]))
            raise WeightsError(f"{folder}: {problem.replace('_', ' ')}: {named}")
    if rounded:
        round_weights(network)
        for parameter in network.parameters():  # not `to`: rotary frequencies stay in float32
            parameter.data = parameter.data.to(dtype)
        network.config.dtype = dtype
        give_back_freed()
    network.requires_grad_(False).eval()  # type: ignore[no-untyped-call]  # untyped
    return network


def _placement(model: ModelConfig, num_ranks: int) -> dict[str, Any]:
    """Where the weights go, in transformers' words."""
    if num_ranks == 1:
        return {"device_map": model.device}
    return {"distributed_config": DistributedConfig(tp_size=num_ranks, tp_plan=WHOLE_ON_EACH_RANK)}


def check_split(config: PreTrainedConfig, num_ranks: int, source: str) -> None:
    """Each rank needs whole heads.

    Raises: ConfigError, with the sizes that divide them.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % num_ranks or kv_heads % num_ranks:
        fitting = ", ".join(map(str, rank_counts(heads, kv_heads)))
        raise ConfigError(
            f"tensor_parallel_size {num_ranks}: {source} has {heads} heads and {kv_heads} "
            f"key-value heads; {fitting} divide both"
        )


def rank_counts(num_heads: int, num_kv_heads: int) -> list[int]:
    """Numbers of ranks that each get whole heads."""
    return [n for n in range(1, num_kv_heads + 1) if num_heads % n == num_kv_heads % n == 0]


@torch.no_grad()
def round_weights(model: PreTrainedModel) -> None:
    """Round each linear layer's weight to int8 per output channel and back, in place, in float32.

    Symmetric: a row is scaled so that its largest magnitude becomes 127. Embeddings and LM head
    stay, whether or not they are tied: they are where int8 costs most and saves least.
    """
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.float()
            scale = int8_scale(weight)[:, None]
            layer.weight.copy_((weight / scale).round_().mul_(scale))


def _vocab_size(tokenizer: PreTrainedTokenizerFast) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _eos_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, vocab_size: int
) -> frozenset[int]:
    ids: list[int | None] = [tokenizer.eos_token_id, _end_of_turn(tokenizer)]
    for config in (model.config, model.generation_config):
        named = getattr(config, "eos_token_id", None)
        ids.extend(named if isinstance(named, list) else [named])
    return frozenset(index for index in ids if index is not None and 0 <= index < vocab_size)


def _end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the chat template writes after an assistant's message."""
    if not tokenizer.chat_template:
        return None
    answer = "the answer"
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return None
    rest = str(text).rpartition(answer)[2].lstrip()
    ids: list[int] = tokenizer.encode(rest, add_special_tokens=False)
    return ids[0] if ids and ids[0] in _special_ids(tokenizer) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds no JSON object")
    return value
