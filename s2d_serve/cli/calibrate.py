"""`s2d calibrate`: the best exits, thresholds and lengths for each target, on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from s2d_serve.cli.data import PromptChoice, chosen_prompts
from s2d_serve.cli.output import NOTES, RESULTS
from s2d_serve.config import AppConfig, TargetConfig
from s2d_serve.engine.assemble import load_drafter, load_target
from s2d_serve.engine.calibration import (
    CalibratedTarget,
    Calibration,
    draft_identity,
    this_machine,
    write_calibration,
)
from s2d_serve.engine.draft import SortedDraft
from s2d_serve.engine.sources import resolve
from s2d_serve.errors import ConfigError
from s2d_serve.training.answers import AnswerOptions, answer
from s2d_serve.training.calibration import (
    Costs,
    fixed_exits,
    measure_costs,
    observe,
    search,
)

MS = 1000


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """Which texts it rests on."""

    prompts: tuple[str, ...]
    """Kinds of built-in prompts, or files."""
    number: int
    """Prompts of each."""
    max_tokens: int
    seed: int
    exclude: tuple[Path, ...]


def calibrate(config: AppConfig, options: CalibrationOptions, output: Path) -> None:
    """Calibrate every target that has a draft; `calibration: output` makes a deployment use it.

    Raises:
        ConfigError: no target has a draft, or prompts cannot be read.
        S2DError: what loading models raises.
    """
    targets = {name: t for name, t in config.targets.items() if t.speculation.enabled}
    if config.draft is None or not targets:
        raise ConfigError("no target of this file has a draft: nothing to calibrate")
    prompts = [
        prompt
        for source in options.prompts
        for prompt in chosen_prompts(
            PromptChoice(source, options.number, options.seed, options.exclude)
        )[0]
    ]
    draft_config = config.draft.model_copy(update={"max_sequences": 1})
    resolve(draft_config)
    with NOTES.status("loading the draft"):
        drafter, _ = load_drafter(draft_config, {})
    entries, step_ms = {}, {}
    for name, target in targets.items():
        entries[name], costs = _one(name, target, drafter.draft, prompts, options)
        step_ms = _step_ms(drafter.draft.exit_layers, costs)
    calibration = Calibration(
        machine=this_machine(), draft=draft_identity(config), step_ms=step_ms, targets=entries
    )
    write_calibration(calibration, output)
    RESULTS.print(_table(calibration))
    NOTES.print(f"`calibration: {output}` in the deployment's args makes it use this")


def _one(
    name: str,
    config: TargetConfig,
    draft: SortedDraft,
    prompts: Sequence[tuple[str, str]],
    options: CalibrationOptions,
) -> tuple[CalibratedTarget, Costs]:
    resolve(config)
    batch = min(len(prompts), 16)
    with NOTES.status(f"loading {name}"):
        target, checkpoint = load_target(config.model_copy(update={"max_sequences": batch}))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=NOTES) as progress:
        task = progress.add_task(f"{name}: answering", total=len(prompts))
        rows = []
        for row in answer(target, checkpoint, prompts, AnswerOptions(options.max_tokens, 0)):
            rows.append(row)
            progress.update(task, advance=1)
        rows.sort(key=lambda row: row.key)
        progress.update(task, description=f"{name}: measuring")
        table = observe(draft, rows)
        costs = measure_costs(draft, target.trunk)
        found = search(
            table,
            costs,
            lambda done, total: progress.update(
                task, description=f"{name}: searching", completed=done, total=total
            ),
        )
    exits = draft.exit_layers
    shares = table.agrees.float().mean(0).tolist()
    entry = CalibratedTarget(
        sha256=checkpoint.digest,
        dtype=config.dtype,
        max_draft_tokens=found.policy.max_draft_tokens,
        deepest_exit=exits[len(found.policy.thresholds)],
        thresholds=found.policy.thresholds,
        min_confidence=found.policy.min_confidence,
        expected_speedup=round(found.speedup, 3),
        best_fixed_exit={
            exits[i]: round(single.speedup, 3) for i, single in fixed_exits(table, costs).items()
        },
        acceptance={n: round(share, 3) for n, share in zip(exits, shares, strict=True)},
        verify_ms={n: round(s * MS, 2) for n, s in enumerate(costs.verify_s, start=1)},
    )
    return entry, costs


def _step_ms(exit_layers: Sequence[int], costs: Costs) -> dict[int, float]:
    """A draft step by its exit, all heads on the way included."""
    sums = accumulate(a + b for a, b in zip(costs.segment_s, costs.head_s, strict=True))
    return {n: round(s * MS, 2) for n, s in zip(exit_layers, sums, strict=True)}


def _table(calibration: Calibration) -> Table:
    table = Table(title=f"{calibration.machine}")
    for column in ("target", "deepest exit", "thresholds", "goes on at", "longest", "expected"):
        table.add_column(column)
    table.add_column("each exit alone")
    for name, entry in calibration.targets.items():
        table.add_row(
            name,
            str(entry.deepest_exit),
            ", ".join("never" if t > 1 else f"{t:g}" for t in entry.thresholds),
            f"{entry.min_confidence:g}",
            str(entry.max_draft_tokens),
            f"{entry.expected_speedup:.2f}x",
            ", ".join(f"{n}: {speedup:.2f}x" for n, speedup in entry.best_fixed_exit.items()),
        )
    return table
