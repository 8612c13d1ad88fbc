"""Runs on a host of a test's network: tells Ray that a node goes away.

python -m tests.hosts.drain GCS_ADDRESS NODE_ADDRESS DEADLINE_S
"""

import logging
import sys

import ray
from ray.scripts.scripts import drain_node

if __name__ == "__main__":
    gcs, address, deadline_s = sys.argv[1:]
    ray.init(gcs, log_to_driver=False, logging_level=logging.ERROR)
    (node_id,) = {
        node["NodeID"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
        if node["NodeManagerAddress"] == address and node["Alive"]
    }
    ray.shutdown()
    drain_node.main(
        [
            f"--address={gcs}",
            f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=a test",
            f"--deadline-remaining-seconds={deadline_s}",
        ]
    )
