"""The requests of runs, as the file that AIPerf reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

from loadtest.plan import Arm, Batch, Cell, shares
from loadtest.prompts import Prompt, draw
from loadtest.scenario import Burst, Closed, Poisson, Scenario


@dataclass(frozen=True, slots=True)
class Planned:
    """One request."""

    key: str
    """The same for the same request of the other run of its pair."""
    target: str
    prompt: Prompt
    seed: int
    scheduled_s: float | None
    """Seconds from the start at which it is to be sent; None: when its client is free."""
    arm: Arm = "on"


def planned(scenario: Scenario, cell: Cell, prompts: list[Prompt]) -> list[Planned]:
    """The run's requests. Those of a pair (off, on) are the same but for their arm."""
    seed = f"{scenario.seed}/{cell.traffic}/{'+'.join(cell.targets)}/{cell.level}/{cell.repeat}"
    random = Random(seed)
    times = _schedule(scenario, cell.level, random)
    drawn = draw(prompts, len(times), seed)
    chosen = _targets(cell, len(times), random)
    return [
        Planned(f"r{i}", chosen[i], drawn[i], random.randrange(2**31), times[i], cell.arm)
        for i in range(len(times))
    ]


def warm_up(scenario: Scenario, batch: Batch, prompts: list[Prompt]) -> list[Planned]:
    """What a batch asks first. On a schedule nothing of its own: AIPerf, which has one file for
    both, asks the first of the schedule once more.
    """
    if scenario.is_open:
        return []
    first = batch[0]
    drawn = draw(prompts, scenario.warmup_requests, f"{scenario.seed}/{first.name}/warm-up")
    targets = first.targets
    return [
        Planned(f"r{i}", targets[i % len(targets)], prompt, i, None)
        for i, prompt in enumerate(drawn)
    ]


def _targets(cell: Cell, number: int, random: Random) -> list[str]:
    """The targets of so many requests: each has its share to within one, in random order."""
    ends = [round(number * end) for end in accumulate(shares(cell))]
    counts = [end - start for start, end in pairwise([0, *ends])]
    chosen = [name for name, n in zip(cell.targets, counts, strict=True) for _ in range(n)]
    random.shuffle(chosen)
    return chosen


def _schedule(scenario: Scenario, level: float, random: Random) -> list[float | None]:
    match scenario.load:
        case Closed() as load:
            return [None] * load.num_requests(level)
        case Poisson() as load:
            times, now = [0.0], random.expovariate(level)
            while now < load.duration_s or len(times) < load.min_requests:
                times.append(now)
                now += random.expovariate(level)
            return [round(time, 3) for time in times]  # AIPerf schedules milliseconds
        case Burst() as load:
            return [i * load.every_s for i in range(load.bursts) for _ in range(round(level))]


def asked_rate(requests: Sequence[Planned]) -> float | None:
    """Arrivals per second of their schedule. None: they have none, or all arrive at once."""
    times = [r.scheduled_s for r in requests if r.scheduled_s is not None]
    length = max(times) - min(times) if times else 0.0
    return (len(times) - 1) / length if length else None


def by_id(phase: str, requests: Sequence[Planned]) -> dict[str, Planned]:
    """The requests of a phase by the id that AIPerf knows them by."""
    return {f"{phase}/{request.key}": request for request in requests}


def write(phases: Mapping[str, Sequence[Planned]], scenario: Scenario, path: Path) -> None:
    """The file: a JSON line per request of each phase in order, in AIPerf's single-turn format."""
    with path.open("w", encoding="utf-8") as file:
        for phase, requests in phases.items():
            for session_id, request in by_id(phase, requests).items():
                # both arms write the same chunks
                speculation = {"enabled": request.arm == "on", "detailed": True}
                line = {
                    "session_id": session_id,
                    "text": request.prompt.text,
                    "output_length": scenario.max_tokens,
                    "extra": {
                        "model": request.target, "seed": request.seed, "speculation": speculation,
                    },
                }  # fmt: skip
                if request.scheduled_s is not None:
                    line["timestamp"] = request.scheduled_s * 1000
                file.write(json.dumps(line) + "\n")
