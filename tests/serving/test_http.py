"""The HTTP surface over a fake router: streams, pings, errors, keys, ids, cancellation."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from s2d_serve.errors import ConfigError, DeadlineError, OverloadedError, UnavailableError
from s2d_serve.serving.directory import View
from s2d_serve.serving.http import build_api
from tests.serving.fakes import FakeService, fake_service, hang_up_twice

UNHEALTHY = list(HealthCheck)
ASK: dict[str, Any] = {"model": "tiny", "prompt": "thing", "max_tokens": 6}


@pytest.fixture
def fake(weights: Path) -> FakeService:
    """A service over fakes."""
    return fake_service(weights)


async def events(fake: FakeService, **fields: Any) -> list[str]:
    """The blocks of one stream."""
    answer = await fake.client.post("/v1/completions", json=ASK | {"stream": True} | fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.text.removesuffix("\n\n").split("\n\n")


async def test_a_stream_pings_in_silence(weights: Path) -> None:
    """Comments keep it open; the text is not touched."""
    fake = fake_service(weights, limits={"ping_s": 0.02})
    fake.router.pause_s = 0.1
    blocks = await events(fake)
    assert blocks.count(": ping") > 3
    assert blocks[0].startswith("data: "), "no ping before the status is known"
    assert blocks[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (OverloadedError("full"), 429, True),
        (UnavailableError("down"), 503, True),
        (DeadlineError("late"), 503, True),
        (RuntimeError("secret"), 500, False),
    ],
)
async def test_an_error_before_the_first_token_is_a_plain_response(
    fake: FakeService, error: Exception, status: int, retry: bool
) -> None:
    """With its status and Retry-After, streamed or not; our own faults tell nothing."""
    fake.router.error = error
    for stream in (False, True):
        answer = await fake.client.post("/v1/completions", json=ASK | {"stream": stream})
        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == retry
        assert "secret" not in answer.text
        assert answer.json()["error"]["code"]


async def test_an_error_in_a_stream_is_its_last_event(fake: FakeService) -> None:
    """And no [DONE] follows."""
    fake.router.error, fake.router.error_after = UnavailableError("lost"), 2
    *chunks, last = await events(fake)
    assert len(chunks) == 2
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.split("data: ")[1])["error"]["message"] == "lost"


async def test_the_total_time_is_limited(weights: Path) -> None:
    """Streamed and whole."""
    fake = fake_service(weights, limits={"total_s": 0.2})
    fake.router.pause_s = 0.1
    answer = await fake.client.post("/v1/completions", json=ASK | {"max_tokens": 20})
    assert answer.status_code == 503
    assert "0.2 s" in answer.json()["error"]["message"]
    assert "0.2 s" in (await events(fake, max_tokens=20))[-1]
    assert fake.router.num_closed == 2


async def test_an_aborted_request_ends_its_generations(fake: FakeService) -> None:
    """All choices of it, streamed or not."""
    await hang_up_twice(fake, ASK)
    assert len(fake.router.generations) == fake.router.num_closed == 6


async def test_keys_guard_all_but_health(weights: Path, tmp_path: Path) -> None:
    """One digest per line; a wrong or missing key is 401."""
    keys = tmp_path / "keys"
    keys.write_text("# clients\n" + hashlib.sha256(b"open sesame").hexdigest().upper() + "\n\n")
    fake = fake_service(weights, auth={"api_keys_file": keys})
    assert (await fake.client.get("/health")).status_code == 200
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "open sesame"}):
        for path in ("/v1/models", "/ready", "/version", "/openapi.json", "/nothing"):
            answer = await fake.client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    answer = await fake.client.get("/v1/models", headers={"Authorization": "bearer open sesame"})
    assert answer.status_code == 200


@pytest.mark.parametrize("text", ["", "# none\n", "abc\n", "z" * 64])
def test_a_file_of_no_keys_is_refused_at_start(weights: Path, tmp_path: Path, text: str) -> None:
    """Rather than locking everybody out, or in."""
    keys = tmp_path / "keys"
    keys.write_text(text)
    with pytest.raises(ConfigError, match="api_keys_file"):
        fake_service(weights, auth={"api_keys_file": keys})


async def test_request_ids_are_taken_or_made(fake: FakeService) -> None:
    """Also on errors; an id that could break a log line is replaced."""
    given = {"X-Request-Id": "my-id-1"}
    assert (await fake.client.get("/health", headers=given)).headers["x-request-id"] == "my-id-1"
    assert (await fake.client.get("/nothing", headers=given)).headers["x-request-id"] == "my-id-1"
    for bad in ({}, {"X-Request-Id": "a b"}, {"X-Request-Id": "x" * 129}):
        made = (await fake.client.get("/health", headers=bad)).headers["x-request-id"]
        assert len(made) == 32


async def test_ready_and_models_tell_the_states(fake: FakeService) -> None:
    """Idle counts as ready, a draft that is away does not matter, a target does."""
    fake.directory.views |= {"small": View("idle"), "draft": View("unavailable")}
    answer = await fake.client.get("/ready")
    assert answer.status_code == 200
    assert answer.json()["targets"] == {"tiny": "ready", "small": "idle"}
    fake.directory.views["small"] = View("loading")
    assert (await fake.client.get("/ready")).status_code == 503
    card = (await fake.client.get("/v1/models/small")).json()
    assert card["s2d"]["state"] == "loading"


async def test_counts_are_of_delivered_tokens(fake: FakeService) -> None:
    """A stop string in the middle of a round drops the rest of it, in usage and in metrics."""
    answer = (await fake.client.post("/v1/completions", json=ASK | {"max_tokens": 8})).json()
    text = answer["choices"][0]["text"]
    body = ASK | {"max_tokens": 8, "stop": text[:1], "speculation": {"detailed": True}}
    cut = (await fake.client.post("/v1/completions", json=body)).json()
    assert cut["usage"]["completion_tokens"] == 1
    counts = cut["metrics"]["speculative_decoding"]
    assert (counts["num_rounds"], counts["mean_accepted_tokens"]) == (1, 1.0)
    assert counts["per_step_accepted"] == [1]
    (details,) = counts["rounds"]
    assert (details["num_accepted"], len(details["committed"])) == (1, 1)


async def test_a_streams_rounds_come_with_its_tokens(fake: FakeService) -> None:
    """One per chunk, with ids, texts, exits and times; with the counts once more, all of them."""
    asked = {"speculation": {"detailed": True}, "stream_options": {"include_usage": True}}
    *chunks, usage, done = await events(fake, return_token_ids=True, **asked)
    assert done == "data: [DONE]"
    bodies = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    assert len(bodies) == 3
    for body in bodies:
        (details,) = body["s2d"]["rounds"]
        (choice,) = body["choices"]
        assert [token["token_id"] for token in details["committed"]] == choice["token_ids"]
        assert b"".join(bytes(t["bytes"]) for t in details["committed"]).decode() == choice["text"]
        (guess,) = details["draft"]
        assert guess == details["committed"][0] | {"exit": 4}
        assert (details["draft_s"], details["verify_s"], details["round_s"]) == (0.01, 0.02, 0.04)
    counts = json.loads(usage.removeprefix("data: "))["metrics"]["speculative_decoding"]
    assert counts["rounds"] == [body["s2d"]["rounds"][0] for body in bodies]


async def test_rounds_come_while_text_is_held_back(fake: FakeService) -> None:
    """What may become a stop string is not shown, but its tokens are there and are told of."""
    whole = (await fake.client.post("/v1/completions", json=ASK)).json()["choices"][0]["text"]
    asked = {"stop": whole + "!", "speculation": {"detailed": True}}
    bodies = [
        json.loads(block.removeprefix("data: ")) for block in (await events(fake, **asked))[:-1]
    ]
    assert [body["choices"][0]["text"] for body in bodies] == ["", "", whole]
    assert [len(body["s2d"]["rounds"]) for body in bodies] == [1, 1, 1]


async def test_no_round_is_told_of_unasked(fake: FakeService) -> None:
    """Counts per token can leak prompts; several choices at once have no counts to put them in."""
    blocks = await events(fake, stream_options={"include_usage": True})
    assert not any('"rounds"' in block or "per_step" in block for block in blocks)
    answer = await fake.client.post("/v1/completions", json=ASK)
    assert '"rounds"' not in answer.text
    assert "per_step" not in answer.text


async def test_requests_reach_the_router_as_asked(fake: FakeService) -> None:
    """Every parameter arrives, null as its default."""
    body = ASK | {
        "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "frequency_penalty": 0.2,
        "presence_penalty": -0.3, "repetition_penalty": 1.1, "logit_bias": {"5": -2},
        "min_tokens": 2, "stop_token_ids": [3], "ignore_eos": True, "seed": -1, "logprobs": 0,
        "speculation": {"enabled": False, "max_draft_tokens": 2}, "user": None,
    }  # fmt: skip
    assert (await fake.client.post("/v1/completions", json=body)).status_code == 200
    (generation,) = fake.router.generations
    params = generation.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 0, 0.1)
    assert (params.frequency_penalty, params.presence_penalty) == (0.2, -0.3)
    assert (params.repetition_penalty, params.logit_bias) == (1.1, ((5, -2.0),))
    assert (params.min_tokens, params.stop_token_ids, params.seed) == (2, (3,), -1)
    assert (generation.ignore_eos, generation.num_logprobs) == (True, 0)
    assert (generation.use_draft, generation.max_draft_tokens) == (False, 2)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_nothing_that_the_schema_suggests_is_our_fault(weights: Path, mode: GenerationMode) -> None:
    """Bodies that fit the OpenAPI schema, and bodies that do not: never a 500."""
    api = build_api(fake_service(weights).service)
    schema = schemathesis.openapi.from_asgi("/openapi.json", api)
    statuses: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]  # ours has no broken operation

        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=UNHEALTHY)
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer = case.call()
            statuses.setdefault(case.path, set()).add(answer.status_code)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        with contextlib.suppress(Unsatisfiable):  # a GET without parameters has no wrong form
            ask()
    assert 400 in statuses["/v1/chat/completions"] | statuses["/v1/completions"]
