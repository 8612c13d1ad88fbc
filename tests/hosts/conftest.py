"""A Ray cluster over hosts with addresses of their own, and a service on it."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.engine.tiny import nested_model, save_tiny
from tests.hosts.network import Link, Network, may_make_hosts

HOSTS = ("head", "draft", "target-a", "target-b", "rank-a", "rank-b")
GCS_PORT = 6379
HTTP_PORT = 8000
URL = f"http://127.0.0.1:{HTTP_PORT}"
"""Where the service answers, on the head."""
CPUS_PER_NODE = 1
RAY_FOLDER = Path(tempfile.gettempdir()) / f"s2d-{os.getpid()}"
"""Short, as there is a limit on the paths of sockets."""
ENVIRONMENT = os.environ | {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_TMPDIR": str(RAY_FOLDER),
}
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True, slots=True)
class Hosts:
    """The service, on the head of a network."""

    network: Network
    folder: Path
    nodes: "dict[str, subprocess.Popen[bytes]]"

    def start(self, host: str) -> None:
        """Start Ray there."""
        self.nodes[host] = _start_node(self.network, host, self.folder)

    def kill(self, host: str) -> None:
        """All that runs there is gone at once."""
        os.killpg(self.nodes[host].pid, signal.SIGKILL)
        self.nodes.pop(host).wait(20)

    def drain(self, host: str, deadline_s: int) -> None:
        """End a node as a cluster does that lets it finish."""
        self._run_on(host, [sys.executable, "clusters/drain.py", str(deadline_s)])
        self.kill(host)

    def place_of(self, process: str) -> set[str]:
        """Hosts on which a process of this name runs, such as `ray::TargetExecutor`."""
        found = set()
        for host, node in self.nodes.items():
            for child in psutil.Process(node.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process in " ".join(child.cmdline()):
                        found.add(host)
        return found

    def deploy(self, args: Path) -> None:
        """Run an app with these `args`."""
        self._run_on(
            "head",
            [sys.executable, "-m", "tests.hosts.deploy", self._gcs, str(args), str(HTTP_PORT)],
        )

    @property
    def _gcs(self) -> str:
        return f"{self.network.address('head')}:{GCS_PORT}"

    def _run_on(self, host: str, command: list[str]) -> None:
        whole = self.network.command(host, command)
        environment = ENVIRONMENT | {"RAY_ADDRESS": self._gcs}
        done = subprocess.run(whole, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]

    def ask(self, model: str, **body: Any) -> dict[str, Any]:
        """A completion, asked for on the head."""
        with self.network.inside("head"):
            answer = httpx.post(f"{URL}/v1/completions", json={"model": model, **body}, timeout=120)
        assert answer.status_code == 200, answer.text
        completion: dict[str, Any] = answer.json()
        return completion

    def await_ready(self, timeout_s: float = 180.0) -> None:
        """Until /ready says so, of the draft too."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with self.network.inside("head"):
                    answer = httpx.get(f"{URL}/ready", timeout=10)
                if answer.status_code == 200 and answer.json()["draft"] == "ready":
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.5)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """The service on its hosts: router, draft, a whole target, one over two; and one to spare."""
    if not may_make_hosts():
        pytest.skip("needs root and /dev/net/tun")
    folder = tmp_path_factory.mktemp("hosts")
    RAY_FOLDER.mkdir()
    with Network(HOSTS) as network:
        found = Hosts(network, folder, {})
        try:
            for host in HOSTS:
                found.start(host)
            args = folder / "args.json"
            args.write_text(json.dumps(_args(folder)))
            found.deploy(args)
            found.await_ready()
            yield found
            network.set_links(Link())
        finally:
            _stop(list(found.nodes.values()))
            shutil.rmtree(RAY_FOLDER, ignore_errors=True)


def _start_node(network: Network, host: str, folder: Path) -> "subprocess.Popen[bytes]":
    kind = host.split("-")[0]
    gcs = f"{network.address('head')}:{GCS_PORT}"
    place = ["--head", f"--port={GCS_PORT}", "--include-dashboard=false"]
    command = [
        str(RAY),
        "start",
        *(place if host == "head" else [f"--address={gcs}"]),
        f"--node-ip-address={network.address(host)}",
        f"--num-cpus={CPUS_PER_NODE}",
        f"--resources={json.dumps({kind: 1.0})}",
        "--object-store-memory=100000000",
        "--disable-usage-stats",
        "--block",
    ]
    with (folder / f"{host}.log").open("wb") as log:
        node = subprocess.Popen(
            network.command(host, command),
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=ENVIRONMENT,
        )
    _await_start(node, folder / f"{host}.log")
    return node


def _await_start(node: "subprocess.Popen[bytes]", log: Path) -> None:
    """Nodes that share a file system start one after the other: the names of sockets are theirs."""
    deadline = time.monotonic() + 60
    while "Ray runtime started" not in log.read_text():
        assert node.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _stop(nodes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End the nodes with all their processes, which are those of their sessions."""
    for node in reversed(nodes):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(node.pid, number)
                node.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _args(folder: Path) -> dict[str, Any]:
    weights = nested_model(
        "llama", seed=3, exit_layer=2, agreement_scale=0.3, num_layers=4, max_positions=1024
    )
    source = str(save_tiny(folder / "weights", weights))
    model = {"source": source, "dtype": "float32", "num_threads": 1, "max_context": 1024}
    target = {**model, "speculation": {"draft_length": "fixed", "max_draft_tokens": 4}}
    return {
        "draft": {
            **model,
            "exit_layers": (2, 4),
            "thresholds": (0.3,),
            "resources": {"draft": 0.1},
        },
        "targets": {
            "tiny": {**target, "resources": {"target": 0.1}},
            "tiny-sharded": {
                **target,
                "tensor_parallel_size": 2,
                "placement_strategy": "STRICT_SPREAD",
                "collective_timeout_s": 5,
                "resources": {"rank": 0.1},
            },
        },
        "router": {
            "draft_patience_s": 3.0,
            "draft_retry_s": 0.5,
            "resources": {"head": 0.1},
        },
    }
