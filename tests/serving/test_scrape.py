"""/metrics and log lines over a fake router: keys, errors, hang-ups, a keeper that is away."""

import asyncio
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from s2d_serve.errors import OverloadedError, UnavailableError
from s2d_serve.observability.exposition import CONTENT_TYPE, Samples
from s2d_serve.observability.request import RequestFilter
from s2d_serve.observability.tracing import Tracing
from s2d_serve.serving.http import build_api
from tests.serving.fakes import FakeService, fake_client, fake_service, hang_up_twice
from tests.serving.scraped import difference, parsed, total

ASK: dict[str, Any] = {"model": "tiny", "prompt": "thing", "max_tokens": 6}


@pytest.fixture
def fake(weights: Path) -> FakeService:
    """A service over fakes."""
    return fake_service(weights)


async def scraped(fake: FakeService) -> Samples:
    """One scrape."""
    answer = await fake.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == CONTENT_TYPE
    return parsed(answer.text)


async def test_metrics_want_a_key(weights: Path, tmp_path: Path) -> None:
    """Like all routes but /health."""
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"open sesame").hexdigest())
    fake = fake_service(weights, auth={"api_keys_file": keys})
    assert (await fake.client.get("/metrics")).status_code == 401
    answer = await fake.client.get("/metrics", headers={"Authorization": "Bearer open sesame"})
    assert total(parsed(answer.text), "s2d:rejected_total", code="invalid_api_key") == 1


@pytest.mark.parametrize("error", [OSError("broken"), UnavailableError("gone")])
async def test_without_the_keeper_metrics_are_an_error_and_texts_are_not(
    fake: FakeService, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the shape of all errors; an incomplete answer would look like counters that fell."""

    async def total_of_a_broken_keeper(*_: object) -> None:
        if isinstance(error, OSError):
            await asyncio.sleep(60)
        raise error

    monkeypatch.setattr("s2d_serve.serving.metrics.ANSWER_S", 0.1)
    monkeypatch.setattr(fake.keeper, "total", total_of_a_broken_keeper)
    answer = await fake.client.get("/metrics")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unavailable"
    assert (await fake.client.post("/v1/completions", json=ASK)).status_code == 200


async def test_what_overshoots_a_stop_string_is_not_counted(fake: FakeService) -> None:
    """As in the response's usage."""
    answer = (await fake.client.post("/v1/completions", json=ASK)).json()
    stop = answer["choices"][0]["text"][:1]
    before = await scraped(fake)
    cut = (await fake.client.post("/v1/completions", json=ASK | {"stop": stop})).json()
    counted = difference(await scraped(fake), before)
    assert cut["usage"]["completion_tokens"] == 1
    assert total(counted, "vllm:generation_tokens_total") == 1
    assert total(counted, "vllm:prompt_tokens_total") == cut["usage"]["prompt_tokens"]


async def test_errors_are_counted_where_they_end_a_request(fake: FakeService) -> None:
    """Before the first token, and in a stream that has begun: once each, no success."""
    fake.router.error = OverloadedError("full")
    assert (await fake.client.post("/v1/completions", json=ASK)).status_code == 429
    fake.router.error, fake.router.error_after = UnavailableError("lost"), 2
    streamed = await fake.client.post("/v1/completions", json=ASK | {"stream": True})
    assert "event: error" in streamed.text
    samples = await scraped(fake)
    assert total(samples, "s2d:rejected_total", model_name="tiny", code="overloaded") == 1
    assert total(samples, "s2d:rejected_total", model_name="tiny", code="unavailable") == 1
    assert total(samples, "s2d:rejected_total") == 2
    assert total(samples, "vllm:request_success_total") == 0


async def test_a_client_that_hangs_up_is_counted_as_abort(fake: FakeService) -> None:
    """Each choice, streamed or not, and what it was given until then."""
    await hang_up_twice(fake, ASK)
    samples = await scraped(fake)
    assert total(samples, "vllm:request_success_total", finished_reason="abort") == 6
    assert total(samples, "vllm:request_success_total") == 6
    assert total(samples, "vllm:generation_tokens_total") >= 12
    prompt = len(fake.router.generations[0].prompt_token_ids)
    assert total(samples, "vllm:prompt_tokens_total") == 2 * prompt  # once for its three choices


async def test_log_lines_carry_id_and_target_and_no_prompt(
    fake: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a request fails by our own fault."""
    caplog.handler.addFilter(RequestFilter())
    caplog.set_level(logging.INFO, "s2d_serve")
    fake.router.error = RuntimeError("broken")
    headers = {"X-Request-Id": "id-7"}
    body = ASK | {"prompt": "zanzibar"}
    assert (
        await fake.client.post("/v1/completions", json=body, headers=headers)
    ).status_code == 500
    failed, last = [vars(record) for record in caplog.records if record.name == "s2d_serve"]
    assert failed["message"] == "request failed"
    for record in (failed, last):
        assert (record["request_id"], record["target"]) == ("id-7", "tiny")
    assert (last["path"], last["status"]) == ("/v1/completions", 500)
    assert "zanzibar" not in caplog.text + json.dumps([failed, last], default=str)


async def test_a_share_of_the_requests_is_traced(fake: FakeService) -> None:
    """A span per request with its id, target and status; none for those that are not sampled."""
    exporter = InMemorySpanExporter()
    fake.service.tracing = Tracing(0.5, "", exporter)
    async with fake_client(build_api(fake.service)) as client:
        for number in range(40):
            headers = {"X-Request-Id": f"id-{number}"}
            await client.post("/v1/completions", json=ASK, headers=headers)
    fake.service.tracing.flush()
    spans = exporter.get_finished_spans()
    assert 5 < len(spans) < 35
    for span in spans:
        assert span.attributes is not None
        assert (span.name, span.attributes["status"]) == ("request", 200)
        assert span.attributes["target"] == "tiny"
    assert len({span.attributes["s2d.request_id"] for span in spans if span.attributes}) == len(
        spans
    )
