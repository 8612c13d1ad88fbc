"""A whole load test against the null server, with a stand-in that writes AIPerf's exports."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest import cli, generator, machine, output, service
from loadtest.generator import GeneratorError, Sample
from loadtest.nullserver import serving
from loadtest.options import KEY
from loadtest.prompts import OWN, read_prompts
from loadtest.results import Report
from loadtest.runner import LoadTest
from loadtest.workload import Planned
from tests.loadtest.examples import about, counts, exported, failed, scenario, write_exports

UNAVAILABLE = {"code": 503, "type": "Unavailable", "message": "loading"}


class FakeAIPerf:
    """Writes the exports that AIPerf would, and keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.interrupt_at = -1
        self.interrupt_with = signal.SIGINT
        self.phases_before = 0
        """Phases that are over before it is interrupted."""
        self.fails_at: tuple[int, ...] = ()

    @property
    def phases(self) -> list[list[str]]:
        """Of each call after the calibration's, without warm-up."""
        return [[p["name"] for p in c["benchmark"]["phases"][1:]] for c in self.calls[1:]]

    def run(
        self, words: Sequence[str], log: Path, timeout_s: float, look: Callable[[Sample], None]
    ) -> str | None:
        is_cut = len(self.calls) == self.interrupt_at
        fails = len(self.calls) in self.fails_at
        self.calls.append(yaml.safe_load(Path(words[-1]).read_text("utf-8")))
        artifacts = log.parent / generator.ARTIFACTS
        assert not artifacts.exists()
        names = [phase["name"] for phase in self.calls[-1]["benchmark"]["phases"]]
        names = names[: self.phases_before] if is_cut else names
        sent: list[tuple[dict[str, Any], dict[str, Any]]] = []
        prompt = read_prompts(OWN)[0]
        last = ""
        for line in (log.parent / generator.ENTRIES).read_text("utf-8").splitlines():
            entry = json.loads(line)
            phase, key = entry["session_id"].split("/")
            if phase in names:
                speculation = entry["extra"]["speculation"]["enabled"] and counts([3, 3], [2, 1])
                request = Planned(key, "null", prompt, 0, None)
                at_s = 0.1 * len(sent)
                pair = exported(request, at_s, phase=phase, speculation=speculation or None)
                if phase != last:
                    write_exports(artifacts, sent)
                    look(Sample(at_s, {}))
                sent.append(failed(pair, 503, UNAVAILABLE) if fails else pair)
                last = phase
        write_exports(artifacts, sent)
        if is_cut:
            os.kill(os.getpid(), self.interrupt_with)
            time.sleep(5)  # the signal comes before
        return "all requests failed" if fails else None


@pytest.fixture
def aiperf(monkeypatch: pytest.MonkeyPatch) -> FakeAIPerf:
    fake = FakeAIPerf()
    monkeypatch.setattr(generator, "run", fake.run)
    monkeypatch.setattr(output, "draw_plots", lambda *_: {})  # seconds; test_output draws
    return fake


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def url() -> Iterator[str]:
    with serving(("null",)) as found:
        yield found


def load_test(
    url: str, folder: Path, ends_at_s: float = float("inf"), rehearse: bool = False
) -> LoadTest:
    what = scenario(text_prompts=1, rehearse=rehearse)
    made = about(scenario=what, url=url, models=({"id": "null"},))
    return LoadTest(made, folder, read_prompts(OWN), lambda *_: None, ends_at_s=ends_at_s)


def test_calibration_texts_and_all_runs(tmp_path: Path, aiperf: FakeAIPerf, url: str) -> None:
    test = load_test(url, tmp_path)
    test.measure()
    report = test.report()
    assert len(aiperf.calls) == 1 + 1
    urls = [call["benchmark"]["endpoint"]["url"] for call in aiperf.calls]
    assert url not in urls[:1]
    assert urls[1:] == [url]
    assert report.complete
    assert report.runs == "4 of 4"
    assert [(level.arm, level.speculation.drafted) for level in report.levels] == [
        ("off", 0),
        ("on", 2 * 4 * 6),  # two repeats of four requests
    ]
    assert report.texts[0].prompts == 1
    assert report.calibration is not None
    assert report.counters == {}


def test_a_rehearsal_runs_and_does_not_count(tmp_path: Path, aiperf: FakeAIPerf, url: str) -> None:
    test = load_test(url, tmp_path, rehearse=True)
    test.measure()
    report = test.report()
    assert len(aiperf.calls) == 1 + 1 + 1
    assert (report.complete, report.runs) == (True, "5 of 5")
    assert [level.requests for level in report.levels] == [{"ok": 8}, {"ok": 8}]
    assert [level.speculation.drafted for level in report.levels] == [0, 2 * 4 * 6]


ALL = ["off-0", "on-0", "off-1", "on-1"]


@pytest.mark.parametrize(
    ("phases_before", "kept", "pairs", "again"),
    [
        (1, "0 of 4", [], ALL),  # the warm-up
        (3, "2 of 4", [(1.0,)], ["off-1", "on-1"]),
        (4, "3 of 4", [(1.0,)], ["off-1", "on-1"]),  # the two of a pair would lie far apart
    ],
)
def test_what_is_there_is_not_measured_again(
    phases_before: int,
    kept: str,
    pairs: list[tuple[float, ...]],
    again: list[str],
    tmp_path: Path,
    aiperf: FakeAIPerf,
    url: str,
) -> None:
    """Pairs of a batch that were over when it was interrupted are there."""
    aiperf.interrupt_at, aiperf.phases_before = 1, phases_before
    test = load_test(url, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        test.measure()
    partial = test.report()
    assert (partial.complete, partial.runs) == (False, kept)
    assert [s.ratio.repeats for s in partial.speedups] == [pytest.approx(pair) for pair in pairs]
    aiperf.interrupt_at = -1
    test.measure()
    assert aiperf.phases == [ALL, again]
    assert test.report().complete


def test_progress_goes_from_run_to_run(tmp_path: Path, aiperf: FakeAIPerf, url: str) -> None:
    said: list[tuple[str, int, int]] = []
    test = replace(load_test(url, tmp_path), say=lambda *words: said.append(words))
    test.measure()
    assert [(what, done) for what, done, _ in said] == [
        ("null server", 0),
        ("texts on and off", 1),
        ("null-2-off-0", 2),
        ("null-2-on-0", 3),
        ("null-2-off-1", 4),
        ("null-2-on-1", 5),
        ("report", 6),
    ]
    assert {steps for _, _, steps in said} == {6}


def test_runs_in_which_all_fails_are_kept_and_red(
    tmp_path: Path, aiperf: FakeAIPerf, url: str
) -> None:
    aiperf.fails_at = (1,)
    test = load_test(url, tmp_path)
    test.measure()
    report = test.report()
    assert report.complete
    assert not report.verdict.passed
    assert report.levels[0].requests == {"5xx": 8}


def test_requests_that_are_missing_end_the_test(
    tmp_path: Path, aiperf: FakeAIPerf, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what AIPerf said, if it said something; the runs that are whole stay."""
    write = write_exports

    def without_the_last(folder: Path, lines: list[Any]) -> None:
        write(folder, [pair for pair in lines if pair[0]["metadata"]["phase_name"] != "on-1"])

    monkeypatch.setattr("tests.loadtest.test_runner.write_exports", without_the_last)
    test = load_test(url, tmp_path)
    with pytest.raises(GeneratorError, match="not all requests of on-1"):
        test.measure()
    assert test.report().runs == "3 of 4"
    aiperf.fails_at = (2,)
    with pytest.raises(GeneratorError, match="all requests failed"):
        test.measure()


def test_a_folder_is_begun_once(
    tmp_path: Path, aiperf: FakeAIPerf, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in (cli.GREEN, cli.USAGE):
        with pytest.raises(SystemExit) as done:
            cli.main(["smoke", "--null", "--repeats", "1", "--out", str(tmp_path)])
        assert done.value.code == code
    assert "has a load test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "commit", "model", "says"),
    [
        ([], "abc", "null", None),
        (["--repeats", "5"], "abc", "null", "without other options"),
        (["sweep"], "abc", "null", "without other options"),
        ([], "def", "null", "begun at commit abc"),
        ([], "abc", "other", "serves other models"),
    ],
)
def test_resume_goes_on_with_the_same_only(
    tmp_path: Path,
    aiperf: FakeAIPerf,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    commit: str,
    model: str,
    says: str | None,
) -> None:
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    with serving(("null",)) as begun, serving((model,)) as url:
        aiperf.interrupt_at, aiperf.phases_before = 1, 2
        with pytest.raises(SystemExit):
            cli.main(["smoke", "--url", begun, "--repeats", "2", "--out", str(tmp_path)])
        aiperf.interrupt_at = -1
        monkeypatch.setattr(machine, "commit", lambda: commit)
        with pytest.raises(SystemExit) as done:
            cli.main([*options, "--url", url, "--resume", str(tmp_path)])
    assert done.value.code == (cli.USAGE if says else cli.GREEN)
    assert (says or "green") in capsys.readouterr().out


def test_no_run_is_started_when_the_time_is_up(
    tmp_path: Path, aiperf: FakeAIPerf, url: str
) -> None:
    test = load_test(url, tmp_path, ends_at_s=0.0)
    test.measure()
    assert test.report().runs == "0 of 4"
    assert not test.report().verdict.passed


def test_the_key_is_sent_and_not_kept(
    tmp_path: Path, aiperf: FakeAIPerf, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "secret-word")
    with pytest.raises(SystemExit):
        cli.main(["smoke", "--null", "--repeats", "1", "--out", str(tmp_path)])
    for call in aiperf.calls:
        headers = call["benchmark"]["endpoint"]["headers"]
        assert headers == {"Authorization": f"Bearer ${{{KEY}}}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"secret-word" in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("stop_at", "by"), [(-1, signal.SIGINT), (1, signal.SIGINT), (1, signal.SIGTERM)]
)
def test_the_command_line(
    stop_at: int,
    by: signal.Signals,
    tmp_path: Path,
    aiperf: FakeAIPerf,
    capsys: pytest.CaptureFixture[str],
) -> None:
    aiperf.interrupt_at, aiperf.interrupt_with = stop_at, by
    with pytest.raises(SystemExit) as done:
        cli.main(["smoke", "--null", "--out", str(tmp_path)])
    assert done.value.code == (cli.GREEN if stop_at < 0 else cli.INTERRUPTED)
    report = Report.model_validate_json((tmp_path / "report.json").read_text("utf-8"))
    assert report.complete is (stop_at < 0)
    said = capsys.readouterr().out
    assert str(tmp_path / "report.html") in said
    assert ("--resume" in said) is (stop_at > 0)


def test_a_red_run_ends_with_one(
    tmp_path: Path, aiperf: FakeAIPerf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.loadtest.test_runner.counts", lambda *_: None)
    with pytest.raises(SystemExit) as done:
        cli.main(["smoke", "--null", "--out", str(tmp_path)])
    assert done.value.code == cli.RED


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["--levels", "two", "--null"],
        ["--url", "http://127.0.0.1:9"],
        ["--targets", "other", "--url", "{url}"],
        ["--compare", "nowhere", "nowhere"],
        ["--resume", "nowhere"],
    ],
)
def test_what_cannot_run_says_why_in_one_line(
    arguments: list[str], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([argument.format(url=url) for argument in arguments])
    assert done.value.code == cli.USAGE
    said = capsys.readouterr().out.strip()
    assert said.startswith("loadtest: ")
    assert "\n" not in said


@pytest.mark.parametrize("is_cut", [False, True])
def test_counters_grow_by_batch(
    is_cut: bool, tmp_path: Path, aiperf: FakeAIPerf, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that was interrupted, too: its runs that were over count."""
    pages = iter([1.0, 3.5])
    monkeypatch.setattr(service, "counters", lambda _: {"a_total{}": next(pages)})
    monkeypatch.setattr(service, "scrape", lambda _: ({}, {"t": 2}))
    if is_cut:
        aiperf.interrupt_at, aiperf.phases_before = 1, 3
    test = load_test(url, tmp_path)
    with pytest.raises(KeyboardInterrupt) if is_cut else nullcontext():
        test.measure()
    assert test.report().counters == {"a_total{}": 2.5}
    assert test.report().replicas[0] == (0.0, {"t": 2})
