"""Whether a server could listen at an address."""

import errno
import socket


def port_problem(host: str, port: int) -> str | None:
    """Why nothing can listen there; None if it can."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            probe.bind(address)
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} of {host} is in use, perhaps by a service that runs already"
        return f"cannot listen at {host}, port {port}: {error.strerror}"
    return None
