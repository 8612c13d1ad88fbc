"""Bytes of a body -> request, or one RequestError that names the field, the value and the limit."""

import re
from collections.abc import Iterator
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from s2d_serve.api.jsontext import read_object, show
from s2d_serve.api.requests import (
    UNSUPPORTED,
    Body,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
)
from s2d_serve.config import LimitsConfig
from s2d_serve.errors import RequestError, bad_request

BodyT = TypeVar("BodyT", bound=Body)

_REASONS = {
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_type": "must be a finite number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_type": "must be an integer",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "model_type": "must be an object",
    "string_unicode": "must be Unicode without lone surrogates",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
}
"""What a client reads for each of pydantic's error types; the others speak for themselves."""

_LAST_RESORTS = {"missing": 1, "too_short": 2}
"""Faults that often follow from another one, such as no content beside tool_calls."""


def parse(model: type[BodyT], body: bytes, limits: LimitsConfig) -> BodyT:
    """The request in a body whose size was checked.

    Raises:
        RequestError: the first fault found; `param` is the path of its field.

    Example: parse(CompletionRequest, b'{"model": "m", "prompt": "Hi", "top_p": 7}', limits) raises
    "top_p: must be at most 1.0, got 7" with param "top_p".
    """
    raw = read_object(body)
    try:
        request = model.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        fault = min(faults, key=lambda fault: _LAST_RESORTS.get(fault["type"], 0))
    else:
        if isinstance(request, GenerationRequest):
            _check(request, limits)
        return request
    raise _refusal(fault, raw)


def _refusal(fault: ErrorDetails, raw: object) -> RequestError:
    param = _param(fault, raw)
    context = fault.get("ctx", {})
    if fault["type"] == "missing":
        return bad_request(f"{param}: this field is required", param)
    if fault["type"] == "extra_forbidden":
        if fault["loc"][-1] in UNSUPPORTED:
            return bad_request(
                f"{param}: an OpenAI field that is not supported here; leave it out", param
            )
        return bad_request(f"{param}: unknown field; leave it out", param)
    reason = _REASONS.get(fault["type"], "").format(**context) or fault["msg"]
    got = show(context.get("got", fault["input"]))
    return bad_request(f"{param or 'body'}: {reason}, got {got}", param)


def _param(fault: ErrorDetails, raw: object) -> str | None:
    """The path of a fault in what the client sent, which may be a short form of what is validated.

    Example: content "Hi" is validated as [{"type": "text", "text": "Hi"}], where a fault lies at
    messages.0.content.0.text; to the client it is messages.0.content.
    """
    path = []
    for part in fault["loc"]:
        members = dict(enumerate(raw)) if isinstance(raw, list) else raw
        if isinstance(members, dict) and part in members:
            raw = members[part]
        elif fault["type"] != "missing":
            break
        path.append(str(part))
    return (
        ".".join(part if re.fullmatch(r"\w{1,64}", part) else show(part) for part in path) or None
    )


def _check(request: GenerationRequest, limits: LimitsConfig) -> None:
    for param, counted, num, most in _counts(request, limits):
        if num > most:
            raise bad_request(f"{param}: at most {most} {counted}, got {num}", param)
    for param, broken, message in _conflicts(request):
        if broken:
            raise bad_request(f"{param}: {message}", param)


def _counts(
    request: GenerationRequest, limits: LimitsConfig
) -> Iterator[tuple[str, str, int, int]]:
    """What the deployment limits: (field, what is counted, its number, the limit)."""
    if isinstance(request, CompletionRequest):
        yield "prompt", "prompts in a request", len(request.prompts), limits.max_prompts
    yield "n", "choices per prompt", request.n, limits.max_n
    yield "n", "choices over all prompts", request.choices_requested, limits.max_prompts
    logprobs = "top_logprobs" if request.kind == "chat" else "logprobs"
    num_logprobs = request.logprobs_requested or 0
    yield logprobs, "alternatives per token", num_logprobs, limits.max_logprobs
    yield "stop", "stop strings", len(request.stop_strings), limits.max_stop


def _conflicts(request: GenerationRequest) -> Iterator[tuple[str, bool, str]]:
    """Fields that must agree: (field, whether they do not, what to do)."""
    old, new, limit = request.max_tokens, request.max_completion_tokens, request.token_limit
    differ = old is not None and new is not None and old != new
    yield "max_tokens", differ, f"{old} differs from max_completion_tokens ({new}); send one"
    over = limit is not None and request.min_tokens > limit
    yield "min_tokens", over, f"at most max_tokens ({limit}), got {request.min_tokens}"
    unstreamed = request.stream_options is not None and not request.stream
    yield "stream_options", unstreamed, 'needs "stream": true'
    if isinstance(request, ChatCompletionRequest):
        unused = request.top_logprobs > 0 and not request.logprobs
        yield "top_logprobs", unused, 'needs "logprobs": true'
