"""Bodies of the small endpoints: /v1/models, /tokenize, /detokenize, /version, /ready."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from s2d_serve.api.jsontext import Json

State = Literal["ready", "idle", "waking", "loading", "unavailable"]
"""idle: scaled to zero, starts when asked; waking: it was asked."""
AVAILABLE: tuple[State, ...] = ("ready", "idle", "waking")
"""States in which a request is served, now or once its target has started."""


@dataclass(frozen=True, slots=True)
class WeightsCard:
    """Which weights a model runs."""

    name: str
    """Their source, without the folders of the machine that holds them."""
    sha256: str | None
    """Digest of the file; None where the source is not one file."""
    dtype: str


@dataclass(frozen=True, slots=True)
class ReplicaCard:
    """One replica that answers, and how busy it is."""

    num_sequences: int
    num_slots: int
    """Sequences that it holds at once."""


@dataclass(frozen=True, slots=True)
class DraftCard:
    """The draft that a target is paired with."""

    weights: WeightsCard
    exit_layers: tuple[int, ...]
    replicas: tuple[ReplicaCard, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One target, as clients may know it."""

    id: str
    created: int
    """Unix time in seconds."""
    max_model_len: int
    """Prompt and output tokens that fit, vLLM's word for it."""
    state: State
    weights: WeightsCard
    draft: DraftCard | None
    """None: it decodes alone."""
    replicas: tuple[ReplicaCard, ...] = ()


def model_body(card: ModelCard) -> Json:
    """Body of GET /v1/models/{id}; `s2d` is ours."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "s2d-serve",
        "max_model_len": card.max_model_len,
        "s2d": {
            "state": card.state,
            "weights": _weights(card.weights),
            "draft": None if card.draft is None else _draft(card.draft),
            "replicas": _replicas(card.replicas),
            "calibration": None,  # thresholds are the deployment file's until one is measured
        },
    }


def models_body(cards: Sequence[ModelCard]) -> Json:
    """Body of GET /v1/models."""
    return {"object": "list", "data": [model_body(card) for card in cards]}


def tokenize_body(token_ids: Sequence[int], max_model_len: int) -> Json:
    """Body of POST /tokenize, in vLLM's shape."""
    return {"tokens": list(token_ids), "count": len(token_ids), "max_model_len": max_model_len}


def detokenize_body(text: str) -> Json:
    """Body of POST /detokenize, in vLLM's shape."""
    return {"prompt": text}


def version_body(version: str) -> Json:
    """Body of GET /version."""
    return {"version": version}


def is_ready(targets: Mapping[str, State]) -> bool:
    """Whether every target is served, or would be when asked (idle).

    The draft has no say: without it the texts are the same, only later.
    """
    return all(state in AVAILABLE for state in targets.values())


def ready_body(targets: Mapping[str, State], draft: State | None) -> Json:
    """Body of GET /ready; a deployment without a draft has null."""
    return {"ready": is_ready(targets), "targets": dict(targets), "draft": draft}


def _weights(card: WeightsCard) -> Json:
    return {"name": card.name, "sha256": card.sha256, "dtype": card.dtype}


def _draft(card: DraftCard) -> Json:
    return {
        **_weights(card.weights),
        "exit_layers": list(card.exit_layers),
        "replicas": _replicas(card.replicas),
    }


def _replicas(replicas: Sequence[ReplicaCard]) -> list[Json]:
    return [{"sequences": one.num_sequences, "slots": one.num_slots} for one in replicas]
