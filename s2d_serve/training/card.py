"""The card beside a trained draft: what it is, what it was made of, how good it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from s2d_serve.training.curves import CSV, PNG
from s2d_serve.training.trainer import Trainer

CARD = "README.md"
METHODS = {
    "heads": "the trunk is the base's own, untouched; each exit has a trained translator",
    "lora": "SoFT: low-rank changes to the trunk and the exits' translators, trained together",
    "full": "SoFT: the trunk's weights and the exits' translators, trained together",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the draft comes from."""

    base: str
    command: str
    rows: tuple[Path, ...]
    hours: float
    machine: str


def write_card(trainer: Trainer, origin: Origin, folder: Path) -> None:
    """Write the card of a finished run."""
    settings = trainer.settings
    last = trainer.history[-1].acceptance
    assert last is not None
    results = zip(trainer.exits, trainer.untrained, last, strict=True)
    num_tokens = len(trainer.tokens.labels)
    vocabulary = "all" if trainer.vocabulary is None else f"{len(trainer.vocabulary):,}"
    lines = [
        f"# A sorted draft of {origin.base.rpartition('/')[2]}",
        "",
        f"Base: `{origin.base}`, sha256 `{trainer.base.digest}`; its weights are not copied here.",
        f"Exits at layers {_listed(settings.exit_layers)}; trained: {_listed(trainer.exits)} "
        f"({METHODS[settings.method]}). Token ids that can be drafted: {vocabulary}.",
        *_layers(trainer),
        "",
        "| exit layer | before any step | trained |",
        "|---|---|---|",
        *(f"| {n} | {before:.3f} | {after:.3f} |" for n, before, after in results),
        "",
        "Share of the tokens of held-out rows that the exit's likeliest token equals "
        "(greedy acceptance at the first position; before any step: the closed-form start).",
        "",
        f"Data: {len(trainer.tokens.offsets) - 1} rows with {num_tokens:,} learned tokens "
        f"({', '.join(path.name for path in origin.rows)}); {settings.holdout:.0%} held out.",
        f"Training: {trainer.num_steps} steps in {origin.hours:.2f} h on {origin.machine}.",
        "",
        f"    {origin.command}",
        "",
        f"![Curves]({PNG}) (numbers: {CSV})",
    ]
    (folder / CARD).write_text("\n".join(lines) + "\n", "utf-8")


def _layers(trainer: Trainer) -> Iterator[str]:
    if trainer.layers is not None:
        yield f"It keeps the base's layers {_listed(trainer.layers)}."
    if trainer.drops is not None:
        yield (
            "A search left out the others, each time the one that was missed least: loss "
            f"{trainer.drops.base_loss:.3f} with all layers, {trainer.drops.losses[-1]:.3f} with "
            "these, by the base's own norm and head on training rows, before any training."
        )


def _listed(exits: Sequence[int]) -> str:
    return ", ".join(map(str, exits))
