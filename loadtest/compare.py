"""Two reports side by side: what changed, and whether it is more than noise."""

from loadtest.intervals import of_unpaired_ratio
from loadtest.results import Interval, LevelResult, Report
from loadtest.scenario import Scenario
from loadtest.summary import paced_by_service
from loadtest.tables import Table, label, markdown_rows

_HEAD = ("target", "level", "speculation", "tokens/s", "B / A", "TPOT p50, ms", "TTFT p50, s")
_NOTE = (
    "B / A: how much faster B is, geometric mean, 95 % interval by Welch's t over repeats; *: "
    "without 1. Of tokens/s in a closed loop of one target, else of end-to-end times."
)


def compare(first: Report, second: Report) -> str:
    """A Markdown table with a row per target, level and arm that both have.

    Ratios are second over first: geometric means over repeats, 95 % interval by Welch's t on the
    logarithms, since the repeats of two reports are not pairs.
    """
    scenarios = first.about.scenario, second.about.scenario
    if scenarios[0].load.kind != scenarios[1].load.kind:
        return f"A {scenarios[0].load.kind} load and a {scenarios[1].load.kind} one do not compare."
    before = {_key(level): level for level in first.levels}
    is_open = scenarios[0].is_open
    rows = [
        _row(before[_key(level)], level, is_open)
        for level in second.levels
        if _key(level) in before
    ]
    if not rows:
        return "The two reports have no target, level and arm in common."
    table = Table("", _HEAD, tuple(rows), _NOTE)
    names = [f"A: {_name(first)}", f"B: {_name(second)}"]
    warnings = [f"Not the same in both: {name}." for name in _differing(*scenarios)]
    return "\n".join([*names, *warnings, "", *markdown_rows(table), "", table.note])


def _differing(a: Scenario, b: Scenario) -> list[str]:
    """What of two scenarios makes other requests, or fewer of them."""
    names = (
        "load", "traffic", "max_tokens", "temperature", "seed", "cancel", "rehearse",
        "warmup_requests",
    )  # fmt: skip
    return [
        f"{name} ({getattr(a, name)}; {getattr(b, name)})"
        for name in names
        if getattr(a, name) != getattr(b, name)
    ]


def _row(a: LevelResult, b: LevelResult, is_open: bool) -> tuple[str, ...]:
    rates = a.output_tokens_per_s, b.output_tokens_per_s
    tpot = [level.tpot_s.p50 * 1000 if level.tpot_s else float("nan") for level in (a, b)]
    ttft = [level.ttft_s.p50 if level.ttft_s else float("nan") for level in (a, b)]
    return (
        label(b.target, b.traffic),
        f"{b.level:g}",
        b.arm,
        f"{rates[0].mean:.1f} → {rates[1].mean:.1f}",
        _ratio(*rates)
        if paced_by_service(b.traffic, is_open)
        else _ratio(b.mean_e2e_s, a.mean_e2e_s),
        f"{tpot[0]:.0f} → {tpot[1]:.0f}",
        f"{ttft[0]:.2f} → {ttft[1]:.2f}",
    )


def _ratio(a: Interval | None, b: Interval | None) -> str:
    """Of second over first."""
    if a is None or b is None or not any(a.repeats) or not any(b.repeats):
        return "no answers"
    ratio = of_unpaired_ratio(a.repeats, b.repeats)
    if ratio.low is None or ratio.high is None:
        return f"{ratio.mean:.3f} (one repeat: no interval)"
    star = "" if ratio.low <= 1 <= ratio.high else " *"
    return f"{ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f}){star}"


def _key(level: LevelResult) -> tuple[str, str, float, str]:
    return level.traffic, level.target, level.level, level.arm


def _name(report: Report) -> str:
    about = report.about
    state = "" if report.verdict.passed else ", RED"
    state += "" if report.complete else f", partial: {report.runs} runs"
    return f"{about.scenario_name}, {about.started}, commit {about.commit or 'unknown'}{state}"
