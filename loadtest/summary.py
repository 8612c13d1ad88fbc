"""From requests to figures: by target, level and arm, all repeats together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from loadtest.intervals import of_mean, of_ratio, percentile
from loadtest.plan import Arm
from loadtest.results import (
    CellResult,
    Interval,
    LevelResult,
    Request,
    Speculation,
    Speedup,
    Spread,
    Status,
    Texts,
)
from loadtest.scenario import Slo, Traffic

Key = tuple[Traffic, str, float]
"""How targets shared the load, target, level."""
IDLE_SHARE = 0.02
"""Draft tokens for each output token under which speculation was on in name only."""


def levels(runs: Sequence[CellResult], slo: Slo) -> list[LevelResult]:
    """A result for each target, level and arm that has runs."""
    found = sorted({(key, run.cell.arm) for run in runs for key in _keys(run)})
    return [_level(key, arm, runs, slo) for key, arm in found]


def speedups(runs: Sequence[CellResult], is_open: bool) -> list[Speedup]:
    """Of each target and level that has a pair of runs: the same repeat without and with."""
    found: list[Speedup] = []
    for key in sorted({key for run in runs for key in _keys(run)}):
        traffic, target, level = key
        is_paced = paced_by_service(traffic, is_open)
        pace = _tokens_per_waiting_s if is_paced else _answers_per_s
        off, on = (
            {run.cell.repeat: run for run in runs if run.cell.arm == arm and key in _keys(run)}
            for arm in ("off", "on")
        )
        pairs = [
            ((pace(off[repeat], target), pace(on[repeat], target)), _is_idle(on[repeat], target))
            for repeat in sorted(off.keys() & on.keys())
        ]
        answered = [pair for pair in pairs if all(pair[0])]
        if answered:
            found.append(
                Speedup(
                    target=target,
                    traffic=traffic,
                    level=level,
                    ratio=of_ratio([rates for rates, _ in answered]),
                    is_idle=tuple(is_idle for _, is_idle in answered),
                )
            )
    return found


def paced_by_service(traffic: Traffic, is_open: bool) -> bool:
    """Whether a target's tokens per second say how fast it is: arrivals do not set them, nor do
    other targets that the same clients ask.
    """
    return traffic == "separate" and not is_open


def with_pairs(texts: Texts, runs: Sequence[CellResult]) -> Texts:
    """The same, with the answers of a target's runs held against each other, pair by pair."""
    answers: dict[Arm, dict[tuple[Traffic, float, int, str], str]] = {"off": {}, "on": {}}
    for run in runs:
        cell = run.cell
        for r in run.requests:
            if r.target == texts.target and r.text_digest is not None:
                key = (cell.traffic, cell.level, cell.repeat, r.key)
                answers[cell.arm][key] = r.text_digest
    both = answers["off"].keys() & answers["on"].keys()
    differing = sum(answers["off"][key] != answers["on"][key] for key in both)
    update = {"pairs_under_load": len(both), "differing_under_load": differing}
    return texts.model_copy(update=update)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and percentiles of those that are there; None if none is."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    p50, p90, p95, p99 = (percentile(there, share) for share in (0.5, 0.9, 0.95, 0.99))
    return Spread(mean=fmean(there), p50=p50, p90=p90, p95=p95, p99=p99)


def total(counts: Iterable[Speculation | None]) -> Speculation:
    """The sum of all counts."""
    there = [c for c in counts if c is not None]
    exits: Counter[str] = Counter()
    for one in there:
        exits.update(one.exits)
    return Speculation(
        rounds=sum(c.rounds for c in there),
        committed=sum(c.committed for c in there),
        steps=sum(c.steps for c in there),
        drafted=sum(c.drafted for c in there),
        accepted=sum(c.accepted for c in there),
        exits=dict(sorted(exits.items(), key=lambda item: int(item[0]))),
        drafted_by_position=_sums([c.drafted_by_position for c in there]),
        accepted_by_position=_sums([c.accepted_by_position for c in there]),
    )


def duration_s(run: CellResult) -> float:
    """From the first request sent to the last one over, of all targets."""
    return max(r.end_s for r in run.requests) - min(r.start_s for r in run.requests)


def added(counters: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum of each counter, by name in order."""
    sums: Counter[str] = Counter()
    for one in counters:
        sums.update(one)
    return dict(sorted(sums.items()))


def _is_idle(run: CellResult, target: str) -> bool:
    mine = [r for r in run.requests if r.target == target]
    drafted = sum(r.speculation.drafted for r in mine if r.speculation)
    return drafted < IDLE_SHARE * sum(r.output_tokens for r in mine)


def _keys(run: CellResult) -> list[Key]:
    return [(run.cell.traffic, target, run.cell.level) for target in run.cell.targets]


def _level(key: Key, arm: Arm, runs: Sequence[CellResult], slo: Slo) -> LevelResult:
    traffic, target, level = key
    mine = [run for run in runs if run.cell.arm == arm and key in _keys(run)]
    requests = [r for run in mine for r in run.requests if r.target == target]
    ok = [r for r in requests if r.status == "ok"]
    statuses: Counter[Status] = Counter(r.status for r in requests)
    counts = total(r.speculation for r in ok)
    means = [fmean(times) for run in mine if (times := _e2e_s(run, target))]
    return LevelResult(
        target=target,
        traffic=traffic,
        level=level,
        arm=arm,
        requests=dict(statuses),
        ttft_s=spread(r.ttft_s for r in ok),
        tpot_s=spread(r.tpot_s for r in ok),
        itl_s=spread(gap for r in ok for gap in r.itl_s),
        e2e_s=spread(r.e2e_s for r in ok),
        output_tokens_per_s=of_mean([_tokens_per_s(run, target) for run in mine]),
        mean_e2e_s=of_mean(means) if means else None,
        requests_per_s=_per_s(mine, target, None),
        goodput_per_s=_per_s(mine, target, slo),
        speculation=counts,
        acceptance_rate=counts.accepted / counts.drafted if counts.drafted else None,
        mean_accepted_tokens=counts.committed / counts.rounds if counts.rounds else None,
        mean_acceptance_length=1 + counts.accepted / counts.steps if counts.steps else None,
    )


def _per_s(runs: Sequence[CellResult], target: str, slo: Slo | None) -> Interval:
    return of_mean(
        [
            sum(r.target == target and r.status == "ok" and _keeps(r, slo) for r in run.requests)
            / duration_s(run)
            for run in runs
        ]
    )


def _keeps(request: Request, slo: Slo | None) -> bool:
    if slo is None:
        return True
    is_soon = request.ttft_s is not None and request.ttft_s <= slo.ttft_s
    return is_soon and (request.tpot_s is None or request.tpot_s <= slo.tpot_s)


def _tokens_per_s(run: CellResult, target: str) -> float:
    return sum(r.output_tokens for r in run.requests if r.target == target) / duration_s(run)


def _tokens_per_waiting_s(run: CellResult, target: str) -> float:
    """Output tokens per second that a client waited for them; times the clients of a closed loop,
    their throughput while all of them ask (Little's law). 0: no answer.

    Over the whole of a short run it is less, most where some answers are over long before the
    others: clients with nothing left to ask wait at its end.
    """
    answered = [r for r in run.requests if r.target == target and r.e2e_s is not None]
    waited_s = sum(_e2e_s(run, target))
    return sum(r.output_tokens for r in answered) / waited_s if waited_s else 0.0


def _answers_per_s(run: CellResult, target: str) -> float:
    """One over the mean time of an answer, from the moment that it was to be asked for; 0: none."""
    times = _e2e_s(run, target)
    return 1 / fmean(times) if times else 0.0


def _e2e_s(run: CellResult, target: str) -> list[float]:
    return [r.e2e_s for r in run.requests if r.target == target and r.e2e_s is not None]


def _sums(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    longest = max(map(len, rows), default=0)
    return tuple(sum(row[i] for row in rows if i < len(row)) for i in range(longest))
