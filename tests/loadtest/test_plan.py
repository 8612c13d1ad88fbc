"""The order of runs."""

import pytest

from loadtest.plan import Cell, plan, shares
from tests.loadtest.examples import scenario


def test_off_and_on_take_turns_within_each_repeat() -> None:
    load = {"kind": "closed", "levels": [1, 2], "requests_per_client": 1}
    cells = plan(scenario(load=load, repeats=3), ["a", "b"])
    assert [cell.arm for cell in cells] == ["off", "on"] * 12
    for off, on in zip(cells[::2], cells[1::2], strict=True):
        assert off.model_copy(update={"arm": "on"}) == on
    assert [cell.repeat for cell in cells] == sorted(cell.repeat for cell in cells)
    assert len({cell.name for cell in cells}) == len(cells)


def test_a_rehearsal_comes_first_with_prompts_of_its_own() -> None:
    load = {"kind": "closed", "levels": [1, 2], "requests_per_client": 1}
    cells = plan(scenario(load=load, repeats=1, rehearse=True), ["a"])
    assert [(cell.level, cell.arm, cell.repeat, cell.is_rehearsal) for cell in cells] == [
        (1, "on", 1, True),
        (2, "on", 1, True),
        (1, "off", 0, False),
        (1, "on", 0, False),
        (2, "off", 0, False),
        (2, "on", 0, False),
    ]
    assert len({cell.name for cell in cells}) == len(cells)


def test_mixed_traffic_has_all_targets_in_one_run() -> None:
    cells = plan(scenario(traffic=["even", "skewed"], repeats=1), ["a", "b", "c"])
    assert [cell.targets for cell in cells] == [("a", "b", "c")] * 4
    assert shares(cells[0]) == pytest.approx([1 / 3] * 3)
    assert shares(cells[2]) == pytest.approx([0.8, 0.1, 0.1])


def test_a_name_is_a_folder_of_its_own() -> None:
    cell = Cell(targets=("org/model:7b",), traffic="separate", level=0.5, arm="on", repeat=0)
    assert "/" not in cell.name
