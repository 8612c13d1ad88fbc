"""What /metrics says, parsed by Prometheus's own client."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from s2d_serve.observability.exposition import Samples


def scrape(url: str) -> Samples:
    """The samples of one scrape."""
    answer = httpx.get(f"{url}/metrics", timeout=30)
    assert answer.status_code == 200, answer.text
    return parsed(answer.text)


def parsed(text: str) -> Samples:
    """The samples in Prometheus text."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all series of this name with these labels."""
    return sum(
        value
        for (found, own), value in samples.items()
        if found == name and labels.items() <= dict(own).items()
    )


def difference(after: Samples, before: Samples) -> Samples:
    """What was counted between two scrapes."""
    return {series: value - before.get(series, 0.0) for series, value in after.items()}
