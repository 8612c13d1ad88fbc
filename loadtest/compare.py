"""Two reports side by side: what changed, and whether it is more than noise."""

from loadtest.intervals import of_unpaired_ratio
from loadtest.results import Interval, LevelResult, Report
from loadtest.tables import Table, label, markdown_rows

_HEAD = ("target", "level", "speculation", "tokens/s", "B / A", "TPOT p50, ms", "TTFT p50, s")
_NOTE = "B / A of tokens/s: geometric mean, 95 % interval by Welch's t over repeats; *: without 1."


def compare(first: Report, second: Report) -> str:
    """A Markdown table with a row per target, level and arm that both have.

    Ratios are second over first: geometric means over repeats, 95 % interval by Welch's t on the
    logarithms, since the repeats of two reports are not pairs.
    """
    before = {_key(level): level for level in first.levels}
    rows = [_row(before[_key(level)], level) for level in second.levels if _key(level) in before]
    if not rows:
        return "The two reports have no target, level and arm in common."
    table = Table("", _HEAD, tuple(rows), _NOTE)
    names = [f"A: {_name(first)}", f"B: {_name(second)}"]
    return "\n".join([*names, "", *markdown_rows(table), "", table.note])


def _row(a: LevelResult, b: LevelResult) -> tuple[str, ...]:
    rates = a.output_tokens_per_s, b.output_tokens_per_s
    tpot = [level.tpot_s.p50 * 1000 if level.tpot_s else float("nan") for level in (a, b)]
    ttft = [level.ttft_s.p50 if level.ttft_s else float("nan") for level in (a, b)]
    return (
        label(b.target, b.traffic),
        f"{b.level:g}",
        b.arm,
        f"{rates[0].mean:.1f} → {rates[1].mean:.1f}",
        _ratio(rates[0], rates[1]),
        f"{tpot[0]:.0f} → {tpot[1]:.0f}",
        f"{ttft[0]:.2f} → {ttft[1]:.2f}",
    )


def _ratio(a: Interval, b: Interval) -> str:
    if not any(a.repeats) or not any(b.repeats):
        return "no tokens"
    ratio = of_unpaired_ratio(a.repeats, b.repeats)
    if ratio.low is None or ratio.high is None:
        return f"{ratio.mean:.3f} (one repeat: no interval)"
    star = "" if ratio.low <= 1 <= ratio.high else " *"
    return f"{ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f}){star}"


def _key(level: LevelResult) -> tuple[str, str, float, str]:
    return level.traffic, level.target, level.level, level.arm


def _name(report: Report) -> str:
    about = report.about
    return f"{about.scenario_name}, {about.started}, commit {about.commit or 'unknown'}"
