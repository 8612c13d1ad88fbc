"""A new version of the app under load: every request is served to its end."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Deploy, await_ready, executor_pids

pytestmark = [pytest.mark.ray, pytest.mark.faults]

NUM_CLIENTS = 6


def under_load(
    url: str, path: str, body: dict[str, Any], change: Callable[[], object]
) -> list[Any]:
    """The choice of each request that clients send, again and again, before and after a change."""
    choices: list[Any] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            answer = httpx.post(f"{url}{path}", json=body, timeout=120)
            choices.append(
                answer.json()["choices"][0] if answer.status_code == 200 else answer.text
            )

    clients = [threading.Thread(target=load) for _ in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(2)
    change()
    await_ready(url)
    time.sleep(2)
    is_over.set()
    for client in clients:
        client.join()
    assert len(choices) >= 2 * NUM_CLIENTS
    return choices


def test_a_changed_app_replaces_the_old_one_without_an_error(
    deploy: Deploy, tiny_args: dict[str, Any]
) -> None:
    """Draft, targets and router all change, so that all of them are replaced."""
    url = deploy(tiny_args)
    body = {"model": "tiny", "prompt": "the thing", "max_tokens": 150, "seed": 1}
    body |= {"temperature": 0.9, "ignore_eos": True}
    expected = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]
    old = executor_pids("tiny")
    changed = {name: {**model, "max_context": 900} for name, model in tiny_args["targets"].items()}
    draft = {**tiny_args["draft"], "max_context": 900}
    args = {**tiny_args, "draft": draft, "targets": changed, "limits": {"max_n": 4}}
    choices = under_load(url, "/v1/completions", body, lambda: deploy(args))
    assert [choice["text"] for choice in choices] == [expected["text"]] * len(choices)
    assert not set(executor_pids("tiny")) & set(old)


def test_what_needs_the_new_context_waits_for_a_replica_that_has_it(
    deploy: Deploy, tiny_args: dict[str, Any]
) -> None:
    """Without a limit, a chat wants all the context that the router knows of; for a while, one of
    two replicas has less.
    """

    def args(max_context: int) -> dict[str, Any]:
        own = {**tiny_args["targets"]["tiny"], "max_context": max_context}
        return {**tiny_args, "targets": {"tiny": {**own, "replicas": {"min": 2, "max": 2}}}}

    url = deploy(args(200))
    message = {"role": "user", "content": "the thing"}
    body = {"model": "tiny", "messages": [message], "seed": 1, "temperature": 0.9}
    body["ignore_eos"] = True
    choices = under_load(url, "/v1/chat/completions", body, lambda: deploy(args(300)))
    texts = sorted({choice["message"]["content"] for choice in choices}, key=len)
    assert len(texts) == 2
    assert texts[1].startswith(texts[0])
