"""Bodies of requests for the tests of this room."""

import json

from s2d_serve.api.parsing import parse
from s2d_serve.api.requests import ChatCompletionRequest, CompletionRequest
from s2d_serve.config import LimitsConfig

LIMITS = LimitsConfig()

COMPLETION = {"model": "m", "prompt": "Hi"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def completion(**fields: object) -> CompletionRequest:
    """The smallest completion request with these fields in its JSON."""
    return parse(CompletionRequest, json.dumps(COMPLETION | fields).encode(), LIMITS)


def chat(**fields: object) -> ChatCompletionRequest:
    """The smallest chat request with these fields in its JSON."""
    return parse(ChatCompletionRequest, json.dumps(CHAT | fields).encode(), LIMITS)
