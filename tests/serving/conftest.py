"""A real Ray cluster on this machine, and apps with tiny targets on it."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import ray
from ray import serve
from ray.util import list_named_actors

from s2d_serve.config import AppConfig
from s2d_serve.serving.app import build
from s2d_serve.serving.servers import EXECUTOR_PREFIX
from tests.engine.tiny import nested_model, save_tiny
from tests.ports import free_port

APP = "tiny"
DRAFT_LAYERS = (2, 4)
SHARE_OF_GPU = 0.1
DRAFT_PATIENCE_S = 5.0
"""A slow machine drafts too."""


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    """Ray and Serve's proxy, for all tests; the URL that apps answer at."""
    port = free_port()
    ray.init(
        "local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()  # type: ignore[no-untyped-call]  # Ray's
    ray.shutdown()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose layer-2 exit often agrees with the whole."""
    model = nested_model(
        "llama", seed=3, exit_layer=2, agreement_scale=0.3, num_layers=4, max_positions=1024
    )
    return save_tiny(tmp_path_factory.mktemp("weights"), model)


@pytest.fixture(scope="session")
def tiny_args(weights: Path, device: str) -> dict[str, Any]:
    """`args` of a deployment file: two targets, one draft with two exits."""
    model = {
        "source": str(weights),
        "dtype": "float32",
        "device": device,
        "num_gpus": 0.0 if device == "cpu" else SHARE_OF_GPU,
        "num_threads": 1,
        "max_context": 1024,
    }
    speculation = {"draft_length": "fixed", "max_draft_tokens": 4}
    return {
        "draft": {**model, "exit_layers": DRAFT_LAYERS, "thresholds": (0.3,)},
        "targets": {
            "tiny": {**model, "speculation": speculation},
            "tiny-int8": {**model, "weight_rounding": "int8", "speculation": speculation},
        },
        "router": {"draft_patience_s": DRAFT_PATIENCE_S, "draft_retry_s": 0.5},
    }


class Deploy(Protocol):
    """Runs an app."""

    def __call__(self, args: dict[str, Any], key: str = "") -> str:
        """Its URL, once it is ready; `key`: what opens it."""


@pytest.fixture(scope="session")
def deploy(base_url: str) -> Iterator[Deploy]:
    """Run an app from its `args`, or go on with one that has the same, and wait until it is ready;
    it is taken down at the end.
    """
    runs: tuple[dict[str, Any], float] | None = None

    def run(args: dict[str, Any], key: str = "") -> str:
        nonlocal runs
        if runs is None or runs != (args, deployed_at_s()):
            serve.run(build(AppConfig.model_validate(args)), name=APP, route_prefix="/")
            runs = args, deployed_at_s()
        await_ready(base_url, key=key)
        return base_url

    yield run
    serve.delete(APP)


def deployed_at_s() -> float:
    """When the app that runs was deployed: another test may have put its own there."""
    return serve.status().applications[APP].last_deployed_time_s


def await_ready(url: str, timeout_s: float = 90.0, key: str = "") -> None:
    """Until /ready says so, of the draft too."""
    deadline = time.monotonic() + timeout_s
    while not _is_ready(url, key):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _is_ready(url: str, key: str) -> bool:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url}/ready", timeout=10, headers=headers)
    except httpx.TimeoutException:  # Serve's proxy waits for the first router replica
        return False
    return answer.status_code == 200 and answer.json().get("draft", "?") in ("ready", None)


def actors(prefix: str) -> list[Any]:
    """Handles of the actors whose names begin so."""
    return [
        ray.get_actor(entry["name"], entry["namespace"])
        for entry in list_named_actors(all_namespaces=True)
        if entry["name"].startswith(prefix)
    ]


def pids(prefix: str) -> list[int]:
    """Processes of these actors."""
    found: list[int] = ray.get(
        [actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors(prefix)]
    )
    assert found
    return found


def executor_pids(deployment: str) -> list[int]:
    """Processes of the executors behind a deployment."""
    return pids(f"{EXECUTOR_PREFIX}:{APP}:{deployment}:")


def await_nothing_held(num_executors: int, timeout_s: float) -> None:
    """Until there are so many executors, and none holds a sequence: nobody waits for any."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = actors(f"{EXECUTOR_PREFIX}:{APP}:")
        statuses: list[Any] = ray.get([actor.status.remote() for actor in found])
        held = [(status.info.name, status.num_sequences) for status in statuses]
        if len(held) == num_executors and not any(number for _, number in held):
            return
        assert time.monotonic() < deadline, held
        time.sleep(0.3)
