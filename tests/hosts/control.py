"""Runs on a host of a test's network: one command to the Ray cluster there, its answer as JSON.

python -m tests.hosts.control ADDRESS deploy ARGS.json PORT
python -m tests.hosts.control ADDRESS pids
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.util import list_named_actors

from s2d_serve.config import AppConfig
from s2d_serve.serving.app import build
from s2d_serve.serving.servers import EXECUTOR_PREFIX, RANK_PREFIX


def deploy(args: Path, port: int) -> None:
    """Run an app; it stays when this process ends."""
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(AppConfig.model_validate(json.loads(args.read_text()))), name="hosts")


def pids() -> dict[str, int]:
    """Processes of the executors and ranks, by their actors' names."""
    found: dict[str, Any] = {}
    for entry in list_named_actors(all_namespaces=True):
        handle = ray.get_actor(entry["name"], entry["namespace"])
        if entry["name"].startswith(EXECUTOR_PREFIX):
            status: Any = ray.get(handle.status.remote())
            found[entry["name"]] = status.pid
        elif entry["name"].startswith(RANK_PREFIX):
            found[entry["name"]] = ray.get(handle.pid.remote())
    return found


if __name__ == "__main__":
    address, command, *rest = sys.argv[1:]
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="serve")
    if command == "deploy":
        deploy(Path(rest[0]), int(rest[1]))
    else:
        print(json.dumps(pids()))
