"""Metrics of the whole service: each router replica counts, a keeper holds what all counted.

See serving/metrics_keeper.py for the keeper.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.util.metrics import Gauge

from s2d_serve.api.info import AVAILABLE
from s2d_serve.errors import UnavailableError
from s2d_serve.observability.exposition import Samples, text
from s2d_serve.observability.meter import Meter
from s2d_serve.observability.table import METRICS, Metric
from s2d_serve.serving.app import DRAFT
from s2d_serve.serving.directory import Directory, View
from s2d_serve.serving.metrics_keeper import PUSH_S
from s2d_serve.serving.tasks import value_of

log = logging.getLogger("s2d_serve")

LOOK_S = 10.0
"""How often it sets its gauges of targets and draft unasked, and Ray's metrics: Ray reads them as
often.
"""
ANSWER_S = 2.0
"""How long a scrape waits for the keeper."""


class Metrics:
    """One router replica's part: what it counts, and the whole for whoever asks it."""

    def __init__(self, meter: Meter, directory: Directory, keeper: Any) -> None:
        """`keeper`: Serve handle of the MetricsKeeper."""
        self.meter = meter
        self._directory = directory
        self._keeper = keeper
        self._router_id = uuid.uuid4().hex

    async def scrape(self) -> bytes:
        """The service's metrics as Prometheus text.

        Raises: UnavailableError if the keeper does not answer.
        """
        self._set_gauges(await self._directory.look())
        samples = self.meter.samples()
        total: Samples | None = await self._ask(self._keeper.total.remote(self._router_id, samples))
        if total is None:
            raise UnavailableError("metrics are being gathered; try again in a few seconds")
        return text(total)

    async def run(self) -> None:
        """Send counts to the keeper and to Ray, for ever."""
        gauges = RayGauges()
        looked_at = -LOOK_S
        while True:
            await asyncio.sleep(PUSH_S)
            try:
                is_due = time.monotonic() - looked_at > LOOK_S
                if is_due:
                    looked_at = time.monotonic()
                    self._set_gauges(await self._directory.look())
                samples = self.meter.samples()
                if is_due:
                    gauges.set(samples)
                await self._ask(self._keeper.push.remote(self._router_id, samples))
            except Exception as error:  # Serve's controller, Ray's GCS: all may be away for a while
                log.warning("metrics were not sent: %s", error)

    @staticmethod
    async def _ask(answer: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(value_of(answer), ANSWER_S)
        except (TimeoutError, RayError, RayServeException):
            raise UnavailableError(
                "the keeper of the metrics does not answer; try again in a few seconds"
            ) from None

    def _set_gauges(self, views: Mapping[str, View]) -> None:
        for name, view in views.items():
            self.meter.set("s2d:available", view.state in AVAILABLE, name)
            self.meter.set("s2d:replicas", len(view.replicas), name, "ready")
            self.meter.set("s2d:replicas", view.num_silent, name, "silent")
            if name == DRAFT:
                self.meter.set("s2d:draft_sequences", view.num_sequences, name)
                self.meter.set("s2d:draft_waiting", view.num_waiting, name)
            else:
                usage = view.num_sequences / view.num_slots if view.num_slots else 0.0
                self.meter.set("vllm:kv_cache_usage_perc", usage, name)


class RayGauges:
    """The same samples at the metrics port of this node's Ray, as `ray_` and the name with `_` for
    `:`.

    Each is a gauge there: of its own histograms Ray keeps the buckets only, so that sums would be
    guesses. `rate` and `histogram_quantile` work on them all the same.
    """

    def __init__(self) -> None:
        self._gauges = {
            name: Gauge(name.replace(":", "_"), metric.help, _tag_keys(metric, name))
            for metric in METRICS
            for name in metric.sample_names
        }

    def set(self, samples: Samples) -> None:
        """Say how far the counts are."""
        for (name, labels), value in samples.items():
            self._gauges[name].set(value, dict(labels))


def _tag_keys(metric: Metric, sample_name: str) -> tuple[str, ...]:
    return (*metric.labels, "le") if sample_name.endswith("_bucket") else metric.labels
