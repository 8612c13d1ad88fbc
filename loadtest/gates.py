"""What must hold for the figures to mean anything. One gate that fails turns the run red."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from loadtest.intervals import percentile
from loadtest.results import (
    About,
    Calibration,
    CellResult,
    Gate,
    LevelResult,
    Status,
    Texts,
    Verdict,
)
from loadtest.scenario import Bounds

_ERRORS: tuple[Status, ...] = ("429", "5xx", "failed")
_FALLBACKS, _REST = "s2d:draft_fallback_total", "reason=rest"
EXACT = "float32"
"""Weights of this type give the same text to the last token; others may tip a near-tie."""


def judge(
    about: About,
    runs: Sequence[CellResult],
    levels: Sequence[LevelResult],
    texts: Sequence[Texts],
    calibration: Calibration | None,
    counters: Mapping[str, float],
) -> Verdict:
    """All gates over what was measured.

    Args:
        about: the targets as the service lists them, and where a run turns red.
        runs: all that are over.
        levels: what they come to.
        texts: of the targets.
        calibration: what the generator can do.
        counters: what the service's own grew by.
    """
    bounds = about.scenario.bounds
    gates = (
        _schedule_lag(runs, bounds),
        _achieved_rate(runs, bounds),
        _client_cpu(runs, bounds),
        _headroom(levels, calibration, bounds),
        _errors(levels, bounds),
        _texts(texts),
        _drafted(levels, counters, {card["id"] for card in about.models if not _has_draft(card)}),
    )
    return Verdict(passed=all(gate.status != "failed" for gate in gates), gates=gates)


def _gate(name: str, is_good: bool | None, says: str) -> Gate:
    status: Literal["passed", "failed", "not checked"] = "passed" if is_good else "failed"
    return Gate(name=name, status="not checked" if is_good is None else status, says=says)


def _schedule_lag(runs: Sequence[CellResult], bounds: Bounds) -> Gate:
    name = "requests leave on schedule"
    lags = [[r.lag_s for r in run.requests if r.lag_s is not None] for run in runs]
    worst = max((percentile(run, 0.99) for run in lags if run), default=None)
    if worst is None:
        return _gate(name, None, "closed loop: no schedule")
    says = f"99th percentile of lag, worst run: {worst * 1000:.1f} ms"
    says += f" (bound {bounds.max_schedule_lag_s * 1000:g})"
    return _gate(name, worst <= bounds.max_schedule_lag_s, says)


def _achieved_rate(runs: Sequence[CellResult], bounds: Bounds) -> Gate:
    name = "the asked rate is sent"
    shares = []
    for run in runs:
        starts = sorted(r.start_s for r in run.requests)
        if run.asked_rate and len(starts) > 1 and starts[-1] > starts[0]:
            shares.append((len(starts) - 1) / (starts[-1] - starts[0]) / run.asked_rate)
    if not shares:
        return _gate(name, None, "closed loop: no rate is asked for")
    says = f"lowest of all runs: {min(shares):.1%} (bound {bounds.min_achieved_rate:.0%})"
    return _gate(name, min(shares) >= bounds.min_achieved_rate, says)


def _client_cpu(runs: Sequence[CellResult], bounds: Bounds) -> Gate:
    name = "the generator has processor time to spare"
    used = [run.client_cpu for run in runs if run.client_cpu]
    if not used:
        return _gate(name, None, "runs too short to sample")
    cores = os.cpu_count() or 1
    busiest, all_cores = max(u.busiest for u in used), max(u.cores for u in used)
    is_good = busiest <= bounds.max_client_cpu and all_cores / cores <= bounds.max_client_cpu
    says = f"highest of all runs: busiest process {busiest:.0%} of a core, all {all_cores:.2f}"
    says += f" of {cores} cores (bound {bounds.max_client_cpu:.0%} of either)"
    return _gate(name, is_good, says)


def _headroom(
    levels: Sequence[LevelResult], calibration: Calibration | None, bounds: Bounds
) -> Gate:
    name = "the generator is not the limit"
    if calibration is None or not levels:
        return _gate(name, None, "not calibrated")
    loads: dict[tuple[str, str, float, str], float] = {}
    for level in levels:  # the targets of a mix are one load
        who = level.target if level.traffic == "separate" else ""
        load = level.traffic, who, level.level, level.arm
        loads[load] = loads.get(load, 0.0) + level.output_tokens_per_s.mean
    most = max(loads.values())
    share = most / calibration.output_tokens_per_s
    says = f"{most:.0f} tokens/s at most; the null server gives it"
    says += f" {calibration.output_tokens_per_s:.0f} (bound {bounds.max_null_share:.0%} of that)"
    return _gate(name, share <= bounds.max_null_share, says)


def _errors(levels: Sequence[LevelResult], bounds: Bounds) -> Gate:
    name = "errors are few"
    shares = [
        (sum(level.requests.get(status, 0) for status in _ERRORS), sum(level.requests.values()))
        for level in levels
    ]
    wrong, sent = max(shares, key=lambda share: share[0] / share[1], default=(0, 0))
    says = f"worst of all targets, levels and arms: {wrong} of {sent} requests"
    says += f" (bound {bounds.max_error_share:.0%})"
    return _gate(name, sent > 0 and wrong / sent <= bounds.max_error_share, says)


def _texts(texts: Sequence[Texts]) -> Gate:
    name = "the same text with and without speculation"
    compared = [text for text in texts if text.prompts + text.pairs_under_load]
    exact = [text for text in compared if text.dtype == EXACT]
    parts = [
        f"{t.target} ({t.dtype}): {t.differing} of {t.prompts} differ, under load"
        f" {t.differing_under_load} of {t.pairs_under_load}"
        for t in compared
    ]
    if len(exact) < len(compared):
        parts.append(f"only {EXACT} is exact: others are counted, not judged")
    is_good = not any(t.differing + t.differing_under_load for t in exact) if exact else None
    return _gate(name, is_good, "; ".join(parts) or "no prompts compared")


def _drafted(
    levels: Sequence[LevelResult], counters: Mapping[str, float], undrafted: Collection[str]
) -> Gate:
    name = "speculation was on and off"
    drafted: dict[str, Counter[str]] = {}
    for level in levels:
        if level.target not in undrafted:
            drafted.setdefault(level.target, Counter())[level.arm] += level.speculation.drafted
    if not any(level.arm == "on" for level in levels):
        return _gate(name, None, "no run with speculation")
    if not drafted:
        return _gate(name, None, "the service has no draft")
    parts = [f"{who}: {n['on']} tokens when on, {n['off']} when off" for who, n in drafted.items()]
    is_good = all(n["on"] > 0 and n["off"] == 0 for n in drafted.values())
    if not all(n["on"] for n in drafted.values()) and (rests := _rests(counters)):
        parts.append(
            f"in {rests:g} rounds the draft rested, as the target is faster alone"
            " (`s2d doctor` warns of a type that is slow here, `s2d eval` measures the draft)"
        )
    return _gate(name, is_good, "drafted, " + "; ".join(parts))


def _rests(counters: Mapping[str, float]) -> float:
    """Rounds that the service itself chose to run without its draft, speculation on."""
    names = (name for name in counters if name.startswith(_FALLBACKS) and _REST in name)
    return sum(counters[name] for name in names)


def _has_draft(card: Mapping[str, Any]) -> bool:
    """False if the service says that it has none; one that says nothing may have."""
    ours = card.get("s2d", {})
    return "draft" not in ours or ours["draft"] is not None
