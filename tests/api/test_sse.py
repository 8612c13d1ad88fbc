import json

import pytest
from openai._streaming import ServerSentEvent, SSEDecoder

from s2d_serve.api.errors import reply
from s2d_serve.api.sse import DONE, PING, error_event, event
from s2d_serve.errors import UnavailableError


def decoded(stream: bytes) -> list[ServerSentEvent]:
    return list(SSEDecoder().iter_bytes(iter([stream])))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a\nb\r\n\r\nc",
        "data: x\n\n",
        "\u2028\u2029\x85\x0b\x0c\x1e",
        "é😀",
        "[DONE]",
        "\x00",
    ],
)
def test_any_text_stays_in_one_event(text: str) -> None:
    stream = event({"text": text}) + event({"text": "next"})
    assert [json.loads(e.data) for e in decoded(stream)] == [{"text": text}, {"text": "next"}]
    # clients that split lines as Python's str does see the same
    assert len(stream.decode().splitlines()) == 4


def test_the_end_is_openais() -> None:
    (end,) = decoded(DONE)
    assert end.data == "[DONE]"


def test_pings_are_skipped_wherever_they_come() -> None:
    stream = PING + event({"a": 1}) + PING + PING + event({"a": 2}) + PING
    assert [json.loads(e.data) for e in decoded(stream)] == [{"a": 1}, {"a": 2}]


def test_an_error_is_named_and_has_the_body_of_a_plain_error() -> None:
    body = reply(UnavailableError("target m: no live replica; try again later")).body
    (error,) = decoded(error_event(body))
    assert error.event == "error"
    assert json.loads(error.data) == body
