"""A batch of runs, from its requests to its results."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from loadtest import exports, generator, workload
from loadtest.plan import Batch
from loadtest.prompts import Prompt
from loadtest.results import CellResult
from loadtest.scenario import Scenario

_RUN_S = 3600.0
"""A run takes less; a batch that takes more for each of its runs is ended."""

Keep = Callable[[CellResult], None]


@dataclass(frozen=True)
class BatchRun:
    """One process of AIPerf."""

    scenario: Scenario
    batch: Batch
    prompts: list[Prompt]
    url: str
    folder: Path
    """Is made; takes the requests and what AIPerf writes."""

    @cached_property
    def _phases(self) -> Mapping[str, Sequence[workload.Planned]]:
        """The requests of each run."""
        return {
            cell.phase: workload.planned(self.scenario, cell, self.prompts) for cell in self.batch
        }

    def measure(self, keep: Keep, each_run: Callable[[int], None]) -> None:
        """Run it; the runs of which every request is over are kept, however it ends.

        Args:
            keep: takes the result of a run.
            each_run: takes the index of the run under way, each time there is another one.

        Raises: GeneratorError if that is not all of them; the message has the end of what AIPerf
        said.
        """
        words = self._prepare()
        num_warm_up = self.scenario.warmup_requests
        counts = map(len, self._phases.values())
        ends = list(accumulate(counts, initial=num_warm_up))[1:-1]  # of all runs but the last
        samples: list[generator.Sample] = []
        under_way = 0
        each_run(under_way)

        def look(sample: generator.Sample) -> None:
            nonlocal under_way
            samples.append(sample)
            over = exports.num_over(self._artifacts)
            now = sum(end <= over for end in ends)
            if now > under_way:
                each_run(now)
            under_way = now

        try:
            timeout_s = _RUN_S * len(self.batch)
            failure = generator.run(words, self.folder / "aiperf.log", timeout_s, look)
        except (KeyboardInterrupt, generator.GeneratorError):
            with suppress(generator.GeneratorError):
                self._keep_whole(keep, samples)
            raise
        try:
            missing = self._keep_whole(keep, samples)
        except generator.GeneratorError as error:
            raise generator.GeneratorError(failure or str(error)) from None
        if missing:
            says = f"{self._artifacts}: not all requests of {', '.join(missing)}"
            raise generator.GeneratorError(failure or says)

    @property
    def _artifacts(self) -> Path:
        return self.folder / generator.ARTIFACTS

    def _prepare(self) -> list[str]:
        """AIPerf's command, with all that it needs in the folder, and nothing of an earlier one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._artifacts, ignore_errors=True)
        warm_up = workload.warm_up(self.scenario, self.batch, self.prompts)
        phases = {generator.WARM_UP: warm_up, **self._phases}
        workload.write(phases, self.scenario, self.folder / generator.ENTRIES)
        return generator.configure(self.scenario, self.batch, self.url, self.folder)

    def _keep_whole(self, keep: Keep, samples: Sequence[generator.Sample]) -> list[str]:
        """The phases that are not whole."""
        over = exports.read_requests(self._artifacts, self._phases)
        times_s = [s for done in over.values() for r in done for s in (r.start_s, r.end_s)]
        cpu = generator.cpu_between(samples, min(times_s), max(times_s)) if times_s else None
        missing = []
        for cell in self.batch:
            planned, done = self._phases[cell.phase], over[cell.phase]
            if len(done) < len(planned):
                missing.append(cell.phase)
            else:
                rate = workload.asked_rate(planned)
                keep(CellResult(cell=cell, asked_rate=rate, requests=tuple(done), client_cpu=cpu))
        return missing
