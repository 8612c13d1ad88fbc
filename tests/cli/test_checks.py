import importlib.metadata
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from s2d_serve import cpu
from s2d_serve.cli import checks, diagnosis
from s2d_serve.cli.checks import Finding
from s2d_serve.config import AppConfig
from s2d_serve.deployment_file import load_deployment_file
from s2d_serve.engine.calibration import Calibration, write_calibration
from s2d_serve.engine.digests import cache_folder
from tests.cli.conftest import Args, Run, WriteFile
from tests.engine.tiny import tiny_model
from tests.engine.tiny_gguf import write_gguf

GIB = 1024**3


@pytest.fixture
def config(args: Args) -> AppConfig:
    return AppConfig.model_validate(args)


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port: int = server.getsockname()[1]
        yield port


def findings(file: Path) -> dict[str, Finding]:
    """By subject."""
    return {finding.subject: finding for finding in diagnosis.examine(file)}


def test_versions_outside_the_tested_range_fail() -> None:
    requirements = ["python >=3.11", "pytest>=1", 'no-such-library>=1; extra == "dev"']
    assert checks.check_versions("3.11.9", requirements).level == "ok"
    finding = checks.check_versions(
        "3.10.1", ["python >=3.11", "pytest>=999", "no-such-library", "rich>=1"]
    )
    assert finding.level == "fail"
    assert "python 3.10.1, pytest 9" in finding.message
    assert "no-such-library is missing" in finding.message
    assert "rich" not in finding.message


def test_gpu_without_cuda_fails(args: Args, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args["targets"]["tiny"]["device"] = "cuda:0"
    (finding,) = checks.check_torch(AppConfig.model_validate(args))
    assert finding.level == "fail"
    assert "targets.tiny" in finding.message


@pytest.mark.parametrize(("has_bf16", "levels"), [(True, ["ok"]), (False, ["ok", "warn"])])
def test_bfloat16_without_hardware_is_warned_of(
    args: Args, monkeypatch: pytest.MonkeyPatch, has_bf16: bool, levels: list[str]
) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: has_bf16)
    args["targets"]["tiny"]["dtype"] = "bfloat16"
    found = checks.check_torch(AppConfig.model_validate(args))
    assert [finding.level for finding in found] == levels


def test_torch_that_is_not_there_fails(config: AppConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (finding,) = checks.check_torch(config)
    assert finding.level == "fail"


def test_cores_must_hold_what_is_set_aside(args: Args) -> None:
    args["targets"]["tiny"] |= {"num_cpus": 3.0, "num_threads": 4}
    config = AppConfig.model_validate(args)
    assert checks.check_cores(config, 2).level == "fail"
    assert checks.check_cores(config, 4).level == "ok"
    args["targets"]["tiny"]["num_cpus"] = 0.5
    assert checks.check_cores(AppConfig.model_validate(args), 2).level == "warn"


def test_memory_counts_weights_slots_and_processes(args: Args) -> None:
    def needed(**target: object) -> str:
        changed = {**args, "targets": {"tiny": args["targets"]["tiny"] | target}}
        return checks.check_memory(AppConfig.model_validate(changed), 16 * GIB, 32 * GIB).message

    model = tiny_model("llama", seed=3, num_layers=4).config
    head_size = model.hidden_size // model.num_attention_heads
    slot_bytes = 2 * 4 * model.num_key_value_heads * head_size * 256 * 4
    slots = 4 * GIB // slot_bytes  # more than a deployment may have
    assert slots > 1024
    gib = float(needed(max_sequences=1).split()[1])
    more = float(needed(max_sequences=1024, max_context=512).split()[1])
    assert more - gib == pytest.approx(2 * 1024 * slot_bytes / GIB, abs=0.11)


def test_memory_that_is_too_small_fails(config: AppConfig) -> None:
    assert checks.check_memory(config, 16 * GIB, 16 * GIB).level == "ok"
    assert checks.check_memory(config, 1 * GIB, 16 * GIB).level == "warn"
    assert checks.check_memory(config, 1 * GIB, 2 * GIB).level == "fail"


def test_weights_and_disk(args: Args, tmp_path: Path) -> None:
    gguf_file = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama", seed=1))
    args["targets"]["tiny"]["source"] = str(gguf_file)
    args["targets"]["tiny-alone"]["source"] = "/no/such/folder"
    config = AppConfig.model_validate(args)
    to_convert, missing, ready = checks.check_weights(config)
    assert (to_convert.level, missing.level, ready.level) == ("warn", "fail", "ok")
    assert "s2d models --fetch" in to_convert.advice
    assert "/no/such/folder" in missing.advice
    assert checks.check_disk(config, GIB).level == "ok"
    assert checks.check_disk(config, 1000).level == "fail"
    memory = checks.check_memory(config, 16 * GIB, 16 * GIB)
    assert "2 models not counted" in memory.message


def test_source_that_cannot_be_is_a_finding(args: Args, write_file: WriteFile, run: Run) -> None:
    args["targets"]["tiny"]["source"] = "some/model"  # a hub id without a revision
    result = run("doctor", write_file(args))
    assert result.exit_code == 1
    assert "needs a `revision`" in result.stdout


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert checks.free_bytes(tmp_path / "no" / "such" / "folder") > 0


def test_exposed_bind_fails_unless_keys_are_asked_for(
    args: Args, write_file: WriteFile, run: Run, tmp_path: Path
) -> None:
    result = run("doctor", write_file(args, host="0.0.0.0"))
    assert result.exit_code == 1
    assert "fail HTTP: http_options.host 0.0.0.0 can be reached" in result.stdout
    assert "set http_options.host to 127.0.0.1" in result.stdout
    keys = tmp_path / "keys.txt"
    keys.write_text("ab" * 32)
    with_keys = args | {"auth": {"api_keys_file": str(keys)}}
    assert findings(write_file(with_keys, host="0.0.0.0"))["HTTP"].level == "ok"
    allowed = args | {"allow_public_without_keys": True}
    assert findings(write_file(allowed, host="0.0.0.0"))["HTTP"].level == "warn"
    assert findings(write_file(args))["HTTP"].level == "ok"
    keys.write_text("a key, not its digest")
    assert findings(write_file(with_keys))["HTTP"].level == "fail"


def test_used_port_fails(args: Args, write_file: WriteFile, used_port: int) -> None:
    finding = findings(write_file(args, port=used_port))["port"]
    assert finding.level == "fail"
    assert str(used_port) in finding.message


def test_host_that_is_not_ours_fails(args: Args, write_file: WriteFile) -> None:
    file = load_deployment_file(write_file(args, host="192.0.2.1", port=0))  # kept for documents
    assert checks.check_port(file).level == "fail"


@pytest.mark.parametrize(
    ("environment", "level"),
    [({}, "ok"), ({"RAY_AUTH_MODE": "token"}, "ok"), ({"RAY_AUTH_MODE": "disabled"}, "warn")],
)
def test_ray_is_watched(environment: dict[str, str], level: str) -> None:
    ports, access = checks.check_ray(environment)
    assert ports.level == "warn"
    assert "firewall" in ports.advice
    assert access.level == level


def test_bad_file_fails_but_the_rest_is_examined(run: Run, tmp_path: Path) -> None:
    result = run("doctor", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "fail file:" in result.stdout
    assert "Ray's ports" in result.stdout


def test_good_deployment_passes(
    args: Args, write_file: WriteFile, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SimpleNamespace(total=64 * GIB, available=32 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(importlib.metadata, "metadata", _Metadata)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    result = run("doctor", write_file(args, port=0))
    assert result.exit_code == 0, result.stdout
    assert "fail" not in result.stdout
    assert str(cache_folder()) in result.stdout


class _Metadata:
    """Metadata of a package that runs anywhere."""

    def __init__(self, name: str) -> None:
        assert name == "s2d-serve"

    def __getitem__(self, key: str) -> str:
        return ">=3"

    def get_all(self, key: str) -> list[str] | None:
        return None


def test_a_missing_draft_and_a_foreign_calibration_are_told(args: Args, tmp_path: Path) -> None:
    draft = {k: v for k, v in args["draft"].items() if k not in ("exit_layers", "thresholds")}
    missing = args | {"draft": draft | {"trained": str(tmp_path / "nothing")}}
    (finding,) = checks.check_draft(AppConfig.model_validate(missing))
    assert (finding.level, finding.subject) == ("fail", "draft")
    assert "s2d train" in finding.advice
    config = AppConfig.model_validate(args | {"calibration": str(tmp_path / "calibration.yaml")})
    (finding,) = checks.check_draft(config)
    assert (finding.level, finding.subject) == ("fail", "calibration")
    assert config.calibration is not None
    foreign = Calibration(machine="a toaster", draft="none", step_ms={}, targets={})
    write_calibration(foreign, config.calibration)
    (finding,) = checks.check_draft(config)
    assert finding.level == "warn"
    assert "a toaster" in finding.message
    assert list(checks.check_draft(AppConfig.model_validate(args))) == []
