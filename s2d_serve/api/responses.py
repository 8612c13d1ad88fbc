"""Bodies of completions and chat completions, whole and in chunks: one interface for both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from s2d_serve.api.jsontext import Json
from s2d_serve.api.logprobs import ReportedToken, chat_logprobs, completion_logprobs
from s2d_serve.api.requests import Kind
from s2d_serve.api.speculation import RoundDetails, SpeculationSummary, rounds_body

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What all bodies of one response share."""

    kind: Kind
    request_id: str
    created: int
    """Unix time in seconds."""
    model: str
    seed: int
    """The seed used: the request's, or the random one it got."""
    system_fingerprint: str | None = None

    @property
    def id(self) -> str:
        """The response's id, OpenAI's prefix included."""
        return ("chatcmpl-" if self.kind == "chat" else "cmpl-") + self.request_id


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice: all of it in a whole response, what is new in a chunk."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    """None: more follows."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it, if one did."""
    logprobs: tuple[ReportedToken, ...] | None = None
    """One per token; None: not asked for."""
    token_ids: tuple[int, ...] | None = None
    """None: not asked for."""
    prompt_token_ids: tuple[int, ...] | None = None
    """None: not asked for, or sent in an earlier chunk."""
    rounds: tuple[RoundDetails, ...] | None = None
    """Those that gave the tokens; None: not asked for."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a whole request: each prompt counted once, the output of all choices."""

    prompt_tokens: int
    completion_tokens: int

    def to_body(self) -> Json:
        """The response's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def whole(
    head: ResponseHead,
    choices: Sequence[Choice],
    usage: Usage,
    speculation: SpeculationSummary | None,
) -> Json:
    """The body of a response that is not streamed.

    Args:
        head: what all bodies of the response share.
        choices: all choices, complete.
        usage: their tokens.
        speculation: None where the request has several choices, since its counts are of one.
    """
    return {
        **_root(head, "chat.completion", choices),
        "choices": [_choice(head, choice, _content(head, choice)) for choice in choices],
        **_totals(usage, speculation),
    }


def chunk(head: ResponseHead, choice: Choice, first: bool = False) -> Json:
    """The body of one event of a stream.

    Args:
        head: what all bodies of the response share.
        choice: what is new in one of its choices.
        first: whether it is the first chunk of this choice; a chat then says whose turn it is.
    """
    body: Json = {
        **_root(head, "chat.completion.chunk", [choice]),
        "choices": [_choice(head, choice, _news(head, choice, first))],
    }
    if choice.rounds is not None:
        body["s2d"] = rounds_body(choice.rounds)
    return body


def usage_chunk(head: ResponseHead, usage: Usage, speculation: SpeculationSummary | None) -> Json:
    """The body of a stream's last event before [DONE], for clients that asked for usage."""
    return {
        **_root(head, "chat.completion.chunk", ()),
        "choices": [],
        **_totals(usage, speculation),
    }


def _content(head: ResponseHead, choice: Choice) -> Json:
    if head.kind == "completion":
        return {"text": choice.text}
    return {"message": {"role": "assistant", "content": choice.text, "refusal": None}}


def _news(head: ResponseHead, choice: Choice, first: bool) -> Json:
    if head.kind == "completion":
        return {"text": choice.text}
    delta: Json = {"role": "assistant"} if first else {}
    if first or choice.text:
        delta["content"] = choice.text
    return {"delta": delta}


def _root(head: ResponseHead, chat_object: str, choices: Sequence[Choice]) -> Json:
    root: Json = {
        "id": head.id,
        "object": chat_object if head.kind == "chat" else "text_completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.system_fingerprint,
        "seed": head.seed,
    }
    if head.kind == "chat" and choices and choices[0].prompt_token_ids is not None:
        root["prompt_token_ids"] = list(choices[0].prompt_token_ids)  # where vLLM puts them
    return root


def _choice(head: ResponseHead, choice: Choice, content: Json) -> Json:
    body: Json = {
        "index": choice.index,
        **content,
        "logprobs": _logprobs(head, choice),
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
    if choice.token_ids is not None:
        body["token_ids"] = list(choice.token_ids)
    if head.kind == "completion" and choice.prompt_token_ids is not None:
        body["prompt_token_ids"] = list(choice.prompt_token_ids)
    return body


def _logprobs(head: ResponseHead, choice: Choice) -> Json | None:
    if choice.logprobs is None:
        return None
    if head.kind == "chat":
        return chat_logprobs(choice.logprobs)
    return completion_logprobs(choice.logprobs)


def _totals(usage: Usage, speculation: SpeculationSummary | None) -> Json:
    totals: Json = {"usage": usage.to_body()}
    if speculation is not None:
        totals["metrics"] = speculation.to_body()
    return totals
