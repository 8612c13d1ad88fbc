"""What is read of a service's own pages."""

import json
import time
from collections.abc import Callable

import httpx
import pytest

from loadtest import service
from loadtest.prompts import OWN, read_prompts
from tests.loadtest.examples import scenario

METRICS = """\
# HELP vllm:spec_decode_num_draft_tokens_total Drafted.
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{model_name="a"} 12.0
# TYPE s2d:exit_tokens_total counter
s2d:exit_tokens_total{model_name="a",exit="4"} 9.0
# TYPE s2d:replicas gauge
s2d:replicas{model_name="a",state="ready"} 2.0
s2d:replicas{model_name="a",state="silent"} 1.0
"""


def client(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))


def test_counters_and_ready_replicas() -> None:
    found = service.scrape(client(lambda _: httpx.Response(200, text=METRICS)))
    assert found is not None
    assert found[0] == {
        "vllm:spec_decode_num_draft_tokens_total{model_name=a}": 12.0,
        "s2d:exit_tokens_total{exit=4,model_name=a}": 9.0,
    }
    assert found[1] == {"a": 2}


def test_counters_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_POLL_S", 0.0)
    busy = [httpx.Response(503)] * 4
    answers = iter([*busy, httpx.Response(200, text=METRICS)])
    assert service.counters(client(lambda _: next(answers)))
    assert service.counters(client(lambda _: httpx.Response(503))) is None
    once = iter([httpx.Response(404)] * 2)
    assert service.counters(client(lambda _: next(once))) is None


def test_growth_leaves_out_what_stood_still() -> None:
    assert service.growth({"a": 1, "b": 2}, {"a": 1, "b": 5, "c": 4}) == {"b": 3, "c": 4}


def test_replicas_are_watched() -> None:
    with service.Watch(client(lambda _: httpx.Response(200, text=METRICS))) as watch:
        pass
    assert [counts for _, counts in watch.seen] == [{"a": 2}]


def test_a_page_that_is_busy_ends_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_POLL_S", 0.01)
    busy = [httpx.Response(503)] * 3

    def answer(_: httpx.Request) -> httpx.Response:
        return busy.pop() if busy else httpx.Response(200, text=METRICS)

    with service.Watch(client(answer)) as watch:
        while not watch.seen:
            time.sleep(0.01)


def test_a_model_is_its_weights_and_not_its_state() -> None:
    def card(digest: str, state: str) -> dict[str, object]:
        draft = {"name": "d", "replicas": [state]}
        return {"id": "a", "s2d": {"weights": {"sha256": digest}, "draft": draft, "state": state}}

    assert service.identities([card("1", "ready")]) == service.identities([card("1", "loading")])
    assert service.identities([card("1", "ready")]) != service.identities([card("2", "ready")])


def test_texts_that_differ_are_counted() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        is_odd = body["speculation"]["enabled"] and "cat" in body["messages"][0]["content"]
        message = {"content": "other" if is_odd else "same"}
        return httpx.Response(200, json={"choices": [{"message": message}]})

    prompts = read_prompts(OWN)[:8]
    assert sum("cat" in prompt.text for prompt in prompts) == 1
    card = {"id": "a", "s2d": {"weights": {"dtype": "float32"}}}
    found = service.compare_texts(client(answer), scenario(), card, prompts)
    assert (found.prompts, found.differing, found.dtype) == (8, 1, "float32")


def test_an_answer_that_is_an_error_is_said() -> None:
    card = {"id": "a"}
    with pytest.raises(service.ServiceError, match="a does not answer"):
        service.compare_texts(
            client(lambda _: httpx.Response(500)), scenario(), card, read_prompts(OWN)[:1]
        )
