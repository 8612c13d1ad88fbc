"""Replicas come and go with the load of one target, and no other notices."""

import threading
import time
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Deploy, executor_pids

pytestmark = [pytest.mark.ray, pytest.mark.faults]

SLEEPY = {"min": 0, "max": 2, "target_load": 0.5, "upscale_delay_s": 0, "downscale_delay_s": 2}


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any]) -> str:
    """A target that always runs, and two that sleep while nobody asks."""
    tiny = {**tiny_args["targets"]["tiny"], "max_sequences": 2}
    return deploy(
        {
            **tiny_args,
            "targets": {
                "tiny": tiny,
                "waiting": {**tiny, "replicas": SLEEPY, "cold_start": "wait"},
                "refusing": {**tiny, "replicas": SLEEPY, "cold_start": "refuse"},
            },
        }
    )


def ask(url: str, target: str, max_tokens: int = 20) -> httpx.Response:
    body = {"model": target, "prompt": "the thing", "max_tokens": max_tokens, "seed": 1}
    return httpx.post(f"{url}/v1/completions", json=body | {"ignore_eos": True}, timeout=100)


def states(url: str) -> dict[str, str]:
    """Of the targets, as /ready says."""
    answer = httpx.get(f"{url}/ready", timeout=10)
    assert answer.status_code == 200, "an idle target is as good as a ready one"
    found: dict[str, str] = answer.json()["targets"]
    return found


def await_state(url: str, target: str, state: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while states(url)[target] != state:
        assert time.monotonic() < deadline
        time.sleep(0.3)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def test_a_sleeping_target_wakes_serves_and_sleeps_again(url: str) -> None:
    assert states(url)["waiting"] == "idle"
    untouched = executor_pids("tiny")
    assert text_of(ask(url, "waiting")) == text_of(ask(url, "tiny"))
    assert states(url)["waiting"] == "ready"
    await_state(url, "waiting", "idle")
    assert executor_pids("tiny") == untouched


def test_a_target_that_refuses_while_it_sleeps_wakes_all_the_same(url: str) -> None:
    assert states(url)["refusing"] == "idle"
    refused = ask(url, "refusing")
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert "is starting" in refused.json()["error"]["message"]
    deadline = time.monotonic() + 60
    while (answer := ask(url, "refusing")).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(float(answer.headers["Retry-After"]))
    assert text_of(answer) == text_of(ask(url, "tiny"))


def test_load_adds_a_replica_and_its_end_takes_it_away_without_an_error(url: str) -> None:
    """Four long requests want two replicas; the one that goes first serves its own to the end."""
    answers: list[httpx.Response] = []

    def load() -> None:
        for _ in range(4):
            answers.append(ask(url, "waiting", max_tokens=400))

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    most = 0
    while any(client.is_alive() for client in clients):
        if states(url)["waiting"] == "ready":
            most = max(most, len(executor_pids("waiting")))
        time.sleep(0.3)
    assert most == 2
    expected = text_of(ask(url, "tiny", max_tokens=400))
    assert [text_of(answer) for answer in answers] == [expected] * 16
    await_state(url, "waiting", "idle")
