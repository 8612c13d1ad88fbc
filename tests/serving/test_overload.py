"""A replica dies while the queue is full: those who had a place get one again."""

import json
import os
import signal
import threading
import time
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Deploy, await_ready, executor_pids

pytestmark = [pytest.mark.ray, pytest.mark.faults]

NUM_SLOTS = 2
"""Of each of two replicas."""
ASK = {"model": "tiny", "prompt": "the thing", "max_tokens": 900, "seed": 3, "ignore_eos": True}


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any]) -> str:
    own = tiny_args["targets"]["tiny"]
    target = {**own, "replicas": {"min": 2, "max": 2}, "max_sequences": NUM_SLOTS, "max_queued": 1}
    limits = {"ttft_s": 100, "idle_s": 100}
    return deploy({**tiny_args, "targets": {"tiny": target}, "limits": limits})


def stream(url: str, texts: list[str], begun: threading.Event | None = None) -> None:
    """Append the text, or the error; say when the first token is there."""
    text = ""
    body = ASK | {"stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=200) as answer:
        if answer.status_code != 200:
            texts.append(f"{answer.status_code}")
            return
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    texts.append(str(chunk))
                    return
                if begun is not None:
                    begun.set()
                text += "".join(choice["text"] for choice in chunk["choices"])
    texts.append(text)


def test_a_stream_under_way_is_not_refused(url: str) -> None:
    expected: list[str] = []
    stream(url, expected)
    running: list[str] = []
    queued: list[str] = []
    clients = []
    for _ in range(2 * NUM_SLOTS):  # one by one: the queue holds one
        begun = threading.Event()
        clients.append(threading.Thread(target=stream, args=(url, running, begun)))
        clients[-1].start()
        assert begun.wait(60)
    clients += [threading.Thread(target=stream, args=(url, queued)) for _ in range(3)]
    for client in clients[-3:]:
        client.start()
    time.sleep(0.3)
    os.kill(executor_pids("tiny")[0], signal.SIGKILL)
    for client in clients:
        client.join()
    assert running == expected * 2 * NUM_SLOTS
    assert set(queued) <= {expected[0], "429"}
    assert "429" in queued, "the queue was full"
    await_ready(url)
