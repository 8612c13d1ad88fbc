"""Several nodes on this host: they come up on loopback only, and go with their script."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from s2d_serve.config import AppConfig
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clusters/local"


def args(file: Path) -> dict[str, Any]:
    (app,) = yaml.safe_load(file.read_text("utf-8"))["applications"]
    found: dict[str, Any] = app["args"]
    return found


def test_the_file_is_the_shipped_one_with_places() -> None:
    """The draft and each target ask for what one of up.py's nodes offers."""
    local = args(FOLDER / "s2d.yaml")
    AppConfig.model_validate(local)
    places = [model.pop("resources") for model in (local["draft"], *local["targets"].values())]
    assert places == [{"draft": 1}, {"target": 1}, {"target": 1}]
    script = (FOLDER / "up.py").read_text("utf-8")
    assert set(re.findall(r'resources=\{"(\w+)": \d\}', script)) == {"draft", "target"}
    assert local == args(ROOT / "deployments/s2d.yaml")


@pytest.fixture
def script(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """up.py with one node for targets, when its nodes are there; it is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, FOLDER / "up.py", "1", "--dashboard-port", str(free_port())],
        env={**os.environ, "HOME": str(tmp_path)},  # where the token is made
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any(line.startswith("ready") for line in process.stdout), "it ended"
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_listen_on_loopback_and_end_with_the_script(
    script: subprocess.Popen[str],
) -> None:
    processes = psutil.Process(script.pid).children(recursive=True)
    assert [process.name() for process in processes].count("raylet") == 3
    listening = {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
