"""About how much memory a deployment takes: for `s2d doctor`, before anything is loaded.

One replica of each model is counted. The constants were measured with the default deployment
(SmolLM2-135M three times, on a CPU): after a few requests its processes' proportional set sizes
summed to 5.0 GiB, and the estimate is 6.1: KV slots take memory only when they are first used.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from s2d_serve.config import AppConfig, DraftConfig, TargetConfig
from s2d_serve.engine.digests import WEIGHTS
from s2d_serve.engine.sources import describe, resolve

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

EXECUTOR_BYTES = 700 * 1024**2
"""A process that holds a model: Python, torch, transformers, and room to compute."""
SERVER_BYTES = 100 * 1024**2
"""A replica before a model, without the model."""
ROUTER_BYTES = 450 * 1024**2
"""The router, with the tokenizers."""
RAY_BYTES = 950 * 1024**2
"""Ray itself, its dashboard, Serve's controller and proxy."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model needs where its weights are."""

    device: str
    weights_bytes: int
    kv_bytes: int

    @property
    def num_bytes(self) -> int:
        """Weights and KV slots."""
        return self.weights_bytes + self.kv_bytes


def footprint(model: TargetConfig | DraftConfig) -> Footprint | None:
    """What the model needs; None as long as its weights are not on this machine as safetensors.

    Raises: what `describe` raises.
    """
    if not describe(model).converted:
        return None
    folder = resolve(model)
    value_bytes = DTYPE_BYTES[model.dtype]
    loaded_as = DTYPE_BYTES["float32"] if model.weight_rounding == "int8" else value_bytes
    slots = model.max_sequences * model.max_context
    device = model.device.partition(":")[0]
    num_copied = _head_parameters(folder) if (device, model.dtype) == ("cpu", "float32") else 0
    return Footprint(
        device,
        (_num_parameters(folder) + num_copied) * loaded_as,
        slots * _kv_values_per_token(folder) * value_bytes,
    )


def service_bytes(config: AppConfig) -> int:
    """Memory of all processes of a deployment, without weights and KV slots."""
    num_models = len(config.targets) + (config.draft is not None)
    return RAY_BYTES + ROUTER_BYTES + num_models * (SERVER_BYTES + EXECUTOR_BYTES)


def _num_parameters(folder: Path) -> int:
    total = 0
    for file in folder.glob(WEIGHTS):
        with safe_open(file, "numpy") as tensors:
            total += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  # no mapping
    return total


def _head_parameters(folder: Path) -> int:
    """The LM head, which float32 on a CPU holds in another layout beside the embedding."""
    settings = json.loads((folder / "config.json").read_text())
    return int(settings["vocab_size"] * settings["hidden_size"])


def _kv_values_per_token(folder: Path) -> int:
    """Keys and values of all layers, as config.json tells (a draft may keep fewer layers)."""
    settings = json.loads((folder / "config.json").read_text())
    heads = settings["num_attention_heads"]
    head_size = settings.get("head_dim") or settings["hidden_size"] // heads
    kv_heads = settings.get("num_key_value_heads") or heads
    return int(2 * settings["num_hidden_layers"] * kv_heads * head_size)
