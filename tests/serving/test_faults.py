"""I3 and I2 on real processes: what happens to a draft or a target costs time, never text."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.serving.conftest import (
    DRAFT_PATIENCE_S,
    Deploy,
    await_nothing_held,
    await_ready,
    executor_pids,
)
from tests.serving.scraped import scrape, total

pytestmark = pytest.mark.ray

ASK = {
    "model": "tiny",
    "prompt": "the thing in the string",
    "max_tokens": 500,
    "temperature": 0.9,
    "seed": 5,
    "ignore_eos": True,
}
SLACK_S = 10.0
"""For processes that start beside the measurement on a busy machine."""


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any]) -> str:
    """The tiny app."""
    return deploy(tiny_args)


@pytest.fixture(scope="module")
def undisturbed(url: str) -> tuple[str, float]:
    """The text without a draft, and how long it takes."""
    started = time.monotonic()
    answer = httpx.post(
        f"{url}/v1/completions", json=ASK | {"speculation": {"enabled": False}}, timeout=60
    )
    return answer.json()["choices"][0]["text"], time.monotonic() - started


def disturbed(
    url: str, disturb: Callable[[], object], model: str = "tiny"
) -> tuple[str, dict[str, Any], float]:
    """Stream the same request and disturb it after its first tokens: text, counts, seconds."""
    chunks, started = [], time.monotonic()
    body = ASK | {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunks.append(json.loads(line.removeprefix("data: ")))
                if len(chunks) == 5:
                    threading.Thread(target=disturb).start()
        assert line == "data: [DONE]" or not line
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["completion_tokens"] == ASK["max_tokens"]
    return text, chunks[-1]["metrics"]["speculative_decoding"], time.monotonic() - started


def send(number: signal.Signals, pids: list[int]) -> None:
    """Signal these processes."""
    for pid in pids:
        os.kill(pid, number)


def test_a_killed_draft_changes_nothing(url: str, undisturbed: tuple[str, float]) -> None:
    """Text and length are the same; Serve brings the draft back; it is used again."""
    await_ready(url)
    expected, alone_s = undisturbed
    pids = executor_pids("draft")
    text, counts, seconds = disturbed(url, lambda: send(signal.SIGKILL, pids))
    assert text == expected
    assert counts["num_draft_tokens"] > 0
    assert seconds < alone_s + DRAFT_PATIENCE_S + SLACK_S
    await_ready(url)
    text, counts, _ = disturbed(url, lambda: None)
    assert text == expected
    assert counts["num_accepted_draft_tokens"] > 50


def test_a_stopped_draft_costs_its_patience_once(url: str, undisturbed: tuple[str, float]) -> None:
    """It hangs instead of dying; when it goes on, it is taken up again."""
    await_ready(url)
    expected, alone_s = undisturbed
    pids = executor_pids("draft")
    try:
        text, counts, seconds = disturbed(url, lambda: send(signal.SIGSTOP, pids))
        assert text == expected
        samples = scrape(url)
        assert total(samples, "s2d:draft_fallback_total", model_name="tiny", reason="late") == 1
        assert total(samples, "s2d:draft_fallback_total", model_name="tiny", reason="lost") > 1
        assert counts["num_draft_tokens"] > 0
        assert seconds < alone_s + DRAFT_PATIENCE_S + SLACK_S
        started = time.monotonic()
        answer = httpx.post(f"{url}/v1/completions", json=ASK, timeout=60)
        assert answer.json()["choices"][0]["text"] == expected
        assert time.monotonic() - started < alone_s + DRAFT_PATIENCE_S + SLACK_S
    finally:
        send(signal.SIGCONT, pids)
    deadline = time.monotonic() + 60
    while True:
        answer = httpx.post(f"{url}/v1/completions", json=ASK, timeout=60).json()
        assert answer["choices"][0]["text"] == expected
        if answer["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] > 50:
            break
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_killed_target_goes_on_where_it_was(url: str, undisturbed: tuple[str, float]) -> None:
    """Its stream waits for the new replica and continues: no gap, no repeat, same text."""
    await_ready(url)
    pids = executor_pids("tiny")
    text, _, _ = disturbed(url, lambda: send(signal.SIGKILL, pids))
    assert text == undisturbed[0]
    assert total(scrape(url), "s2d:migrations_total", model_name="tiny") == 1
    await_ready(url)


def test_a_client_that_hangs_up_frees_its_place(url: str) -> None:
    """Eight clients leave in the middle, then eight more are served at once."""
    await_ready(url)
    body = ASK | {"stream": True, "max_tokens": 900}
    for _ in range(2):
        for _ in range(8):
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
                next(answer.iter_lines())
    started = time.monotonic()
    answer = httpx.post(f"{url}/v1/completions", json=ASK | {"max_tokens": 5}, timeout=60)
    assert answer.status_code == 200
    assert time.monotonic() - started < SLACK_S


def test_clients_that_hang_up_leave_nothing_behind(
    url: str, undisturbed: tuple[str, float]
) -> None:
    """Neither at targets nor at the draft, while others go on."""
    await_ready(url)

    def hang_up(number: int) -> None:
        body = ASK | {"seed": number, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            for seen, _ in enumerate(answer.iter_lines()):
                if seen > number % 20:
                    return

    with ThreadPoolExecutor(6) as clients:
        list(clients.map(hang_up, range(60)))
    assert disturbed(url, lambda: None)[0] == undisturbed[0]
    await_nothing_held(3, timeout_s=10)
