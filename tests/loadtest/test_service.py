"""What is read of a service's own pages."""

import json
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


def test_growth_leaves_out_what_stood_still() -> None:
    assert service.growth({"a": 1, "b": 2}, {"a": 1, "b": 5, "c": 4}) == {"b": 3, "c": 4}


def test_replicas_are_watched() -> None:
    with service.Watch(client(lambda _: httpx.Response(200, text=METRICS))) as watch:
        pass
    assert [counts for _, counts in watch.seen] == [{"a": 2}]


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
