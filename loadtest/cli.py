"""The command line."""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest import machine, service
from loadtest.compare import compare
from loadtest.generator import GeneratorError
from loadtest.nullserver import serving
from loadtest.options import SMOKE, URL, options_parser
from loadtest.output import write_report
from loadtest.prompts import OWN, read_prompts
from loadtest.results import About, Report
from loadtest.runner import ABOUT, LoadTest, Say
from loadtest.scenario import Scenario, ScenarioError, load_scenario
from loadtest.started import started

REPORTS = Path(__file__).parent / "reports"
GREEN, RED, USAGE, INTERRUPTED = 0, 1, 2, 130
_CONSOLE = Console(highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the arguments say and exit: 0 all gates passed, 1 red, 2 cannot, 130 Ctrl-C."""
    options = options_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.compare:
            first, second = (_read(Path(name)) for name in options.compare)
            _CONSOLE.print(compare(first, second), markup=False)
            sys.exit(GREEN)
        before = _resumed(options) if options.resume else None
        url = options.url or (before.url if before else URL)
        log = REPORTS / "service.log"
        with started(options.start, url, log) if options.start else nullcontext():
            code = _test(options, before, url)
        sys.exit(code)
    except (ScenarioError, service.ServiceError, GeneratorError) as error:
        _CONSOLE.print(f"loadtest: {error}", markup=False)
        sys.exit(USAGE)


def _test(options: argparse.Namespace, before: About | None, url: str) -> int:
    is_null = options.null or bool(before and before.service_is_null)
    with serving(("null",)) if is_null else nullcontext(url) as where:
        if before is None:
            about = _new_about(options, where)
        else:
            about = _same_about(before, options.resume, where)
        folder = options.resume or options.out or REPORTS / f"{_stamp()}-{about.scenario_name}"
        if before is None and (folder / ABOUT).exists():
            raise ScenarioError(f"{folder} has a load test; --resume {folder} goes on with it")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).write_text(about.model_dump_json(indent=1), "utf-8")
        return _measure(about, folder, options)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM is as Ctrl-C: AIPerf and a service that was started here end, the report stays."""
    raise KeyboardInterrupt


def _measure(about: About, folder: Path, options: argparse.Namespace) -> int:
    ends_at_s = time.time() + options.minutes * 60 if options.minutes else float("inf")
    prompts = read_prompts(Path(about.prompts))
    with _progress() as say:
        test = LoadTest(about, folder, prompts, say, ends_at_s)
        code, ended_by = GREEN, None
        try:
            test.measure()
        except KeyboardInterrupt:
            code = INTERRUPTED
        except (service.ServiceError, GeneratorError) as error:
            _CONSOLE.print(f"loadtest: {error}", markup=False)
            code, ended_by = USAGE, str(error)
        report = test.report(ended_by)
        write_report(report, folder)
    for gate in report.verdict.gates:
        _CONSOLE.print(f"{gate.status:>11}  {gate.name}: {gate.says}", markup=False)
    state = "green" if report.verdict.passed and not ended_by else "RED"
    part = "" if report.complete else f", partial: {report.runs} runs"
    _CONSOLE.print(f"{state}{part}. Report: {folder / 'report.html'}", markup=False)
    if not report.complete:
        again = f"python loadtest/run.py --resume {shlex.quote(str(folder))}"
        _CONSOLE.print(f"What is missing: {again}", markup=False)
    return code or (GREEN if report.verdict.passed else RED)


def _new_about(options: argparse.Namespace, url: str) -> About:
    scenario = _scenario(options)
    with service.connect(url) as client:
        cards = service.models(client)
    service.chosen(cards, scenario)  # says at once which target is not there
    prompts = options.prompts or OWN
    read_prompts(prompts)
    return About(
        scenario_name=Path(options.scenario or SMOKE).stem,
        scenario=scenario,
        url=url,
        command=shlex.join(["python", "loadtest/run.py", *sys.argv[1:]]),
        commit=machine.commit(),
        aiperf=machine.aiperf_version(),
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=machine.describe(),
        models=tuple(cards),
        prompts=str(prompts),
        service_is_null=options.null,
    )


def _resumed(options: argparse.Namespace) -> About:
    """What a test began as, which its options must leave alone.

    Raises: ScenarioError.
    """
    about = _about(options.resume)
    fixed = [
        name for name in ("levels", "targets", "repeats", "max_tokens") if getattr(options, name)
    ]
    if fixed or options.scenario not in (None, about.scenario_name):
        raise ScenarioError("--resume goes on with the test as it began, without other options")
    if machine.commit() != about.commit:
        raise ScenarioError(
            f"{options.resume} was begun at commit {about.commit}, and this is {machine.commit()}: "
            "start another test, or go back to that commit"
        )
    return about


def _same_about(before: About, folder: Path, url: str) -> About:
    """The same test at a service with the same models.

    Raises: ScenarioError if they are others.
    """
    with service.connect(url) as client:
        cards = service.models(client)
    if service.identities(cards) != service.identities(before.models):
        raise ScenarioError(f"{url} serves other models than {folder} began with")
    return before.model_copy(update={"url": url})


def _scenario(options: argparse.Namespace) -> Scenario:
    changes: dict[str, Any] = {
        "load.levels": options.levels.split(",") if options.levels else None,
        "targets": options.targets.split(",") if options.targets else None,
        "repeats": options.repeats,
        "max_tokens": options.max_tokens,
    }
    if options.null:
        changes["targets"] = "all"
    return load_scenario(options.scenario or SMOKE, changes)


def _about(folder: Path) -> About:
    try:
        return About.model_validate_json((folder / ABOUT).read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise ScenarioError(f"{folder} is no load test that can go on: {error}") from None


def _read(path: Path) -> Report:
    path = path / "report.json" if path.is_dir() else path
    try:
        return Report.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise ScenarioError(f"{path} is no report: {' '.join(str(error).split())}") from None


@contextmanager
def _progress() -> Iterator[Say]:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=_CONSOLE) as bar:
        task = bar.add_task("start", total=None)

        def say(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if not _CONSOLE.is_terminal:
                bar.console.print(f"[{done}/{total}] {what}", markup=False)

        yield say


def _stamp() -> str:
    return datetime.now().strftime("%Y-%m-%d-%H%M%S")
