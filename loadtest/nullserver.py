"""A service that answers at once: what is measured against it is the load generator alone.

It has the shape of s2d-serve's API (models, readiness, chat, whole and streamed, usage and
speculation counts at the end) and computes nothing: every answer is so many one-word tokens.
"""

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

NUM_TOKENS = 32
"""Tokens of each answer, one a chunk."""
_ACCEPTED = 3
"""Draft tokens of each round, all accepted."""


def build_app(models: tuple[str, ...]) -> Starlette:
    """The null service for these model names."""

    async def list_models(request: Request) -> Response:
        cards = [{"id": name, "object": "model", "s2d": {"state": "ready"}} for name in models]
        return JSONResponse({"object": "list", "data": cards})

    async def ready(request: Request) -> Response:
        return JSONResponse({"ready": True, "targets": dict.fromkeys(models, "ready")})

    async def chat(request: Request) -> Response:
        body = await request.json()
        if body.get("stream"):
            return StreamingResponse(_events(body), media_type="text/event-stream")
        message = {"role": "assistant", "content": "null " * NUM_TOKENS}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse(_root(body) | {"choices": [choice]} | _totals(body))

    return Starlette(
        routes=[
            Route("/health", ready),
            Route("/v1/models", list_models),
            Route("/ready", ready),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ]
    )


@contextmanager
def serving(models: tuple[str, ...]) -> Iterator[str]:
    """The URL of a null service in a thread of this process, while the context lasts."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(models), log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


async def _events(body: Mapping[str, Any]) -> AsyncIterator[str]:
    for i in range(NUM_TOKENS):
        delta = {"content": "null "} if i else {"role": "assistant", "content": "null "}
        yield _event(_root(body) | {"choices": [{"index": 0, "delta": delta}]})
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield _event(_root(body) | {"choices": [last]})
    yield _event(_root(body) | {"choices": []} | _totals(body))
    yield "data: [DONE]\n\n"


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _root(body: Mapping[str, Any]) -> dict[str, Any]:
    kind = "chat.completion.chunk" if body.get("stream") else "chat.completion"
    return {"id": "chatcmpl-null", "object": kind, "created": 0, "model": body.get("model")}


def _totals(body: Mapping[str, Any]) -> dict[str, Any]:
    asked = body.get("speculation", {})
    enabled = asked.get("enabled", True)
    rounds = NUM_TOKENS // (_ACCEPTED + 1) if enabled else NUM_TOKENS
    steps = rounds if enabled else 0
    drafted = steps * _ACCEPTED
    counts = {
        "mean_acceptance_length": 1.0 + (_ACCEPTED if enabled else 0),
        "draft_acceptance_rate": 1.0 if enabled else 0.0,
        "acceptance_histogram": [0] * _ACCEPTED + [steps] if enabled else [0],
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": drafted,
        "num_draft_tokens": drafted,
        "num_rounds": rounds,
        "mean_accepted_tokens": NUM_TOKENS / rounds,
        "exit_counts": {"4": drafted} if enabled else {},
        "seed": 0,
    }
    usage = {"prompt_tokens": 8, "completion_tokens": NUM_TOKENS, "total_tokens": NUM_TOKENS + 8}
    if enabled and asked.get("detailed"):
        counts |= {"per_step_accepted": [_ACCEPTED] * steps}
        counts |= {"per_step_drafted": [_ACCEPTED] * steps}
    return {"usage": usage, "metrics": {"speculative_decoding": counts}}
