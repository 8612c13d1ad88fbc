"""What `s2d calibrate` found out, as a file that a deployment reads.

It holds for the weights and the machine that it was measured with; elsewhere the deployment goes on
with its defaults, which adapt, and says so.
"""

import logging
import os
import platform
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from s2d_serve import cpu
from s2d_serve.config import AppConfig, ModelConfig, SpeculationConfig
from s2d_serve.engine.digests import DRAFT_TENSORS, file_sha256, weights_sha256
from s2d_serve.engine.sources import describe, resolve
from s2d_serve.errors import ConfigError

log = logging.getLogger(__name__)

FORMAT = "s2d-calibration-1"
SETTINGS = ("max_draft_tokens", "deepest_exit", "thresholds", "min_confidence")
"""What it sets, where the deployment file does not."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibratedTarget(_Entry):
    """The best settings found for one target, and what they rest on."""

    sha256: str
    dtype: str
    max_draft_tokens: int
    deepest_exit: int
    thresholds: tuple[float, ...]
    min_confidence: float
    expected_speedup: float
    """Over the target alone, by the measurements below."""
    best_fixed_exit: dict[int, float]
    """Expected speedup of each exit alone, at its best length."""
    acceptance: dict[int, float]
    """By exit: share of the target's tokens that it would have drafted."""
    verify_ms: dict[int, float]
    """A target pass, by tokens."""


class Calibration(_Entry):
    """The whole file."""

    format: str = FORMAT
    machine: str
    draft: str
    """Names the draft's weights."""
    step_ms: dict[int, float]
    """A draft step, by the exit that emits, with every head on the way."""
    targets: dict[str, CalibratedTarget]


def calibrated(config: AppConfig) -> AppConfig:
    """The deployment with its calibration worked in; what the file sets itself stays.

    Raises: ConfigError if the calibration file cannot be read.
    """
    if config.calibration is None or config.draft is None:
        return config
    calibration = read_calibration(config.calibration)
    problem = mismatch(calibration, config)
    if problem is not None:
        log.warning("%s is not used: %s; run `s2d calibrate` here", config.calibration, problem)
        return config
    targets = dict(config.targets)
    for name, target in config.targets.items():
        entry = calibration.targets.get(name)
        found = None if entry is None else digest(target)
        if entry is None or found != entry.sha256 or target.dtype != entry.dtype:
            log.warning("%s has nothing on the weights of %r", config.calibration, name)
            continue
        settings = _merged(target.speculation, entry)
        targets[name] = target.model_copy(update={"speculation": settings})
    return config.model_copy(update={"targets": targets})


def read_calibration(path: Path) -> Calibration:
    """Read such a file.

    Raises: ConfigError if it is missing or is none.
    """
    try:
        return Calibration.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"calibration {path}: {error.strerror}") from None
    except (ValidationError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{path} is no calibration ({first}); run `s2d calibrate`") from None


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(calibration.model_dump(mode="json"), sort_keys=False), "utf-8")


def digest(model: ModelConfig) -> str | None:
    """Names the model's weights; None as long as they are not on this machine."""
    if not describe(model).converted:
        return None
    rounded = "+int8" if model.weight_rounding == "int8" else ""
    return weights_sha256(resolve(model)) + rounded


def draft_identity(config: AppConfig) -> str:
    """Names everything that the draft's tokens depend on."""
    draft = config.draft
    assert draft is not None
    parts = [str(digest(draft)), draft.dtype, draft.quantization]
    if draft.trained is not None:
        parts.append(file_sha256(draft.trained / DRAFT_TENSORS))
    return " ".join(parts)


def this_machine() -> str:
    """The machine in words, for whom costs were measured."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.machine()}"


def mismatch(calibration: Calibration, config: AppConfig) -> str | None:
    """Why the calibration does not hold here; None if it does."""
    if calibration.machine != this_machine():
        return f"it was measured on {calibration.machine}, this is {this_machine()}"
    if calibration.draft != draft_identity(config):
        return "it was measured with another draft"
    return None


def _merged(settings: SpeculationConfig, entry: CalibratedTarget) -> SpeculationConfig:
    names = [name for name in SETTINGS if name not in settings.model_fields_set]
    return settings.model_copy(update={name: getattr(entry, name) for name in names})


def _processor() -> str:
    """Its name, with what its arithmetic depends on."""
    flags = cpu.flags()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([cpu.processor(), *known])
