"""Which runs a scenario is made of, in which order, and which of them one AIPerf does."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from loadtest.scenario import Scenario, Traffic

Arm = Literal["off", "on"]
"""Speculation."""


class Cell(BaseModel):
    """One run of the generator: a load on one or all targets, with speculation on or off."""

    model_config = ConfigDict(frozen=True)

    targets: tuple[str, ...]
    traffic: Traffic
    level: float
    arm: Arm
    repeat: int
    is_rehearsal: bool = False
    """Nothing of it counts."""

    @property
    def phase(self) -> str:
        """Its name within a batch."""
        return "rehearsal" if self.is_rehearsal else f"{self.arm}-{self.repeat}"

    @property
    def name(self) -> str:
        """Of its file, and of the folder of a batch that begins with it."""
        who = self.targets[0] if self.traffic == "separate" else self.traffic
        safe = "".join(c if c.isalnum() or c in "-." else "-" for c in who)
        return f"{safe}-{self.level:g}-{self.phase}"


Batch = tuple[Cell, ...]
"""Runs of one load that one process of AIPerf does, straight one after the other."""


def plan(scenario: Scenario, targets: Sequence[str]) -> list[Batch]:
    """All runs: a rehearsal if there is one; then all loads again and again, until each has its
    repeats, off and on in turn.

    What drifts over the hours then meets both arms, and a test that is cut short has measured all
    loads about as often. In a closed loop pairs go in batches: what drifts within minutes meets
    both arms, too, as nothing lies between them. AIPerf draws the same hang-ups for every run of a
    batch, which then has one pair. A schedule has AIPerf's whole file: each of its runs is a batch.
    """
    groups: list[tuple[Traffic, tuple[str, ...]]] = []
    for traffic in scenario.traffic:
        alone = [(name,) for name in targets] if traffic == "separate" else [tuple(targets)]
        groups += [(traffic, group) for group in alone]
    loads = [(*group, level) for group in groups for level in scenario.load.levels]
    batches: list[Batch] = [
        (
            Cell(
                targets=group,
                traffic=traffic,
                level=level,
                arm="on",
                repeat=scenario.repeats,  # prompts of its own
                is_rehearsal=True,
            ),
        )
        for traffic, group, level in loads
        if scenario.rehearse
    ]
    load = scenario.load
    step = load.pairs_per_batch if load.kind == "closed" and not scenario.cancel else 1
    for start in range(0, scenario.repeats, step):
        for traffic, group, level in loads:
            cells = [
                Cell(targets=group, traffic=traffic, level=level, arm=arm, repeat=repeat)
                for repeat in range(start, min(start + step, scenario.repeats))
                for arm in ("off", "on")
            ]
            batches += [(cell,) for cell in cells] if scenario.is_open else [tuple(cells)]
    return batches


def shares(cell: Cell) -> list[float]:
    """Of the requests, the share that each target gets: skewed gives the first four in five."""
    others = len(cell.targets) - 1
    if cell.traffic != "skewed" or not others:
        return [1 / len(cell.targets)] * len(cell.targets)
    return [0.8] + [0.2 / others] * others
