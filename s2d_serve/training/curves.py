"""Training curves: a CSV for programs, a PNG for people."""

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from s2d_serve.training.checkpoint import Progress

CSV = "curves.csv"
PNG = "curves.png"


def write_curves(history: Sequence[Progress], exits: Sequence[int], folder: Path) -> None:
    """Write both files."""
    with (folder / CSV).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["step", "learning_rate"]
            + [f"loss_exit_{n}" for n in exits]
            + [f"acceptance_exit_{n}" for n in exits]
        )
        for at in history:
            writer.writerow(
                [at.step, at.learning_rate, *at.losses, *(at.acceptance or [""] * len(exits))]
            )
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, acceptance = figure.subplots(1, 2)
    looked = [at for at in history if at.acceptance is not None]
    for i, n in enumerate(exits):
        losses.plot(
            [at.step for at in history], [at.losses[i] for at in history], label=f"exit {n}"
        )
        acceptance.plot(
            [at.step for at in looked],
            [at.acceptance[i] for at in looked if at.acceptance],
            marker="o",
            label=f"exit {n}",
        )
    for axes, title in ((losses, "loss"), (acceptance, "greedy agreement, held-out rows")):
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / PNG, dpi=110)
