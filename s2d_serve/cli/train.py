"""`s2d train`: a sorted draft from a deployment's draft checkpoint and rows of text."""

import platform
from pathlib import Path

import psutil
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from s2d_serve.cli.output import NOTES
from s2d_serve.config import AppConfig
from s2d_serve.engine.checkpoint import load_checkpoint, set_up_torch
from s2d_serve.engine.sources import resolve
from s2d_serve.errors import ConfigError
from s2d_serve.training.card import CARD, Origin, write_card
from s2d_serve.training.curves import write_curves
from s2d_serve.training.rows import read_all, vocabulary_sha256
from s2d_serve.training.settings import TrainingSettings
from s2d_serve.training.trainer import Trainer


def train(
    config: AppConfig,
    rows: tuple[Path, ...],
    settings: TrainingSettings,
    output: Path,
    save_every: int,
    command: str,
) -> None:
    """Train, or go on with a run that was cut off; the draft, its card and curves are in `output`.

    Raises:
        ConfigError: the file has no draft, or the settings or rows do not fit it.
        S2DError: what loading the base raises.
    """
    if config.draft is None:
        raise ConfigError("the deployment file has no draft: its `source` is what is trained")
    source = config.draft.model_copy(update={"dtype": "float32", "trained": None})
    resolve(source)  # it shows its own progress
    set_up_torch(source)
    with NOTES.status("loading the base"):
        base = load_checkpoint(source)
    texts = read_all(rows, vocabulary_sha256(base.tokenizer))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[notes]}"),
    )
    with Progress(*columns, console=NOTES, refresh_per_second=2) as progress:
        task = progress.add_task("preparing", total=None, notes="")

        def notice(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        trainer = Trainer(base, texts, settings, output, notice)
        if trainer.drops is not None:
            kept = ", ".join(map(str, trainer.layers or ()))
            progress.console.print(f"the draft keeps the base's layers {kept}")
        _show(trainer, "at the start", trainer.untrained, progress)
        num_done = len(trainer.history)
        notice("training", num_done, trainer.num_steps)
        for at in trainer.run(save_every):
            losses = " ".join(f"{loss:.2f}" for loss in at.losses)
            progress.update(task, completed=at.step, notes=f"loss {losses}")
            if at.acceptance is not None:
                _show(trainer, f"after {at.step} steps", at.acceptance, progress)
                if trainer.accelerator.is_main_process:
                    write_curves(trainer.history, trainer.exits, output)
                    trainer.result().save(output)
    if trainer.accelerator.is_main_process:
        trainer.result().save(output)
        if num_done < trainer.num_steps or not (output / CARD).exists():
            hours = trainer.seconds / 3600
            origin = Origin(config.draft.source, command, rows, hours, machine())
            write_card(trainer, origin, output)
    NOTES.print(f"{output} holds the draft and its card; `trained: {output}` serves it")


def machine() -> str:
    """This machine in words."""
    cores = psutil.cpu_count() or 1
    return f"{cores} {platform.machine()} cores"


def _show(trainer: Trainer, when: str, acceptance: tuple[float, ...], progress: Progress) -> None:
    by_exit = ", ".join(
        f"exit {n}: {share:.3f}" for n, share in zip(trainer.exits, acceptance, strict=True)
    )
    progress.console.print(f"{when}: held-out acceptance {by_exit}")
