"""The order of runs."""

from itertools import chain

import pytest

from loadtest.plan import Cell, plan, shares
from tests.loadtest.examples import scenario

LOAD = {"kind": "closed", "levels": [1, 2], "requests_per_client": 1, "pairs_per_batch": 2}


def test_off_and_on_take_turns_in_batches_of_pairs() -> None:
    batches = plan(scenario(load=LOAD, repeats=3), ["a", "b"])
    loads = [(name, level) for name in "ab" for level in (1, 2)]
    assert [(batch[0].targets[0], batch[0].level) for batch in batches] == loads * 2
    phases = [[cell.phase for cell in batch] for batch in batches]
    assert phases == [["off-0", "on-0", "off-1", "on-1"]] * 4 + [["off-2", "on-2"]] * 4
    for batch in batches:
        assert len({(cell.targets, cell.level) for cell in batch}) == 1
    cells = list(chain.from_iterable(batches))
    assert len({cell.name for cell in cells}) == len(cells) == 24


def test_hang_ups_are_drawn_anew_for_each_pair() -> None:
    cancel = {"share": 0.5, "after_s": 1}
    batches = plan(scenario(load=LOAD, repeats=2, cancel=cancel), ["a"])
    assert [[cell.phase for cell in batch] for batch in batches[::2]] == [
        ["off-0", "on-0"], ["off-1", "on-1"],
    ]  # fmt: skip


def test_each_run_on_a_schedule_is_a_batch() -> None:
    load = {"kind": "poisson", "levels": [0.5], "duration_s": 1}
    batches = plan(scenario(load=load, repeats=2), ["a"])
    phases = [[cell.phase for cell in batch] for batch in batches]
    assert phases == [["off-0"], ["on-0"], ["off-1"], ["on-1"]]


def test_a_rehearsal_comes_first_with_prompts_of_its_own() -> None:
    cells = chain.from_iterable(plan(scenario(load=LOAD, repeats=1, rehearse=True), ["a"]))
    found = [(cell.level, cell.arm, cell.repeat, cell.is_rehearsal) for cell in cells]
    assert found == [
        (1, "on", 1, True),
        (2, "on", 1, True),
        (1, "off", 0, False),
        (1, "on", 0, False),
        (2, "off", 0, False),
        (2, "on", 0, False),
    ]


def test_mixed_traffic_has_all_targets_in_one_run() -> None:
    found = plan(scenario(traffic=["even", "skewed"], repeats=1), ["a", "b", "c"])
    cells = list(chain.from_iterable(found))
    assert [cell.targets for cell in cells] == [("a", "b", "c")] * 4
    assert shares(cells[0]) == pytest.approx([1 / 3] * 3)
    assert shares(cells[2]) == pytest.approx([0.8, 0.1, 0.1])


def test_a_name_is_fit_for_a_folder() -> None:
    cell = Cell(targets=("org/model:7b",), traffic="separate", level=0.5, arm="on", repeat=0)
    assert "/" not in cell.name
