"""OpenAI's own client against this room: what it sends is read, what is built it understands."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from s2d_serve.api.errors import reply
from s2d_serve.api.jsontext import to_json
from s2d_serve.api.parsing import parse
from s2d_serve.api.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from s2d_serve.api.responses import Choice, ResponseHead, Usage, chunk, usage_chunk, whole
from s2d_serve.api.sse import DONE, PING, error_event, event
from s2d_serve.errors import OverloadedError, RequestError, UnavailableError

from .bodies import LIMITS

USAGE = Usage(2, 2)
MODELS: dict[str, type[GenerationRequest]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
}


def answer(http_request: httpx2.Request) -> httpx2.Response:
    """A service that says "Hi!" to whatever it can read; model "broken" breaks."""
    model = MODELS[http_request.url.path]
    try:
        request = parse(model, http_request.content, LIMITS)
    except RequestError as error:
        return refuse(error)
    if request.model == "full":
        return refuse(OverloadedError("queue full"))
    head = ResponseHead(request.kind, "abc", 1700000000, request.model, seed=1)
    if request.stream:
        stream = b"".join(events(head, request))
        return httpx2.Response(200, content=stream, headers={"content-type": "text/event-stream"})
    choices = [Choice(i, "Hi!", "stop") for i in range(request.choices_requested)]
    return httpx2.Response(200, content=to_json(whole(head, choices, USAGE, None)))


def events(head: ResponseHead, request: GenerationRequest) -> Iterator[bytes]:
    yield event(chunk(head, Choice(0, "Hi"), first=True))
    yield PING
    if head.model == "broken":
        yield error_event(reply(UnavailableError("replica lost")).body)
        return
    yield event(chunk(head, Choice(0, "!", finish_reason="stop")))
    if request.wants_usage_chunk:
        yield event(usage_chunk(head, USAGE, None))
    yield DONE


def refuse(error: Exception) -> httpx2.Response:
    refusal = reply(error)
    return httpx2.Response(
        refusal.status, content=to_json(refusal.body), headers=dict(refusal.headers)
    )


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    transport = httpx2.MockTransport(answer)
    with openai.OpenAI(
        api_key="k",
        base_url="http://test/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    ) as client:
        yield client


def test_a_completion(client: openai.OpenAI) -> None:
    completion = client.completions.create(model="m", prompt=["a", "b"], n=2, max_tokens=3)
    assert [choice.text for choice in completion.choices] == ["Hi!"] * 4
    assert completion.usage is not None
    assert completion.usage.total_tokens == 4


def test_an_answer_can_be_sent_back_as_history(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    for _ in range(2):
        completion = client.chat.completions.create(model="m", messages=messages)
        assert completion.choices[0].message.content == "Hi!"
        messages += [completion.choices[0].message, {"role": "user", "content": "And?"}]


def test_fields_of_ours_go_beside_openais(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        logprobs=True,
        top_logprobs=2,
        stop=["a"],
        seed=-1,
        logit_bias={"5": 1},
        extra_body={"top_k": 5, "speculation": {"enabled": False}, "return_token_ids": True},
    )
    assert completion.choices[0].finish_reason == "stop"


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert [c.choices[0].delta.content for c in chunks] == ["Hi", "!"]
    assert [c.choices[0].delta.role for c in chunks] == ["assistant", None]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 2


def test_a_streamed_completion(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="m", prompt="a", stream=True)
    assert [(c.choices[0].text, c.choices[0].finish_reason) for c in stream] == [
        ("Hi", None),
        ("!", "stop"),
    ]


def test_a_stream_that_breaks_raises_after_what_came(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="broken", prompt="a", stream=True)
    assert next(stream).choices[0].text == "Hi"
    with pytest.raises(openai.APIError, match="replica lost") as broken:
        next(stream)
    assert broken.value.code == "unavailable"


def test_a_refusal_names_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "Hello"}],
            response_format={"type": "json_object"},
        )
    assert refused.value.param == "response_format"
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.RateLimitError) as full:
        client.completions.create(model="full", prompt="a")
    assert full.value.code == "overloaded"
    assert full.value.response.headers["Retry-After"] == "1"
    assert json.loads(full.value.response.text)["error"]["message"] == "queue full"
