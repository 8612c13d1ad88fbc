"""Several Ray nodes on this host: a head, one for the draft, and some for targets.

    python clusters/local/up.py [NUM_TARGET_NODES] [--dashboard-port PORT]

It stays in the foreground. Ctrl-C ends the nodes that it started, and no other Ray process.
Everything listens on 127.0.0.1 only; `ray start` would take the host's outer address instead.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from types import FrameType
from typing import Any

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, Ray leaves 127.0.0.1 as it is, on Linux too."""


def main() -> None:
    """Start the nodes, say how to use them, and wait for the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("num_target_nodes", nargs="?", type=int, default=2)
    parser.add_argument("--dashboard-port", type=int, default=8270)
    args = parser.parse_args()
    # In /tmp: a path of a Unix socket in it may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="s2d-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": temp, LOOPBACK: "0"}
        command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        run(args.num_target_nodes, args.dashboard_port)


def run(num_target_nodes: int, dashboard_port: int) -> None:
    """A node after the other, until a signal ends them all."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()

    def add(name: str, **options: Any) -> None:
        node = cluster.add_node(node_ip_address="127.0.0.1", **options)
        (raylet,) = node.all_processes["raylet"]
        say(f"{name}: its raylet is process {raylet.process.pid}")

    try:
        add("head", num_cpus=4, include_dashboard=True, dashboard_port=dashboard_port)
        add("draft", resources={"draft": 1})
        for number in range(num_target_nodes):
            add(f"target {number + 1}", resources={"target": 2})
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)  # Ray's own lets a node drain for 30 seconds
        address = f"http://127.0.0.1:{dashboard_port}"
        say(f"ready, until Ctrl-C; in another shell:\n  export RAY_AUTH_MODE=token A={address}")
        say("  serve deploy --address $A clusters/local/s2d.yaml\n  serve status --address $A")
        signal.pause()
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]  # Ray's


def say(line: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


if __name__ == "__main__":
    main()
