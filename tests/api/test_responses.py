import json

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from s2d_serve.api.jsontext import Json, to_json
from s2d_serve.api.logprobs import Candidate, ReportedToken
from s2d_serve.api.requests import Kind
from s2d_serve.api.responses import Choice, ResponseHead, Usage, chunk, usage_chunk, whole
from s2d_serve.api.speculation import SpeculationSummary

USAGE = Usage(prompt_tokens=3, completion_tokens=4)
SPECULATION = SpeculationSummary(
    seed=7,
    num_rounds=2,
    num_committed_tokens=4,
    num_draft_tokens=5,
    acceptance_histogram=(0, 2),
)
TOKEN = ReportedToken(Candidate(b"Hi", -0.5), (Candidate(b"Hi", -0.5),), text_offset=2)
PLAIN = Choice(index=0, text="Hi", finish_reason="stop")
FULL = Choice(
    index=0,
    text="Hi",
    finish_reason="stop",
    stop_reason="\n",
    logprobs=(TOKEN,),
    token_ids=(5,),
    prompt_token_ids=(1, 2),
)


def head(kind: Kind, fingerprint: str | None = "fp_1") -> ResponseHead:
    return ResponseHead(kind, "abc", 1700000000, "m", seed=7, system_fingerprint=fingerprint)


def sent(body: Json) -> Json:
    """The body as the client decodes it."""
    decoded = json.loads(to_json(body))
    assert decoded == body
    return body


def test_a_completion() -> None:
    body = sent(whole(head("completion"), [PLAIN], USAGE, None))
    assert body == {
        "id": "cmpl-abc",
        "object": "text_completion",
        "created": 1700000000,
        "model": "m",
        "system_fingerprint": "fp_1",
        "seed": 7,
        "choices": [
            {
                "index": 0,
                "text": "Hi",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }
    assert Completion.model_validate(body).to_dict(exclude_unset=True) == body


def test_a_chat_completion() -> None:
    body = sent(whole(head("chat"), [PLAIN], USAGE, None))
    assert body == {
        "id": "chatcmpl-abc",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "system_fingerprint": "fp_1",
        "seed": 7,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }
    assert ChatCompletion.model_validate(body).to_dict(exclude_unset=True) == body


def test_all_that_a_completion_can_carry() -> None:
    body = sent(whole(head("completion"), [FULL], USAGE, SPECULATION))
    completion = Completion.model_validate(body)
    choice = completion.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset == [2]
    assert choice.model_extra is not None
    assert choice.model_extra["stop_reason"] == "\n"
    assert choice.model_extra["token_ids"] == [5]
    assert choice.model_extra["prompt_token_ids"] == [1, 2]
    assert body["metrics"] == SPECULATION.to_body()
    assert "prompt_token_ids" not in body


def test_all_that_a_chat_completion_can_carry() -> None:
    body = sent(whole(head("chat"), [FULL], USAGE, SPECULATION))
    choice = ChatCompletion.model_validate(body).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert choice.logprobs.content[0].token == "Hi"
    assert choice.model_extra is not None
    assert choice.model_extra["stop_reason"] == "\n"
    assert choice.model_extra["token_ids"] == [5]
    assert body["metrics"] == SPECULATION.to_body()
    assert body["prompt_token_ids"] == [1, 2]  # one prompt, so at the root, as in vLLM
    assert "prompt_token_ids" not in choice.model_extra


def test_token_ids_of_nothing_are_not_the_same_as_not_asked() -> None:
    empty = Choice(index=0, text="", finish_reason="stop", token_ids=(), logprobs=())
    for kind in KINDS:
        (choice,) = choices_of(whole(head(kind), [empty], USAGE, None))
        assert choice["token_ids"] == []
        assert choice["logprobs"] is not None


def test_several_choices_keep_their_order() -> None:
    choices = [Choice(i, str(i), "length", stop_reason=9) for i in range(3)]
    for kind in KINDS:
        body = sent(whole(head(kind), choices, USAGE, None))
        assert [choice["index"] for choice in choices_of(body)] == [0, 1, 2]
        assert {choice["finish_reason"] for choice in choices_of(body)} == {"length"}
        assert {choice["stop_reason"] for choice in choices_of(body)} == {9}
        assert "metrics" not in body


def test_chunks_of_a_chat() -> None:
    stream = [
        chunk(head("chat"), Choice(0, "", prompt_token_ids=(1, 2), token_ids=()), first=True),
        chunk(head("chat"), Choice(0, "Hi", logprobs=(TOKEN,), token_ids=(5,))),
        chunk(head("chat"), Choice(0, "", finish_reason="length", token_ids=(6,))),
        usage_chunk(head("chat"), USAGE, SPECULATION),
    ]
    for body in stream:
        assert ChatCompletionChunk.model_validate(sent(body)).to_dict(exclude_unset=True) == body
        assert body["object"] == "chat.completion.chunk"
        assert body["id"] == "chatcmpl-abc"
    assert [choice["delta"] for body in stream for choice in choices_of(body)] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
        {},
    ]
    assert [choice["finish_reason"] for body in stream for choice in choices_of(body)] == [
        None,
        None,
        "length",
    ]
    assert [body.get("prompt_token_ids") for body in stream] == [[1, 2], None, None, None]


def test_chunks_of_a_completion() -> None:
    stream = [
        chunk(head("completion"), Choice(0, "H", prompt_token_ids=(1, 2)), first=True),
        chunk(head("completion"), Choice(0, "i", finish_reason="stop", stop_reason="\n")),
    ]
    choices = [choice for body in stream for choice in choices_of(sent(body))]
    assert [choice["text"] for choice in choices] == ["H", "i"]
    assert [choice.get("prompt_token_ids") for choice in choices] == [[1, 2], None]
    assert {body["object"] for body in stream} == {"text_completion"}
    assert {body["id"] for body in stream} == {"cmpl-abc"}


KINDS: list[Kind] = ["completion", "chat"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_chunk_has_the_sums_and_no_choice(kind: Kind) -> None:
    body = sent(usage_chunk(head(kind), USAGE, SPECULATION))
    assert body["choices"] == []
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert body["metrics"] == SPECULATION.to_body()
    assert "metrics" not in usage_chunk(head(kind), USAGE, None)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_last_chunk_has_sums(kind: Kind) -> None:
    body = chunk(head(kind), PLAIN)
    assert "usage" not in body
    assert "metrics" not in body


def choices_of(body: Json) -> list[Json]:
    choices = body["choices"]
    assert isinstance(choices, list)
    return choices
