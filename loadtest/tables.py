"""The report's tables, before they are Markdown or HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from loadtest.results import Interval, LevelResult, Report, Spread
from loadtest.summary import IDLE_SHARE

LEVEL_NAMES = {"closed": "clients", "poisson": "arrivals/s", "burst": "burst size"}


@dataclass(frozen=True, slots=True)
class Table:
    """A title, a table and what to know about it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables(report: Report) -> list[Table]:
    """All tables that have something to show, verdict first."""
    made = [
        _gates(report),
        _speedups(report),
        _throughput(report),
        _latency(report),
        _speculation(report),
        _calibration(report),
        _counters(report),
        _about(report),
    ]
    return [table for table in made if table.rows]


def markdown_rows(table: Table) -> list[str]:
    """The table's lines in Markdown, without its title and note."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (table.header, *table.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|---" * len(table.header) + "|", *lines[1:]]


def level_name(report: Report) -> str:
    """What a level of this scenario counts."""
    return LEVEL_NAMES[report.about.scenario.load.kind]


def label(target: str, traffic: str) -> str:
    """A target, and how it shared the load if it did."""
    return target if traffic == "separate" else f"{target} ({traffic} mix)"


def _gates(report: Report) -> Table:
    rows = tuple((gate.status, gate.name, gate.says) for gate in report.verdict.gates)
    return Table("Gates", ("status", "what must hold", "measured"), rows)


def _speedups(report: Report) -> Table:
    rows = tuple(
        (
            label(s.target, s.traffic),
            f"{s.level:g}",
            _interval(s.ratio, 2),
            " ".join(f"{ratio:.2f}{'*' * is_idle}" for ratio, is_idle in s.pairs),
        )
        for s in report.speedups
    )
    note = (
        "On over off: geometric mean of pairs of runs (off, on, same prompts), 95 % interval by "
        "Student's t over the pairs' logarithms. Of output tokens per second that clients waited "
        "for them, which is throughput while all clients ask (that of the whole run, its end "
        "included, is below); where arrivals or other targets set it, of one over the mean "
        "end-to-end time."
    )
    if report.about.scenario.rehearse:
        note += " A pass over all levels with speculation came first and is not counted."
    idle = [math.log(ratio) for s in report.speedups for ratio, is_idle in s.pairs if is_idle]
    if idle:
        scatter = math.sqrt(fmean(x**2 for x in idle))
        note += (
            f" *: fewer than {100 * IDLE_SHARE:g} tokens were drafted per 100 answered, so that "
            f"both runs did the same work. Such pairs ({len(idle)}) are off by {scatter:.1%} (root "
            "mean square): so much the machine scatters by itself."
        )
    return Table("Speedup", ("target", level_name(report), "on / off", "pairs"), rows, note)


def _throughput(report: Report) -> Table:
    rows = tuple(
        (
            *_who(level),
            _interval(level.output_tokens_per_s, 1),
            _interval(level.requests_per_s, 2),
            _interval(level.goodput_per_s, 2),
            ", ".join(f"{n} {status}" for status, n in sorted(level.requests.items())),
        )
        for level in report.levels
    )
    slo = report.about.scenario.slo
    note = (
        "Mean over repeats, 95 % interval by Student's t. Goodput: requests per second with TTFT "
        f"up to {slo.ttft_s:g} s and TPOT up to {slo.tpot_s * 1000:g} ms."
    )
    header = (*_WHO, "output tokens/s", "requests/s", "goodput/s", "requests")
    return Table("Throughput", _named(header, report), rows, note)


def _latency(report: Report) -> Table:
    rows = tuple(
        (
            *_who(level),
            _spread(level.ttft_s, 1, 2),
            _spread(level.tpot_s, 1000, 0),
            _spread(level.itl_s, 1000, 0),
            _spread(level.e2e_s, 1, 2),
        )
        for level in report.levels
    )
    note = (
        "Mean · p50 · p90 · p95 · p99 over all requests of all repeats. TPOT: (end to end - TTFT) "
        "/ (tokens - 1). ITL: gaps between chunks, of which one may bring several tokens."
    )
    if report.about.scenario.is_open:
        note += " TTFT and end to end count from the moment the request was meant to leave."
    header = (*_WHO, "TTFT, s", "TPOT, ms", "ITL, ms", "end to end, s")
    return Table("Latency", _named(header, report), rows, note)


def _speculation(report: Report) -> Table:
    rows = tuple(
        (
            *_who(level)[:2],
            f"{level.speculation.drafted}",
            _number(level.acceptance_rate),
            _number(level.mean_accepted_tokens),
            _number(level.mean_acceptance_length),
            ", ".join(_exits(level)),
        )
        for level in report.levels
        if level.arm == "on"
    )
    note = (
        "From the counts in the responses. Acceptance: accepted / drafted. MAT: committed / "
        "rounds, 1.0 is the target alone. Acceptance length (vLLM's): 1 + accepted / rounds with a "
        "proposal."
    )
    header = ("target", "", "drafted", "acceptance", "MAT", "acceptance length", "drafted by exit")
    return Table("Speculation", _named(header, report), rows, note)


def _calibration(report: Report) -> Table:
    found = report.calibration
    if found is None:
        return Table("Generator alone", (), ())
    row = (
        f"{found.level:g}",
        f"{found.requests_per_s:.1f}",
        f"{found.output_tokens_per_s:.0f}",
        _spread(found.ttft_s, 1000, 1),
        f"{found.client_cpu.cores:.2f}" if found.client_cpu else "",
    )
    header = ("clients", "requests/s", "tokens/s", "TTFT, ms", "cores used")
    note = "AIPerf against a server that answers at once: what no figure above can exceed."
    return Table("Generator alone", header, (row,), note)


def _counters(report: Report) -> Table:
    rows = tuple((name, f"{grown:g}") for name, grown in report.counters.items())
    note = "Growth of the counters at /metrics over all batches: off, on and warm-up."
    return Table("The service's own counters", ("counter", "growth"), rows, note)


def _about(report: Report) -> Table:
    about = report.about
    rows: list[tuple[str, str]] = [
        ("scenario", f"{about.scenario_name}: {about.scenario.description}"),
        ("started", about.started),
        ("command", about.command),
        ("runs", report.runs),
        ("commit", about.commit or "unknown"),
        ("AIPerf", about.aiperf or "unknown"),
        ("client", ", ".join(f"{k} {v}" for k, v in about.machine.items())),
        ("service", about.url + (" (null server)" if about.service_is_null else "")),
        ("prompts", Path(about.prompts).name),
        *((str(card["id"]), _weights(card)) for card in about.models),
    ]
    if not report.counters:
        rows.append(("/metrics", "the service has none; counts are those of the responses"))
    return Table("What was run", ("", ""), tuple(rows))


_WHO = ("target", "", "speculation")


def _named(header: Sequence[str], report: Report) -> tuple[str, ...]:
    return tuple(name or level_name(report) for name in header)


def _who(level: LevelResult) -> tuple[str, str, str]:
    return label(level.target, level.traffic), f"{level.level:g}", level.arm


def _interval(value: Interval, digits: int) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def _spread(value: Spread | None, scale: float, digits: int) -> str:
    if value is None:
        return ""
    parts = (value.mean, value.p50, value.p90, value.p95, value.p99)
    return " · ".join(f"{part * scale:.{digits}f}" for part in parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _exits(level: LevelResult) -> list[str]:
    exits = level.speculation.exits
    drafted = sum(exits.values())
    return [f"{exit_name(name)} {n / drafted:.0%}" for name, n in exits.items() if drafted]


def exit_name(name: str) -> str:
    """An exit as the report calls it."""
    return "lookup" if name == "0" else f"exit {name}"


def _weights(card: dict[str, Any]) -> str:
    ours = card.get("s2d", {})
    weights, draft = ours.get("weights") or {}, ours.get("draft") or {}
    parts = [f"{weights.get('name', '?')} in {weights.get('dtype', '?')}"]
    if draft:
        drafted = draft.get("weights") or draft
        parts.append(
            f"draft {drafted.get('name', '?')} in {drafted.get('dtype', '?')}, "
            f"exits {draft.get('exit_layers')}"
        )
    return "; ".join(parts)
