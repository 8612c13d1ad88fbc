"""The requests of a run."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from loadtest.plan import Cell
from loadtest.prompts import OWN, read_prompts
from loadtest.workload import asked_rate, planned, warm_up, write
from tests.loadtest.examples import scenario

PROMPTS = read_prompts(OWN)


def cell(arm: str = "on", repeat: int = 0, level: float = 2) -> Cell:
    return Cell.model_validate(
        {"targets": ["a", "b"], "traffic": "skewed", "level": level, "arm": arm, "repeat": repeat}
    )


def test_a_pair_sends_the_same_requests_and_repeats_send_others() -> None:
    what = scenario()
    off, on = planned(what, cell("off"), PROMPTS), planned(what, cell("on"), PROMPTS)
    assert [replace(request, arm="on") for request in off] == on
    assert {request.arm for request in off} == {"off"}
    assert planned(what, cell(), PROMPTS) != planned(what, cell(repeat=1), PROMPTS)


def test_a_closed_loop_has_no_rate_and_a_warm_up_for_all_targets() -> None:
    what = scenario(warmup_requests=3)
    requests = planned(what, cell(), PROMPTS)
    assert len(requests) == 4
    assert len({request.prompt.text for request in requests}) == 4
    assert asked_rate(requests) is None
    first = warm_up(what, (cell("off"), cell("on")), PROMPTS)
    assert [(request.target, request.arm) for request in first] == [
        ("a", "on"), ("b", "on"), ("a", "on"),
    ]  # fmt: skip


def test_a_schedule_has_no_warm_up_of_its_own() -> None:
    load = {"kind": "burst", "levels": [3], "bursts": 2, "every_s": 10}
    assert warm_up(scenario(load=load), (cell(),), PROMPTS) == []


def test_a_mix_gives_each_target_its_share() -> None:
    what = scenario(load=scenario().load.model_copy(update={"min_requests": 10}))
    for repeat in range(5):
        requests = planned(what, cell(repeat=repeat), PROMPTS)
        assert [sum(r.target == name for r in requests) for name in "ab"] == [8, 2]


def test_poisson_arrivals_come_at_the_rate_that_is_asked_for() -> None:
    load = {"kind": "poisson", "levels": [5.0], "duration_s": 200}
    requests = planned(scenario(load=load), cell(level=5.0), PROMPTS)
    times = [request.scheduled_s or 0.0 for request in requests]
    gaps = [b - a for a, b in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.2, rel=0.1)
    assert sum(gap > 0.2 for gap in gaps) / len(gaps) == pytest.approx(0.37, abs=0.05)  # 1/e
    assert asked_rate(requests) == pytest.approx(5.0, rel=0.1)
    assert sum(r.target == "a" for r in requests) / len(requests) == pytest.approx(0.8, abs=0.005)


def test_a_slow_rate_still_has_the_fewest_arrivals() -> None:
    load = {"kind": "poisson", "levels": [0.01], "duration_s": 5, "min_requests": 6}
    assert len(planned(scenario(load=load), cell(level=0.01), PROMPTS)) == 6


def test_bursts_arrive_together() -> None:
    load = {"kind": "burst", "levels": [3], "bursts": 2, "every_s": 10}
    requests = planned(scenario(load=load), cell(level=3), PROMPTS)
    assert [request.scheduled_s for request in requests] == [0, 0, 0, 10, 10, 10]


def test_the_file_is_what_aiperf_reads(tmp_path: Path) -> None:
    load = {"kind": "burst", "levels": [2], "bursts": 2, "every_s": 1.5}
    what = scenario(load=load, max_tokens=9)
    requests = planned(what, cell(), PROMPTS)
    write({"on-0": requests}, what, tmp_path / "requests.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [line["timestamp"] for line in lines] == [0, 0, 1500, 1500]
    assert lines[0]["text"] == requests[0].prompt.text
    assert lines[0]["output_length"] == 9
    assert lines[0]["session_id"] == "on-0/r0"
    speculation = {"enabled": True, "detailed": True}
    of = requests[0]
    assert lines[0]["extra"] == {"model": of.target, "seed": of.seed, "speculation": speculation}


def test_phases_follow_one_another_in_the_file(tmp_path: Path) -> None:
    off, on = planned(scenario(), cell("off"), PROMPTS), planned(scenario(), cell("on"), PROMPTS)
    write({"off-0": off, "on-0": on}, scenario(), tmp_path / "requests.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [line["session_id"].split("/")[0] for line in lines] == ["off-0"] * 4 + ["on-0"] * 4
    assert [line["extra"]["speculation"]["enabled"] for line in lines] == [False] * 4 + [True] * 4
    assert "timestamp" not in lines[0]
