"""A model's sizes, as its config.json alone tells them: no weight is read or fetched."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from s2d_serve.cli.weights import to_do
from s2d_serve.config import ModelConfig
from s2d_serve.engine.checkpoint import check_split, checked_config
from s2d_serve.engine.sources import describe, kind_of, resolve
from s2d_serve.errors import WeightsError

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model, in values."""

    num_layers: int
    linears: tuple[tuple[int, int], ...]
    """[out, in] of each linear layer of attention and MLP, in one decoder layer."""
    num_layer_extras: int
    """Norms and biases of one decoder layer."""
    hidden_size: int
    mlp_size: int
    vocab_size: int
    is_tied: bool
    """The LM head is the embedding."""
    num_heads: int
    num_kv_heads: int
    head_size: int
    max_positions: int

    @property
    def num_parameters(self) -> int:
        """All values of the weights; a tied matrix counts once."""
        layer = sum(rows * columns for rows, columns in self.linears) + self.num_layer_extras
        ends = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2) + self.hidden_size
        return self.num_layers * layer + ends


def shape_of(
    model: ModelConfig, max_context: int, num_ranks: int = 1, *, fetch: bool
) -> ModelShape:
    """The sizes of the model that the settings name.

    Args:
        max_context: longest sequence that will be served.
        num_ranks: processes that will share it.
        fetch: config.json may be fetched from the hub.

    Raises: ConfigError, WeightsError or UnsupportedModelError, as loading the model would.
    """
    config = checked_config(_config_folder(model, fetch), max_context)
    check_split(config, num_ranks, model.source)
    return read_shape(config)


def read_shape(config: PreTrainedConfig) -> ModelShape:
    """The sizes of the model that transformers builds from a config."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # untyped
    layer = network.model.layers[0]
    linears = tuple(
        (module.out_features, module.in_features)
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    )
    num_values = sum(parameter.numel() for parameter in layer.parameters())
    return ModelShape(
        num_layers=len(network.model.layers),
        linears=linears,
        num_layer_extras=num_values - sum(rows * columns for rows, columns in linears),
        hidden_size=config.hidden_size,
        mlp_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        is_tied=config.tie_word_embeddings,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_size=layer.self_attn.head_dim,
        max_positions=config.max_position_embeddings,
    )


def _config_folder(model: ModelConfig, fetch: bool) -> Path:
    """The folder with the model's config.json."""
    match kind_of(model):
        case "hub":
            return _hub_folder(model, fetch)
        case "folder":
            return Path(model.source).expanduser().absolute()
    status = describe(model)
    if status.present and not status.converted:
        raise WeightsError(f"{model.source}: {to_do(status)}")
    return resolve(model)


def _hub_folder(model: ModelConfig, fetch: bool) -> Path:
    """Where the hub's cache holds the config.json of the pinned revision."""
    import huggingface_hub as hub  # half a second: only where a hub id is used

    source, revision = model.source, model.revision
    file = hub.try_to_load_from_cache(source, CONFIG, revision=revision)
    if isinstance(file, str):
        return Path(file).parent
    reason = f"{source}@{revision}: {CONFIG} is not in the hub's cache"
    command = f"`hf download {source} {CONFIG} --revision {revision}`"
    if not fetch:
        raise WeightsError(f"{reason}; {command} fetches it")
    try:
        # Tried once: without a connection, the download itself goes on trying for half a minute.
        hub.get_hf_file_metadata(hub.hf_hub_url(source, CONFIG, revision=revision))
        return Path(hub.hf_hub_download(source, CONFIG, revision=revision)).parent
    except Exception as error:  # its HTTP library's own pass through, too
        problem = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"{reason} and cannot be fetched ({problem}); {command} does it where the hub answers"
        ) from error
