"""Which runs a scenario is made of, and in which order."""

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
    def name(self) -> str:
        """A folder's name."""
        who = self.targets[0] if self.traffic == "separate" else self.traffic
        safe = "".join(c if c.isalnum() or c in "-." else "-" for c in who)
        which = "rehearsal" if self.is_rehearsal else f"{self.repeat}-{self.arm}"
        return f"{safe}-{self.level:g}-{which}"


def plan(scenario: Scenario, targets: Sequence[str]) -> list[Cell]:
    """All runs: a rehearsal if there is one, then whole repeats one after the other, off and on
    next to each other in each.

    What drifts over the hours then meets both arms, and a run that is cut short has whole repeats.
    """
    groups: list[tuple[Traffic, tuple[str, ...]]] = []
    for traffic in scenario.traffic:
        alone = [(name,) for name in targets] if traffic == "separate" else [tuple(targets)]
        groups += [(traffic, group) for group in alone]
    loads = [(*group, level) for group in groups for level in scenario.load.levels]
    rehearsal = [
        Cell(
            targets=group,
            traffic=traffic,
            level=level,
            arm="on",
            repeat=scenario.repeats,  # prompts of its own
            is_rehearsal=True,
        )
        for traffic, group, level in loads
        if scenario.rehearse
    ]
    return rehearsal + [
        Cell(targets=group, traffic=traffic, level=level, arm=arm, repeat=repeat)
        for repeat in range(scenario.repeats)
        for traffic, group, level in loads
        for arm in ("off", "on")
    ]


def shares(cell: Cell) -> list[float]:
    """Of the requests, the share that each target gets: skewed gives the first four in five."""
    others = len(cell.targets) - 1
    if cell.traffic != "skewed" or not others:
        return [1 / len(cell.targets)] * len(cell.targets)
    return [0.8] + [0.2 / others] * others
