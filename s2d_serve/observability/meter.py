"""What one router replica counts, on `prometheus_client`."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from s2d_serve.observability.exposition import Samples
from s2d_serve.observability.table import (
    FALLBACKS,
    FINISHED,
    METRICS,
    MIGRATIONS,
    NO_TARGET,
    Metric,
)

Kind = TypeVar("Kind", bound=MetricWrapperBase)


class Meter:
    """All metrics of the table; what is known beforehand starts at 0, so that rates see the
    first event.
    """

    def __init__(self, targets: Iterable[str] = (), error_codes: Iterable[str] = ()) -> None:
        self._registry = CollectorRegistry()
        self._metrics = {metric.name: self._made(metric) for metric in METRICS}
        self._targets: dict[str, TargetMeter] = {}
        codes, names = list(error_codes), list(targets)
        for name in names:
            self.of(name)
        for name in (*names, NO_TARGET):
            for code in codes:
                self.child(Counter, "s2d:rejected_total", name, code)

    def of(self, target: str) -> "TargetMeter":
        """What is counted for a target."""
        if target not in self._targets:
            self._targets[target] = TargetMeter(self, target)
        return self._targets[target]

    def rejected(self, code: str, target: str | None) -> None:
        """Count a request that got an error."""
        self.child(Counter, "s2d:rejected_total", target or NO_TARGET, code).inc()

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self.child(Gauge, name, *labels).set(value)

    def child(self, kind: type[Kind], name: str, *labels: str) -> Kind:
        """A metric of the table under these labels."""
        found = self._metrics[name].labels(*labels)
        assert isinstance(found, kind)
        return found

    def samples(self) -> Samples:
        """Everything that was counted so far."""
        return {
            (sample.name, tuple(sample.labels.items())): sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    def _made(self, metric: Metric) -> MetricWrapperBase:
        if metric.kind == "histogram":
            return Histogram(
                metric.name,
                metric.help,
                metric.labels,
                registry=self._registry,
                buckets=metric.buckets,
            )
        kind = Counter if metric.kind == "counter" else Gauge
        return kind(metric.name, metric.help, metric.labels, registry=self._registry)


class TargetMeter:
    """What is counted for one target; children are looked up once, not per event."""

    def __init__(self, meter: Meter, target: str) -> None:
        def counter(name: str) -> Counter:
            return meter.child(Counter, name, target)

        def histogram(name: str) -> Histogram:
            return meter.child(Histogram, name, target)

        def counters(name: str, values: Iterable[str]) -> Mapping[str, Counter]:
            return {value: meter.child(Counter, name, target, value) for value in values}

        self._meter = meter
        self._target = target
        self.running = meter.child(Gauge, "vllm:num_requests_running", target)
        self.waiting = meter.child(Gauge, "vllm:num_requests_waiting", target)
        self.migrations = counters("s2d:migrations_total", MIGRATIONS)
        self.fallbacks = counters("s2d:draft_fallback_total", FALLBACKS)
        self.finished = counters("vllm:request_success_total", FINISHED)
        self.prompt_tokens = counter("vllm:prompt_tokens_total")
        self.generation_tokens = counter("vllm:generation_tokens_total")
        self.rounds = counter("s2d:rounds_total")
        self.drafts = counter("vllm:spec_decode_num_drafts_total")
        self.draft_tokens = counter("vllm:spec_decode_num_draft_tokens_total")
        self.accepted_tokens = counter("vllm:spec_decode_num_accepted_tokens_total")
        self.ttft_s = histogram("vllm:time_to_first_token_seconds")
        self.itl_s = histogram("vllm:inter_token_latency_seconds")
        self.e2e_s = histogram("vllm:e2e_request_latency_seconds")
        self._round_s = histogram("s2d:round_seconds")
        self._draft_s = histogram("s2d:draft_seconds")
        self._verify_s = histogram("s2d:verify_seconds")
        self._batch_tokens = histogram("s2d:verify_batch_tokens")
        self._labelled: dict[tuple[str, int], Counter] = {}

    def proposal(self, num_accepted: int, exits: tuple[int, ...]) -> None:
        """Count one sequence's proposal of a round, and what was delivered of it."""
        self.drafts.inc()
        self.draft_tokens.inc(len(exits))
        self.accepted_tokens.inc(num_accepted)
        for position, exit_layer in enumerate(exits):
            self._by("s2d:exit_tokens_total", exit_layer).inc()
            if position < num_accepted:
                self._by("s2d:exit_accepted_tokens_total", exit_layer).inc()
                self._by("vllm:spec_decode_num_accepted_tokens_per_pos_total", position).inc()

    def round(
        self, seconds: float, draft_s: float | None, passes: Iterable[tuple[int, float]]
    ) -> None:
        """Count one round of a lane.

        Args:
            draft_s: the draft's work; None: there was none.
            passes: (tokens, seconds) of each forward pass of the target.
        """
        self._round_s.observe(seconds)
        if draft_s is not None:
            self._draft_s.observe(draft_s)
        for num_tokens, verify_s in passes:
            self._batch_tokens.observe(num_tokens)
            self._verify_s.observe(verify_s)

    def _by(self, name: str, value: int) -> Counter:
        if (name, value) not in self._labelled:
            self._labelled[name, value] = self._meter.child(Counter, name, self._target, str(value))
        return self._labelled[name, value]


class ChoiceMeter:
    """Counts one choice of a request as it is delivered."""

    def __init__(
        self,
        target: TargetMeter,
        num_prompt_tokens: int,
        started: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            num_prompt_tokens: counted with the first token; 0 for further choices of a prompt.
            started: when the request arrived, by `clock`.
        """
        self._target = target
        self._num_prompt_tokens = num_prompt_tokens
        self._started = started
        self._clock = clock
        self._last: float | None = None
        self._is_over = False

    def delivered(self, num_tokens: int, num_accepted: int, exits: tuple[int, ...]) -> None:
        """Count a round's tokens."""
        now = self._clock()
        if self._last is None:
            self._target.ttft_s.observe(now - self._started)
            self._target.prompt_tokens.inc(self._num_prompt_tokens)
        else:
            self._target.itl_s.observe(now - self._last)
        self._last = now
        self._target.rounds.inc()
        self._target.generation_tokens.inc(num_tokens)
        if exits:
            self._target.proposal(num_accepted, exits)

    def finished(self, reason: str) -> None:
        """Count the choice's end; only its first one is one."""
        if self._is_over:
            return
        self._is_over = True
        self._target.finished[reason].inc()
        if reason != "abort":
            self._target.e2e_s.observe(self._clock() - self._started)
