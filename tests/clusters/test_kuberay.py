"""Kubernetes manifests: published fields only, and they fit each other, the app and the image."""

import copy
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from s2d_serve.config import AppConfig
from s2d_serve.exposure import check_exposure
from tests.clusters.fields import problems

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clusters/kuberay"
SERVICES = ["rayservice.yaml", "rayservice-ft.yaml"]


def documents(name: str = "*.yaml") -> list[dict[str, Any]]:
    """All objects of these manifests."""
    return [
        document
        for file in sorted(FOLDER.glob(name))
        for document in yaml.safe_load_all(file.read_text("utf-8"))
    ]


def ray_service(name: str) -> dict[str, Any]:
    (document,) = documents(name)
    return document


def groups(service: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's group and those of the workers."""
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def app_args(service: dict[str, Any]) -> dict[str, Any]:
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    args: dict[str, Any] = app["args"]
    return args


def object_names(kind: str) -> set[str]:
    return {doc["metadata"]["name"] for doc in documents() if doc["kind"] == kind}


def test_all_fields_are_published_ones() -> None:
    assert {doc["kind"]: problems(doc) for doc in documents() if problems(doc)} == {}
    kinds = Counter(doc["kind"] for doc in documents())
    assert kinds["RayService"] == kinds["NetworkPolicy"] == kinds["PersistentVolumeClaim"] == 2


def misspell(document: Any, path: str, name: str, value: Any = None) -> list[str]:
    """The problems of a copy, where the field at `path` is called `name`, or has this value."""
    document = copy.deepcopy(document)
    *outer, last = path.split(".")
    inner = document
    for key in outer:
        inner = inner[int(key) if key.isdigit() else key]
    before = inner.pop(last)
    inner[name] = before if value is None else value
    return problems(document)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("spec.rayClusterConfig", "rayClusterSpec"),
        ("spec.rayClusterConfig.gcsFaultToleranceOptions", "gcsFaultTolerance"),
        ("spec.rayClusterConfig.authOptions.mode", "authMode"),
        ("spec.rayClusterConfig.workerGroupSpecs.1.maxReplicas", "maxWorkers"),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.image", "images"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.template.spec.volumes.0.name", "named"),
    ],
)
def test_a_misspelt_field_is_found(path: str, name: str) -> None:
    found = misspell(ray_service("rayservice-ft.yaml"), path, name)
    assert any(name in problem and "no such field" in problem for problem in found)


def test_a_wrong_type_and_a_missing_field_are_found() -> None:
    service = ray_service("rayservice.yaml")
    head = "spec.rayClusterConfig.headGroupSpec"
    (problem,) = misspell(service, f"{head}.rayStartParams", "rayStartParams", {"num-cpus": 0})
    assert problem.endswith("is no map")
    found = misspell(service, "spec.rayClusterConfig.workerGroupSpecs.0.groupName", "labels", {})
    assert found == ["RayService.spec.rayClusterConfig.workerGroupSpecs[0].groupName: missing"]


@pytest.mark.parametrize("name", SERVICES)
def test_the_app_is_valid_and_may_be_public(name: str) -> None:
    """By Serve's schema and ours; it has API keys, and the models of deployments/s2d.yaml."""
    service = ray_service(name)
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (app,) = schema.applications
    config = AppConfig.model_validate(app.args)
    check_exposure(schema.http_options.host, config)
    assert {deployment.name for deployment in app.deployments} <= {"router", *config.targets}
    shipped = yaml.safe_load((ROOT / "deployments/s2d.yaml").read_text("utf-8"))
    shipped_args = shipped["applications"][0]["args"]
    assert models(app.args) == models(shipped_args)


def models(args: dict[str, Any]) -> dict[str, Any]:
    """Draft and targets without what places them; paths as they are in the repository."""
    found = copy.deepcopy({"draft": args["draft"], **args["targets"]})
    for model in found.values():
        model.pop("num_threads", None)
        model.pop("resources", None)
        model.pop("replicas", None)
        if "trained" in model:
            model["trained"] = model["trained"].removeprefix("/home/ray/s2d-serve/")
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_what_pods_mount_and_read_is_created(name: str) -> None:
    """Claims are in a manifest, Secrets in a command of README.md; keys lie where the app looks."""
    service = ray_service(name)
    readme = (FOLDER / "README.md").read_text("utf-8")
    secrets = dict(re.findall(r"create secret generic (\S+) --from-literal=([\w-]+)=", readme))
    keys_file = Path(app_args(service)["auth"]["api_keys_file"])
    for group in groups(service)[1:]:
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {
            mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]
        }
        assert (
            secrets[volumes[mounts[str(keys_file.parent)]]["secret"]["secretName"]]
            == keys_file.name
        )
        claim = volumes[mounts["/home/ray/cache"]]["persistentVolumeClaim"]["claimName"]
        assert claim in object_names("PersistentVolumeClaim")
    for reference in re.findall(r"secretKeyRef: \{name: (\S+), key: (\w+)\}", manifest_text()):
        assert reference in secrets.items()


def manifest_text() -> str:
    return "\n".join(file.read_text("utf-8") for file in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", SERVICES)
def test_versions_and_images_agree(name: str) -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text("utf-8")
    (version,) = re.findall(r"FROM rayproject/ray:(\d+\.\d+\.\d+)-", dockerfile)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'"ray[serve]>={version.rpartition(".")[0]},' in project
    (torch,) = re.findall(r"torch==([\d.]+)", dockerfile)
    assert f"torch=={torch}" in (ROOT / "Makefile").read_text("utf-8")
    service = ray_service(name)
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == version
    (own,) = re.findall(r'^version = "(.*)"', project, re.MULTILINE)
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(service)}
    assert images == {f"s2d-serve:{own}"}
    assert "latest" not in manifest_text()


@pytest.mark.parametrize("name", SERVICES)
def test_the_cluster_asks_for_a_token_and_keeps_its_head_free(name: str) -> None:
    cluster = ray_service(name)["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", SERVICES)
def test_some_pod_offers_what_a_model_or_router_asks_for(name: str) -> None:
    service = ray_service(name)
    offers = [
        {key: float(amount) for key, amount in group.get("resources", {}).items()}
        for group in groups(service)
    ]
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    asks = [
        model.get("resources", {})
        for model in (app["args"]["draft"], *app["args"]["targets"].values())
    ]
    asks.append(app["args"].get("router", {}).get("resources", {}))
    for ask in asks:
        assert any(all(offer.get(key, 0) >= ask[key] for key in ask) for offer in offers), ask


@pytest.mark.parametrize("name", SERVICES)
def test_a_pod_that_goes_drains_its_node_with_a_program_of_the_image(name: str) -> None:
    config = AppConfig.model_validate(app_args(ray_service(name)))
    dockerfile = (FOLDER / "Dockerfile").read_text("utf-8")
    for group in groups(ray_service(name))[1:]:
        pod = group["template"]["spec"]
        python, program = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert python == "python"
        assert f"{program} {program}\n" in dockerfile
        source = (ROOT / program).read_text("utf-8")
        (deadline_s,) = re.findall(r"^DEADLINE_S = (\d+)", source, re.MULTILINE)
        assert config.limits.total_s <= int(deadline_s) < pod["terminationGracePeriodSeconds"]


def test_the_network_policy_covers_all_ray_pods_and_opens_three_ports() -> None:
    policy, redis = documents("networkpolicy.yaml")
    label = policy["spec"]["podSelector"]["matchLabels"]
    (monitor,) = documents("podmonitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"] == label
    for name in SERVICES:
        for group in groups(ray_service(name)):
            assert label.items() <= group["template"]["metadata"]["labels"].items()
    own, *others = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": label}}]}
    assert [port["port"] for rule in others for port in rule["ports"]] == [8000, 8265, 8080]
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert redis["spec"]["ingress"] == [{**own, "ports": [{"port": 6379}]}]


@pytest.mark.parametrize("name", SERVICES)
def test_metrics_are_where_prometheus_looks(name: str) -> None:
    for group in groups(ray_service(name)):
        ports = {port["name"]: port["containerPort"] for port in pod_ports(group)}
        annotations = group["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(ports["metrics"]) == "8080"


def pod_ports(group: dict[str, Any]) -> list[dict[str, Any]]:
    ports: list[dict[str, Any]] = group["template"]["spec"]["containers"][0]["ports"]
    return ports


def test_the_ft_variant_outlives_its_head() -> None:
    """GCS state in the Redis that redis.yaml makes; two routers, on two nodes, beside the head."""
    service = ray_service("rayservice-ft.yaml")
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    cluster = service["spec"]["rayClusterConfig"]
    redis = {doc["kind"]: doc for doc in documents("redis.yaml")}
    (port,) = redis["Service"]["spec"]["ports"]
    address = f"{redis['Service']['metadata']['name']}:{port['port']}"
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == address
    labels = redis["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert redis["Service"]["spec"]["selector"] == labels
    (policy,) = [
        doc for doc in documents("networkpolicy.yaml") if doc["metadata"]["name"] == "s2d-redis"
    ]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    (routers,) = [group for group in groups(service)[1:] if group["groupName"] == "router"]
    assert routers["replicas"] == routers["minReplicas"] == 2
    (spread,) = routers["template"]["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    (router,) = [deployment for deployment in app["deployments"] if deployment["name"] == "router"]
    assert (app["args"]["router"]["replicas"], router["max_replicas_per_node"]) == (2, 1)
