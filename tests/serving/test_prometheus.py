"""A real Prometheus on a real service: every query of observability/ finds something."""

import asyncio
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.observability.test_table import ROOT, alerts, panels
from tests.ports import free_port
from tests.serving.conftest import Deploy

pytestmark = [pytest.mark.ray, pytest.mark.prometheus, pytest.mark.timeout(600)]

SCRAPE_S = 3
"""How often Prometheus looks, and how long it waits for an answer: after one that does not come, a
gauge has no value.
"""
TRAFFIC_S = 15.0
"""How long there are requests: rates need two scrapes."""
EXPLAINED: dict[str, str] = {
    "Errors: {{model_name}} {{code}}": "codes that do not occur are left out, and none occurs here",
}
"""Queries that may find nothing in this run, and why."""
COMPARISON = re.compile(r"\s*(==|>|<)\s*[\d.]+\s*$")


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any]) -> str:
    """The tiny app."""
    return deploy(tiny_args)


@pytest.fixture
def prometheus(url: str, tmp_path: Path) -> Iterator[str]:
    """A server with our files, but for the address and how often it looks; its URL."""
    program = shutil.which("prometheus")
    assert program, "apt-get install prometheus"
    config = yaml.safe_load((ROOT / "observability/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [url.removeprefix("http://")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / "observability/alerts.yml", tmp_path)
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
        yield f"http://{address}"
        process.terminate()
        process.wait(30)


async def traffic(url: str, seconds: float) -> None:
    """Clients of both targets, drafted for and not."""
    end = time.monotonic() + seconds

    async def client(http: httpx.AsyncClient, number: int) -> None:
        while time.monotonic() < end:
            body = {
                "model": ("tiny", "tiny-int8")[number % 2],
                "prompt": "then there is the thing in it",
                "max_tokens": 40,
                "seed": number,
                "speculation": {"enabled": number < 4},
            }
            answer = await http.post(f"{url}/v1/completions", json=body)
            assert answer.status_code == 200, answer.text

    async with httpx.AsyncClient(timeout=60) as http:
        await asyncio.gather(*(client(http, number) for number in range(6)))


def finds(prometheus: str, expression: str) -> bool:
    """Whether a query has a number to show."""
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, timeout=30)
    assert answer.status_code == 200, (expression, answer.text)
    values = [float(series["value"][1]) for series in answer.json()["data"]["result"]]
    return any(math.isfinite(value) for value in values)


def test_every_query_finds_something(url: str, prometheus: str) -> None:
    """Panels as they are; alerts without their thresholds, which nothing passes here."""
    asyncio.run(traffic(url, TRAFFIC_S))
    queries = {
        name: query.replace("$__rate_interval", "30s").replace("$model", ".*")
        for name, query in panels().items()
    }
    for alert, expression in alerts().items():
        for number, side in enumerate(re.split(r"\n\s*and\n", expression)):
            assert COMPARISON.search(side), (alert, side)
            queries[f"{alert} {number}"] = COMPARISON.sub("", side)
    empty = {name for name, query in queries.items() if not finds(prometheus, query)}
    assert empty == set(EXPLAINED)


def test_the_alerts_are_loaded_and_silent(url: str, prometheus: str) -> None:
    """On a service that is well."""
    asyncio.run(traffic(url, 2.0 * SCRAPE_S))
    rules = httpx.get(f"{prometheus}/api/v1/rules", timeout=30).json()["data"]["groups"][0]["rules"]
    assert [rule["name"] for rule in rules] == list(alerts())
    assert {rule["name"]: rule["state"] for rule in rules} == dict.fromkeys(alerts(), "inactive")
    assert all(rule["health"] == "ok" for rule in rules), rules


def test_promtool_finds_no_fault() -> None:
    """In the files as they are."""
    folder = ROOT / "observability"
    for kind, file in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        checked = subprocess.run(
            ["promtool", "check", kind, str(folder / file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
