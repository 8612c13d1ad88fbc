import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d_serve.api.parsing import parse
from s2d_serve.api.requests import (
    UNSUPPORTED,
    Body,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from s2d_serve.config import LimitsConfig
from s2d_serve.errors import RequestError

from .bodies import CHAT, COMPLETION, LIMITS, chat, completion

MODELS = [CompletionRequest, ChatCompletionRequest, TokenizeRequest, DetokenizeRequest]


def refusal_of(model: type[Body], body: object, limits: LimitsConfig = LIMITS) -> RequestError:
    with pytest.raises(RequestError) as refused:
        parse(model, json.dumps(body).encode(), limits)
    message = str(refused.value)
    assert "\n" not in message
    assert "pydantic" not in message
    assert len(message) < 250
    return refused.value


IN_BOTH: list[tuple[str, object, str, str]] = [
    # (field, value, param, what the message says)
    ("model", None, "model", "required"),
    ("model", "", "model", "must not be empty"),
    ("model", 5, "model", "must be a string, got 5"),
    ("max_tokens", 0, "max_tokens", "at least 1, got 0"),
    ("max_tokens", -1, "max_tokens", "at least 1, got -1"),
    ("max_tokens", 2**31, "max_tokens", "at most 2147483647, got 2147483648"),
    ("max_tokens", 10**30, "max_tokens", "at most 2147483647, got 1000"),
    ("max_tokens", True, "max_tokens", "must be an integer, got true"),
    ("max_tokens", "16", "max_tokens", 'must be an integer, got "16"'),
    ("max_tokens", 16.0, "max_tokens", "must be an integer, got 16.0"),
    ("max_completion_tokens", 0, "max_completion_tokens", "at least 1, got 0"),
    ("min_tokens", -1, "min_tokens", "at least 0, got -1"),
    ("temperature", -0.1, "temperature", "at least 0.0, got -0.1"),
    ("temperature", 2.1, "temperature", "at most 2.0, got 2.1"),
    ("temperature", "1", "temperature", 'must be a finite number, got "1"'),
    ("temperature", True, "temperature", "must be a finite number, got true"),
    ("temperature", 10**400, "temperature", "must be a finite number, got 1000"),
    ("temperature", [1], "temperature", "got a list of 1"),
    ("top_p", 0, "top_p", "above 0.0, got 0"),
    ("top_p", 1.1, "top_p", "at most 1.0, got 1.1"),
    ("top_k", -2, "top_k", "at least -1, got -2"),
    ("top_k", 1.5, "top_k", "must be an integer, got 1.5"),
    ("min_p", -0.1, "min_p", "at least 0.0"),
    ("min_p", 1.1, "min_p", "at most 1.0"),
    ("frequency_penalty", -2.1, "frequency_penalty", "at least -2.0"),
    ("frequency_penalty", 2.1, "frequency_penalty", "at most 2.0"),
    ("presence_penalty", -2.1, "presence_penalty", "at least -2.0"),
    ("presence_penalty", 2.1, "presence_penalty", "at most 2.0"),
    ("repetition_penalty", 0, "repetition_penalty", "at least 0.1"),
    ("repetition_penalty", 10.5, "repetition_penalty", "at most 10.0"),
    ("logit_bias", [], "logit_bias", "must be an object, got a list of 0"),
    ("logit_bias", {"the": 1}, "logit_bias", 'keys must be token ids, got "the"'),
    ("logit_bias", {"-1": 1}, "logit_bias", 'keys must be token ids, got "-1"'),
    ("logit_bias", {"01": 1}, "logit_bias", 'keys must be token ids, got "01"'),
    ("logit_bias", {"1\n": 1}, "logit_bias", 'keys must be token ids, got "1\\n"'),
    ("logit_bias", {"٣": 1}, "logit_bias", "keys must be token ids"),
    ("logit_bias", {"2147483648": 1}, "logit_bias", "keys must be token ids"),
    ("logit_bias", {"1": 100.5}, "logit_bias", "from -100 to 100, got 100.5"),
    ("logit_bias", {"1": -101}, "logit_bias", "from -100 to 100, got -101"),
    ("logit_bias", {"1": "5"}, "logit_bias", 'from -100 to 100, got "5"'),
    ("logit_bias", {"1": True}, "logit_bias", "from -100 to 100, got true"),
    ("logit_bias", {"1": None}, "logit_bias", "from -100 to 100, got null"),
    ("seed", 2**63, "seed", "at most 9223372036854775807"),
    ("seed", -(2**63) - 1, "seed", "at least -9223372036854775808"),
    ("seed", 1.5, "seed", "must be an integer"),
    ("stop", "", "stop", "must not be empty"),
    ("stop", ["a", ""], "stop.1", "must not be empty"),
    ("stop", ["a", 5], "stop.1", "must be a string, got 5"),
    ("stop", 5, "stop", "must be a list, got 5"),
    ("stop", "\ud800", "stop", "lone surrogates"),
    ("stop_token_ids", 5, "stop_token_ids", "must be a list, got 5"),
    ("stop_token_ids", [1, -1], "stop_token_ids.1", "at least 0, got -1"),
    ("stop_token_ids", [1, "2"], "stop_token_ids.1", 'must be an integer, got "2"'),
    ("ignore_eos", 1, "ignore_eos", "must be true or false, got 1"),
    ("ignore_eos", "true", "ignore_eos", 'must be true or false, got "true"'),
    ("n", 0, "n", "at least 1, got 0"),
    ("n", 9, "n", "at most 8 choices per prompt, got 9"),
    ("n", True, "n", "must be an integer, got true"),
    ("stream", "yes", "stream", "must be true or false"),
    ("stream_options", {"include_usage": True}, "stream_options", 'needs "stream": true'),
    ("stream_options", {"include_usage": 1}, "stream_options.include_usage", "true or false"),
    (
        "stream_options",
        {"include_obfuscation": False},
        "stream_options.include_obfuscation",
        "an OpenAI field that is not supported here",
    ),
    ("stream_options", {"usage": True}, "stream_options.usage", "unknown field"),
    ("stream_options", [], "stream_options", "must be an object, got a list of 0"),
    ("stop", ["a", "b", "c", "d", "e"], "stop", "at most 4 stop strings, got 5"),
    ("user", 5, "user", "must be a string"),
    ("user", "\udfff", "user", "lone surrogates"),
    ("speculation", True, "speculation", "must be an object, got true"),
    ("speculation", {"enabled": "no"}, "speculation.enabled", "must be true or false"),
    ("speculation", {"max_draft_tokens": 0}, "speculation.max_draft_tokens", "at least 1, got 0"),
    ("speculation", {"detailed": 1}, "speculation.detailed", "must be true or false"),
    ("speculation", {"gamma": 5}, "speculation.gamma", "unknown field"),
    ("return_token_ids", 1, "return_token_ids", "must be true or false"),
    ("chat_template", "{{ x }}", "chat_template", "unknown field"),
    ("best of\n" + "x" * 100, 1, '"best of\\n' + "x" * 52 + '..."', "unknown field"),
    ("beam_width", None, "beam_width", "unknown field"),
]


@pytest.mark.parametrize(("field", "value", "param", "message"), IN_BOTH)
@pytest.mark.parametrize(
    ("model", "body"), [(CompletionRequest, COMPLETION), (ChatCompletionRequest, CHAT)]
)
def test_a_bad_value_is_refused_by_name(
    model: type[Body],
    body: dict[str, object],
    field: str,
    value: object,
    param: str,
    message: str,
) -> None:
    refusal = refusal_of(model, body | {field: value})
    assert refusal.param == param
    assert str(refusal).startswith(f"{param}: ")
    assert message in str(refusal)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "required"),
        ([], "must not be empty, got a list of 0"),
        ([[]], "a text or a list of token ids, got a list of 0"),
        (5, "a text or a list of token ids, got 5"),
        ([1.5], "a text or a list of token ids, got 1.5"),
        ({"text": "Hi"}, "a text or a list of token ids, got an object"),
        (["a", 1], "a text or a list of token ids, got 1"),
        ([1, "a"], 'from 0 to 2147483647, got "a"'),
        ([1, -1], "from 0 to 2147483647, got -1"),
        ([1, 2**31], "from 0 to 2147483647, got 2147483648"),
        ([True], "from 0 to 2147483647, got true"),
        ([[1], [2.0]], "from 0 to 2147483647, got 2.0"),
        ([[[1]]], "from 0 to 2147483647, got a list of 1"),
        ("\ud83d", 'lone surrogates, got "\\ud83d"'),
        (["a"] * 17, "at most 16 prompts in a request, got 17"),
    ],
)
def test_a_bad_prompt_is_refused(prompt: object, message: str) -> None:
    refusal = refusal_of(CompletionRequest, COMPLETION | {"prompt": prompt})
    assert refusal.param == "prompt"
    assert message in str(refusal)


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        (None, "messages", "required"),
        ([], "messages", "must not be empty"),
        ("Hi", "messages", 'must be a list, got "Hi"'),
        (["Hi"], "messages.0", 'must be an object, got "Hi"'),
        ([{"content": "Hi"}], "messages.0.role", "required"),
        ([{"role": "user"}], "messages.0.content", "required"),
        ([{"role": "user", "content": None}], "messages.0.content", "required"),
        ([{"role": "user", "content": 5}], "messages.0.content", "must be a list, got 5"),
        ([{"role": "user", "content": []}], "messages.0.content", "must not be empty"),
        ([{"role": "user", "content": "\ud800"}], "messages.0.content", "lone surrogates"),
        ([{"role": "user", "content": "", "name": 5}], "messages.0.name", "must be a string"),
        ([{"role": "user", "content": "", "mood": 5}], "messages.0.mood", "unknown field"),
        (
            [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "5"}],
            "messages.1.role",
            "must be 'system', 'developer', 'user' or 'assistant', got \"tool\"",
        ),
        (
            [{"role": "\ud800", "content": "5"}],
            "messages.0.role",
            'must be Unicode without lone surrogates, got "\\ud800"',
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "messages.0.tool_calls",
            "an OpenAI field that is not supported here",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages.0.content.0.type",
            "must be 'text', got \"image_url\"",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": 5}]}],
            "messages.0.content.0.text",
            "must be a string, got 5",
        ),
        (
            [{"role": "user", "content": ["Hi"]}],
            "messages.0.content.0",
            'must be an object, got "Hi"',
        ),
    ],
)
def test_bad_messages_are_refused(messages: object, param: str, message: str) -> None:
    refusal = refusal_of(ChatCompletionRequest, CHAT | {"messages": messages})
    assert refusal.param == param
    assert message in str(refusal)


@pytest.mark.parametrize("field", sorted(UNSUPPORTED))
@pytest.mark.parametrize(
    ("model", "body"), [(CompletionRequest, COMPLETION), (ChatCompletionRequest, CHAT)]
)
def test_openais_other_fields_are_refused_by_name_unless_null(
    model: type[Body], body: dict[str, object], field: str
) -> None:
    values: list[object] = [False, 1, "x", [], {}]
    for value in values:
        refusal = refusal_of(model, body | {field: value})
        assert refusal.param == field
        assert str(refusal) == f"{field}: an OpenAI field that is not supported here; leave it out"
    parse(model, json.dumps(body | {field: None}).encode(), LIMITS)


WRONG_NUMBERS: list[tuple[object, str]] = [
    (True, "an integer"),
    (-1, "at least 0"),
    (21, "at most 20"),
]


def test_logprobs_of_completions_are_a_number() -> None:
    for value, message in WRONG_NUMBERS:
        refusal = refusal_of(CompletionRequest, COMPLETION | {"logprobs": value})
        assert refusal.param == "logprobs"
        assert message in str(refusal)
    refusal = refusal_of(CompletionRequest, COMPLETION | {"top_logprobs": 1})
    assert refusal.param == "top_logprobs"


def test_logprobs_of_chats_are_a_switch_and_a_number() -> None:
    refusal = refusal_of(ChatCompletionRequest, CHAT | {"logprobs": 5})
    assert refusal.param == "logprobs"
    for value, message in WRONG_NUMBERS:
        refusal = refusal_of(
            ChatCompletionRequest, CHAT | {"logprobs": True, "top_logprobs": value}
        )
        assert refusal.param == "top_logprobs"
        assert message in str(refusal)
    refusal = refusal_of(ChatCompletionRequest, CHAT | {"top_logprobs": 2})
    assert str(refusal) == 'top_logprobs: needs "logprobs": true'


def test_the_two_names_of_max_tokens_must_agree() -> None:
    fields = {"max_tokens": 5, "max_completion_tokens": 6}
    refusal = refusal_of(ChatCompletionRequest, CHAT | fields)
    assert refusal.param == "max_tokens"
    assert str(refusal) == "max_tokens: 5 differs from max_completion_tokens (6); send one"


def test_min_tokens_must_not_pass_max_tokens() -> None:
    assert completion(min_tokens=16).min_tokens == 16
    refusal = refusal_of(CompletionRequest, COMPLETION | {"min_tokens": 17})
    assert str(refusal) == "min_tokens: at most max_tokens (16), got 17"
    assert chat(min_tokens=17).min_tokens == 17
    refusal = refusal_of(ChatCompletionRequest, CHAT | {"min_tokens": 6, "max_tokens": 5})
    assert refusal.param == "min_tokens"


@pytest.mark.parametrize(
    ("limits", "fields", "param", "message"),
    [
        ({"max_n": 2}, {"n": 3}, "n", "at most 2 choices per prompt, got 3"),
        ({"max_prompts": 2}, {"prompt": ["a"] * 3}, "prompt", "at most 2 prompts in a request"),
        (
            {"max_prompts": 5},
            {"prompt": ["a"] * 3, "n": 2},
            "n",
            "at most 5 choices over all prompts, got 6",
        ),
        ({"max_logprobs": 2}, {"logprobs": 3}, "logprobs", "at most 2 alternatives per token"),
        ({"max_stop": 0}, {"stop": "a"}, "stop", "at most 0 stop strings, got 1"),
    ],
)
def test_the_deployments_limits_hold(
    limits: dict[str, int], fields: dict[str, object], param: str, message: str
) -> None:
    assert completion(**fields)  # within the default limits
    refusal = refusal_of(CompletionRequest, COMPLETION | fields, LimitsConfig(**limits))
    assert refusal.param == param
    assert message in str(refusal)


def test_a_number_beyond_doubles_is_refused_by_name() -> None:
    body = b'{"model": "m", "prompt": "Hi", "temperature": 1e400}'
    with pytest.raises(RequestError, match="must be a finite number, got Infinity") as refused:
        parse(CompletionRequest, body, LIMITS)
    assert refused.value.param == "temperature"


@pytest.mark.parametrize("field", ["prompt", "metadata", "stop", "logit_bias", "anything"])
def test_json_as_deep_as_python_reads_is_refused_like_any_other(field: str) -> None:
    body = b'{"model": "m", "prompt": "a", "%b": ' % field.encode() + b"[" * 900 + b"]" * 900 + b"}"
    if field == "prompt":
        body = body.replace(b'"prompt": "a", ', b"")
    with pytest.raises(RequestError) as refused:
        parse(CompletionRequest, body, LIMITS)
    assert refused.value.param is not None
    assert refused.value.param.startswith(field)


def test_a_surrogate_in_a_key_is_refused() -> None:
    assert "surrogates" in str(refusal_of(CompletionRequest, COMPLETION | {"\ud800": 1}))


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (TokenizeRequest, {"model": "m"}, "prompt"),
        (TokenizeRequest, {"model": "m", "prompt": ["a"]}, "prompt"),
        (TokenizeRequest, {"model": "m", "prompt": "a", "add_special_tokens": 1}, None),
        (TokenizeRequest, {"model": "m", "prompt": "a", "x": 1}, "x"),
        (DetokenizeRequest, {"model": "m"}, "tokens"),
        (DetokenizeRequest, {"model": "m", "tokens": "a"}, "tokens"),
        (DetokenizeRequest, {"model": "m", "tokens": [1, -1]}, "tokens.1"),
    ],
)
def test_bad_texts_and_tokens_are_refused(
    model: type[Body], body: dict[str, object], param: str | None
) -> None:
    assert refusal_of(model, body).param == (param or "add_special_tokens")


def test_texts_and_tokens_are_read() -> None:
    body = b'{"model": "m", "prompt": "a", "add_special_tokens": false}'
    assert not parse(TokenizeRequest, body, LIMITS).add_special_tokens
    body = b'{"model": "m", "tokens": [1, 2]}'
    assert parse(DetokenizeRequest, body, LIMITS).tokens == (1, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"stop_token_ids": ["a"] * 100_000},
        {"logit_bias": {f"a{i}": "" for i in range(100_000)}},
        {f"a{i}": 1 for i in range(100_000)},
        {"stop": [5] * 100_000},
        {"messages": [5] * 100_000},
        {"messages": [{"role": "user", "content": [5] * 100_000}]},
        {"messages": [{f"a{i}": 1 for i in range(100_000)}]},
    ],
    ids=["ids", "biases", "fields", "stops", "messages", "parts", "fields of a message"],
)
def test_a_big_bad_body_costs_one_error_not_one_per_item(fields: dict[str, object]) -> None:
    body = CHAT | fields
    tracemalloc.start()
    try:
        with pytest.raises(RequestError):
            parse(ChatCompletionRequest, json.dumps(body).encode(), LIMITS)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 40e6  # the values of the JSON itself; an error per item takes 200 MB


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NAMES = sorted(
    set(CompletionRequest.model_json_schema()["properties"])
    | set(ChatCompletionRequest.model_json_schema()["properties"])
    | UNSUPPORTED
)
PLAUSIBLE = (
    JSON
    | st.sampled_from([0, 1, True, "a", ["a"], [1], [[1]], {"enabled": False}, {"1": 5}, 0.5])
    | st.just(CHAT["messages"])
)


def check_parse(model: type[Body], body: bytes) -> None:
    """What comes is a request, or a refusal that can be sent on one line."""
    try:
        request = parse(model, body, LIMITS)
    except RequestError as error:
        refusal = error
    else:
        assert isinstance(request, model)
        return
    line = f"{refusal} {refusal.param}"
    line.encode()
    assert "\n" not in line
    assert len(line) < 1000


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=100, deadline=None)
@given(body=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_request_or_a_refusal(model: type[Body], body: bytes) -> None:
    check_parse(model, body)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=200, deadline=None)
@given(
    base=st.sampled_from([COMPLETION, CHAT, {"model": "m", "tokens": [1]}]),
    fields=st.dictionaries(st.sampled_from(NAMES) | st.text(), PLAUSIBLE, max_size=3),
)
def test_any_object_gives_a_request_or_a_refusal(
    model: type[Body], base: dict[str, object], fields: dict[str, object]
) -> None:
    check_parse(model, json.dumps(base | fields).encode())
