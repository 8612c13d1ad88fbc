"""Each gate: green, and red for the one thing it is there for."""

from collections.abc import Sequence
from typing import Any

import pytest

from loadtest.gates import judge
from loadtest.plan import Arm
from loadtest.results import (
    Calibration,
    CellResult,
    ClientCpu,
    Speculation,
    Spread,
    Status,
    Texts,
    Verdict,
)
from loadtest.scenario import Slo
from loadtest.summary import levels
from tests.loadtest.examples import about, run

TEXTS = Texts(target="t", dtype="float32", prompts=4, differing=0)
ARMS: tuple[Arm, ...] = ("off", "on")
NINE: tuple[Status, ...] = ("ok",) * 9
UNDER_LOAD = {"pairs_under_load": 9, "differing_under_load": 1}
SPREAD = Spread(mean=0.01, p50=0.01, p90=0.01, p95=0.01, p99=0.01)
CALIBRATION = Calibration(
    level=2, requests_per_s=100, output_tokens_per_s=100, ttft_s=SPREAD, client_cpu=None
)


def of_other(found: CellResult) -> CellResult:
    """The same run, of another target, without a proposal."""
    cell = found.cell.model_copy(update={"targets": ("other",)})
    none = {"target": "other", "speculation": Speculation()}
    requests = tuple(r.model_copy(update=none) for r in found.requests)
    return found.model_copy(update={"cell": cell, "requests": requests})


BY_OTHER = [of_other(run("off")), of_other(run("on"))]


def verdict(
    runs: list[CellResult],
    texts: Texts | None = TEXTS,
    calibration: Calibration | None = CALIBRATION,
    cards: Sequence[dict[str, Any]] = ({"id": "t"},),
    counters: dict[str, float] | None = None,
) -> Verdict:
    found = levels(runs, Slo(ttft_s=1, tpot_s=1))
    compared = (texts,) if texts else ()
    return judge(about(models=tuple(cards)), runs, found, compared, calibration, counters or {})


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
        (
            "the same text with and without speculation",
            [run("on")],
            {"texts": TEXTS.model_copy(update={"prompts": 0, **UNDER_LOAD})},
        ),
        (
            "errors are few",  # in one level, and hidden by another where all are added up
            [run("on", statuses=["5xx", "ok"]), run("on", level=4, statuses=["ok"] * 300)],
            {},
        ),
        ("speculation was on and off", [run("on"), *BY_OTHER], {}),
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


def test_a_draft_that_rested_is_told_from_one_that_was_not_there() -> None:
    counters = {
        "s2d:draft_fallback_total{model_name=other,reason=rest}": 7.0,
        "s2d:draft_fallback_total{model_name=other,reason=late}": 2.0,
    }
    off, on = BY_OTHER
    found = verdict([off, on], counters=counters)
    gate = next(gate for gate in found.gates if gate.name == "speculation was on and off")
    assert gate.status == "failed"
    assert "in 7 rounds the draft rested" in gate.says


def test_without_a_draft_nothing_need_be_drafted() -> None:
    found = verdict(BY_OTHER, cards=[{"id": "other", "s2d": {"draft": None}}])
    assert found.passed
    assert statuses(found)["speculation was on and off"] == "not checked"


def test_texts_that_were_not_compared_are_not_the_same() -> None:
    found = verdict([run("off"), run("on")], TEXTS.model_copy(update={"prompts": 0}))
    assert statuses(found)["the same text with and without speculation"] == "not checked"


def test_targets_of_a_mix_are_one_load() -> None:
    runs = []
    for arm in ARMS:
        cell = run(arm).cell.model_copy(update={"traffic": "even", "targets": ("t", "other")})
        both = (*run(arm, tokens=30).requests, *of_other(run(arm, tokens=30)).requests)
        runs.append(run(arm, cell=cell, requests=both))
    draftless = [{"id": "other", "s2d": {"draft": None}}]
    assert not verdict(runs, cards=draftless).passed
    assert statuses(verdict(runs, cards=draftless))["the generator is not the limit"] == "failed"


def test_nothing_measured_is_red() -> None:
    assert not verdict([], None, None).passed
