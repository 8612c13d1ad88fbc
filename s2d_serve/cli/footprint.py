"""What a model takes of memory, before anything is loaded: for `s2d plan` and `s2d doctor`.

Of one rank, the largest: rank 0. Embedding, LM head and norms are whole on each rank; the linear
layers of attention and MLP, and the KV heads, are split.

A *pass* is the largest forward pass: a prompt chunk, and of every sequence one token and its
longest proposal. Counted are hidden states, the widest part of a layer (gate, up and product of the
MLP), the masks of the prompt's blocks, and logits in the model's type and in float32.

`benchmarks/memory.py` measures the same. With it and a running `deployments/s2d.yaml` (4.5 GB of
proportional set sizes after two requests, 5.1 reckoned with every KV slot full), the constants were
found.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from s2d_serve import cpu
from s2d_serve.cli.shapes import ModelShape, shape_of
from s2d_serve.config import AppConfig, DraftConfig, TargetConfig
from s2d_serve.engine.checkpoint import rank_counts
from s2d_serve.engine.heads import Translator
from s2d_serve.engine.linears import GROUP_SIZE, INT4_ROWS, Quantization
from s2d_serve.engine.trained import TrainedDraft, load_trained
from s2d_serve.errors import S2DError

INT8_ROW_BYTES = 16
"""Beside a row of int8 weights: its step, its zero and its sum."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

MIB = 1024**2

CPU_RUNTIME_BYTES = 400 * MIB
"""Python, torch and transformers, in a process that holds a model."""
TOKEN_BYTES = 1024
"""Of a tokenizer, for each id: the same with vocabularies of 49k and 152k."""
GPU_RUNTIME_BYTES = 2048 * MIB
"""CUDA's context, workspaces of its libraries, NCCL, what the allocator cannot use: assumed, not
measured.
"""
SERVER_BYTES = 100 * MIB
"""A replica before a model, without the model."""
ROUTER_BYTES = 450 * MIB
"""The router, with the tokenizers."""
RAY_BYTES = 600 * MIB
"""Ray itself, its dashboard, Serve's controller and proxy."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of a rank where its weights are, in bytes."""

    weights: int
    kv_cache: int
    """All slots at their full length."""
    forward_pass: int
    runtime: int
    loading: int
    """The weights at their largest, while they are brought into their type and layout."""

    @property
    def total(self) -> int:
        """What the rank needs at its largest."""
        serving = self.weights + self.kv_cache + self.forward_pass
        return self.runtime + max(serving, self.loading)


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """The model of a deployment: its settings, and its sizes."""

    name: str
    settings: TargetConfig | DraftConfig
    shape: ModelShape
    num_draft_tokens: int = 0
    """Longest proposal that it verifies."""
    trained: TrainedDraft | None = None

    @property
    def is_on_cpu(self) -> bool:
        """Whether it takes the machine's own memory."""
        return self.settings.device == "cpu"

    @property
    def num_ranks(self) -> int:
        """Processes that share the model."""
        settings = self.settings
        return settings.tensor_parallel_size if isinstance(settings, TargetConfig) else 1

    @property
    def placement_strategy(self) -> str:
        """How Ray places the ranks."""
        settings = self.settings
        return settings.placement_strategy if isinstance(settings, TargetConfig) else "PACK"

    @property
    def num_ranks_per_machine(self) -> int:
        """Ranks that are reckoned on one machine."""
        return 1 if self.placement_strategy == "STRICT_SPREAD" else self.num_ranks

    @property
    def gpus_per_replica(self) -> float:
        """GPUs of all ranks."""
        return self.num_ranks * self.settings.num_gpus

    @property
    def larger_splits(self) -> Iterator[int]:
        """Larger numbers of ranks that the model can be split into, each with memory of its own."""
        settings = self.settings
        if not isinstance(settings, TargetConfig) or settings.weight_rounding != "none":
            return
        if self.is_on_cpu and settings.placement_strategy != "STRICT_SPREAD":
            return
        counts = rank_counts(self.shape.num_heads, self.shape.num_kv_heads)
        yield from (n for n in counts if n > self.num_ranks)

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """Layers run by each sub-model; a target has one."""
        if self.trained is not None:
            return self.trained.shape.exit_layers
        exits = self.settings.exit_layers if isinstance(self.settings, DraftConfig) else None
        return exits or (self.shape.num_layers,)

    @property
    def num_draftable_ids(self) -> int:
        """Rows of the LM head that are computed."""
        vocabulary = None if self.trained is None else self.trained.vocabulary
        return self.shape.vocab_size if vocabulary is None else len(vocabulary)

    def changed(self, **settings: object) -> "PlannedModel":
        """The same model with other settings."""
        return replace(self, settings=self.settings.model_copy(update=settings))

    def footprint(self) -> Footprint:
        """What its largest rank needs."""
        settings = self.settings
        layout = _Layout(
            DTYPE_BYTES[settings.dtype],
            settings.quantization if isinstance(settings, DraftConfig) else "none",
            self.is_on_cpu,
        )
        return Footprint(
            weights=_weights_bytes(self, layout),
            kv_cache=_kv_cache_bytes(self, layout),
            forward_pass=_pass_bytes(self, layout),
            runtime=self._runtime_bytes,
            loading=_loading_bytes(self, layout),
        )

    @property
    def _runtime_bytes(self) -> int:
        if not self.is_on_cpu:
            return GPU_RUNTIME_BYTES
        return CPU_RUNTIME_BYTES + self.shape.vocab_size * TOKEN_BYTES

    @property
    def host_bytes(self) -> int:
        """What it takes of one machine's own memory; on a GPU, nothing."""
        return self.footprint().total * self.num_ranks_per_machine if self.is_on_cpu else 0


def planned_models(
    config: AppConfig, *, fetch: bool
) -> Iterator[tuple[str, PlannedModel | S2DError]]:
    """The model of each deployment by its name, or why nothing can be said of it.

    Args:
        fetch: a config.json may be fetched from the hub.
    """
    models: dict[str, TargetConfig | DraftConfig] = {**config.targets}
    if config.draft is not None:
        models = {"draft": config.draft, **models}
    for name, settings in models.items():
        try:
            yield name, _planned(name, settings, config.draft is not None, fetch)
        except S2DError as error:
            yield name, error


def service_bytes(config: AppConfig) -> int:
    """Memory of the processes that hold no model."""
    num_models = len(config.targets) + (config.draft is not None)
    return RAY_BYTES + ROUTER_BYTES + (num_models + 1) * SERVER_BYTES  # one keeps the metrics


def _planned(
    name: str, settings: TargetConfig | DraftConfig, has_draft: bool, fetch: bool
) -> PlannedModel:
    if isinstance(settings, TargetConfig):
        shape = shape_of(settings, settings.max_context, settings.tensor_parallel_size, fetch=fetch)
        is_drafted_for = has_draft and settings.speculation.enabled
        longest = settings.speculation.max_draft_tokens if is_drafted_for else 0
        return PlannedModel(name, settings, shape, longest)
    shape = shape_of(settings, settings.max_context, fetch=fetch)
    trained = None if settings.trained is None else load_trained(settings.trained)
    layers = settings.layers if trained is None else trained.shape.layers
    if layers is not None:
        shape = replace(shape, num_layers=len(layers))
    return PlannedModel(name, settings, shape, trained=trained)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How weights lie in memory."""

    value_bytes: int
    quantization: Quantization
    is_on_cpu: bool

    @property
    def is_packed(self) -> bool:
        """Linear layers are in oneDNN's layout, which takes as much as torch's."""
        return self.is_on_cpu and self.value_bytes == DTYPE_BYTES["float32"]

    def linear_bytes(self, rows: int, columns: int) -> int:
        """The weights of a linear layer, [rows, columns], as `prepare` leaves them."""
        int8 = rows * (columns + INT8_ROW_BYTES)
        if self.quantization == "int8":
            return int8
        if self.quantization == "int4" and columns % GROUP_SIZE == 0:
            whole = rows * columns * DTYPE_BYTES["bfloat16"]
            many = whole if cpu.has_bfloat16() else int8
            rows += -rows % INT4_ROWS
            scales = 2 * rows * (columns // GROUP_SIZE)
            return many + rows * columns // 2 + scales * self.value_bytes
        return rows * columns * self.value_bytes


def _weights_bytes(model: PlannedModel, layout: _Layout) -> int:
    """With the LM head's copy in another layout or vocabulary, where there is one. The checkpoint's
    own is not counted beside it if it is never read: where it lies in a mapped file.
    """
    shape = model.shape
    linears = sum(layout.linear_bytes(*sizes) for sizes in shape.linears)
    layer = linears // model.num_ranks + shape.num_layer_extras * layout.value_bytes
    matrix = shape.vocab_size * shape.hidden_size * layout.value_bytes
    head = 0 if shape.is_tied else matrix
    is_cut = model.num_draftable_ids < shape.vocab_size
    if is_cut or layout.is_packed or layout.quantization != "none":
        is_mapped = layout.is_on_cpu and not layout.is_packed
        head = 0 if is_mapped else head
        head += layout.linear_bytes(model.num_draftable_ids, shape.hidden_size)
    norm = shape.hidden_size * layout.value_bytes
    translators = _translators_bytes(model, layout)
    return shape.num_layers * layer + matrix + head + norm + translators


def _translators_bytes(model: PlannedModel, layout: _Layout) -> int:
    """The trained heads of a draft's exits."""
    if model.trained is None:
        return 0
    with torch.device("meta"):
        translator = Translator(model.shape.hidden_size, model.trained.shape.mlp_size, 0.0)
    each = sum(
        layout.linear_bytes(*value.shape) if value.ndim == 2 else value.numel() * layout.value_bytes
        for value in translator.parameters()
    )
    return len(model.trained.shape.trained_exits) * each


def _kv_cache_bytes(model: PlannedModel, layout: _Layout) -> int:
    """Keys and values of all slots, in the layers up to the last exit."""
    settings, shape = model.settings, model.shape
    num_heads = shape.num_kv_heads // model.num_ranks
    num_values = 2 * model.exit_layers[-1] * num_heads * shape.head_size
    return settings.max_sequences * settings.max_context * num_values * layout.value_bytes


def _pass_bytes(model: PlannedModel, layout: _Layout) -> int:
    """See this file's first lines. A draft catches up with all that is parked between its exits."""
    shape, settings = model.shape, model.settings
    if isinstance(settings, TargetConfig):
        num_rows = settings.max_sequences * (1 + model.num_draft_tokens)
        num_tokens, num_parked = settings.prefill_chunk + num_rows, 0
    else:
        num_rows = settings.max_sequences
        num_parked = settings.max_sequences * settings.max_parked_tokens
        num_tokens = max(settings.prefill_chunk, num_parked)
        num_parked *= len(model.exit_layers) - 1
    hidden = (2 * num_tokens + num_parked) * shape.hidden_size
    widest = 3 * num_tokens * shape.mlp_size // model.num_ranks
    groups = shape.num_heads // shape.num_kv_heads
    masks = settings.prefill_chunk * settings.max_context * groups
    logits = num_rows * shape.vocab_size * (layout.value_bytes + DTYPE_BYTES["float32"])
    return (hidden + widest + masks) * layout.value_bytes + logits


def _loading_bytes(model: PlannedModel, layout: _Layout) -> int:
    """Rounded weights come out of float32: all at once for `weight_rounding`; for `quantization` a
    layer at a time, in three copies.
    """
    shape, weights = model.shape, _weights_bytes(model, layout)
    is_float32 = layout.value_bytes == DTYPE_BYTES["float32"]
    as_read = 0
    if is_float32 or model.settings.weight_rounding == "int8":
        as_read = shape.num_parameters // model.num_ranks * DTYPE_BYTES["float32"]
    copies = 0
    if layout.quantization != "none":
        sizes = (*shape.linears, (model.num_draftable_ids, shape.hidden_size))
        copies = 3 * max(rows * columns for rows, columns in sizes) * DTYPE_BYTES["float32"]
    return max(weights + copies, as_read)
