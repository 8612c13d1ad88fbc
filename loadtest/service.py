"""The service under test, asked by us and not by AIPerf: what it serves, counts and says.

A load generator cannot compare texts between two settings, so those few requests are made here.
"""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.options import KEY
from loadtest.prompts import Prompt
from loadtest.results import Texts
from loadtest.scenario import Scenario

REPLICAS = "s2d:replicas"
_POLL_S = 2.0
_TRIES = 5
"""For a page of metrics that is not there for a moment."""
_ANSWER_S = 600.0


class ServiceError(RuntimeError):
    """The service does not answer as it should; the message says what to do."""


def connect(url: str) -> httpx.Client:
    """A client of the service, with its key if it wants one; the caller closes it."""
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}
    return httpx.Client(base_url=url, headers=headers, timeout=30)


def models(client: httpx.Client) -> list[dict[str, Any]]:
    """What GET /v1/models lists.

    Raises: ServiceError.
    """
    try:
        answer = client.get("/v1/models")
        answer.raise_for_status()
        cards: list[dict[str, Any]] = answer.json()["data"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ServiceError(
            f"no service at {client.base_url}: {error}; start one with `make serve`"
        ) from None
    return cards


def chosen(cards: Sequence[Mapping[str, Any]], scenario: Scenario) -> list[str]:
    """The targets of a scenario.

    Raises: ServiceError naming one that is not served.
    """
    served = [str(card["id"]) for card in cards]
    if scenario.targets == "all":
        return served
    if scenario.targets == "first":
        return served[:1]
    for name in scenario.targets:
        if name not in served:
            raise ServiceError(f"no target {name!r}; the service has {', '.join(served)}")
    return list(scenario.targets)


def identities(cards: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any, Any]]:
    """What each target is made of: name, weights, draft; not what state it is in."""
    found = []
    for card in cards:
        ours = card.get("s2d", {})
        draft = {k: v for k, v in (ours.get("draft") or {}).items() if k != "replicas"}
        found.append((str(card["id"]), ours.get("weights"), draft))
    return sorted(found, key=lambda identity: identity[0])


def dtype(card: Mapping[str, Any]) -> str:
    """The type of a target's weights; unknown where the service does not say."""
    return str(card.get("s2d", {}).get("weights", {}).get("dtype", "unknown"))


def scrape(client: httpx.Client) -> tuple[dict[str, float], dict[str, int]] | None:
    """The counters of GET /metrics by name and labels, and the ready replicas by model.

    None: it has no such page.
    """
    try:
        answer = client.get("/metrics", timeout=5)
    except httpx.HTTPError:
        return None
    if answer.status_code != httpx.codes.OK or "# TYPE" not in answer.text:
        return None
    counters: dict[str, float] = {}
    replicas: dict[str, int] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name.endswith("_total"):
                rest = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
                counters[f"{sample.name}{{{rest}}}"] = sample.value
            elif sample.name == REPLICAS and labels.get("state") == "ready":
                replicas[labels.get("model_name", "?")] = int(sample.value)
    return counters, replicas


def counters(client: httpx.Client) -> dict[str, float] | None:
    """The counters of GET /metrics, asked for again where it is busy; None: it has no such page."""
    for _ in range(_TRIES):
        if found := scrape(client):
            return found[0]
        with suppress(httpx.HTTPError):
            if client.get("/metrics", timeout=5).status_code == httpx.codes.NOT_FOUND:
                return None
        time.sleep(_POLL_S)
    return None


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What counters grew by; those that did not are left out."""
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return {name: value for name, value in grown.items() if value > 0}


class Watch:
    """Ready replicas every few seconds, while the context lasts."""

    def __init__(self, client: httpx.Client) -> None:
        self.seen: list[tuple[float, dict[str, int]]] = []
        """Unix time, replicas by model."""
        self._client = client
        self._done = Event()
        self._thread = Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _poll(self) -> None:
        while True:
            if found := scrape(self._client):
                self.seen.append((time.time(), found[1]))
            if self._done.wait(_POLL_S):
                return


def compare_texts(
    client: httpx.Client, scenario: Scenario, card: Mapping[str, Any], prompts: Sequence[Prompt]
) -> Texts:
    """Each prompt once without and once with speculation, two at a time.

    Raises: ServiceError if one is not answered.
    """
    target = str(card["id"])

    def ask(prompt: Prompt, enabled: bool) -> str:
        body = {
            "model": target,
            "messages": [{"role": "user", "content": prompt.text}],
            "max_tokens": scenario.max_tokens,
            "temperature": scenario.temperature,
            "seed": scenario.seed,
            "speculation": {"enabled": enabled},
        }
        try:
            answer = client.post("/v1/chat/completions", json=body, timeout=_ANSWER_S)
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"])
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise ServiceError(f"{target} does not answer: {error}") from None

    with ThreadPoolExecutor(2) as pool:
        off = pool.map(lambda prompt: ask(prompt, False), prompts)
        on = pool.map(lambda prompt: ask(prompt, True), prompts)
        differing = sum(a != b for a, b in zip(off, on, strict=True))
    return Texts(target=target, dtype=dtype(card), prompts=len(prompts), differing=differing)
