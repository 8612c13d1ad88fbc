"""A batch of runs, from its requests to its results."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from loadtest import exports, generator, workload
from loadtest.plan import Batch
from loadtest.prompts import Prompt
from loadtest.results import CellResult
from loadtest.scenario import Scenario

_BATCH_S = 7200.0
"""A batch takes less, or is ended."""

Keep = Callable[[CellResult], None]


def run_batch(
    scenario: Scenario,
    batch: Batch,
    prompts: list[Prompt],
    url: str,
    folder: Path,
    keep: Keep,
    each_run: Callable[[int], None],
) -> None:
    """Have AIPerf do it; the runs of which every request is over are kept, however it ends.

    Args:
        folder: is made; takes the requests and what AIPerf writes.
        keep: takes the result of a run.
        each_run: takes the index of the run under way, each time there is another one.

    Raises: GeneratorError if that is not all of them; the message has the end of what AIPerf said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    phases = {cell.phase: workload.planned(scenario, cell, prompts) for cell in batch}
    warm_up = workload.warm_up(scenario, batch, prompts)
    workload.write({generator.WARM_UP: warm_up} | phases, scenario, folder / generator.ENTRIES)
    words = generator.configure(scenario, batch, url, folder)
    artifacts = folder / generator.ARTIFACTS
    shutil.rmtree(artifacts, ignore_errors=True)  # of a batch that was interrupted
    ends = list(accumulate(map(len, phases.values()), initial=scenario.warmup_requests))[1:-1]
    samples: list[generator.Sample] = []
    under_way = 0
    each_run(under_way)

    def look(sample: generator.Sample) -> None:
        nonlocal under_way
        samples.append(sample)
        over = exports.num_over(artifacts)
        now = sum(end <= over for end in ends)
        if now > under_way:
            each_run(now)
        under_way = now

    try:
        failure = generator.run(words, folder / "aiperf.log", _BATCH_S, look)
    except (KeyboardInterrupt, generator.GeneratorError):
        with suppress(generator.GeneratorError):
            _keep_whole(batch, phases, artifacts, samples, keep)
        raise
    try:
        missing = _keep_whole(batch, phases, artifacts, samples, keep)
    except generator.GeneratorError as error:
        raise generator.GeneratorError(failure or str(error)) from None
    if missing:
        says = f"{artifacts}: not all requests of {', '.join(missing)}"
        raise generator.GeneratorError(failure or says)


def _keep_whole(
    batch: Batch,
    phases: Mapping[str, Sequence[workload.Planned]],
    artifacts: Path,
    samples: Sequence[generator.Sample],
    keep: Keep,
) -> list[str]:
    """The phases that are not whole."""
    over = exports.read_requests(artifacts, phases)
    times_s = [s for done in over.values() for r in done for s in (r.start_s, r.end_s)]
    cpu = generator.cpu_between(samples, min(times_s), max(times_s)) if times_s else None
    missing = []
    for cell in batch:
        planned, done = phases[cell.phase], over[cell.phase]
        if len(done) < len(planned):
            missing.append(cell.phase)
        else:
            rate = workload.asked_rate(planned)
            keep(CellResult(cell=cell, asked_rate=rate, requests=tuple(done), client_cpu=cpu))
    return missing
