"""A load test from its first request to its report."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import httpx
from pydantic import BaseModel, TypeAdapter

from loadtest import generator, service, summary
from loadtest.batch import BatchRun
from loadtest.gates import judge
from loadtest.nullserver import serving
from loadtest.plan import Batch, Cell, plan
from loadtest.prompts import Prompt, draw
from loadtest.results import About, Calibration, CellResult, Report, Texts, Watched
from loadtest.scenario import Closed, Scenario

ABOUT, CALIBRATION, TEXTS, WATCHED = "about.json", "calibration.json", "texts.json", "watched.json"
RUNS = "runs"
"""A folder with a file for each."""
_CALIBRATION_REQUESTS = 100

Say = Callable[[str, int, int], None]
"""Takes what is under way, steps done, steps in all."""


@dataclass(frozen=True, slots=True)
class LoadTest:
    """One load test and its folder. What the folder already has is not measured again."""

    about: About
    folder: Path
    prompts: list[Prompt]
    say: Say
    ends_at_s: float = float("inf")
    """Unix time after which no batch of runs is started."""

    @property
    def scenario(self) -> Scenario:
        """What is done."""
        return self.about.scenario

    @property
    def batches(self) -> list[Batch]:
        """All runs, in order."""
        return plan(self.scenario, service.chosen(self.about.models, self.scenario))

    def measure(self) -> None:
        """Calibrate, compare texts, then all runs, kept batch by batch; of one that is interrupted,
        the runs that are over. Where one of a pair is missing, both are measured again.
        """
        batches = self.batches
        done, steps = 2, 2 + sum(map(len, batches))
        self._once(CALIBRATION, self._calibrate, "null server", 0, steps)
        self._once(TEXTS, self._compare, "texts on and off", 1, steps)
        (self.folder / RUNS).mkdir(exist_ok=True)
        with service.connect(self.about.url) as client:
            for batch in batches:
                repeats = {cell.repeat for cell in batch if not self._kept(cell).exists()}
                missing = tuple(cell for cell in batch if cell.repeat in repeats)
                done += len(batch) - len(missing)
                if not missing:
                    continue
                if time.time() >= self.ends_at_s:
                    break

                def each_run(i: int, runs: Batch = missing, done: int = done) -> None:
                    self.say(runs[i].name, done + i, steps)

                self._run(client, missing, each_run)
                done += len(missing)
        self.say("report", steps, steps)

    def report(self, ended_by: str | None = None) -> Report:
        """The report of what the folder has; `ended_by`: the error that ended the test early."""
        cells = list(chain.from_iterable(self.batches))
        done = [
            CellResult.model_validate_json(path.read_text("utf-8"))
            for cell in cells
            if (path := self._kept(cell)).exists()
        ]
        runs = [run for run in done if not run.cell.is_rehearsal]
        watched = [
            Watched.model_validate_json(path.read_text("utf-8"))
            for cell in cells
            if not cell.is_rehearsal and (path := self.folder / cell.name / WATCHED).exists()
        ]
        counters = summary.added([one.counters for one in watched])
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
            verdict=judge(self.about, runs, levels, texts, limit, counters),
            texts=texts,
            calibration=calibration,
            levels=levels,
            speedups=tuple(summary.speedups(runs, self.scenario.is_open)),
            counters=counters,
            replicas=_from_start([sample for one in watched for sample in one.replicas]),
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
        runs: list[CellResult] = []
        with serving(cell.targets) as url:
            alone = BatchRun(scenario, (cell,), self.prompts, url, self.folder / cell.name)
            alone.measure(runs.append, lambda _: None)
        (run,) = runs
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
        with service.connect(self.about.url) as client:
            texts = [service.compare_texts(client, self.scenario, card, sample) for card in cards]
        return _TEXTS.dump_json(texts, indent=1).decode()

    def _run(self, client: httpx.Client, batch: Batch, each_run: Callable[[int], None]) -> None:
        folder = self.folder / batch[0].name
        run = BatchRun(self.scenario, batch, self.prompts, self.about.url, folder)
        before = service.counters(client)
        watch = service.Watch(client)
        try:
            with watch:
                run.measure(self._keep, each_run)
        finally:  # of runs that were over in time, too, where it was cut off
            after = None if before is None else service.counters(client)
            grown = {} if before is None or after is None else service.growth(before, after)
            folder.mkdir(parents=True, exist_ok=True)
            _save(Watched(counters=grown, replicas=tuple(watch.seen)), folder / WATCHED)

    def _keep(self, run: CellResult) -> None:
        _save(run, self._kept(run.cell))

    def _kept(self, cell: Cell) -> Path:
        return self.folder / RUNS / f"{cell.name}.json"

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
