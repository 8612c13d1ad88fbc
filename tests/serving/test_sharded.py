"""A target over two ranks: the unsharded one's text, and the end of any rank is survived."""

import signal
import time
from typing import Any

import httpx
import psutil
import pytest

from s2d_serve.serving.servers import RANK_PREFIX
from tests.serving.conftest import APP, Deploy, await_ready, executor_pids, pids
from tests.serving.test_faults import ASK, disturbed, send

pytestmark = pytest.mark.ray

COLLECTIVE_TIMEOUT_S = 3.0
PROMPTS = ["the thing", "stop the string, ", "é " * 40, "in the thing " * 30]


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any]) -> str:
    """One target whole, and the same one over two ranks, behind the same draft."""
    whole = tiny_args["targets"]["tiny"]
    sharded = {
        **whole,
        "tensor_parallel_size": 2,
        "placement_strategy": "SPREAD",
        "collective_timeout_s": COLLECTIVE_TIMEOUT_S,
    }
    return deploy({**tiny_args, "targets": {"tiny": whole, "tiny-sharded": sharded}})


def text_of(url: str, model: str, **body: Any) -> tuple[str, dict[str, Any]]:
    """A completion's text, and what speculation did."""
    answer = httpx.post(f"{url}/v1/completions", json={"model": model, **body}, timeout=60).json()
    return answer["choices"][0]["text"], answer["metrics"]["speculative_decoding"]


def rank_pids() -> list[int]:
    """Processes of the ranks beside rank 0."""
    return pids(f"{RANK_PREFIX}:{APP}:tiny-sharded:")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_is_the_unsharded_targets(url: str, temperature: float) -> None:
    for prompt in PROMPTS:
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": 60,
            "temperature": temperature,
            "seed": 3,
        }
        text, counts = text_of(url, "tiny-sharded", **body)
        assert text == text_of(url, "tiny", **body, speculation={"enabled": False})[0]
        assert counts["num_accepted_draft_tokens"] > 10


@pytest.fixture(scope="module")
def undisturbed(url: str) -> str:
    """The text of the request that faults disturb, from the whole target alone."""
    body: dict[str, Any] = {**ASK, "speculation": {"enabled": False}}
    return text_of(url, **body)[0]


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["rank 0 killed", "rank 1 killed", "rank 1 stopped"])
def test_a_lost_rank_costs_time_only(url: str, undisturbed: str, fault: str) -> None:
    """The replica ends at once, the next one goes on with the stream."""
    await_ready(url)
    leader, follower = executor_pids("tiny-sharded"), rank_pids()
    assert len(leader) == len(follower) == 1
    number = signal.SIGSTOP if fault.endswith("stopped") else signal.SIGKILL
    victims = leader if fault.startswith("rank 0") else follower
    text, _, _ = disturbed(url, lambda: send(number, victims), model="tiny-sharded")
    assert text == undisturbed
    await_ready(url)
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in leader + follower):
        assert time.monotonic() < deadline, "no rank outlives its replica"
        time.sleep(0.1)
    assert len(rank_pids()) == 1
