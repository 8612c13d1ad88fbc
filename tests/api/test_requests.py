import json
import typing

import pytest
from openai.types import chat as openai_chat
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from s2d_serve.api.fields import Prompt
from s2d_serve.api.requests import (
    UNSUPPORTED,
    Body,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    Message,
    Speculation,
    StreamOptions,
    TextPart,
    TokenizeRequest,
)

from .bodies import chat, completion


def test_the_defaults_are_openais() -> None:
    for request in (completion(), chat()):
        assert request.temperature == 1.0
        assert request.top_p == 1.0
        assert request.n == request.choices_requested == 1
        assert request.frequency_penalty == request.presence_penalty == 0.0
        assert request.stop_strings == ()
        assert request.seed is None
        assert request.logprobs_requested is None
        assert not request.stream
        assert not request.wants_usage_chunk
        # those that OpenAI does not know are off
        assert (request.top_k, request.min_p, request.repetition_penalty) == (0, 0.0, 1.0)
        assert (request.min_tokens, request.stop_token_ids, request.ignore_eos) == (0, (), False)
        assert request.speculation == Speculation(enabled=True, max_draft_tokens=None)
        assert not request.speculation.detailed
        assert not request.return_token_ids
    assert completion().token_limit == 16
    assert chat().token_limit is None


def test_null_is_the_default() -> None:
    fields = set(CompletionRequest.model_json_schema()["properties"]) - {"model", "prompt"}
    assert completion(**dict.fromkeys(fields)) == completion()
    fields = set(ChatCompletionRequest.model_json_schema()["properties"]) - {"model", "messages"}
    assert chat(**dict.fromkeys(fields)) == chat()


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Hi", ("Hi",)),
        ("", ("",)),
        (["Hi", ""], ("Hi", "")),
        ([5], ((5,),)),
        ([0, 2**31 - 1], ((0, 2**31 - 1),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["Hi", [3]], ("Hi", (3,))),
        ("\U0001f600", ("\U0001f600",)),
    ],
)
def test_a_prompt_has_several_forms(prompt: object, prompts: tuple[Prompt, ...]) -> None:
    assert completion(prompt=prompt).prompts == prompts


def test_choices_are_prompts_times_n() -> None:
    assert completion(prompt=["a", "b", "c"], n=4).choices_requested == 12
    assert chat(n=4).choices_requested == 4


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 7}, 7),
        ({"max_tokens": None, "max_completion_tokens": 7}, 7),
    ],
)
def test_max_tokens_has_two_names(fields: dict[str, object], limit: int) -> None:
    assert completion(**fields).token_limit == limit
    assert chat(**fields).token_limit == limit


def test_logprobs_are_a_number_or_a_switch_and_a_number() -> None:
    assert completion(logprobs=0).logprobs_requested == 0
    assert completion(logprobs=3).logprobs_requested == 3
    assert chat(logprobs=True).logprobs_requested == 0
    assert chat(logprobs=True, top_logprobs=3).logprobs_requested == 3
    assert chat(logprobs=False, top_logprobs=0).logprobs_requested is None


def test_stop_is_a_text_or_a_list() -> None:
    assert completion(stop="\n").stop_strings == ("\n",)
    assert completion(stop=["a", "b"]).stop_strings == ("a", "b")
    assert completion(stop=[]).stop_strings == ()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [0, 2, 0.5, 1e-5]),
        ("top_p", [1, 0.001]),
        ("top_k", [-1, 0, 1, 2**31 - 1]),
        ("min_p", [0, 1, 0.5]),
        ("frequency_penalty", [-2, 2]),
        ("presence_penalty", [-2, 2]),
        ("repetition_penalty", [0.1, 1, 10]),
        ("seed", [-(2**63), -1, 0, 2**63 - 1]),
        ("max_tokens", [1, 2**31 - 1]),
        ("min_tokens", [0, 16]),
        ("user", ["", "somebody"]),
        ("ignore_eos", [True]),
        ("return_token_ids", [True]),
    ],
)
def test_the_ends_of_each_range_are_in_it(name: str, values: list[object]) -> None:
    for value in values:
        assert getattr(completion(**{name: value}), name) == value
        assert getattr(chat(**{name: value}), name) == value


@pytest.mark.parametrize("temperature", [9e-6, 1e-45, 1e-320])
def test_a_temperature_that_float32_cannot_divide_by_is_greedy(temperature: float) -> None:
    assert completion(temperature=temperature).temperature == 0.0


def test_biases_are_by_number() -> None:
    bias = {"0": -100, "50256": 100, "7": 0.5}
    assert completion(logit_bias=bias).logit_bias == {0: -100.0, 50256: 100.0, 7: 0.5}


def test_a_message_is_a_text_or_parts_of_text() -> None:
    request = chat(
        messages=[
            {"role": "system", "content": ""},
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [text_part("a"), text_part("b")], "name": "Ann"},
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        ]
    )
    assert [message.role for message in request.messages] == [
        "system",
        "developer",
        "user",
        "assistant",
    ]
    assert [message.text for message in request.messages] == ["", "Be brief.", "a\nb", "c"]
    assert [message.name for message in request.messages] == [None, None, "Ann", None]


def test_speculation_and_stream_options() -> None:
    request = chat(
        stream=True,
        stream_options={"include_usage": True},
        speculation={"enabled": False, "max_draft_tokens": 1, "detailed": True},
    )
    assert request.wants_usage_chunk
    assert request.speculation == Speculation(enabled=False, max_draft_tokens=1, detailed=True)
    assert not chat(stream=True, stream_options={}).wants_usage_chunk


def test_requests_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        completion().n = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "params"),
    [
        (CompletionRequest, completion_create_params.CompletionCreateParamsNonStreaming),
        (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
        (ChatCompletionRequest, chat_create_params.CompletionCreateParamsNonStreaming),
        (ChatCompletionRequest, chat_create_params.CompletionCreateParamsStreaming),
        (Message, openai_chat.ChatCompletionSystemMessageParam),
        (Message, openai_chat.ChatCompletionDeveloperMessageParam),
        (Message, openai_chat.ChatCompletionUserMessageParam),
        (Message, openai_chat.ChatCompletionAssistantMessageParam),
        (TextPart, openai_chat.ChatCompletionContentPartTextParam),
        (StreamOptions, openai_chat.ChatCompletionStreamOptionsParam),
    ],
)
def test_every_field_of_openai_is_known(model: type[Body], params: type) -> None:
    openais = set(typing.get_type_hints(params))
    ours = set(model.model_json_schema()["properties"])
    assert openais - ours <= UNSUPPORTED
    assert not UNSUPPORTED & ours


@pytest.mark.parametrize(
    "model", [CompletionRequest, ChatCompletionRequest, TokenizeRequest, DetokenizeRequest]
)
def test_the_schema_for_openapi_shows_what_is_sent(model: type[Body]) -> None:
    schema = model.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert not {"prompts", "stop_strings", "parts"} & set(schema["properties"])


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
