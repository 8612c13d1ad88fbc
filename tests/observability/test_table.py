"""The documents and the files of observability/ hold what the table holds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2d_serve.config import TARGET_NAME
from s2d_serve.observability import request, table
from s2d_serve.observability.exposition import text
from s2d_serve.observability.meter import Meter
from tests.serving.scraped import parsed

ROOT = Path(__file__).parents[2]
USE = re.compile(r"((?:vllm|s2d):[a-zA-Z0-9_]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-zA-Z_]+)\s*(?:=~|!~|!=|=)\s*\"")
GROUPING = re.compile(r"\b(?:by|on|without)\s*\(([^)]*)\)")


def alerts() -> dict[str, str]:
    """Expression of each alert."""
    groups = yaml.safe_load((ROOT / "observability/alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels() -> dict[str, str]:
    """Each query of the dashboard, by panel and legend."""
    dashboard: dict[str, Any] = json.loads((ROOT / "observability/grafana.json").read_text())
    return {
        f"{panel['title']}: {query['legendFormat']}": query["expr"]
        for panel in dashboard["panels"]
        for query in panel.get("targets", [])
    }


@pytest.mark.parametrize(("name", "expression"), [*alerts().items(), *panels().items()])
def test_expressions_use_metrics_and_labels_of_the_table(name: str, expression: str) -> None:
    """What is not in the table would be empty for ever."""
    by_sample = {sample: m for m in table.METRICS for sample in m.sample_names}
    labels = {"le"}
    used = USE.findall(expression)
    for metric, selector in used:
        assert metric in table.SAMPLE_NAMES, f"{name}: {metric}"
        own = {*by_sample[metric].labels, "le"}
        assert set(LABEL.findall(selector)) <= own, f"{name}: {metric}{{{selector}}}"
        labels |= own
    for group in GROUPING.findall(expression):
        assert {label.strip() for label in group.split(",")} <= labels, f"{name}: {group}"
    assert used or expression.startswith("up{")


def test_the_dashboard_and_alerts_look_at_every_metric() -> None:
    """A metric that nobody looks at is none that the service needs."""
    used = {m for e in [*alerts().values(), *panels().values()] for m, _ in USE.findall(e)}
    assert {metric.name for metric in table.METRICS if not used & set(metric.sample_names)} == {
        "vllm:prompt_tokens_total",  # what tools of vLLM's users ask for
    }


def test_the_page_holds_the_table() -> None:
    """Line by line."""
    page = (ROOT / "docs/METRICS.md").read_text()
    assert "\n".join(table.markdown()) in page
    for field, meaning in request.LOG_FIELDS.items():
        assert f"| `{field}` | {meaning} |" in page
    for reasons in (table.FALLBACKS, table.MIGRATIONS):
        for reason, meaning in reasons.items():
            assert f"| `{reason}` | {meaning} |" in page


def test_what_is_exported_is_the_table() -> None:
    """Names, kinds, labels and help; nothing else, nothing less."""
    meter = Meter(["tiny"], ["overloaded"])
    target = meter.of("tiny")
    target.proposal(1, (2, 4))
    for metric in table.METRICS:
        if metric.is_common:
            meter.set(metric.name, 1.0, *("tiny" for _ in metric.labels))
    page = text(meter.samples()).decode()
    assert {name for name, _ in parsed(page)} == table.SAMPLE_NAMES
    for metric in table.METRICS:
        assert f"# TYPE {metric.name} {metric.kind}\n" in page
        assert f"# HELP {metric.name} {metric.help}\n" in page
        for (name, labels), _ in parsed(page).items():
            if name in metric.sample_names:
                assert {label for label, _ in labels} - {"le"} == set(metric.labels)


def test_no_target_can_be_called_like_none() -> None:
    """Errors without a target have a label value of their own."""
    assert not re.match(TARGET_NAME, table.NO_TARGET)
