"""What the service counts is what its responses say; and what becomes of it when something dies."""

import asyncio
import os
import signal
import sys
import time
from typing import Any

import httpx
import pytest
import ray

from tests.serving.conftest import APP, Deploy, actors, await_ready, pids
from tests.serving.scraped import difference, scrape, total
from tests.serving.test_fault_table import SERVE_REPLICA

pytestmark = [pytest.mark.ray, pytest.mark.faults]

TARGETS = ("tiny", "tiny-int8")
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any]) -> str:
    """The tiny app with two routers."""
    return deploy({**tiny_args, "router": {**tiny_args["router"], "replicas": 2}})


def ask(url: str, model: str, prompts: list[str], **fields: Any) -> list[dict[str, Any]]:
    """Completions of all prompts at once."""
    body = {"model": model, "max_tokens": 40, "temperature": 0.9, "seed": 1} | fields

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(
                *(client.post(f"{url}/v1/completions", json=body | {"prompt": p}) for p in prompts)
            )

    answers = asyncio.run(together())
    assert [answer.status_code for answer in answers] == [200] * len(prompts)
    return [answer.json() for answer in answers]


def until_counted(url: str, before: Any, name: str, expected: float, **labels: str) -> Any:
    """The difference to an earlier scrape, once a counter got so far: routers report in turns."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        counted = difference(scrape(url), before)
        if total(counted, name, **labels) >= expected:
            return counted
        assert time.monotonic() < deadline, (name, total(counted, name, **labels), expected)
        time.sleep(0.5)


def settled(url: str) -> Any:
    """A first scrape, when the keeper has heard from all routers."""
    deadline = time.monotonic() + DEADLINE_S
    while httpx.get(f"{url}/metrics", timeout=30).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return scrape(url)


@pytest.mark.parametrize("target", TARGETS)
def test_counters_are_the_sums_over_the_responses(url: str, target: str) -> None:
    """Delivered tokens, over both routers; what overshot a stop string is in neither."""
    before = settled(url)
    prompts = [f"the {word} in the string" for word in ("thing", "stop", "ring", "sting", "pin")]
    answers = ask(url, target, prompts) + ask(url, target, prompts, stop=["e", "in"])
    usages = [answer["usage"] for answer in answers]
    counts = [answer["metrics"]["speculative_decoding"] for answer in answers]
    expected = {
        "vllm:prompt_tokens_total": sum(usage["prompt_tokens"] for usage in usages),
        "vllm:generation_tokens_total": sum(usage["completion_tokens"] for usage in usages),
        "s2d:rounds_total": sum(count["num_rounds"] for count in counts),
        "vllm:spec_decode_num_drafts_total": sum(count["num_spec_steps"] for count in counts),
        "vllm:spec_decode_num_draft_tokens_total": sum(c["num_draft_tokens"] for c in counts),
        "vllm:spec_decode_num_accepted_tokens_total": (
            accepted := sum(c["num_accepted_draft_tokens"] for c in counts)
        ),
        "vllm:spec_decode_num_accepted_tokens_per_pos_total": accepted,
        "s2d:exit_accepted_tokens_total": accepted,
        "s2d:exit_tokens_total": sum(sum(c["exit_counts"].values()) for c in counts),
        "vllm:request_success_total": len(answers),
        "vllm:time_to_first_token_seconds_count": len(answers),
        "vllm:e2e_request_latency_seconds_count": len(answers),
    }
    counted = until_counted(
        url, before, "vllm:request_success_total", len(answers), model_name=target
    )
    found = {name: total(counted, name, model_name=target) for name in expected}
    assert found == expected
    assert accepted > 10
    stopped = total(
        counted, "vllm:request_success_total", model_name=target, finished_reason="stop"
    )
    assert stopped == sum(a["choices"][0]["finish_reason"] == "stop" for a in answers) > 0


def test_round_times_are_made_of_draft_wire_and_verify(url: str) -> None:
    """The parts are no more than the whole, and none is nothing."""
    before = settled(url)
    ask(url, "tiny", ["the thing"], max_tokens=200)
    counted = until_counted(url, before, "vllm:request_success_total", 1, model_name="tiny")
    whole, draft, verify = (
        total(counted, f"s2d:{part}_seconds_sum", model_name="tiny")
        for part in ("round", "draft", "verify")
    )
    assert draft > 0
    assert verify > 0
    assert whole > draft + verify
    rounds = total(counted, "s2d:round_seconds_count", model_name="tiny")
    assert rounds > 20
    assert total(counted, "s2d:verify_batch_tokens_sum", model_name="tiny") > rounds


def test_gauges_say_who_is_there(url: str) -> None:
    """Replicas, slots, the draft."""
    samples = settled(url)
    for name in (*TARGETS, "draft"):
        assert total(samples, "s2d:available", model_name=name) == 1
        assert total(samples, "s2d:replicas", model_name=name, state="ready") == 1
    for name in TARGETS:
        assert total(samples, "vllm:num_requests_running", model_name=name) == 0
        assert 0 <= total(samples, "vllm:kv_cache_usage_perc", model_name=name) < 0.2


def test_errors_are_counted_by_code(url: str) -> None:
    """With the target, where it is known."""
    before = settled(url)
    bad = {"model": "nobody", "prompt": "the"}
    assert httpx.post(f"{url}/v1/completions", json=bad, timeout=30).status_code == 404
    counted = until_counted(url, before, "s2d:rejected_total", 1, code="model_not_found")
    assert total(counted, "s2d:rejected_total", model_name="_none") == 1


def test_a_router_that_dies_takes_no_counts_with_it(url: str) -> None:
    """Counters of the service do not fall."""
    before = settled(url)
    ask(url, "tiny", ["the thing", "in the string", "to sing", "a"])
    until_counted(url, before, "vllm:request_success_total", 4, model_name="tiny")
    routers = pids(f"{SERVE_REPLICA}{APP}#router#")
    time.sleep(3)  # each has reported
    high = settled(url)
    for pid in routers:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_S
    while set(routers) & set(pids_or_none()) or not pids_or_none():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    await_ready(url)
    low = settled(url)
    for (name, labels), value in high.items():
        if name.endswith(("_total", "_count")):
            assert low[name, labels] >= value, (name, labels)
    assert total(low, "vllm:request_success_total", model_name="tiny") >= 4


def pids_or_none() -> list[int]:
    """Router processes; none while one is starting or was just lost."""
    try:
        return pids(f"{SERVE_REPLICA}{APP}#router#")
    except (AssertionError, ValueError, ray.exceptions.RayError):
        return []


def test_without_its_keeper_the_service_goes_on(url: str) -> None:
    """/metrics says so, in the shape of all errors, and comes back; requests do not notice."""
    keeper = f"{SERVE_REPLICA}{APP}#metrics#"
    (pid,) = pids(keeper)
    (actor,) = actors(keeper)
    modules = ray.get(actor.__ray_call__.remote(lambda _: "torch" in sys.modules))
    assert not modules, "the keeper does without torch"
    os.kill(pid, signal.SIGKILL)
    error = httpx.get(f"{url}/metrics", timeout=30)
    ask(url, "tiny", ["the thing"])
    assert error.status_code == 503
    assert error.json()["error"]["code"] == "unavailable"
    before = settled(url)
    ask(url, "tiny", ["the thing"])
    until_counted(url, before, "vllm:request_success_total", 1, model_name="tiny")
