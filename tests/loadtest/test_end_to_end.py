"""The real AIPerf, from a first `python loadtest/run.py` to a report."""

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.results import Report
from loadtest.tables import tables

RUN = Path(__file__).parents[2] / "loadtest" / "run.py"

OPEN = """
description: Arrivals in bursts, of which some hang up.
load: {kind: burst, levels: [3], bursts: 2, every_s: 1}
cancel: {share: 0.5, after_s: 0}
repeats: 1
max_tokens: 32
bounds: {max_schedule_lag_s: 5, min_achieved_rate: 0.1}
"""


def load_test(folder: Path, *arguments: str) -> Report:
    """Run it against the null server; the report it leaves."""
    command = [sys.executable, str(RUN), *arguments, "--null", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Report.model_validate_json((folder / "report.json").read_text("utf-8"))


@pytest.mark.loadtest
@pytest.mark.timeout(1200)
def test_a_closed_loop(tmp_path: Path) -> None:
    report = load_test(tmp_path, "smoke", "--repeats", "2")
    assert report.complete
    assert report.about.aiperf is not None
    assert {level.arm: level.requests for level in report.levels} == {
        "off": {"ok": 2},
        "on": {"ok": 2},
    }
    on = next(level for level in report.levels if level.arm == "on")
    assert on.speculation.drafted == 2 * 24
    assert on.speculation.exits == {"4": 2 * 24}
    assert on.mean_accepted_tokens == 4
    assert on.mean_acceptance_length == 4
    assert on.speculation.accepted_by_position == on.speculation.drafted_by_position
    assert on.ttft_s is not None
    assert 0 < on.ttft_s.p50 < 5
    assert "Speculation" in [table.title for table in tables(report)]


@pytest.mark.loadtest
@pytest.mark.timeout(1200)
def test_an_open_loop(tmp_path: Path) -> None:
    (tmp_path / "open.yaml").write_text(OPEN, "utf-8")
    report = load_test(tmp_path / "out", str(tmp_path / "open.yaml"))
    gates = {gate.name: gate.status for gate in report.verdict.gates}
    assert gates["requests leave on schedule"] == "passed"
    assert all(sum(level.requests.values()) == 6 for level in report.levels)
