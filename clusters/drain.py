"""Drains the Ray node that it runs on, then waits until Ray has ended it: Serve starts the node's
replicas elsewhere first, and those here finish what they have. For a node that is to go.

python clusters/drain.py [DEADLINE_S]
"""

import contextlib
import logging
import socket
import sys
import time
from typing import Any

import ray
from ray.scripts.scripts import drain_node

DEADLINE_S = 600
"""What still runs here then is ended; requests may take as long (`limits.total_s`)."""


def main(deadline_s: int) -> None:
    """Drain this node, and return when its raylet is gone or the deadline over."""
    ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
    context = ray.get_runtime_context()
    node_id, gcs = context.get_node_id(), context.gcs_address
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    (node,) = (node for node in nodes if node["NodeID"] == node_id)
    ray.shutdown()
    drain_node.main(
        [
            f"--address={gcs}",
            f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=the node is to go",
            f"--deadline-remaining-seconds={deadline_s}",
        ],
        standalone_mode=False,
    )
    deadline = time.monotonic() + deadline_s
    raylet = node["NodeManagerAddress"], node["NodeManagerPort"]
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            socket.create_connection(raylet, timeout=10).close()
            time.sleep(1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else DEADLINE_S)
