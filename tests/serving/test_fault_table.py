"""Fault by moment by kind of target: exact text, each token once, nothing left behind.

`make test-faults` prints how long each recovery took.
"""

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
import ray

from s2d_serve.serving.servers import EXECUTOR_PREFIX, RANK_PREFIX
from tests.serving.conftest import (
    APP,
    Deploy,
    actors,
    await_nothing_held,
    await_ready,
    executor_pids,
    pids,
)

pytestmark = [pytest.mark.ray, pytest.mark.faults]

KINDS = ("tiny", "tiny-sharded")
LONG_PROMPT = "the thing in the string " * 25
ASK = {"max_tokens": 200, "temperature": 0.9, "seed": 5, "ignore_eos": True}
MOMENTS = {"prefill": 0, "first token": 1, "streaming": 20}
"""Chunks that the client has seen when the fault strikes."""
FAULTS = (
    "draft executor killed",
    "draft executor stopped",
    "draft replica killed",
    "target executor killed",
    "target executor stopped",
    "target replica killed",
    "rank 1 killed",
    "rank 1 stopped",
    "controller killed",
    "router killed",
)
NUM_EXECUTORS = 5
"""That answer calls: two replicas of one target, one of each other and of the draft."""
SPARE_S = 3.0
"""Silence of a stream whose target has another replica."""
SERVE_REPLICA = "SERVE_REPLICA::"
CONTROLLER = "SERVE_CONTROLLER_ACTOR"


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any]) -> str:
    """A target in one process, the same one over two ranks, and with two replicas."""
    whole = {**tiny_args["targets"]["tiny"], "prefill_chunk": 64}
    sharded = {**whole, "tensor_parallel_size": 2, "collective_timeout_s": 3}
    limits = {"ttft_s": 110, "idle_s": 110}
    spare = {**whole, "replicas": {"min": 2, "max": 2}}
    targets = {"tiny": whole, "tiny-sharded": sharded, "tiny-spare": spare}
    router = {"draft_patience_s": 1.0, "draft_retry_s": 0.5}
    return deploy({**tiny_args, "targets": targets, "limits": limits, "router": router})


@pytest.fixture(scope="module")
def expected(url: str) -> str:
    """The text, from the whole target alone."""
    body = ASK | {"model": "tiny", "prompt": LONG_PROMPT, "speculation": {"enabled": False}}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=100)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


@pytest.fixture(scope="module")
def recoveries() -> Iterator[list[tuple[str, str, str, float, float]]]:
    """Rows of the table that is printed at the end."""
    rows: list[tuple[str, str, str, float, float]] = []
    yield rows
    print(
        "\n| fault | moment | target | longest silence, s | ready again, s |\n|---|---|---|---|---|"
    )
    for *names, silence_s, ready_s in rows:
        print(f"| {' | '.join(names)} | {silence_s:.1f} | {ready_s:.1f} |")


def victims(fault: str, target: str) -> list[int]:
    """Processes that a fault strikes."""
    deployment = "draft" if fault.startswith("draft") else target
    match fault.removesuffix(" killed").removesuffix(" stopped"):
        case "draft executor" | "target executor":
            return executor_pids(deployment)
        case "draft replica" | "target replica":
            return pids(f"{SERVE_REPLICA}{APP}#{deployment}#")
        case "rank 1":
            return pids(f"{RANK_PREFIX}:{APP}:{target}:")
        case "controller":
            return pids(CONTROLLER)
        case _:
            return pids(f"{SERVE_REPLICA}{APP}#router#")


def stream(url: str, target: str, num_chunks: int, strike: Callable[[], None]) -> tuple[str, float]:
    """The text, and the longest silence; the fault strikes after so many chunks."""
    body = ASK | {"model": target, "prompt": LONG_PROMPT, "stream": True}
    text, seen, silence_s = "", 0, 0.0
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        if num_chunks == 0:
            strike()
        last = time.monotonic()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            text += chunk["choices"][0]["text"] if chunk["choices"] else ""
            silence_s = max(silence_s, time.monotonic() - last)
            last = time.monotonic()
            seen += 1
            if seen == num_chunks:
                strike()
    return text, silence_s


CASES = [
    (fault, moment, kind)
    for fault, moment, kind in itertools.product(FAULTS, MOMENTS, KINDS)
    if kind == "tiny-sharded" or not fault.startswith("rank")
]


@pytest.mark.parametrize(("fault", "moment", "kind"), CASES)
def test_a_fault_costs_time_only(
    url: str,
    expected: str,
    recoveries: list[tuple[str, str, str, float, float]],
    fault: str,
    moment: str,
    kind: str,
) -> None:
    await_ready(url)
    struck = victims(fault, kind)
    number = signal.SIGSTOP if fault.endswith("stopped") else signal.SIGKILL

    def strike() -> None:
        for pid in struck:
            os.kill(pid, number)

    started = time.monotonic()
    try:
        try:
            text, silence_s = stream(url, kind, MOMENTS[moment], strike)
        except (httpx.TransportError, httpx.HTTPStatusError):
            assert fault == "router killed", "only its own clients see a reset"
            await_ready(url)
            text, silence_s = stream(url, kind, -1, strike)
        assert text == expected
        await_ready(url)
        recoveries.append((fault, moment, kind, silence_s, time.monotonic() - started))
        await_nothing_held(NUM_EXECUTORS, timeout_s=20)
    finally:
        for pid in struck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_spare_replica_takes_over_at_once(
    url: str, expected: str, recoveries: list[tuple[str, str, str, float, float]]
) -> None:
    """The executor that has the sequence dies."""
    await_ready(url)

    def strike() -> None:
        found = actors(f"{EXECUTOR_PREFIX}:{APP}:tiny-spare:")
        statuses: list[Any] = ray.get([actor.status.remote() for actor in found])
        (busy,) = (status.pid for status in statuses if status.num_sequences)
        os.kill(busy, signal.SIGKILL)

    started = time.monotonic()
    text, silence_s = stream(url, "tiny-spare", MOMENTS["streaming"], strike)
    assert text == expected
    assert silence_s < SPARE_S
    await_nothing_held(NUM_EXECUTORS, timeout_s=60)
    seconds = time.monotonic() - started
    recoveries.append(("target executor killed", "streaming", "tiny-spare", silence_s, seconds))


def test_a_router_that_is_told_to_end_finishes_first(url: str, expected: str) -> None:
    """At SIGTERM; it is the only one, yet neither its clients nor later ones see an error."""
    await_ready(url)
    (pid,) = victims("router", "tiny")
    texts = {stream(url, "tiny", MOMENTS["streaming"], lambda: os.kill(pid, signal.SIGTERM))[0]}
    deadline = time.monotonic() + 90
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline
        texts.add(stream(url, "tiny", -1, lambda: None)[0])
    assert texts == {expected}
    await_ready(url)
    assert victims("router", "tiny") != [pid]
    await_nothing_held(NUM_EXECUTORS, timeout_s=20)
