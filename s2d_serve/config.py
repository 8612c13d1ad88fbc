"""The deployment file's `args:` tree: everything a user can set, with its meaning and limits."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from s2d_serve import cpu

DType = Literal["float32", "bfloat16", "float16"]

TARGET_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class Config(BaseModel):
    """Base of all settings: frozen after it is built, and an unknown setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


LocalPath = Annotated[Path, AfterValidator(_absolute)]


class ReplicasConfig(Config):
    """How many replicas a deployment has: Serve adds and removes them as sequences come and go."""

    min: int = Field(default=1, ge=0)
    """Replicas that always run; 0: none while nobody asks."""
    max: int = Field(default=1, ge=1)
    """Replicas at most."""
    target_load: float = Field(default=0.7, gt=0, le=1)
    """Share of its slots that a replica should have in use."""
    upscale_delay_s: float = Field(default=5.0, ge=0)
    """How long more replicas must be wanted before there are."""
    downscale_delay_s: float = Field(default=120.0, ge=0)
    """How long fewer replicas must be enough before one goes."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"replicas.min {self.min} is more than replicas.max {self.max}")
        return self


class ModelConfig(Config):
    """One checkpoint, and how it is loaded."""

    source: str = Field(min_length=1)
    """Hub id, local folder, `.gguf` file, or `pkg://<distribution>/<file>`."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """Commit of a hub id (40 hex digits); required for hub ids, refused for the rest."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected digest of a `.gguf` or `pkg://` file."""
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """Where the weights live, in torch's words."""
    dtype: DType = Field(default="auto", validate_default=True)
    """Type of weights and activations; float32 gives texts that are equal bit for bit. auto:
    bfloat16, but float32 on CPUs that cannot multiply it; whoever reads the file decides for all.
    """
    weight_rounding: Literal["none", "int8"] = "none"
    """int8: each linear layer's weights are rounded to int8 per output channel and back."""
    num_threads: int = Field(default=0, ge=0, le=1024)
    """Threads of torch on the CPU; 0 takes every core, in turns with the others that do."""
    num_cpus: float = Field(default=0.1, ge=0)
    """CPUs that Ray sets aside for each executor; the models of one machine share its cores."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray sets aside for each executor; needed for `device: cuda`."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Other Ray resources of each executor, to choose its nodes."""
    replicas: ReplicasConfig = ReplicasConfig()
    """How many of it run."""
    silence_s: float = Field(default=20.0, gt=0)
    """A model that gives no sign of life for so long ends its replica."""

    @field_validator("dtype", mode="before")
    @classmethod
    def _is_decided(cls, dtype: object, info: ValidationInfo) -> object:
        if dtype != "auto":
            return dtype
        return cpu.fastest_dtype() if info.data.get("device") == "cpu" else "bfloat16"


class SpeculationConfig(Config):
    """How the shared draft works for one target."""

    enabled: bool = True
    """False: this target always decodes alone."""
    max_draft_tokens: int = Field(default=5, ge=1, le=32)
    """Longest proposal of a round."""
    draft_length: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: as many tokens as pay, zero if none do; fixed: always `max_draft_tokens`."""
    deepest_exit: int | None = Field(default=None, ge=1)
    """Exit layer that this target may use at most; None is the draft's last."""
    thresholds: tuple[float, ...] | None = None
    """Confidence at which each exit but the deepest emits; None takes the draft's."""
    min_confidence: float = Field(default=0.3, ge=0, le=1)
    """An adaptive proposal ends after a token that its exit finds less probable than this."""
    suffix_lookup: bool = True
    """Adaptive proposals may be what came next where the text went the same way before, if that
    pays more than drafting.
    """


class DraftConfig(ModelConfig):
    """The sorted draft, and how much it may hold."""

    trained: LocalPath | None = None
    """Folder that `s2d train` wrote for this source: exits, their heads, draftable ids."""
    quantization: Literal["none", "int8", "int4"] = "none"
    """Of the weights: smaller ones are read faster. int4 is for few tokens, as draft steps have
    them; for many, such as prompts, other weights stay beside it (int8, or whole ones where the CPU
    multiplies bfloat16). CPU only.
    """
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Which layers of the checkpoint the draft keeps, increasing; None keeps all."""
    exit_layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Layers run by each sub-model, increasing; the last is the whole draft, the default."""
    thresholds: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None
    """Confidence at which each exit but the last emits (default 0.8); above 1 it never does."""
    max_sequences: int = Field(default=16, ge=1, le=1024)
    """Sequences that hold a draft KV slot at once; others run without a draft."""
    max_context: int = Field(default=2048, ge=16)
    """Tokens that fit in a draft KV slot; a longer sequence goes on without a draft."""
    prefill_chunk: int = Field(default=256, ge=1)
    """Tokens of a new sequence that the draft reads at a time."""
    max_parked_tokens: int = Field(default=64, ge=1)
    """Hidden states that may wait for a deeper segment, per sequence and exit."""

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        for name in ("layers", "exit_layers"):
            values: tuple[int, ...] | None = getattr(self, name)
            if values is not None and list(values) != sorted(set(values)):
                raise ValueError(f"draft.{name} must increase: got {list(values)}")
        if self.trained is not None and (self.layers or self.exit_layers):
            raise ValueError("draft.layers and draft.exit_layers are part of the trained draft")
        if self.quantization != "none" and self.device != "cpu":
            raise ValueError(f"draft.quantization {self.quantization} is for the CPU: take none")
        num_exits = len(self.exit_layers) if self.exit_layers else 1
        if self.trained is not None or self.thresholds is None:
            return self
        if len(self.thresholds) != num_exits - 1:
            raise ValueError(
                f"draft.thresholds needs {num_exits - 1} values, one for each exit but the last: "
                f"got {len(self.thresholds)}"
            )
        return self


class TargetConfig(ModelConfig):
    """One target: the model whose text the clients see."""

    max_context: int = Field(default=2048, ge=16)
    """Prompt and output tokens that fit in one sequence's KV slot."""
    max_sequences: int = Field(default=8, ge=1, le=1024)
    """KV slots of a replica, hence the sequences that it serves at once."""
    max_queued: int = Field(default=32, ge=0)
    """Sequences that may wait for a slot (at one router replica) before 429."""
    prefill_chunk: int = Field(default=256, ge=64, multiple_of=64)
    """Prompt tokens read in one forward pass, all sequences together."""
    decode_steps: int = Field(default=4, ge=1, le=64)
    """Tokens decoded per call while nothing is drafted, at most: a call ends after 0.1 s."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """Ranks that share the target's layers, each in an executor of its own."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    """Nodes of the ranks: as few as may be, as many, or one for each rank and no other way."""
    collective_timeout_s: float = Field(default=30.0, gt=0)
    """A rank that does not answer the others for so long ends the replica."""
    patience_s: float = Field(default=60.0, ge=0)
    """How long a sequence waits for a target that served before and now has no live replica."""
    cold_start: Literal["wait", "refuse"] = "wait"
    """What a request finds at a target without replicas, which it wakes: it waits, or gets 503 with
    Retry-After.
    """
    speculation: SpeculationConfig = SpeculationConfig()
    """How the shared draft works for this target."""

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Self:
        if self.tensor_parallel_size > 1 and self.weight_rounding != "none":
            raise ValueError("weight_rounding needs whole rows: take tensor_parallel_size 1")
        return self


class LimitsConfig(Config):
    """What a request may ask for, checked before any work."""

    max_body_bytes: int = Field(default=2_000_000, ge=1)
    """Size of a request's body."""
    max_n: int = Field(default=8, ge=1)
    """Choices per prompt."""
    max_prompts: int = Field(default=16, ge=1)
    """Prompts per request, and prompts times choices."""
    max_logprobs: int = Field(default=20, ge=0)
    """Alternatives per token."""
    max_stop: int = Field(default=4, ge=0)
    """Stop strings."""
    ttft_s: float = Field(default=120.0, gt=0)
    """Time to the first token, waiting included."""
    idle_s: float = Field(default=60.0, gt=0)
    """Time between two tokens."""
    total_s: float = Field(default=600.0, gt=0)
    """Time of a whole request; also how long a draining replica may take."""
    ping_s: float = Field(default=15.0, gt=0)
    """Silence after which a stream gets a comment."""


class AuthConfig(Config):
    """Who may use the service."""

    api_keys_file: LocalPath | None = None
    """File with one SHA-256 digest (hex) of an API key per line; None: no keys."""


class RouterConfig(Config):
    """The router: where it runs, and how it runs rounds."""

    replicas: int = Field(default=1, ge=1)
    """Router processes; each takes a share of the requests."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Ray resources of each router, to choose its nodes."""
    draft_patience_s: float = Field(default=1.0, gt=0)
    """How long a target waits for a proposal before it goes on without one."""
    draft_retry_s: float = Field(default=2.0, gt=0)
    """Pause before a lost draft is tried again; doubles up to a minute."""


class LogsConfig(Config):
    """What router and model servers log, as JSON lines among Serve's own."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """INFO: a line per request; WARNING: only what went wrong."""


class TracingConfig(Config):
    """OpenTelemetry traces of requests and their rounds; off unless a ratio is set."""

    sample_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the requests that are traced; a caller's `traceparent` header decides for its own.
    """
    otlp_endpoint: str = Field(
        default="http://127.0.0.1:4318/v1/traces", pattern=r"^https?://[^\s]+$"
    )
    """Where spans go, as OTLP over HTTP; headers come from OTEL_EXPORTER_OTLP_HEADERS."""


class AppConfig(Config):
    """The whole service: one draft, its targets, and the limits."""

    draft: DraftConfig | None = None
    """The shared draft; None: targets decode alone."""
    targets: dict[str, TargetConfig] = Field(min_length=1)
    """Targets by the name that clients use; also the name of their deployment."""
    calibration: LocalPath | None = None
    """File that `s2d calibrate` wrote: how targets use the draft, where it is not said here."""
    limits: LimitsConfig = LimitsConfig()
    """What a request may ask for."""
    auth: AuthConfig = AuthConfig()
    """Who may use the service."""
    router: RouterConfig = RouterConfig()
    """How rounds are run."""
    logs: LogsConfig = LogsConfig()
    """What is logged."""
    tracing: TracingConfig = TracingConfig()
    """Which requests are traced."""
    allow_public_without_keys: bool = False
    """Serve on a public address although no API keys are set."""

    @field_validator("targets")
    @classmethod
    def _names_are_usable(cls, targets: dict[str, TargetConfig]) -> dict[str, TargetConfig]:
        for name in targets:
            if not re.match(TARGET_NAME, name) or name in ("draft", "router", "metrics"):
                raise ValueError(
                    f"target name {name!r}: use 1-64 of a-z 0-9 . _ -; "
                    "'draft', 'router' and 'metrics' name other deployments"
                )
        return targets
