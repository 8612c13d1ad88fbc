"""A load test from its first request to its report."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import BaseModel, TypeAdapter

from loadtest import generator, service, summary, workload
from loadtest.exports import read_requests
from loadtest.gates import judge
from loadtest.nullserver import serving
from loadtest.plan import Cell, plan
from loadtest.prompts import Prompt, draw
from loadtest.results import About, Calibration, CellResult, Report, Texts
from loadtest.scenario import Closed, Scenario

ABOUT, CALIBRATION, TEXTS, CELL = "about.json", "calibration.json", "texts.json", "cell.json"
_CALIBRATION_REQUESTS = 100
_RUN_S = 3600.0
"""A single run of AIPerf takes less, or is ended."""

Say = Callable[[str, int, int], None]
"""Takes what is under way, steps done, steps in all."""


@dataclass(frozen=True, slots=True)
class LoadTest:
    """One load test and its folder. What the folder already has is not measured again."""

    about: About
    folder: Path
    prompts: list[Prompt]
    say: Say
    api_key: str | None = None
    ends_at_s: float = float("inf")
    """Unix time after which no run is started."""

    @property
    def scenario(self) -> Scenario:
        """What is done."""
        return self.about.scenario

    @property
    def cells(self) -> list[Cell]:
        """All runs, in order."""
        return plan(self.scenario, service.chosen(self.about.models, self.scenario))

    def measure(self) -> None:
        """Calibrate, compare texts, then all runs, each kept as soon as it is done."""
        cells = self.cells
        steps = len(cells) + 2
        self._once(CALIBRATION, self._calibrate, "null server", 0, steps)
        self._once(TEXTS, self._compare, "texts on and off", 1, steps)
        with self._client() as client:
            for i, cell in enumerate(cells, 2):
                if not (self.folder / cell.name / CELL).exists():
                    if time.time() >= self.ends_at_s:
                        break
                    self.say(cell.name, i, steps)
                    _save(self._run(client, cell), self.folder / cell.name / CELL)
        self.say("report", steps, steps)

    def report(self, ended_by: str | None = None) -> Report:
        """The report of what the folder has; `ended_by`: the error that ended the test early."""
        cells = self.cells
        done = [
            CellResult.model_validate_json(path.read_text("utf-8"))
            for cell in cells
            if (path := self.folder / cell.name / CELL).exists()
        ]
        runs = [run for run in done if not run.cell.is_rehearsal]
        calibrated = self._read(CALIBRATION)
        calibration = Calibration.model_validate_json(calibrated) if calibrated else None
        texts = tuple(
            summary.with_pairs(text, runs)
            for text in _TEXTS.validate_json(self._read(TEXTS) or "[]")
        )
        # A null server is its own limit.
        limit = None if self.about.service_is_null else calibration
        levels = tuple(summary.levels(runs, self.scenario.slo))
        return Report(
            about=self.about,
            complete=len(done) == len(cells) and calibration is not None,
            ended_by=ended_by,
            runs=f"{len(done)} of {len(cells)}",
            verdict=judge(self.about.models, runs, levels, texts, limit, self.scenario.bounds),
            texts=texts,
            calibration=calibration,
            levels=levels,
            speedups=tuple(summary.speedups(runs, self.scenario.is_open)),
            counters=summary.counters_by_arm(runs),
            replicas=_from_start([sample for run in runs for sample in run.replicas]),
        )

    def _once(self, name: str, make: Callable[[], str], what: str, step: int, steps: int) -> None:
        if not (self.folder / name).exists():
            self.say(what, step, steps)
            (self.folder / name).write_text(make(), "utf-8")

    def _calibrate(self) -> str:
        level = max(2, round(max(self.scenario.load.levels)))
        load = Closed(
            kind="closed", levels=(level,), requests_per_client=1,
            min_requests=max(_CALIBRATION_REQUESTS, 4 * level),
        )  # fmt: skip
        scenario = self.scenario.model_copy(update={"load": load, "cancel": None})
        cell = Cell(targets=("null",), traffic="separate", level=level, arm="on", repeat=0)
        with serving(cell.targets) as url:
            run = self._generate(scenario, cell, url)
        seconds = summary.duration_s(run)
        ttft = summary.spread(r.ttft_s for r in run.requests)
        if ttft is None:
            raise generator.GeneratorError(f"the null server got no request; see {self.folder}")
        return Calibration(
            level=level,
            requests_per_s=len(run.requests) / seconds,
            output_tokens_per_s=sum(r.output_tokens for r in run.requests) / seconds,
            ttft_s=ttft,
            client_cpu=run.client_cpu,
        ).model_dump_json(indent=1)

    def _compare(self) -> str:
        sample = draw(self.prompts, self.scenario.text_prompts, f"{self.scenario.seed}/texts")
        chosen = service.chosen(self.about.models, self.scenario)
        cards = [card for card in self.about.models if card["id"] in chosen]
        with self._client() as client:
            texts = [service.compare_texts(client, self.scenario, card, sample) for card in cards]
        return _TEXTS.dump_json(texts, indent=1).decode()

    def _run(self, client: httpx.Client, cell: Cell) -> CellResult:
        before = service.counters(client)
        with service.Watch(client) as watch:
            run = self._generate(self.scenario, cell, self.about.url)
        after = None if before is None else service.counters(client)
        grown = None if before is None or after is None else service.growth(before, after)
        return run.model_copy(update={"counters": grown, "replicas": tuple(watch.seen)})

    def _generate(self, scenario: Scenario, cell: Cell, url: str) -> CellResult:
        folder = self.folder / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        requests = workload.planned(scenario, cell, self.prompts)
        workload.write(requests, scenario, folder / generator.ENTRIES)
        words = generator.command(scenario, cell, url, folder)
        key = ["--api-key", self.api_key] if self.api_key else []
        started = time.monotonic()
        finished = generator.run([*words, *key], folder / "aiperf.log", _RUN_S)
        try:
            done = read_requests(folder / "aiperf", requests)
        except generator.GeneratorError as error:
            raise generator.GeneratorError(finished.failure or str(error)) from None
        if not done or (finished.failure and any(r.status == "ok" for r in done)):
            raise generator.GeneratorError(finished.failure or f"{folder}: no request was sent")
        first, last = min(r.start_s for r in done), max(r.end_s for r in done)
        return CellResult(
            cell=cell,
            command=shlex.join(words),
            asked_rate=workload.asked_rate(requests),
            requests=tuple(done),
            client_cpu=generator.cpu_between(finished.samples, first, last),
            wall_s=time.monotonic() - started,
        )

    def _client(self) -> httpx.Client:
        return service.connect(self.about.url, self.api_key)

    def _read(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text("utf-8") if path.exists() else None


_TEXTS = TypeAdapter(list[Texts])


def _save(value: BaseModel, path: Path) -> None:
    """Whole or not at all: a run that is cut off leaves no half of a file."""
    part = path.with_suffix(".part")
    part.write_text(value.model_dump_json(), "utf-8")
    part.replace(path)


def _from_start(
    samples: Sequence[tuple[float, dict[str, int]]],
) -> tuple[tuple[float, dict[str, int]], ...]:
    start = min((time_s for time_s, _ in samples), default=0.0)
    return tuple((time_s - start, counts) for time_s, counts in samples)
