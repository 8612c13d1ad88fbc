"""The report's files."""

import re
from pathlib import Path

import pytest

from loadtest.compare import compare
from loadtest.gates import judge
from loadtest.output import markdown, write_report
from loadtest.plan import Arm
from loadtest.results import CellResult, Report, Texts
from loadtest.summary import levels, speedups
from tests.loadtest.examples import about, run, scenario, undrafted


def report(runs: list[CellResult]) -> Report:
    what = scenario(description="a < b | c")
    found = tuple(levels(runs, what.slo))
    texts = (Texts(target="t", dtype="float32", prompts=2, differing=0),)
    made = about(scenario=what, machine={"cpu": "any"}, prompts="/far/away/prompts.jsonl")
    return Report(
        about=made,
        complete=True,
        runs="4 of 4",
        verdict=judge(made, runs, found, texts, None, {}),
        texts=texts,
        calibration=None,
        levels=found,
        speedups=tuple(speedups(runs, is_open=False)),
    )


ARMS: tuple[tuple[Arm, int], ...] = (("off", 10), ("on", 15))
RUNS = [
    run(arm, repeat, level=level, tokens=tokens + repeat)
    for level in (1, 2, 4)
    for repeat in (0, 1, 2)
    for arm, tokens in ARMS
]


def test_all_files_are_written_and_read_back(tmp_path: Path) -> None:
    replicas = ((0.0, {"t": 1}), (5.0, {"t": 2}))
    whole = report(RUNS).model_copy(update={"replicas": replicas})
    write_report(whole, tmp_path)
    assert Report.model_validate_json((tmp_path / "report.json").read_text("utf-8")) == whole
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "report.json", "report.md", "report.html", "throughput.png", "speedup.png", "latency.png",
        "pareto.png", "goodput.png", "acceptance.png", "replicas.png",
    }  # fmt: skip
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 7
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "a &lt; b" in page


def test_text_says_what_was_measured(tmp_path: Path) -> None:
    text = markdown(report(RUNS), {})
    assert "Green: no gate failed." in text
    assert "| t | 4 | 1.4" in text  # 15 / 10, 16 / 11, 17 / 12
    assert "a < b \\| c" in text
    assert "prompts.jsonl" in text
    assert "/far/away" not in text
    assert "the service has none" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_pairs_that_drafted_nothing_show_what_the_machine_scatters() -> None:
    assert "by itself" not in markdown(report(RUNS), {})
    idle = [undrafted(run("on", 3, level=4, tokens=9)), run("off", 3, level=4, tokens=10)]
    text = markdown(report([*RUNS, *idle]), {})
    assert " 1.50 1.45 1.42 0.90* |" in text
    assert "Such pairs (1) are off by 10.5% (root mean square)" in text


def test_a_partial_report_without_any_run(tmp_path: Path) -> None:
    whole = report([]).model_copy(update={"complete": False, "runs": "0 of 4"})
    write_report(whole, tmp_path)
    assert "Partial: 0 of 4 runs" in (tmp_path / "report.md").read_text("utf-8")
    assert not list(tmp_path.glob("*.png"))


def test_only_failures_can_be_drawn(tmp_path: Path) -> None:
    write_report(report([run("on", statuses=("5xx",)), run("off", statuses=("5xx",))]), tmp_path)
    assert "Red." in (tmp_path / "report.md").read_text("utf-8")


def test_old_plots_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "speedup.png").touch()
    write_report(report([run("off")]), tmp_path)
    assert not (tmp_path / "speedup.png").exists()


def test_a_report_of_another_version_is_refused() -> None:
    fields = report(RUNS).model_dump(mode="json") | {"schema_version": 1}
    with pytest.raises(ValueError, match="schema_version"):
        Report.model_validate(fields)


def test_compare_marks_what_is_more_than_noise() -> None:
    faster = [
        run(r.cell.arm, r.cell.repeat, level=r.cell.level, tokens=2 * r.requests[0].output_tokens)
        for r in RUNS
        if r.cell.arm == "on"
    ]
    text = compare(report(RUNS), report(faster))
    rows = [line for line in text.splitlines() if line.startswith("| t |")]
    assert len(rows) == 3
    assert all("2.000 (" in row and ") *" in row for row in rows)
    same = compare(report(RUNS), report(RUNS))
    assert "1.000 (" in same
    assert ") *" not in same
    assert "in common" in compare(report(RUNS), report([]))


def test_compare_says_what_is_not_the_same() -> None:
    first, second = report(RUNS), report(RUNS)
    assert "Not the same" not in compare(first, second)
    for fields, says in (
        ({"max_tokens": 99}, "Not the same in both: max_tokens (8; 99)."),
        ({"load": {"kind": "burst", "levels": [2], "bursts": 1, "every_s": 1}}, "do not compare"),
    ):
        other = second.about.model_copy(update={"scenario": scenario(**fields)})
        assert says in compare(first, second.model_copy(update={"about": other}))


def test_a_test_that_an_error_ended_is_not_green() -> None:
    fields = {"complete": False, "runs": "2 of 4", "ended_by": "AIPerf ended with 1."}
    text = markdown(report(RUNS).model_copy(update=fields), {})
    assert "Ended by an error after 2 of 4 runs: AIPerf ended with 1." in text
