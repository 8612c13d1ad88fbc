import pytest

from s2d_serve.speculation.exits import ExitPolicy


@pytest.mark.parametrize(
    ("confidence", "exit_index"),
    [(0.95, 0), (0.9, 0), (0.89, 1), (0.6, 1), (0.59, 3), (0.3, 3), (0.0, 3)],
)
def test_the_first_exit_that_is_sure_enough_emits(confidence: float, exit_index: int) -> None:
    policy = ExitPolicy((0.9, 0.6, 1.5))
    emitting = [i for i in range(4) if policy.tries(i) and policy.emits(i, confidence)]
    assert emitting[0] == exit_index


def test_the_deepest_exit_always_emits() -> None:
    for policy in (ExitPolicy(()), ExitPolicy((0.5,)), ExitPolicy((2.0, 2.0))):
        assert policy.deepest == len(policy.thresholds)
        assert policy.tries(policy.deepest)
        assert policy.emits(policy.deepest, 0.0)


@pytest.mark.parametrize(("threshold", "is_used"), [(1.01, False), (1.0, True), (0.0, True)])
def test_a_threshold_above_one_switches_an_exit_off(threshold: float, is_used: bool) -> None:
    policy = ExitPolicy((threshold, 0.5))
    assert policy.tries(0) == is_used
    assert policy.emits(0, 1.0) == is_used


def test_a_threshold_of_zero_fixes_the_exit() -> None:
    policy = ExitPolicy((2.0, 0.0, 0.5))
    assert not policy.tries(0)
    assert policy.tries(1)
    assert policy.emits(1, 0.0)
