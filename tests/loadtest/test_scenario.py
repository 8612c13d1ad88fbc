"""Scenarios: those that are shipped, and what is said of those that are wrong."""

from pathlib import Path

import pytest

from loadtest.options import SCENARIOS
from loadtest.scenario import Closed, ScenarioError, load_scenario


@pytest.mark.parametrize("name", sorted(path.stem for path in SCENARIOS.glob("*.yaml")))
def test_shipped_ones_are_valid(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.repeats >= 3
    assert scenario.warmup_requests > 0
    assert scenario.text_prompts > 0


def test_there_are_those_that_are_promised() -> None:
    names = {path.stem for path in SCENARIOS.glob("*.yaml")}
    assert names == {"smoke", "sweep", "sweep-cpu", "poisson", "mix", "burst", "cancel"}
    assert load_scenario("cancel").cancel is not None
    assert set(load_scenario("mix").traffic) == {"even", "skewed"}
    assert load_scenario("poisson").is_open


def test_options_replace_what_the_file_says() -> None:
    scenario = load_scenario("sweep", {"load.levels": ["1", "3"], "repeats": 7, "max_tokens": None})
    assert scenario.load.levels == (1, 3)
    assert scenario.repeats == 7
    assert scenario.max_tokens == 64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("description: x\nload: {kind: closed, levels: [0], requests_per_client: 1}", "levels.0"),
        ("description: x\nload: {kind: open, levels: [1]}", "kind"),
        ("description: x\nload: {kind: poisson, levels: [1], duration_s: 9}\nrepeat: 3", "repeat"),
        ("- a\n- b", "mapping"),
        ("load: [", "not YAML"),
        ("description: x", "load"),
    ],
)
def test_an_error_is_one_line_that_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ScenarioError) as raised:
        load_scenario(str(path))
    assert says in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ScenarioError, match="burst, cancel, mix"):
        load_scenario("smokee")


def test_few_clients_still_send_enough_requests() -> None:
    load = Closed(kind="closed", levels=(1, 8), requests_per_client=3, min_requests=8)
    assert [load.num_requests(level) for level in load.levels] == [8, 24]
