"""HTTP before the router: docs/API of OpenAI and vLLM users, on FastAPI."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from s2d_serve.api import info, sse
from s2d_serve.api.errors import fault_of
from s2d_serve.api.errors import reply as error_reply
from s2d_serve.api.jsontext import to_json
from s2d_serve.api.parsing import parse
from s2d_serve.api.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
)
from s2d_serve.api.responses import Choice, ResponseHead, Usage, chunk, usage_chunk, whole
from s2d_serve.api.speculation import SpeculationSummary
from s2d_serve.errors import DeadlineError, bad_request
from s2d_serve.observability.exposition import CONTENT_TYPE
from s2d_serve.observability.meter import ChoiceMeter
from s2d_serve.observability.request import current_request
from s2d_serve.serving.choices import ChoiceRun, gathered, merged
from s2d_serve.serving.gate import Gate
from s2d_serve.serving.prompts import Plan, plan
from s2d_serve.serving.service import Service
from s2d_serve.web import HEADERS, static_files

JSON = "application/json"
BODIES = (CompletionRequest, ChatCompletionRequest, TokenizeRequest, DetokenizeRequest)


def build_api(service: Service) -> FastAPI:
    """The HTTP surface over one router."""
    api = FastAPI(title="s2d-serve", version=service.version, docs_url=None, redoc_url=None)
    limits = service.config.limits
    api.add_middleware(
        Gate,
        limits=limits,
        keys=service.keys,
        meter=service.metrics.meter,
        tracing=service.tracing,
    )

    @api.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> Response:
        """An unknown path or method, in the shape of all other errors."""
        fault = {
            "message": f"{request.method} {request.url.path}: {error.detail}",
            "type": "invalid_request_error",
            "param": None,
            "code": error.detail.lower().replace(" ", "_"),
        }
        return _json({"error": fault}, error.status_code)

    @api.post("/v1/completions", openapi_extra=_body(CompletionRequest))
    async def completions(request: Request) -> Response:
        return await _generate(service, parse(CompletionRequest, await request.body(), limits))

    @api.post("/v1/chat/completions", openapi_extra=_body(ChatCompletionRequest))
    async def chat_completions(request: Request) -> Response:
        return await _generate(service, parse(ChatCompletionRequest, await request.body(), limits))

    @api.post("/tokenize", openapi_extra=_body(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        asked = parse(TokenizeRequest, await request.body(), limits)
        target = service.target(asked.model)
        tokenizer = service.vocabularies[asked.model].tokenizer
        ids = await asyncio.to_thread(
            tokenizer.encode, asked.prompt, add_special_tokens=asked.add_special_tokens
        )
        return _json(info.tokenize_body(ids, target.max_context))

    @api.post("/detokenize", openapi_extra=_body(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        asked = parse(DetokenizeRequest, await request.body(), limits)
        service.target(asked.model)
        vocabulary = service.vocabularies[asked.model]
        if asked.tokens and max(asked.tokens) >= vocabulary.size:
            raise bad_request(
                f"token id {max(asked.tokens)} is not in the vocabulary of {vocabulary.size} ids",
                "tokens",
            )
        text = await asyncio.to_thread(vocabulary.tokenizer.decode, list(asked.tokens))
        assert isinstance(text, str)
        return _json(info.detokenize_body(text))

    @api.get("/v1/models")
    async def models() -> Response:
        return _json(info.models_body(await service.cards()))

    @api.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        service.target(name)
        cards = await service.cards()
        return _json(info.model_body(next(card for card in cards if card.id == name)))

    @api.get("/health")
    async def health() -> Response:
        return _json({"status": "ok"})

    @api.get("/ready")
    async def ready() -> Response:
        targets, draft = await service.states()
        status = 200 if info.is_ready(targets) else 503
        return _json(info.ready_body(targets, draft), status)

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(await service.metrics.scrape(), media_type=CONTENT_TYPE)

    @api.get("/version")
    async def version() -> Response:
        return _json(info.version_body(service.version))

    _add_page(api)
    _describe_bodies(api)
    return api


def _add_page(api: FastAPI) -> None:
    files = static_files()

    def send(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name].body, media_type=files[name].media_type, headers=HEADERS)

    @api.get("/ui", include_in_schema=False)
    async def page() -> Response:
        return send("index.html")

    @api.get("/ui/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        return send(name)


async def _generate(service: Service, request: GenerationRequest) -> Response:
    target = service.target(request.model)
    notes = current_request.get()
    assert notes is not None, "the gate made them"
    notes.target = request.model
    vocabulary = service.vocabularies[request.model]
    laid_out = await asyncio.to_thread(plan, request, target, vocabulary)
    meter = service.metrics.meter.of(request.model)
    runs = []
    for index, generation in enumerate(laid_out.generations):
        is_first_of_prompt = index % request.n == 0
        num_prompt_tokens = len(generation.prompt_token_ids) if is_first_of_prompt else 0
        counts = ChoiceMeter(meter, num_prompt_tokens, notes.started)
        runs.append(ChoiceRun(index, generation, request, vocabulary.detokenizer, counts))
    exchange = Exchange(service, request, laid_out, runs)
    return await (exchange.streamed() if request.stream else exchange.whole())


class Exchange:
    """One request on its way to its response."""

    def __init__(
        self, service: Service, request: GenerationRequest, laid_out: Plan, runs: list[ChoiceRun]
    ) -> None:
        self._request = request
        self._plan = laid_out
        self._runs = runs
        self._limits = service.config.limits
        self._meter = service.metrics.meter
        self._pieces = merged(runs, service.router)
        self._deadline = asyncio.get_running_loop().time() + self._limits.total_s
        self._head = ResponseHead(
            request.kind,
            service.new_id(),
            int(time.time()),
            request.model,
            laid_out.seed,
        )

    async def whole(self) -> Response:
        """The response in one piece."""
        async with self._time_limit(), aclosing(self._pieces):
            choices = await gathered(self._pieces, len(self._runs))
        return _json(whole(self._head, choices, self._usage(), self._summary()))

    async def streamed(self) -> Response:
        """The response as a stream; an error before its first token is still a plain response."""
        events = self._events()
        first = await anext(events)
        return StreamingResponse(_chain(first, events), media_type="text/event-stream")

    async def _events(self) -> AsyncGenerator[bytes, None]:
        is_open = False
        begun: set[int] = set()
        try:
            async with aclosing(self._pieces), aclosing(self._with_pings()) as pieces:
                async for piece in pieces:
                    if piece is None:
                        if is_open:
                            yield sse.PING
                        continue
                    is_first = piece.index not in begun
                    begun.add(piece.index)
                    if is_first or _has_news(piece):
                        is_open = True
                        yield sse.event(chunk(self._head, piece, is_first))
            if self._request.wants_usage_chunk:
                yield sse.event(usage_chunk(self._head, self._usage(), self._summary()))
            yield sse.DONE
        except Exception as error:
            if not is_open:
                raise
            self._meter.rejected(fault_of(error).code, self._request.model)
            yield sse.error_event(error_reply(error).body)
            if fault_of(error).status == 500:
                raise

    async def _with_pings(self) -> AsyncGenerator[Choice | None, None]:
        """The pieces, and None for each `ping_s` of silence."""
        pieces = self._pieces
        waiting: asyncio.Task[Choice] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(pieces))
                left_s = self._deadline - asyncio.get_running_loop().time()
                if left_s <= 0:
                    raise self._out_of_time()
                await asyncio.wait([waiting], timeout=min(left_s, self._limits.ping_s))
                if not waiting.done():
                    yield None
                    continue
                try:
                    piece = waiting.result()
                except StopAsyncIteration:
                    return
                waiting = None
                yield piece
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _time_limit(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(self._deadline):
                yield
        except TimeoutError:
            raise self._out_of_time() from None

    def _out_of_time(self) -> DeadlineError:
        return DeadlineError(
            f"the request took longer than {self._limits.total_s:g} s; ask for fewer tokens"
        )

    def _usage(self) -> Usage:
        committed = sum(run.statistics.num_committed_tokens for run in self._runs)
        return Usage(self._plan.num_prompt_tokens, committed)

    def _summary(self) -> SpeculationSummary | None:
        return self._runs[0].summary(self._plan.seed) if len(self._runs) == 1 else None


def _has_news(piece: Choice) -> bool:
    """Whether a chunk would tell the client anything: text may be held back for a while."""
    return bool(
        piece.text or piece.logprobs or piece.token_ids or piece.rounds or piece.finish_reason
    )


async def _chain(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


def _json(body: Mapping[str, object], status: int = 200) -> Response:
    return Response(to_json(body), status, media_type=JSON)


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a body that `parse` reads; `_describe_bodies` adds the schema."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": reference}}}}


def _describe_bodies(api: FastAPI) -> None:
    """Put the schemas of all bodies into the OpenAPI document: routes read bodies themselves."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in BODIES],
        ref_template="#/components/schemas/{model}",
    )
    api.openapi().setdefault("components", {})["schemas"] = schemas["$defs"]
