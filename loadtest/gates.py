"""What must hold for the figures to mean anything. One gate that fails turns the run red."""

import os
from collections.abc import Sequence
from typing import Literal

from loadtest.intervals import percentile
from loadtest.results import Calibration, CellResult, Gate, LevelResult, Texts, Verdict
from loadtest.scenario import Bounds
from loadtest.summary import total

EXACT = "float32"
"""Weights of this type give the same text to the last token; others may tip a near-tie."""


def judge(
    runs: Sequence[CellResult],
    levels: Sequence[LevelResult],
    texts: Sequence[Texts],
    calibration: Calibration | None,
    bounds: Bounds,
) -> Verdict:
    """All gates over what was measured."""
    gates = (
        _schedule_lag(runs, bounds),
        _achieved_rate(runs, bounds),
        _client_cpu(runs, bounds),
        _headroom(levels, calibration, bounds),
        _errors(runs, bounds),
        _texts(texts),
        _drafted(runs),
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
    most = max(level.output_tokens_per_s.mean for level in levels)
    share = most / calibration.output_tokens_per_s
    says = f"{most:.0f} tokens/s at most; the null server gives it"
    says += f" {calibration.output_tokens_per_s:.0f} (bound {bounds.max_null_share:.0%} of that)"
    return _gate(name, share <= bounds.max_null_share, says)


def _errors(runs: Sequence[CellResult], bounds: Bounds) -> Gate:
    statuses = [r.status for run in runs for r in run.requests]
    wrong = sum(status in ("429", "5xx", "failed") for status in statuses)
    share = wrong / len(statuses) if statuses else 0.0
    says = f"{wrong} of {len(statuses)} requests (bound {bounds.max_error_share:.0%})"
    return _gate("errors are few", bool(statuses) and share <= bounds.max_error_share, says)


def _texts(texts: Sequence[Texts]) -> Gate:
    name = "the same text with and without speculation"
    exact = [text for text in texts if text.dtype == EXACT]
    parts = [f"{t.target} ({t.dtype}): {t.differing} of {t.prompts} differ" for t in texts]
    if len(exact) < len(texts):
        parts.append(f"only {EXACT} is exact: others are counted, not judged")
    is_good = all(not text.differing for text in exact) if exact else None
    return _gate(name, is_good, "; ".join(parts) or "no prompts compared")


def _drafted(runs: Sequence[CellResult]) -> Gate:
    name = "speculation was on and off"
    arms = {
        arm: total(r.speculation for run in runs if run.cell.arm == arm for r in run.requests)
        for arm in ("off", "on")
    }
    if not any(run.cell.arm == "on" for run in runs):
        return _gate(name, None, "no run with speculation")
    says = f"drafted: {arms['on'].drafted} tokens when on, {arms['off'].drafted} when off"
    return _gate(name, arms["on"].drafted > 0 and arms["off"].drafted == 0, says)
