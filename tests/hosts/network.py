"""Hosts that are network namespaces on one machine, and a switch between them that can cut, delay
and lose.

Each host has an address of its own and nothing else: all traffic between hosts is frames that a
process of ours passes on (`python -m tests.hosts.network` is that process).

with Network(["head", "draft"]) as network:
    subprocess.run(network.command("draft", ["ip", "addr"]))
    network.set_link("head", "draft", Link(delay_s=0.02))
    with network.inside("head"):
        httpx.get("http://10.77.0.1:8000/ready")
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

SUBNET = "10.77.0"
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
CLONE_NEWNET = 0x40000000
MTU = 9000
NETNS = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Link:
    """How frames travel from one host to another, and back."""

    is_up: bool = True
    delay_s: float = 0.0
    """One way."""
    loss: float = 0.0
    """Share of frames that are dropped."""


class Network:
    """Hosts with the addresses 10.77.0.1, 10.77.0.2, ... in the order of their names."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = tuple(hosts)
        self._tag = f"s2d{os.getpid()}"
        self._switch: subprocess.Popen[str] | None = None

    def address(self, host: str) -> str:
        """IPv4 address of a host."""
        return f"{SUBNET}.{self.hosts.index(host) + 1}"

    def namespace(self, host: str) -> str:
        """Name of a host's network namespace."""
        return f"{self._tag}-{host}"

    def __enter__(self) -> Self:
        for host in self.hosts:
            _ip("netns", "add", self.namespace(host))
        names = [f"{self._tag}t{i}" for i in range(len(self.hosts))]
        self._switch = subprocess.Popen(
            [sys.executable, "-m", "tests.hosts.network", *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._switch.stdout is not None
        assert self._switch.stdout.readline() == "ready\n"
        for host, name in zip(self.hosts, names, strict=True):
            _ip("link", "set", name, "netns", self.namespace(host))
            inside = ("-n", self.namespace(host))
            _ip(*inside, "link", "set", name, "name", "eth0", "mtu", str(MTU))
            _ip(*inside, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "link", "set", "eth0", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._switch is not None:
            self._switch.kill()
            self._switch.communicate()
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", self.namespace(host)], check=False)

    def set_link(self, a: str, b: str, link: Link) -> None:
        """Change how frames travel between two hosts, from now on."""
        assert self._switch is not None
        assert self._switch.stdin is not None
        ports = [self.hosts.index(a), self.hosts.index(b)]
        self._switch.stdin.write(json.dumps({"ports": ports, **asdict(link)}) + "\n")
        self._switch.stdin.flush()

    def set_links(self, link: Link) -> None:
        """The same for all pairs of hosts."""
        for i, a in enumerate(self.hosts):
            for b in self.hosts[i + 1 :]:
                self.set_link(a, b, link)

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """How to run a command on a host."""
        return ["ip", "netns", "exec", self.namespace(host), *command]

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Sockets that this thread opens are the host's."""
        with (
            Path("/proc/thread-self/ns/net").open() as here,
            (NETNS / self.namespace(host)).open() as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def may_make_hosts() -> bool:
    """Whether this process may make network namespaces and interfaces."""
    return sys.platform == "linux" and os.geteuid() == 0 and Path("/dev/net/tun").exists()


def switch(names: Sequence[str]) -> None:
    """Pass frames on between these interfaces, for ever; links come as JSON lines on stdin."""
    ports = [_open_port(name) for name in names]
    print("ready", flush=True)
    links: dict[frozenset[int], Link] = {}
    port_of: dict[bytes, int] = {}
    """By hardware address."""
    due: list[tuple[float, int, int, bytes]] = []
    """Frames under way: when they arrive, their number, port, frame."""
    number = 0
    selector = selectors.DefaultSelector()
    for index, port in enumerate(ports):
        selector.register(port, selectors.EVENT_READ, index)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
    lines = b""
    """Of settings: what was read and is not whole yet."""
    while True:
        wait_s = max(due[0][0] - time.monotonic(), 0) if due else None
        for key, _ in selector.select(wait_s):
            if key.data is None:
                read = os.read(key.fd, 1 << 16)
                if not read:
                    return
                *whole, lines = (lines + read).split(b"\n")
                for line in whole:
                    settings = json.loads(line)
                    pair = frozenset(settings.pop("ports"))
                    links[pair] = Link(**settings)
                continue
            frame = os.read(ports[key.data], MTU + 64)
            port_of[frame[6:12]] = key.data
            known = port_of.get(frame[:6])
            for index in range(len(ports)) if known is None else (known,):
                link = links.get(frozenset((key.data, index)), Link())
                if index != key.data and link.is_up and random.random() >= link.loss:
                    number += 1
                    arrival = time.monotonic() + link.delay_s
                    heapq.heappush(due, (arrival, number, index, frame))
        while due and due[0][0] <= time.monotonic():
            _, _, index, frame = heapq.heappop(due)
            with contextlib.suppress(OSError):  # an interface that is down
                os.write(ports[index], frame)


def _open_port(name: str) -> int:
    """The switch's end of a new interface; it stays so wherever the interface is moved."""
    port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(port, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return port


if __name__ == "__main__":
    switch(sys.argv[1:])
