"""Each gate: green, and red for the one thing it is there for."""

from typing import Any

import pytest

from loadtest.gates import judge
from loadtest.results import Calibration, CellResult, ClientCpu, Spread, Status, Texts, Verdict
from loadtest.scenario import Bounds, Slo
from loadtest.summary import levels
from tests.loadtest.examples import run

TEXTS = Texts(target="t", dtype="float32", prompts=4, differing=0)
NINE: tuple[Status, ...] = ("ok",) * 9
SPREAD = Spread(mean=0.01, p50=0.01, p90=0.01, p95=0.01, p99=0.01)
CALIBRATION = Calibration(
    level=2, requests_per_s=100, output_tokens_per_s=100, ttft_s=SPREAD, client_cpu=None
)


def verdict(
    runs: list[CellResult],
    texts: Texts | None = TEXTS,
    calibration: Calibration | None = CALIBRATION,
) -> Verdict:
    found = levels(runs, Slo(ttft_s=1, tpot_s=1))
    return judge(runs, found, (texts,) if texts else (), calibration, Bounds())


def statuses(found: Verdict) -> dict[str, str]:
    return {gate.name: gate.status for gate in found.gates}


def open_loop(lags: list[float], starts: list[float]) -> CellResult:
    statuses: list[Status] = ["ok"] * len(lags)
    base = run("on", statuses=statuses, asked_rate=1.0)
    requests = [
        request.model_copy(update={"lag_s": lag, "start_s": start})
        for request, lag, start in zip(base.requests, lags, starts, strict=True)
    ]
    return base.model_copy(update={"requests": tuple(requests)})


def test_all_green() -> None:
    found = verdict([run("off"), run("on")])
    assert found.passed
    assert set(statuses(found).values()) == {"passed", "not checked"}


def test_an_open_loop_on_schedule_is_green() -> None:
    found = verdict([run("off"), open_loop([0.0, 0.001, 0.002], [0.0, 1.001, 2.002])])
    assert found.passed
    assert statuses(found)["requests leave on schedule"] == "passed"
    assert statuses(found)["the asked rate is sent"] == "passed"


@pytest.mark.parametrize(
    ("name", "runs", "others"),
    [
        ("requests leave on schedule", [open_loop([0.0, 0.006], [0.0, 1.0])], {}),
        ("the asked rate is sent", [open_loop([0.0, 0.001], [0.0, 1.02])], {}),
        (
            "the generator has processor time to spare",
            [run("on", client_cpu=ClientCpu(cores=0.9, busiest=0.9))],
            {},
        ),
        (
            "the generator has processor time to spare",
            [run("on", client_cpu=ClientCpu(cores=1000.0, busiest=0.1))],
            {},
        ),
        ("the generator is not the limit", [run("on", tokens=60)], {}),
        ("errors are few", [run("on", statuses=[*NINE, "429"])], {}),
        ("errors are few", [run("on", statuses=[*NINE, "failed"])], {}),
        (
            "the same text with and without speculation",
            [run("on")],
            {"texts": TEXTS.model_copy(update={"differing": 1})},
        ),
        ("speculation was on and off", [run("on", statuses=["cancelled"])], {}),
        (
            "speculation was on and off",
            [run("on"), run("off", requests=run("on").requests)],
            {},
        ),
    ],
)
def test_red(name: str, runs: list[CellResult], others: dict[str, Any]) -> None:
    found = verdict([run("off"), *runs], **others)
    assert not found.passed
    red = {gate for gate, status in statuses(found).items() if status == "failed"}
    assert red == {name}


def test_hanging_up_on_purpose_is_no_error() -> None:
    assert verdict([run("off"), run("on", statuses=["ok", "cancelled"])]).passed


def test_bfloat16_texts_are_counted_not_judged() -> None:
    found = verdict(
        [run("off"), run("on")], Texts(target="t", dtype="bfloat16", prompts=4, differing=3)
    )
    assert found.passed
    gate = next(gate for gate in found.gates if "same text" in gate.name)
    assert gate.status == "not checked"
    assert "3 of 4 differ" in gate.says


def test_nothing_measured_is_red() -> None:
    assert not verdict([], None, None).passed
