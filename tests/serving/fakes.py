"""A service without Ray or models: a router that says what it is told to."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from fastapi import FastAPI

from s2d_serve.api.errors import FAULTS
from s2d_serve.config import AppConfig
from s2d_serve.engine.messages import Outcome, RoundTimes, TokenLogprobs
from s2d_serve.observability.meter import Meter
from s2d_serve.serving.directory import Directory, View
from s2d_serve.serving.http import build_api
from s2d_serve.serving.metrics import Metrics
from s2d_serve.serving.metrics_keeper import MetricsKeeper
from s2d_serve.serving.router import Generation, Router
from s2d_serve.serving.service import Service


@dataclass
class FakeRouter:
    """Answers each generation with the prompt's tokens over and over, two per round."""

    error: Exception | None = None
    error_after: int = 0
    """Rounds before the error."""
    pause_s: float = 0.0
    """Before each round."""
    generations: list[Generation] = field(default_factory=list)
    num_closed: int = 0

    async def run(self, generation: Generation) -> AsyncGenerator[Outcome, None]:
        """Rounds of an accepted token and a bonus."""
        self.generations.append(generation)
        try:
            prompt = generation.prompt_token_ids
            tokens = [prompt[i % len(prompt)] for i in range(generation.max_tokens)]
            for start in range(0, len(tokens), 2):
                await asyncio.sleep(self.pause_s)
                if self.error is not None and start // 2 >= self.error_after:
                    raise self.error
                yield self._round(generation, start, tokens[start : start + 2])
        finally:
            self.num_closed += 1

    def _round(self, generation: Generation, start: int, tokens: list[int]) -> Outcome:
        is_last = start + 2 >= generation.max_tokens
        asked = generation.num_logprobs
        logprobs = tuple(TokenLogprobs(-0.5, ((t, -0.5),) * min(asked or 0, 1)) for t in tokens)
        return Outcome(
            len(generation.prompt_token_ids) + start,
            tuple(tokens),
            len(tokens) - 1,
            (4,) * (len(tokens) - 1),
            tuple(tokens[:-1]),
            "length" if is_last else None,
            logprobs if asked is not None else (),
            RoundTimes(0.01, 0.02, 0.04),
        )


class FakeDirectory:
    """Everybody is ready, or as told."""

    def __init__(self) -> None:
        self.views: dict[str, View] = {}

    async def look(self) -> Mapping[str, View]:
        """What was told."""
        return self.views


class FakeHandle:
    """A Serve handle: the methods of an object in this process."""

    def __init__(self, server: object) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._server, name))


@dataclass
class FakeService:
    """The HTTP surface over fakes."""

    router: FakeRouter
    directory: FakeDirectory
    keeper: MetricsKeeper
    service: Service
    client: httpx.AsyncClient


def fake_service(weights: Path, **args: Any) -> FakeService:
    """A service with the targets `tiny` and `small` (64 tokens of context)."""
    model = {"source": str(weights), "dtype": "float32"}
    targets = {"tiny": {**model, "max_context": 256}, "small": {**model, "max_context": 64}}
    config = AppConfig.model_validate({"targets": targets, "draft": model} | args)
    router, directory = FakeRouter(), FakeDirectory()
    directory.views = {name: View("ready") for name in ("tiny", "small", "draft")}
    meter = Meter(config.targets, [fault.code for fault in FAULTS.values()])
    keeper = MetricsKeeper(settle_s=0.0)
    metrics = Metrics(meter, cast(Directory, directory), FakeHandle(keeper))
    service = Service(config, cast(Router, router), cast(Directory, directory), metrics)
    return FakeService(router, directory, keeper, service, fake_client(build_api(service)))


def fake_client(api: FastAPI) -> httpx.AsyncClient:
    """A client of an API in this process."""
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://fake", timeout=30)


async def hang_up_twice(fake: FakeService, ask: Mapping[str, Any]) -> None:
    """Two clients who want three long choices, whole and streamed, and leave after some rounds."""
    fake.router.pause_s = 0.05
    for stream in (False, True):
        body = {**ask, "stream": stream, "n": 3, "max_tokens": 200}
        request = asyncio.create_task(fake.client.post("/v1/completions", json=body))
        await asyncio.sleep(0.2)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await asyncio.sleep(0.05)
