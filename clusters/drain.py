"""Drains the Ray node that it runs on and waits until no actor is left on it: Serve starts the
node's replicas elsewhere first, and those here finish what they have. For a node that is to go.

python clusters/drain.py [DEADLINE_S]
"""

import logging
import sys
import time
from typing import Any

import psutil
import ray
from ray.scripts.scripts import drain_node

DEADLINE_S = 600
"""Requests may take as long (`limits.total_s`)."""
NO_ACTORS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""What Ray's own processes are called that every node has."""


def main(deadline_s: int) -> None:
    """Drain this node, and return when it is empty or the deadline over."""
    ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
    gcs = ray.get_runtime_context().gcs_address
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    ray.shutdown()
    own = {address.address for found in psutil.net_if_addrs().values() for address in found}
    here = [node for node in nodes if node["Alive"] and node["NodeManagerAddress"] in own]
    if len(here) != 1:
        sys.exit(f"this machine has {len(here)} Ray nodes, not one: use `ray drain-node`")
    (node,) = here
    drain_node.main(
        [
            f"--address={gcs}",
            f"--node-id={node['NodeID']}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=the node is to go",
            f"--deadline-remaining-seconds={deadline_s}",
        ],
        standalone_mode=False,
    )
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline and actors_of(node["RayletSocketName"]):
        time.sleep(1)


def actors_of(raylet_socket: str) -> list[str]:
    """Names of the processes of a raylet on this machine that are actors."""
    titles = []
    for process in psutil.process_iter(["name", "cmdline"]):
        try:
            command = process.info["cmdline"] or []
            if process.info["name"] == "raylet" and any(raylet_socket in word for word in command):
                titles += [" ".join(child.cmdline()) for child in process.children(recursive=True)]
        except psutil.Error:
            continue
    return [
        title for title in titles if title.startswith("ray::") and not title.startswith(NO_ACTORS)
    ]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else DEADLINE_S)
