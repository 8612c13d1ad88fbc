import logging
from pathlib import Path
from typing import Any

import pytest

from s2d_serve.config import AppConfig
from s2d_serve.engine.calibration import (
    CalibratedTarget,
    Calibration,
    calibrated,
    digest,
    draft_identity,
    this_machine,
    write_calibration,
)
from s2d_serve.errors import ConfigError
from tests.engine.tiny import save_tiny, tiny_model


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("S2D_CACHE", str(tmp_path / "cache"))
    model = {
        "source": str(save_tiny(tmp_path / "m", tiny_model("llama", seed=1))),
        "dtype": "float32",
    }
    return {
        "draft": {**model, "exit_layers": [2, 4]},
        "targets": {"one": model, "two": {**model, "speculation": {"max_draft_tokens": 7}}},
        "calibration": str(tmp_path / "calibration.yaml"),
    }


def entry(config: AppConfig, name: str) -> CalibratedTarget:
    return CalibratedTarget(
        sha256=str(digest(config.targets[name])),
        dtype="float32",
        max_draft_tokens=3,
        deepest_exit=4,
        thresholds=(0.9,),
        min_confidence=0.4,
        expected_speedup=1.5,
        best_fixed_exit={2: 1.2, 4: 1.4},
        acceptance={2: 0.5, 4: 0.9},
        verify_ms={1: 10.0, 2: 11.0},
    )


def written(config: AppConfig, **changes: Any) -> AppConfig:
    calibration = Calibration(
        machine=this_machine(),
        draft=draft_identity(config),
        step_ms={2: 1.0, 4: 2.0},
        targets={name: entry(config, name) for name in config.targets},
    ).model_copy(update=changes)
    assert config.calibration is not None
    write_calibration(calibration, config.calibration)
    return calibrated(config)


def test_a_deployment_takes_what_it_does_not_set_itself(args: dict[str, Any]) -> None:
    one, two = written(AppConfig.model_validate(args)).targets.values()
    assert (one.speculation.max_draft_tokens, two.speculation.max_draft_tokens) == (3, 7)
    for target in (one, two):
        assert target.speculation.thresholds == (0.9,)
        assert (target.speculation.deepest_exit, target.speculation.min_confidence) == (4, 0.4)


def test_another_machine_or_draft_falls_back_with_a_warning(
    args: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = AppConfig.model_validate(args)
    with caplog.at_level(logging.WARNING):
        assert written(config, machine="a toaster") == config
        assert "a toaster" in caplog.text
        assert written(config, draft="other weights") == config
        assert "another draft" in caplog.text
    quantized = AppConfig.model_validate(args | {"draft": args["draft"] | {"quantization": "int8"}})
    assert calibrated(quantized) == quantized


def test_other_weights_of_a_target_fall_back_for_it_alone(
    args: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = AppConfig.model_validate(args)
    other = entry(config, "one").model_copy(update={"sha256": "0" * 64})
    with caplog.at_level(logging.WARNING):
        found = written(config, targets={"one": other, "two": entry(config, "two")})
    assert found.targets["one"] == config.targets["one"]
    assert found.targets["two"].speculation.thresholds == (0.9,)
    assert "'one'" in caplog.text


@pytest.mark.parametrize("content", ["", "[1]", "machine: x", "a: [", "x: 1"])
def test_what_is_no_calibration_is_refused(args: dict[str, Any], content: str) -> None:
    config = AppConfig.model_validate(args)
    assert config.calibration is not None
    with pytest.raises(ConfigError, match="No such file"):
        calibrated(config)
    config.calibration.write_text(content)
    with pytest.raises(ConfigError, match="s2d calibrate"):
        calibrated(config)
