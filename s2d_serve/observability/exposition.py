"""From what several router replicas counted to one text that Prometheus reads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from s2d_serve.observability.table import METRICS

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
Series = tuple[str, tuple[tuple[str, str], ...]]
"""Sample name, and its labels with their values."""
Samples = Mapping[Series, float]

_KINDS = {name: metric for metric in METRICS for name in metric.sample_names}


def added(own: Samples, live: Iterable[Samples], gone: Iterable[Samples]) -> Samples:
    """The service's samples from those of its router replicas.

    Args:
        own: of the replica that answers; what all see alike is taken from here.
        live: of the others.
        gone: of replicas that are no more: their counts stay, their gauges do not.
    """
    total = dict(own)
    for samples, is_live in [*((s, True) for s in live), *((s, False) for s in gone)]:
        for series, value in samples.items():
            metric = _KINDS[series[0]]
            if metric.is_common or (metric.kind == "gauge" and not is_live):
                continue
            total[series] = total.get(series, 0.0) + value
    return total


def text(samples: Samples) -> bytes:
    """Prometheus text, of the type `CONTENT_TYPE`."""
    registry = CollectorRegistry()
    registry.register(_Given(samples))
    return generate_latest(registry)


@dataclass(frozen=True, eq=False)
class _Given(Collector):
    """Samples as `prometheus_client` wants them."""

    samples: Samples

    def collect(self) -> Iterator[Family]:
        """The families, in the table's order."""
        families = {m.name: Family(m.name.removesuffix("_total"), m.help, m.kind) for m in METRICS}
        for (name, labels), value in self.samples.items():
            families[_KINDS[name].name].add_sample(name, dict(labels), value)
        return iter(families.values())
