"""Router, draft and targets on hosts of their own."""

import threading
import time
from typing import Any

import pytest

from tests.hosts.conftest import Hosts
from tests.hosts.network import Link

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(600)]

DELAYS_S = (0.02, 0.06)
DRAIN_S = 120
MIN_DELAYS, MAX_DELAYS = 1.7, 2.7
"""Two, and what the start of the sequence costs; fewer would mean that the delays were none."""
MIN_ROUNDS = 50
NUM_TRIES = 3
PROMPTS = ["the thing", "stop the string, ", "é " * 40, "in the thing " * 30]


def text_of(completion: dict[str, Any]) -> str:
    text: str = completion["choices"][0]["text"]
    return text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_target_over_two_hosts_gives_the_whole_ones_text(
    hosts: Hosts, temperature: float
) -> None:
    for prompt in PROMPTS:
        body = {"prompt": prompt, "max_tokens": 60, "temperature": temperature, "seed": 3}
        sharded = hosts.ask("tiny-sharded", **body)
        assert text_of(sharded) == text_of(
            hosts.ask("tiny", **body, speculation={"enabled": False})
        )
        assert sharded["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] > 10


LONG = {"prompt": "the thing in the string", "max_tokens": 300, "ignore_eos": True, "seed": 5}


def timed(hosts: Hosts, model: str, **body: Any) -> tuple[str, float, int]:
    """A completion: text, seconds, rounds with a proposal."""
    started = time.monotonic()
    completion = hosts.ask(model, **(LONG | body))
    counts = completion["metrics"]["speculative_decoding"]
    return text_of(completion), time.monotonic() - started, counts["num_spec_steps"]


def test_a_round_costs_two_one_way_delays(hosts: Hosts) -> None:
    """Draft to target and back, and no way round by the router: it cannot be fewer.

    Measured between two delays, so that the work of a round falls out.
    """
    expected, _, num_rounds = timed(hosts, "tiny")
    assert num_rounds > MIN_ROUNDS
    seconds = {}
    for delay_s in DELAYS_S:
        hosts.network.set_links(Link(delay_s=delay_s))
        try:
            runs = [timed(hosts, "tiny") for _ in range(NUM_TRIES)]
        finally:
            hosts.network.set_links(Link())
        assert {text for text, _, _ in runs} == {expected}
        drafted = [seconds for _, seconds, n in runs if n == num_rounds]
        assert drafted, f"{runs}: the draft was late in each"
        seconds[delay_s] = min(drafted)
    short_s, long_s = DELAYS_S
    num_delays = (seconds[long_s] - seconds[short_s]) / num_rounds / (long_s - short_s)
    print(f"{num_delays:.2f} one-way delays per round, {num_rounds} rounds, {seconds} s")
    assert MIN_DELAYS < num_delays < MAX_DELAYS


def test_lost_frames_change_nothing(hosts: Hosts) -> None:
    expected, _, _ = timed(hosts, "tiny")
    hosts.network.set_links(Link(loss=0.01))
    try:
        assert timed(hosts, "tiny")[0] == expected
        assert timed(hosts, "tiny-sharded")[0] == expected
    finally:
        hosts.network.set_links(Link())


@pytest.mark.parametrize(
    ("a", "b", "model"), [("head", "draft", "tiny"), ("rank-a", "rank-b", "tiny-sharded")]
)
def test_a_link_that_is_cut_for_a_while_costs_time_only(
    hosts: Hosts, a: str, b: str, model: str
) -> None:
    expected, _, _ = timed(hosts, "tiny")
    cut = threading.Timer(0.5, lambda: hosts.network.set_link(a, b, Link(is_up=False)))
    mended = threading.Timer(8.0, lambda: hosts.network.set_link(a, b, Link()))
    cut.start()
    mended.start()
    try:
        text, seconds, _ = timed(hosts, model)
    finally:
        cut.cancel()
        mended.join()
    assert text == expected
    print(f"{a} - {b}: {seconds:.1f} s")
    hosts.await_ready()


TARGET = "TargetExecutor"


def place_of_whole_target(hosts: Hosts) -> str:
    """The host of `tiny`, which is on none of those for ranks."""
    (host,) = {host for host in hosts.place_of(TARGET) if host.startswith("target")}
    return host


def test_a_drained_node_fails_no_request(hosts: Hosts) -> None:
    """Its replica is replaced elsewhere before it ends."""
    hosts.await_ready()
    expected, _, _ = timed(hosts, "tiny")
    host = place_of_whole_target(hosts)
    texts: list[str] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            texts.append(timed(hosts, "tiny")[0])

    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    time.sleep(1)
    started = time.monotonic()
    hosts.drain(host, DRAIN_S)
    seconds = time.monotonic() - started
    print(f"{host} gone after {seconds:.1f} s, {len(texts)} requests")
    assert seconds < DRAIN_S
    time.sleep(2)
    is_over.set()
    for client in clients:
        client.join()
    assert set(texts) == {expected}
    assert len(texts) > len(clients)
    assert place_of_whole_target(hosts) != host
    hosts.start(host)


def test_a_lost_node_costs_time_only(hosts: Hosts) -> None:
    """The target goes on where it was, on another host."""
    hosts.await_ready()
    expected, _, _ = timed(hosts, "tiny")
    host = place_of_whole_target(hosts)
    loss = threading.Timer(0.3, lambda: hosts.kill(host))
    loss.start()
    text, seconds, _ = timed(hosts, "tiny")
    loss.join()
    assert text == expected
    print(f"{host} lost: {seconds:.1f} s")
    assert place_of_whole_target(hosts) != host
    hosts.start(host)
    hosts.await_ready()
