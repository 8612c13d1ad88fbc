"""Deployment files: valid by Serve's own schema and ours, and their overrides work."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ReplicaState, ServeDeploySchema  # type: ignore[attr-defined]

from s2d_serve.config import AppConfig
from s2d_serve.engine.sources import HUB_ID, resolve
from s2d_serve.errors import ConfigError
from s2d_serve.serving.app import HttpRouter, build
from tests.serving.conftest import APP, await_ready

FILES = sorted(Path(__file__).parents[2].glob("deployments/*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_file_is_valid(file: Path) -> None:
    """Its settings exist, each model's type is written out, and it stays on this machine."""
    content = yaml.safe_load(file.read_text("utf-8"))
    schema = ServeDeploySchema.model_validate(content)
    assert schema.http_options.host == "127.0.0.1"
    (app,) = schema.applications
    config = AppConfig.model_validate(app.args)
    assert len(config.targets) >= 2
    assert app.args["draft"]["dtype"] == "bfloat16"
    dtypes = {target["dtype"] for target in app.args["targets"].values()}
    assert dtypes <= {"auto", "bfloat16"} or (dtypes == {"float32"} and file.name == "s2d.yaml")
    assert build(config) is not None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_a_shipped_file_takes_from_the_hub_is_pinned_or_refused(file: Path) -> None:
    """Each model has a revision, or loading it asks for one."""
    (app,) = yaml.safe_load(file.read_text("utf-8"))["applications"]
    config = AppConfig.model_validate(app["args"])
    for model in [*config.targets.values(), config.draft]:
        if model is not None and HUB_ID.fullmatch(model.source) and model.revision is None:
            with pytest.raises(ConfigError, match="a hub id needs a `revision`"):
                resolve(model)


def test_the_papers_70b_is_split_over_as_many_ranks_as_it_has_key_value_heads() -> None:
    (file,) = (file for file in FILES if file.name == "vicuna.yaml")
    (app,) = yaml.safe_load(file.read_text("utf-8"))["applications"]
    config = AppConfig.model_validate(app["args"])
    target = config.targets["llama-2-70b-chat"]
    assert (target.tensor_parallel_size, target.placement_strategy) == (8, "SPREAD")
    assert config.draft is not None
    assert config.draft.exit_layers == (6, 9, 12)
    assert config.draft.max_sequences == sum(t.max_sequences for t in config.targets.values())
    assert all(m.device == "cuda" and m.num_gpus for m in (config.draft, *config.targets.values()))


async def test_a_public_address_without_keys_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch, tiny_args: dict[str, Any]
) -> None:
    """Also where Serve was started by hand: the router looks at where its proxy listens."""
    http = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0"))
    monkeypatch.setattr("s2d_serve.serving.app._get_global_client", lambda: http)
    with pytest.raises(ConfigError, match=r"http_options.host 0\.0\.0\.0"):
        await HttpRouter.__init__(
            object.__new__(HttpRouter), AppConfig.model_validate(tiny_args), {}, None, None
        )


def num_running(deployment: str) -> int:
    """Replicas that serve."""
    status = serve.status().applications[APP].deployments.get(deployment)
    return 0 if status is None else status.replica_states.get(ReplicaState.RUNNING, 0)


@pytest.mark.ray
def test_overrides_and_several_replicas(base_url: str, tiny_args: dict[str, Any]) -> None:
    """Two routers, two replicas of a target: one text, whoever serves it; a full queue refuses."""
    app = {
        "name": APP,
        "route_prefix": "/",
        "import_path": "s2d_serve.serving.app:build",
        "args": tiny_args,
        "deployments": [
            {"name": "router", "num_replicas": 2},
            {"name": "tiny", "num_replicas": 2, "max_ongoing_requests": 3},
            {"name": "tiny-int8", "max_ongoing_requests": 1, "max_queued_requests": 1},
        ],
    }
    client = _get_global_client()
    assert client is not None
    schema = ServeDeploySchema.model_validate({"applications": [app]})
    client.deploy_apps(schema, _blocking=False)
    deadline = time.monotonic() + 180
    while num_running("router") < 2 or num_running("tiny") < 2:
        assert time.monotonic() < deadline, serve.status()
        time.sleep(0.5)
    await_ready(base_url)
    body = {"model": "tiny", "prompt": "the", "max_tokens": 60, "temperature": 0.9, "seed": 1}

    async def ask(number: int, **fields: Any) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as http:
            return await asyncio.gather(
                *(
                    http.post(f"{base_url}/v1/completions", json=body | fields)
                    for _ in range(number)
                )
            )

    texts = [answer.json()["choices"][0]["text"] for answer in asyncio.run(ask(12))]
    assert len(set(texts)) == 1
    assert len(texts[0]) > 20
    answers = asyncio.run(ask(10, model="tiny-int8", ignore_eos=True))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < len(answers)
    for answer in refused:
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        assert answer.json()["error"]["code"] == "overloaded"
