"""The report's plots. Off is grey, on is blue: safe for the colour-blind."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loadtest.plan import Arm
from loadtest.results import Interval, LevelResult, Report, Spread
from loadtest.summary import total
from loadtest.tables import exit_name, label, level_name

COLOURS: dict[Arm, str] = {"off": "#767676", "on": "#0072b2"}
MARKS: dict[Arm, str] = {"off": "s", "on": "o"}
_ASIDE: dict[Arm, float] = {"off": 0.985, "on": 1.015}
"""So that intervals at one level stand side by side."""
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DPI = 110

Group = tuple[str, list[LevelResult]]
"""A target's label, its levels of both arms."""


def draw_plots(report: Report, folder: Path) -> dict[str, str]:
    """Draw those plots that have something to show; what each file shows, by its name."""
    groups = _groups(report)
    if not groups:
        return {}
    drawn: dict[str, str] = {}
    makers: dict[str, tuple[str, Callable[[Report, list[Group]], Figure | None]]] = {
        "throughput.png": ("Output tokens per second over load", _throughput),
        "speedup.png": ("Speedup over load", _speedup),
        "latency.png": ("Percentiles of TTFT and TPOT over load", _latency),
        "pareto.png": ("Output tokens per second against TPOT", _pareto),
        "goodput.png": ("Requests per second within the SLO over load", _goodput),
        "acceptance.png": ("Acceptance by position and by load; exits", _acceptance),
        "replicas.png": ("Ready replicas over time", _replicas),
    }
    for name, (what, make) in makers.items():
        (folder / name).unlink(missing_ok=True)
        figure = make(report, groups)
        if figure is not None:
            figure.savefig(folder / name, dpi=_DPI)
            drawn[name] = what
    return drawn


def _groups(report: Report) -> list[Group]:
    found: dict[str, list[LevelResult]] = {}
    for level in report.levels:
        found.setdefault(label(level.target, level.traffic), []).append(level)
    return list(found.items())


def _throughput(report: Report, groups: list[Group]) -> Figure:
    return _over_load(report, groups, "output tokens/s", lambda level: level.output_tokens_per_s)


def _goodput(report: Report, groups: list[Group]) -> Figure:
    what = "requests/s within the SLO"
    return _over_load(report, groups, what, lambda level: level.goodput_per_s)


def _over_load(
    report: Report, groups: list[Group], what: str, get: Callable[[LevelResult], Interval]
) -> Figure:
    figure, panels = _row_of_panels(groups)
    for axes, (name, levels) in zip(panels, groups, strict=True):
        for arm, mine in _arms(levels):
            _intervals(axes, mine, [get(level) for level in mine], arm)
        axes.set(title=name, ylabel=what)
        axes.set_ylim(bottom=0)
        _load_axis(axes, report, levels)
    return figure


def _speedup(report: Report, groups: list[Group]) -> Figure | None:
    if not report.speedups:
        return None
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color="black", linewidth=0.9)
    for i, (name, levels) in enumerate(groups):
        mine = [s for s in report.speedups if label(s.target, s.traffic) == name]
        xs, values = [s.level for s in mine], [s.ratio for s in mine]
        colour = _SERIES[i % len(_SERIES)]
        axes.errorbar(
            xs, [v.mean for v in values], yerr=_bars(values), color=colour, marker="o",
            capsize=4, label=name,
        )  # fmt: skip
        _load_axis(axes, report, levels)
    axes.set(ylabel="speculation on / off", title="Speedup, 95 % intervals")
    axes.legend(fontsize="small")
    return figure


def _latency(report: Report, groups: list[Group]) -> Figure:
    figure = Figure(figsize=(1.6 + 4.6 * len(groups), 6.6), layout="constrained")
    panels = figure.subplots(2, len(groups), squeeze=False)
    kinds: list[tuple[str, Callable[[LevelResult], Spread | None], float]] = [
        ("TTFT, s", lambda level: level.ttft_s, 1.0),
        ("TPOT, ms", lambda level: level.tpot_s, 1000.0),
    ]
    for row, (what, get, scale) in zip(panels, kinds, strict=True):
        for axes, (name, levels) in zip(row, groups, strict=True):
            for arm, mine in _arms(levels):
                _percentiles(axes, [(m.level, get(m)) for m in mine], arm, scale)
            axes.set(title=name, ylabel=what)
            axes.set_ylim(bottom=0)
            _load_axis(axes, report, levels)
            axes.legend(fontsize="x-small", ncols=2)
    return figure


def _percentiles(
    axes: Axes, values: Sequence[tuple[float, Spread | None]], arm: Arm, scale: float
) -> None:
    there = [(level, spread) for level, spread in values if spread is not None]
    xs = [level * _ASIDE[arm] for level, _ in there]
    for share, line in (("p50", "o-"), ("p90", "^--"), ("p99", "x:")):
        ys = [getattr(spread, share) * scale for _, spread in there]
        axes.plot(xs, ys, line, color=COLOURS[arm], label=f"{arm} {share}")


def _pareto(report: Report, groups: list[Group]) -> Figure:
    figure, panels = _row_of_panels(groups)
    for axes, (name, levels) in zip(panels, groups, strict=True):
        for arm, mine in _arms(levels):
            points = [
                (m.tpot_s.p50 * 1000, m.output_tokens_per_s.mean, m.level)
                for m in mine
                if m.tpot_s is not None
            ]
            xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
            axes.plot(xs, ys, "-", color=COLOURS[arm], marker=MARKS[arm], label=arm)
            for x, y, level in points:
                axes.annotate(
                    f"{level:g}", (x, y), textcoords="offset points", xytext=(7, -10),
                    color=COLOURS[arm], fontsize="small",
                )  # fmt: skip
        axes.set(title=name, xlabel="TPOT p50, ms", ylabel="output tokens/s")
        axes.set_xlim(0, 1.15 * axes.get_xlim()[1])
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        axes.legend(title="speculation", fontsize="small")
    panels[0].text(
        0.02,
        0.02,
        f"numbers: {level_name(report)}",
        transform=panels[0].transAxes,
        fontsize="small",
    )
    return figure


def _acceptance(report: Report, groups: list[Group]) -> Figure | None:
    """Left: of proposals that had a position, the share accepted there. Then by load; exits."""
    drafted = [
        (name, [level for level in levels if level.speculation.drafted]) for name, levels in groups
    ]
    drafted = [(name, levels) for name, levels in drafted if levels]
    if not drafted:
        return None
    figure = Figure(figsize=(14, 4), layout="constrained")
    positions, load, exits = figure.subplots(1, 3)
    for i, (name, levels) in enumerate(drafted):
        colour = _SERIES[i % len(_SERIES)]
        shares = _by_position(levels)
        positions.plot(range(1, len(shares) + 1), shares, marker="o", color=colour, label=name)
        xs = [level.level for level in levels]
        rates = [level.acceptance_rate or 0.0 for level in levels]
        load.plot(xs, rates, marker="o", color=colour, label=name)
        _load_axis(load, report, levels)
    positions.set(xlabel="position in the proposal", ylabel="share accepted", ylim=(0, 1.05))
    positions.xaxis.set_major_locator(MaxNLocator(integer=True))
    positions.grid(alpha=0.3)
    load.set(ylabel="accepted / drafted", ylim=(0, 1.05))
    for axes in (positions, load):
        axes.legend(fontsize="small")
    _exit_bars(exits, drafted)
    return figure


def _by_position(levels: list[LevelResult]) -> list[float]:
    longest = max(len(level.speculation.drafted_by_position) for level in levels)
    shares = []
    for j in range(longest):
        rows = [level.speculation for level in levels]
        had = sum(r.drafted_by_position[j] for r in rows if j < len(r.drafted_by_position))
        kept = sum(r.accepted_by_position[j] for r in rows if j < len(r.accepted_by_position))
        shares.append(kept / had)
    return shares


def _exit_bars(axes: Axes, drafted: list[Group]) -> None:
    """A bar per target, over all its levels."""
    totals = [total(level.speculation for level in levels).exits for _, levels in drafted]
    places = range(len(drafted))
    bottom = [0.0] * len(drafted)
    for i, name in enumerate(sorted({name for exits in totals for name in exits}, key=int)):
        shares = [exits.get(name, 0) / (sum(exits.values()) or 1) for exits in totals]
        colour = _SERIES[i % len(_SERIES)]
        axes.bar(places, shares, 0.5, bottom=bottom, label=exit_name(name), color=colour)
        bottom = [b + share for b, share in zip(bottom, shares, strict=True)]
    axes.set_xticks(places, [name for name, _ in drafted], fontsize="small")
    axes.set(ylabel="share of draft tokens", xlim=(-0.7, len(drafted) - 0.3), ylim=(0, 1.05))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _replicas(report: Report, groups: list[Group]) -> Figure | None:
    if not report.replicas:
        return None
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(sorted({name for _, counts in report.replicas for name in counts})):
        xs = [time_s for time_s, _ in report.replicas]
        ys = [counts.get(name, 0) for _, counts in report.replicas]
        axes.step(xs, ys, where="post", color=_SERIES[i % len(_SERIES)], label=name)
    axes.set(xlabel="seconds", ylabel="ready replicas")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return figure


def _row_of_panels(groups: list[Group]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.6 + 4.6 * len(groups), 4), layout="constrained")
    return figure, list(figure.subplots(1, len(groups), squeeze=False)[0])


def _arms(levels: Sequence[LevelResult]) -> list[tuple[Arm, list[LevelResult]]]:
    arms: tuple[Arm, ...] = ("off", "on")
    return [(arm, [level for level in levels if level.arm == arm]) for arm in arms]


def _intervals(
    axes: Axes, levels: Sequence[LevelResult], values: Sequence[Interval], arm: Arm
) -> None:
    xs, ys = [level.level * _ASIDE[arm] for level in levels], [v.mean for v in values]
    axes.errorbar(
        xs, ys, yerr=_bars(values),
        color=COLOURS[arm], marker=MARKS[arm], capsize=4, label=arm,
    )  # fmt: skip
    axes.legend(title="speculation", fontsize="small")


def _bars(values: Sequence[Interval]) -> list[list[float]]:
    low = [0.0 if v.low is None else v.mean - v.low for v in values]
    high = [0.0 if v.high is None else v.high - v.mean for v in values]
    return [low, high]


def _load_axis(axes: Axes, report: Report, levels: Sequence[LevelResult]) -> None:
    ticks = sorted({level.level for level in levels})
    if len(ticks) > 1:
        axes.set_xscale("log", base=2)
    else:
        axes.set_xlim(ticks[0] - 1, ticks[0] + 1)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(level_name(report))
    axes.grid(alpha=0.3)
