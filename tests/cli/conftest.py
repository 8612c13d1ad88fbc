"""Deployment files over tiny weights, and the `s2d` command run in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from s2d_serve.cli.commands import app
from s2d_serve.deployment_file import IMPORT_PATH
from tests.engine.tiny import nested_model, save_tiny

Args = dict[str, Any]
WriteFile = Callable[..., Path]
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is empty at first."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("S2D_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose layer-2 exit often agrees with the whole."""
    model = nested_model("llama", seed=3, exit_layer=2, agreement_scale=0.3, num_layers=4)
    return save_tiny(tmp_path_factory.mktemp("weights"), model)


@pytest.fixture
def args(weights: Path) -> Args:
    """The `args` of a deployment file: two targets that share a draft with two exits."""
    model = {"source": str(weights), "dtype": "float32", "num_threads": 1, "max_context": 256}
    speculation = {"draft_length": "fixed", "max_draft_tokens": 4}
    return {
        "draft": {**model, "exit_layers": [2, 4], "thresholds": [0.3]},
        "targets": {
            "tiny": {**model, "speculation": speculation},
            "tiny-alone": {**model, "speculation": {"enabled": False}},
        },
    }


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """Write `args` as a deployment file: write_file(args, host=..., port=...) -> its path."""

    def write(args: Args, **http_options: object) -> Path:
        path = tmp_path / "deployment.yaml"
        app = {"name": "s2d", "import_path": IMPORT_PATH, "args": args}
        path.write_text(
            yaml.safe_dump(
                {"http_options": {"host": "127.0.0.1"} | http_options, "applications": [app]}
            )
        )
        return path

    return write


@pytest.fixture
def run() -> Run:
    """Run the command: run("models", path, input="") -> what it wrote, and its exit status."""

    def invoke(*words: object, **options: Any) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], **options)

    return invoke
