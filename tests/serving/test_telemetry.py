"""What a request leaves besides its text: log lines, spans, metrics at Ray's own port."""

import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from ray._private.worker import global_worker

from s2d_serve.observability.table import METRICS
from tests.serving.conftest import APP, Deploy
from tests.serving.scraped import parsed, total

pytestmark = [pytest.mark.ray, pytest.mark.prometheus]

SECRET = "zanzibar"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_ID = "00f067aa0ba902b7"
DEADLINE_S = 60.0


class Collector:
    """Takes spans as OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        """(service, span)."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                logging.debug(format, *args)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans."""
        for resource in request.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(attributes["service.name"], span) for span in scope.spans]

    def of(self, trace_id: str) -> list[tuple[str, Any]]:
        """The spans of a trace."""
        return [(s, span) for s, span in self.spans if span.trace_id.hex() == trace_id]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector on a port of its own."""
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any], collector: Collector) -> str:
    """The tiny app, every request traced."""
    endpoint = f"http://127.0.0.1:{collector.server.server_port}/v1/traces"
    return deploy({**tiny_args, "tracing": {"sample_ratio": 1.0, "otlp_endpoint": endpoint}})


def complete(url: str, headers: dict[str, str], **fields: Any) -> httpx.Response:
    """One completion."""
    body = {"model": "tiny", "prompt": SECRET, "max_tokens": 40, "seed": 1} | fields
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)


def test_a_trace_shows_each_round_at_router_draft_and_target(
    url: str, collector: Collector
) -> None:
    """One trace, with the caller's span at its root."""
    answer = complete(url, {"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-01"})
    assert answer.json()["metrics"]["speculative_decoding"]["num_draft_tokens"] > 0
    deadline = time.monotonic() + DEADLINE_S
    while not any(span.name == "request" for _, span in collector.of(TRACE_ID)):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    time.sleep(6)  # the other services' spans are sent by threads of their own
    found = defaultdict(list)
    for service, span in collector.of(TRACE_ID):
        found[service, span.name].append(span)
    assert set(found) == {
        ("s2d-router", "request"),
        ("s2d-router", "round"),
        ("s2d-draft", "propose"),
        ("s2d-target", "verify"),
    }
    (request,) = found["s2d-router", "request"]
    assert request.parent_span_id.hex() == CALLER_ID
    rounds = found["s2d-router", "round"]
    assert {span.parent_span_id for span in rounds} == {request.span_id}
    assert len(rounds) > 5
    ids = {span.span_id for span in rounds}
    verified = [span.parent_span_id for span in found["s2d-target", "verify"]]
    assert len(verified) == len(rounds)
    assert set(verified) == ids
    assert {span.parent_span_id for span in found["s2d-draft", "propose"]} <= ids
    assert len(found["s2d-draft", "propose"]) > len(rounds) / 2
    for span in [span for spans in found.values() for span in spans]:
        assert request.start_time_unix_nano <= span.start_time_unix_nano + 50_000_000
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano + 50_000_000


def test_a_caller_who_does_not_sample_gets_no_trace(url: str, collector: Collector) -> None:
    """Whatever our ratio is."""
    other = TRACE_ID[::-1]
    assert complete(url, {"traceparent": f"00-{other}-{CALLER_ID}-00"}).status_code == 200
    time.sleep(7)
    assert collector.of(other) == []


def router_lines() -> list[dict[str, Any]]:
    """What the routers of this app wrote so far."""
    assert global_worker.node is not None
    folder = Path(global_worker.node.get_session_dir_path()) / "logs" / "serve"
    files = list(folder.glob(f"replica_{APP}_router_*.log"))
    assert files
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("request_id", "fields", "status"),
    [
        ("log-good", {}, 200),
        ("log-bad", {"temperature": -1}, 400),
        ("log-404", {"model": "x"}, 404),
    ],
)
def test_log_lines_say_whose_they_are_and_never_the_prompt(
    url: str, request_id: str, fields: dict[str, Any], status: int
) -> None:
    """Each line is JSON; those of a request have its id, and its target once it is known."""
    answer = complete(url, {"X-Request-Id": request_id}, **fields)
    assert answer.status_code == status
    time.sleep(1)
    lines = router_lines()
    own = [line for line in lines if line.get("request_id") == request_id]
    last = own[-1]
    assert (last["method"], last["path"], last["status"]) == ("POST", "/v1/completions", status)
    assert 0 < last["seconds"] < 60
    assert last.get("target") == ("tiny" if status == 200 else None)
    assert (last["deployment"], last["levelname"]) == (f"{APP}_router", "INFO")
    assert SECRET not in json.dumps(lines)


def test_a_request_without_a_usable_id_gets_one_that_the_log_has(url: str) -> None:
    """Also in place of one that nobody could search for."""
    ids = []
    for given in ({}, {"X-Request-Id": "spaces in it"}):
        ids.append(complete(url, dict(given)).headers.get_list("x-request-id")[0])
    time.sleep(1)
    logged = {line.get("request_id") for line in router_lines()}
    assert "spaces in it" not in ids
    assert set(ids) <= logged


def test_rays_own_port_has_the_same_metrics(url: str) -> None:
    """With `_` for `:`, of each router process."""
    complete(url, {})
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    port = node["MetricsExportPort"]
    deadline = time.monotonic() + DEADLINE_S
    while True:
        samples = parsed(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text)
        if total(samples, "ray_vllm_generation_tokens_total", model_name="tiny") >= 40:
            break
        assert time.monotonic() < deadline, sorted({name for name, _ in samples})
        time.sleep(1)
    exported = {name for name, _ in samples}
    expected = {
        f"ray_{name.replace(':', '_')}" for metric in METRICS for name in metric.sample_names
    }
    assert expected <= exported
    round_s = total(samples, "ray_s2d_round_seconds_sum", model_name="tiny")
    assert 0 < total(samples, "ray_s2d_verify_seconds_sum", model_name="tiny") < round_s
