"""From the deployment file's models to running ones."""

from collections.abc import Mapping

from torch import nn

from s2d_serve.config import DraftConfig, SpeculationConfig, TargetConfig
from s2d_serve.engine.cache import ATTENTION
from s2d_serve.engine.checkpoint import Checkpoint, load_checkpoint, set_up_torch
from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.drafter import Drafter
from s2d_serve.engine.heads import Translator
from s2d_serve.engine.linears import prepare_layers
from s2d_serve.engine.pairing import Pairing
from s2d_serve.engine.sharding import LeadingTrunk, ShardGroup
from s2d_serve.engine.target import TargetModel
from s2d_serve.engine.trained import load_trained
from s2d_serve.engine.trunk import Trunk
from s2d_serve.errors import ConfigError, WeightsError
from s2d_serve.speculation.draft_length import DraftLengthPolicy
from s2d_serve.speculation.exits import NEVER, ExitPolicy
from s2d_serve.speculation.lookup import LookupEstimate

DEFAULT_THRESHOLD = 0.8


def load_target(
    config: TargetConfig, group: ShardGroup | None = None
) -> tuple[TargetModel, Checkpoint]:
    """Load a target with its KV slots.

    Args:
        group: the ranks that share it, this process being rank 0; None: it is whole here.

    Raises: what `load_checkpoint` raises.
    """
    checkpoint = _load_part(config, group)
    sizes = (checkpoint.vocab_size, config.max_sequences, config.max_context)
    trunk = (
        Trunk(checkpoint.model, *sizes)
        if group is None
        else LeadingTrunk(group, checkpoint.model, *sizes)
    )
    trunk.prepare()
    return TargetModel(trunk, config.prefill_chunk), checkpoint


def load_follower(config: TargetConfig, group: ShardGroup) -> Trunk:
    """Load the part of a sharded target that this rank runs.

    Raises: what `load_checkpoint` raises.
    """
    checkpoint = _load_part(config, group)
    return Trunk(checkpoint.model, checkpoint.vocab_size, config.max_sequences, config.max_context)


def _load_part(config: TargetConfig, group: ShardGroup | None) -> Checkpoint:
    set_up_torch(config)
    checkpoint = load_checkpoint(
        config,
        max_context=config.max_context,
        attention=ATTENTION,
        num_ranks=1 if group is None else group.shard.size,
    )
    if group is not None:
        group.limit(checkpoint.model)
    return checkpoint


def load_drafter(
    config: DraftConfig, targets: Mapping[str, SpeculationConfig]
) -> tuple[Drafter, Checkpoint]:
    """Load the shared draft and pair it with each target.

    Raises:
        ConfigError: exits or layers that the checkpoint does not have.
    """
    set_up_torch(config)
    checkpoint = load_checkpoint(config, max_context=config.max_context, attention=ATTENTION)
    trained = None if config.trained is None else load_trained(config.trained)
    if trained is not None and trained.shape.base_digest != checkpoint.digest:
        raise WeightsError(
            f"{config.trained} was trained for a base with sha256 {trained.shape.base_digest}, "
            f"and {config.source} has {checkpoint.digest}"
        )
    _keep_layers(
        checkpoint, config.source, config.layers if trained is None else trained.shape.layers
    )
    trunk = Trunk(checkpoint.model, checkpoint.vocab_size, config.max_sequences, config.max_context)
    exit_layers = config.exit_layers or (len(trunk.layers),)
    translators: tuple[Translator | None, ...] = (None,) * len(exit_layers)
    vocabulary = None
    if trained is not None:
        trained.change_layers(trunk.layers)
        exit_layers = trained.shape.exit_layers
        vocabulary = trained.vocabulary
        translators = trained.translators(trunk.hidden_size, trunk.norm_eps, trunk.embed([0]))
    if exit_layers[-1] > len(trunk.layers):
        raise ConfigError(
            f"draft.exit_layers {list(exit_layers)}: the draft has {len(trunk.layers)} layers"
        )
    prepare_layers(trunk.layers, config.quantization)
    draft = SortedDraft(
        trunk,
        exit_layers,
        config.prefill_chunk,
        config.max_parked_tokens,
        trunk.exit_heads(translators, vocabulary, config.quantization),
    )
    pairings = {
        name: pair(name, speculation, exit_layers, config.thresholds)
        for name, speculation in targets.items()
    }
    return Drafter(draft, pairings), checkpoint


def exit_layers_of(config: DraftConfig) -> tuple[int, ...] | None:
    """The draft's exits as far as the settings tell; None: the whole checkpoint is the only one.

    Raises: WeightsError if a trained draft is missing or damaged.
    """
    if config.trained is not None:
        return load_trained(config.trained).shape.exit_layers
    return config.exit_layers


def one_exit(
    settings: SpeculationConfig, exit_layers: tuple[int, ...], exit_layer: int
) -> SpeculationConfig:
    """The settings with this exit of the draft alone."""
    thresholds = (NEVER,) * exit_layers.index(exit_layer)
    return settings.model_copy(
        update={"deepest_exit": exit_layer, "thresholds": thresholds, "suffix_lookup": False}
    )


def pair(
    target: str,
    speculation: SpeculationConfig,
    exit_layers: tuple[int, ...],
    default_thresholds: tuple[float, ...] | None,
) -> Pairing:
    """The draft as this target uses it: how deep, how sure, how far ahead.

    Raises:
        ConfigError: an exit that the draft does not have, or a wrong number of thresholds.
    """
    deepest = speculation.deepest_exit or exit_layers[-1]
    if deepest not in exit_layers:
        raise ConfigError(
            f"targets.{target}.speculation.deepest_exit {deepest}: "
            f"the draft's exits are {list(exit_layers)}"
        )
    num_thresholds = exit_layers.index(deepest)
    thresholds = speculation.thresholds
    if thresholds is None:
        thresholds = (default_thresholds or (DEFAULT_THRESHOLD,) * len(exit_layers))[
            :num_thresholds
        ]
    if len(thresholds) != num_thresholds:
        raise ConfigError(
            f"targets.{target}.speculation.thresholds needs {num_thresholds} values, one for "
            f"each exit before layer {deepest}: got {len(thresholds)}"
        )
    is_adaptive = speculation.draft_length == "adaptive"
    min_confidence = speculation.min_confidence if is_adaptive else 0.0
    lengths = DraftLengthPolicy(speculation.max_draft_tokens, adaptive=is_adaptive)
    lookup = LookupEstimate() if is_adaptive and speculation.suffix_lookup else None
    return Pairing(ExitPolicy(thresholds, min_confidence), lengths, lookup)


def _keep_layers(checkpoint: Checkpoint, source: str, layers: tuple[int, ...] | None) -> None:
    """Drop the layers that the draft does not keep."""
    decoder = checkpoint.model.model
    if layers is None:
        return
    if layers[-1] >= len(decoder.layers):
        raise ConfigError(
            f"draft.layers {list(layers)}: {source} has layers 0 to {len(decoder.layers) - 1}"
        )
    decoder.layers = nn.ModuleList(decoder.layers[i] for i in layers)
