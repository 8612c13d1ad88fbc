"""What was measured, for programs (JSON), for papers (Markdown) and for eyes (PNG)."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from s2d_serve.evaluation.measurement import OVERALL, Result
from s2d_serve.speculation.exits import exit_name

Results = Mapping[str, Mapping[str, Result]]
"""By category and arm."""

JSON, MARKDOWN, BARS, EXITS = "results.json", "results.md", "speedup.png", "acceptance.png"


def write_report(results: Results, about: Mapping[str, object], folder: Path) -> None:
    """Write all four files. `about`: what was measured, on what, how."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {c: {arm: asdict(r) for arm, r in arms.items()} for c, arms in results.items()}
    text = json.dumps({"about": dict(about), "results": plain}, indent=1)
    (folder / JSON).write_text(text + "\n", "utf-8")
    (folder / MARKDOWN).write_text(markdown(results, about), "utf-8")
    _bars(results, folder / BARS)
    _acceptance(results, folder / EXITS)


def markdown(results: Results, about: Mapping[str, object]) -> str:
    """A table with a row per arm and a column per category; cells: speedup / MAT."""
    categories = sorted(results, key=lambda c: c == OVERALL)
    arms = list(next(iter(results.values())))
    last = categories[-1]
    lines = [
        "| | " + " | ".join(categories) + " | tokens/s | accepted | identical |",
        "|---" * (len(categories) + 4) + "|",
    ]
    for arm in arms:
        whole = results[last][arm]
        cells = [_cell(results[c][arm]) for c in categories]
        cells += [
            f"{whole.tokens_per_s:.1f}",
            "" if math.isnan(whole.acceptance_rate) else f"{whole.acceptance_rate:.2f}",
            f"{round(whole.identical * whole.num_prompts)} of {whole.num_prompts}",
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    said = "; ".join(f"{name}: {value}" for name, value in about.items())
    lines += ["", "Cells: speedup over the first row / mean accepted tokens (MAT).", "", said]
    return "\n".join(lines) + "\n"


def _cell(result: Result) -> str:
    mat = result.mean_accepted_tokens
    return f"{result.speedup:.2f}" + ("" if math.isnan(mat) else f" / {mat:.2f}")


def _bars(results: Results, path: Path) -> None:
    categories = sorted(results, key=lambda c: c == OVERALL)
    arms = list(next(iter(results.values())))
    figure = Figure(figsize=(4 + 1.4 * len(categories), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        places = [c + (i - (len(arms) - 1) / 2) * width for c in range(len(categories))]
        axes.bar(places, [results[c][arm].speedup for c in categories], width, label=arm)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(ylabel="speedup over target-only")
    axes.set_xticks(range(len(categories)), categories, rotation=20)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)


def _acceptance(results: Results, path: Path) -> None:
    """Left: of the proposals that had a position, the share accepted there. Right: exits."""
    whole = results[OVERALL] if OVERALL in results else next(iter(results.values()))
    drafted = {arm: r for arm, r in whole.items() if r.exit_counts}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    positions, exits = figure.subplots(1, 2)
    for arm, result in drafted.items():
        pairs = zip(result.accepted_by_position, result.drafted_by_position, strict=True)
        shares = [a / d for a, d in pairs if d]
        positions.plot(range(1, len(shares) + 1), shares, marker="o", label=arm)
    layers = sorted({n for result in drafted.values() for n in result.exit_counts})
    bottom = [0.0] * len(drafted)
    for n in layers:
        shares = [r.exit_counts.get(n, 0) / sum(r.exit_counts.values()) for r in drafted.values()]
        exits.bar(list(drafted), shares, bottom=bottom, label=exit_name(n))
        bottom = [b + s for b, s in zip(bottom, shares, strict=True)]
    positions.set(xlabel="position in the proposal", ylabel="share accepted", ylim=(0, 1))
    exits.set(ylabel="share of draft tokens")
    exits.tick_params(axis="x", rotation=20)
    for axes in (positions, exits):
        if drafted:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
