"""Files for `ray up`: valid by Ray's own schema, private, with a token, and large enough."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError  # type: ignore[import-untyped]  # it has no stubs
from ray.autoscaler._private.util import (
    prepare_config,
    validate_config,
)

from s2d_serve.config import AppConfig

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "clusters").glob("*.yaml"))
CLOUDS = [file for file in FILES if file.stem != "onprem"]


def load(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    return content


def prepared(content: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` would use it, with Ray's defaults for what is not said."""
    config = prepare_config(copy.deepcopy(content))
    validate_config(config)
    return config


every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
every_cloud = pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.name)


def test_there_are_three_files() -> None:
    assert [file.stem for file in FILES] == ["aws", "gcp", "onprem"]


@every_file
def test_the_file_is_valid(file: Path) -> None:
    config = prepared(load(file))
    assert config["docker"]["container_name"] == "s2d"
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert not any("ray" in command for command in config[commands]), "a default installs Ray"


@every_file
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("docker.run_options", "run_option"),
        ("auth.ssh_user", "user"),
        ("head_start_ray_commands", "head_start_commands"),
    ],
)
def test_a_misspelt_field_is_found(file: Path, path: str, name: str) -> None:
    content = load(file)
    *outer, last = path.split(".")
    inner = content
    for key in outer:
        inner = inner[key]
    inner[name] = inner.pop(last)
    with pytest.raises(ValidationError, match=name):
        prepared(content)


@every_cloud
def test_a_misspelt_field_of_a_node_type_is_found(file: Path) -> None:
    content = load(file)
    small = content["available_node_types"]["small"]
    small["min_worker"] = small.pop("min_workers")
    with pytest.raises(ValidationError, match="min_worker"):
        prepared(content)


@every_file
def test_every_process_asks_for_the_token(file: Path) -> None:
    config = prepared(load(file))
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


@every_file
def test_the_dashboard_listens_on_loopback(file: Path) -> None:
    *_, start = load(file)["head_start_ray_commands"]
    assert start.startswith("ray start --head ")
    assert "--dashboard-host=127.0.0.1" in start.split()


@every_cloud
def test_nodes_are_private(file: Path) -> None:
    config = prepared(load(file))
    assert config["provider"]["use_internal_ips"] is True
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        if config["provider"]["type"] == "aws":
            assert node["SubnetIds"], name
            assert node["SecurityGroupIds"], "Ray's own group lets all the world in by SSH"
        else:
            (interface,) = node["networkInterfaces"]
            assert set(interface) == {"subnetwork"}, "accessConfigs give a public address"


@every_cloud
def test_the_head_holds_no_models_and_a_70b_has_a_node(file: Path) -> None:
    config = prepared(load(file))
    types = config["available_node_types"]
    assert set(types) == {"head", "small", "large"}
    assert "GPU" not in types["head"]["resources"]
    assert types["small"]["min_workers"] >= 1
    assert types["small"]["resources"].keys() >= {"GPU", "draft", "target"}
    assert types["large"]["resources"]["GPU"] == types["large"]["resources"]["rank"] == 8
    assert types["large"]["min_workers"] == 0
    assert config["max_workers"] == sum(node["max_workers"] for node in types.values())


@every_file
def test_images_are_pinned_to_this_version(file: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (version,) = re.findall(r'^version = "(.*)"', project, re.MULTILINE)
    docker = load(file)["docker"]
    assert docker["head_image"].endswith(f"/s2d-serve:{version}")
    assert docker["worker_image"] == f"{docker['head_image']}-gpu"


@every_cloud
def test_the_papers_deployment_fits(file: Path) -> None:
    """Each executor of deployments/vicuna.yaml has a node, and all together have enough GPUs."""
    (app,) = load(ROOT / "deployments/vicuna.yaml")["applications"]
    config = AppConfig.model_validate(app["args"])
    assert config.draft is not None
    nodes = load(file)["available_node_types"].values()
    num_gpus = config.draft.num_gpus
    for target in config.targets.values():
        num_gpus += target.num_gpus * target.tensor_parallel_size
        asked = {"GPU": target.num_gpus, **target.resources}
        assert any(
            all(node["resources"].get(key, 0) >= asked[key] for key in asked) for node in nodes
        )
    assert num_gpus <= sum(
        node["max_workers"] * node["resources"]["GPU"] for node in nodes if "max_workers" in node
    )
