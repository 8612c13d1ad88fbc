"""The null server has the service's shape, and our own few requests work against it."""

import json

import httpx
import pytest

from loadtest import service
from loadtest.nullserver import NUM_TOKENS, serving
from loadtest.prompts import OWN, read_prompts
from loadtest.results import Texts
from tests.loadtest.examples import scenario


def chat(client: httpx.Client, **fields: object) -> httpx.Response:
    body = {"model": "a", "messages": [{"role": "user", "content": "hello"}], **fields}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_stream_ends_with_usage_and_counts_that_add_up(enabled: bool) -> None:
    speculation = {"enabled": enabled, "detailed": enabled}
    with serving(("a",)) as url, httpx.Client(base_url=url) as client:
        text = chat(client, stream=True, speculation=speculation).text
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    *chunks, last = map(json.loads, events[:-1])
    contents = [c["choices"][0]["delta"].get("content", "") for c in chunks]
    assert len("".join(contents).split()) == NUM_TOKENS == last["usage"]["completion_tokens"]
    counts = last["metrics"]["speculative_decoding"]
    histogram = counts["acceptance_histogram"]
    assert sum(histogram) == counts["num_spec_steps"]
    accepted = sum(j * n for j, n in enumerate(histogram))
    assert accepted == counts["num_accepted_draft_tokens"] == sum(counts["exit_counts"].values())
    assert counts["mean_accepted_tokens"] * counts["num_rounds"] == NUM_TOKENS
    assert (counts["num_draft_tokens"] > 0) is enabled
    assert ("per_step_drafted" in counts) is enabled


def test_models_texts_and_no_metrics() -> None:
    what = scenario(targets="all")
    with serving(("a", "b")) as url, httpx.Client(base_url=url) as client:
        cards = service.models(client)
        assert service.chosen(cards, what) == ["a", "b"]
        assert service.chosen(cards, scenario(targets="first")) == ["a"]
        with pytest.raises(service.ServiceError, match="'c'; the service has a, b"):
            service.chosen(cards, scenario(targets=["c"]))
        found = service.compare_texts(client, what, cards[0], read_prompts(OWN)[:2])
        assert found == Texts(target="a", dtype="unknown", prompts=2, differing=0)
        assert service.scrape(client) is None
        with service.Watch(client) as watch:
            pass
        assert watch.seen == []


def test_no_service_says_what_to_do() -> None:
    with serving(("a",)) as url:
        pass
    with (
        httpx.Client(base_url=url) as client,
        pytest.raises(service.ServiceError, match="make serve"),
    ):
        service.models(client)
