"""Figures from requests."""

import pytest

from loadtest.plan import Arm
from loadtest.results import CellResult, Texts
from loadtest.scenario import Slo, Traffic
from loadtest.summary import added, levels, speedups, spread, with_pairs
from tests.loadtest.examples import run, undrafted

SLO = Slo(ttft_s=0.15, tpot_s=0.2)


def test_a_level_is_all_its_repeats() -> None:
    off, on = levels([run("off"), run("on", tokens=20), run("on", 1, tokens=30)], SLO)
    assert (off.arm, on.arm) == ("off", "on")
    assert on.output_tokens_per_s.repeats == (20.0, 30.0)  # two requests in two seconds
    assert on.output_tokens_per_s.mean == 25
    assert on.requests_per_s.mean == 1
    assert on.goodput_per_s.mean == 0.5  # the second one's TTFT is 0.2
    assert on.acceptance_rate == pytest.approx(2 / 3)
    assert on.mean_accepted_tokens == pytest.approx((20 + 20 + 30 + 30) / 16)
    assert on.mean_acceptance_length == 3
    assert on.speculation.exits == {"0": 8, "4": 28}
    assert on.speculation.accepted_by_position == (12, 8, 4)
    assert off.acceptance_rate is None
    assert off.mean_accepted_tokens == 1


def test_only_answered_requests_count() -> None:
    (level,) = levels([run("off", statuses=("ok", "429", "cancelled", "5xx"))], SLO)
    assert level.requests == {"ok": 1, "429": 1, "cancelled": 1, "5xx": 1}
    assert level.output_tokens_per_s.mean == 10 / 4
    assert level.ttft_s is not None
    assert level.ttft_s.p99 == pytest.approx(0.1)


def test_a_run_without_an_answer_has_no_latency() -> None:
    (level,) = levels([run("on", statuses=("5xx", "5xx"))], SLO)
    assert level.ttft_s is None
    assert level.output_tokens_per_s.mean == 0
    assert spread([None]) is None


def test_speedup_is_by_pairs_of_the_same_repeat() -> None:
    runs = [
        run("off", 0, tokens=10), run("on", 0, tokens=20),
        run("off", 1, tokens=20), run("on", 1, tokens=30),
        run("off", 2, tokens=99),
    ]  # fmt: skip
    (speedup,) = speedups(runs, is_open=False)
    assert speedup.ratio.repeats == pytest.approx((2.0, 1.5))
    assert speedups([run("off")], is_open=False) == []


def test_pairs_in_which_next_to_nothing_was_drafted_are_told() -> None:
    runs = [
        run("off", 0), undrafted(run("on", 0)),
        run("off", 1), run("on", 1),
        undrafted(run("on", 2)),
    ]  # fmt: skip
    (speedup,) = speedups(runs, is_open=False)
    assert speedup.is_idle == (True, False)


def test_speedup_does_not_count_that_clients_have_nothing_left_to_ask() -> None:
    """Two clients, two answers each: every other one comes twice as soon, so that one is done."""

    def shaped(arm: Arm, *spans: tuple[float, float]) -> CellResult:
        found = run(arm, statuses=["ok"] * len(spans))
        requests = [
            r.model_copy(update={"start_s": start, "end_s": end, "e2e_s": end - start})
            for r, (start, end) in zip(found.requests, spans, strict=True)
        ]
        return found.model_copy(update={"requests": tuple(requests)})

    off = shaped("off", (0, 2), (0, 2), (2, 4), (2, 4))
    on = shaped("on", (0, 1), (0, 2), (1, 2), (2, 4))
    (speedup,) = speedups([off, on], is_open=False)
    assert speedup.ratio.repeats == pytest.approx((8 / 6,))
    assert [level.output_tokens_per_s.mean for level in levels([off, on], SLO)] == [10.0, 10.0]


def slower(found: CellResult, traffic: Traffic, factor: float) -> CellResult:
    requests = [r.model_copy(update={"e2e_s": factor * (r.e2e_s or 0.0)}) for r in found.requests]
    cell = found.cell.model_copy(update={"traffic": traffic})
    return found.model_copy(update={"cell": cell, "requests": tuple(requests)})


@pytest.mark.parametrize(("traffic", "is_open"), [("separate", True), ("even", False)])
def test_where_others_set_the_rate_speedup_is_of_answers_times(
    traffic: Traffic, is_open: bool
) -> None:
    runs = [slower(run("off", i), traffic, 3) for i in range(2)]
    runs += [slower(run("on", i), traffic, 2) for i in range(2)]
    (speedup,) = speedups(runs, is_open)
    assert speedup.ratio.repeats == pytest.approx((1.5, 1.5))


def test_answers_of_a_pair_are_held_against_each_other() -> None:
    def answered(arm: Arm, *digests: str | None) -> CellResult:
        found = run(arm, statuses=["ok"] * len(digests))
        requests = [
            r.model_copy(update={"key": f"r{i}", "text_digest": digest})
            for i, (r, digest) in enumerate(zip(found.requests, digests, strict=True))
        ]
        return found.model_copy(update={"requests": tuple(requests)})

    texts = Texts(target="t", dtype="float32", prompts=0, differing=0)
    found = with_pairs(texts, [answered("off", "a", "b", None), answered("on", "a", "c", "d")])
    assert (found.pairs_under_load, found.differing_under_load) == (2, 1)


def test_counters_add_up() -> None:
    assert added([{"b": 2.0}, {"a": 1.0, "b": 3.0}, {}]) == {"a": 1.0, "b": 5.0}
    assert added([]) == {}
