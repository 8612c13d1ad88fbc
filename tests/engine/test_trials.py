import math

import pytest

from tests.engine.test_drafter import new_drafter, new_pairing, new_start

pytestmark = pytest.mark.usefixtures("one_thread")


def test_warming_up_tells_every_target_what_the_draft_costs() -> None:
    pairings = {"small": new_pairing(), "large": new_pairing()}
    drafter = new_drafter(pairings)
    drafter.trials.warm_up()
    for pairing in pairings.values():
        assert sorted(pairing.lengths.draft_step_s.seconds) == [1, 2, 4], "sequences of a step"
        assert not math.isnan(pairing.lengths.reading_s(1))
    assert drafter.draft.num_free_slots == 4
    assert not drafter.trials.measure_next(), "all is known"


def test_a_trial_waits_for_free_slots() -> None:
    drafter = new_drafter()
    trials = drafter.trials
    trials.plan()
    drafter.open(new_start("a"), "target")
    assert all(trials.measure_next() for _ in ("few tokens", "many", "two sequences"))
    assert not trials.measure_next(), "four need every slot"
    drafter.close("a")
    assert trials.measure_next()
    assert not trials.measure_next()


def test_without_a_slot_nothing_is_tried_out() -> None:
    drafter = new_drafter(num_slots=1)
    assert drafter.trials.try_out()
    drafter.open(new_start("a"), "target")
    assert not drafter.trials.try_out()
