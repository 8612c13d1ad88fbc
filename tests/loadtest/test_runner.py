"""A whole load test against the null server, with a stand-in that writes AIPerf's exports."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from loadtest import cli, generator, machine, output, service
from loadtest.generator import Finished, GeneratorError
from loadtest.nullserver import serving
from loadtest.options import KEY
from loadtest.prompts import OWN, read_prompts
from loadtest.results import About, Report
from loadtest.runner import LoadTest
from loadtest.workload import Planned
from tests.loadtest.examples import counts, exported, failed, scenario, write_exports

UNAVAILABLE = {"code": 503, "type": "Unavailable", "message": "loading"}


class FakeAIPerf:
    """Writes the exports that AIPerf would, and counts how often it was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.interrupt_at = -1
        self.interrupt_with = signal.SIGINT
        self.fails_at: tuple[int, ...] = ()

    def run(self, words: Sequence[str], log: Path, timeout_s: float) -> Finished:
        if len(self.calls) == self.interrupt_at:
            os.kill(os.getpid(), self.interrupt_with)
            time.sleep(5)  # the signal comes before
        self.calls.append(" ".join(words))
        lines = (log.parent / generator.ENTRIES).read_text("utf-8").splitlines()
        speculation = counts([3, 3], [2, 1]) if '"enabled": true' in self.calls[-1] else None
        prompt = read_prompts(OWN)[0]
        requests = [Planned(f"r{i}", "null", prompt, 0, None) for i in range(len(lines))]
        sent = [exported(r, 0.1 * i, speculation=speculation) for i, r in enumerate(requests)]
        fails = len(self.calls) - 1 in self.fails_at
        if fails:
            sent = [failed(pair, 503, UNAVAILABLE) for pair in sent]
        write_exports(log.parent / "aiperf", sent)
        return Finished([], "all requests failed" if fails else None)


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
    about = About(
        scenario_name="example", scenario=scenario(text_prompts=1, rehearse=rehearse),
        url=url, command="run",
        commit=None, aiperf=None, started=datetime.now().isoformat(), machine={},
        models=({"id": "null"},), prompts=str(OWN),
    )  # fmt: skip
    return LoadTest(about, folder, read_prompts(OWN), lambda *_: None, ends_at_s=ends_at_s)


def test_calibration_texts_and_all_runs(tmp_path: Path, aiperf: FakeAIPerf, url: str) -> None:
    test = load_test(url, tmp_path)
    test.measure()
    report = test.report()
    assert len(aiperf.calls) == 1 + 4
    assert url not in aiperf.calls[0]
    assert all(url in call for call in aiperf.calls[1:])
    assert report.complete
    assert report.runs == "4 of 4"
    assert [(level.arm, level.speculation.drafted) for level in report.levels] == [
        ("off", 0),
        ("on", 2 * 6 * 6),  # two repeats of four requests and two of warm-up, not told apart here
    ]
    assert report.texts[0].prompts == 1
    assert report.calibration is not None
    assert report.counters == {}


def test_a_rehearsal_runs_and_does_not_count(tmp_path: Path, aiperf: FakeAIPerf, url: str) -> None:
    test = load_test(url, tmp_path, rehearse=True)
    test.measure()
    report = test.report()
    assert len(aiperf.calls) == 1 + 1 + 4
    assert (report.complete, report.runs) == (True, "5 of 5")
    assert [level.requests for level in report.levels] == [{"ok": 12}, {"ok": 12}]
    assert [level.speculation.drafted for level in report.levels] == [0, 2 * 6 * 6]


def test_what_is_there_is_not_measured_again(tmp_path: Path, aiperf: FakeAIPerf, url: str) -> None:
    aiperf.interrupt_at = 3
    test = load_test(url, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        test.measure()
    partial = test.report()
    assert (partial.complete, partial.runs) == (False, "2 of 4")
    assert partial.speedups[0].ratio.repeats == pytest.approx((1.0,))
    aiperf.interrupt_at = -1
    test.measure()
    assert len(aiperf.calls) == 5
    assert len(set(aiperf.calls)) == 5
    assert test.report().complete


def test_runs_in_which_all_fails_are_kept_and_red(
    tmp_path: Path, aiperf: FakeAIPerf, url: str
) -> None:
    aiperf.fails_at = (1, 3)
    test = load_test(url, tmp_path)
    test.measure()
    report = test.report()
    assert report.complete
    assert not report.verdict.passed
    assert report.levels[0].requests == {"5xx": 12}


def test_aiperf_that_fails_in_another_way_ends_the_test(
    tmp_path: Path, aiperf: FakeAIPerf, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.loadtest.test_runner.failed", lambda pair, *_: pair)
    aiperf.fails_at = (2,)
    with pytest.raises(GeneratorError, match="all requests failed"):
        load_test(url, tmp_path).measure()


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
        aiperf.interrupt_at = 3
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
    assert all("--api-key secret-word" in call for call in aiperf.calls)
    kept = [path for path in tmp_path.rglob("*.json") if "secret-word" in path.read_text("utf-8")]
    assert kept == []


@pytest.mark.parametrize(
    ("stop_at", "by"), [(-1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)]
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


def test_counters_grow_by_run(
    tmp_path: Path, aiperf: FakeAIPerf, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = iter([{"a_total{}": float(i)} for i in range(100)])
    monkeypatch.setattr(service, "scrape", lambda _: (next(pages), {}))
    test = load_test(url, tmp_path)
    test.measure()
    grown = test.report().counters
    assert grown["on"]["a_total{}"] >= 2  # two runs, each with a page before and one after
