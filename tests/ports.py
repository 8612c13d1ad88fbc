"""Ports for servers that tests start."""

import random

from s2d_serve.cli.ports import port_problem

PORTS = range(21_000, 32_000)
"""Neither those that Linux gives to clients, one of which may come first, nor those that Ray gives
to its workers.
"""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at, and that nobody gets by chance."""
    return next(
        port for port in random.sample(PORTS, len(PORTS)) if port_problem("127.0.0.1", port) is None
    )
