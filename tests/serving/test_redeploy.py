"""A new version of the app under load: every request is served to its end."""

import threading
import time
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Deploy, await_ready, executor_pids

pytestmark = [pytest.mark.ray, pytest.mark.faults]

NUM_CLIENTS = 6


def test_a_changed_app_replaces_the_old_one_without_an_error(
    deploy: Deploy, tiny_args: dict[str, Any]
) -> None:
    """Draft, targets and router all change, so that all of them are replaced."""
    url = deploy(tiny_args)
    body = {"model": "tiny", "prompt": "the thing", "max_tokens": 150, "seed": 1}
    body |= {"temperature": 0.9, "ignore_eos": True}
    expected = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]
    old = executor_pids("tiny")
    answers: list[httpx.Response] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=120))

    clients = [threading.Thread(target=load) for _ in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(2)
    changed = {name: {**model, "max_context": 900} for name, model in tiny_args["targets"].items()}
    draft = {**tiny_args["draft"], "max_context": 900}
    deploy({**tiny_args, "draft": draft, "targets": changed, "limits": {"max_n": 4}})
    await_ready(url)
    time.sleep(2)
    is_over.set()
    for client in clients:
        client.join()
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["choices"][0]["text"] == expected["text"] for answer in answers)
    assert len(answers) >= 2 * NUM_CLIENTS
    assert not set(executor_pids("tiny")) & set(old)
