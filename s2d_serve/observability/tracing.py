"""OpenTelemetry traces: a request at the router, its rounds, and in each the work of the draft and
of the target.

The router writes all spans, from the times that come with each round's reply: executors know
nothing of tracing, and a request that is not sampled costs nothing there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s2d_serve.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

SERVICES = ("router", "draft", "target")
"""Each is a service of its own to trace viewers, `s2d-router` and so on."""
Attributes = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Work:
    """Something that took from one time to another."""

    started_s: float
    """Unix time, by the clock of the machine that did it."""
    seconds: float
    attributes: Attributes


class Tracing:
    """Makes traces of a sampled share of the requests; a caller's own `traceparent` decides for
    its requests.
    """

    def __init__(
        self, sample_ratio: float, endpoint: str, exporter: "SpanExporter | None" = None
    ) -> None:
        """
        Args:
            endpoint: where OTLP over HTTP is taken, with its path.
            exporter: takes the spans in place of the endpoint.

        Raises: ConfigError if the packages are not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ConfigError("tracing.sample_ratio needs: pip install 's2d-serve[otel]'") from None
        exporter = exporter or OTLPSpanExporter(endpoint=endpoint)
        self._providers = {name: _provider(name, sample_ratio, exporter) for name in SERVICES}
        self._tracers = {n: p.get_tracer("s2d_serve") for n, p in self._providers.items()}
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Mapping[str, str], request_id: str) -> "Trace | None":
        """The trace of a request that begins; None if it is not sampled."""
        span = self._tracers["router"].start_span(
            "request",
            self._propagator.extract(headers),
            attributes={"s2d.request_id": request_id},
        )
        return Trace(span, self._tracers) if span.is_recording() else None

    def flush(self) -> None:
        """Send what was not sent yet."""
        for provider in self._providers.values():
            provider.force_flush()


class Trace:
    """One request's trace."""

    def __init__(self, span: "Span", tracers: "Mapping[str, Tracer]") -> None:
        self._span = span
        self._tracers = tracers

    def round(self, whole: Work, draft: Work | None, target: Work) -> None:
        """Note a round that the request had a part in."""
        span = self._write("router", "round", whole, self._span)
        if draft is not None:
            self._write("draft", "propose", draft, span)
        self._write("target", "verify", target, span)

    def end(self, attributes: Attributes) -> None:
        """The request is over."""
        self._span.set_attributes(dict(attributes))
        self._span.end()

    def _write(self, service: str, name: str, work: Work, parent: "Span") -> "Span":
        from opentelemetry.trace import set_span_in_context

        started_ns = int(work.started_s * 1e9)
        span = self._tracers[service].start_span(
            name,
            set_span_in_context(parent),
            attributes=dict(work.attributes),
            start_time=started_ns,
        )
        span.end(started_ns + int(work.seconds * 1e9))
        return span


def _provider(service: str, sample_ratio: float, exporter: "SpanExporter") -> "TracerProvider":
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(sample_ratio),
        resource=Resource.create({"service.name": f"s2d-{service}"}),
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
