"""Prompts: our file, Spec-Bench's format, and the order of drawing."""

from collections import Counter
from pathlib import Path

import pytest

from loadtest.prompts import OWN, draw, read_prompts
from loadtest.scenario import ScenarioError


def test_our_own_are_distinct_and_balanced() -> None:
    prompts = read_prompts(OWN)
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 48
    assert set(Counter(prompt.category for prompt in prompts).values()) == {8}


def test_spec_bench_lines_are_read_with_their_first_turn(tmp_path: Path) -> None:
    path = tmp_path / "spec.jsonl"
    path.write_text('{"question_id": 81, "category": "w", "turns": ["A", "B"], "reference": []}\n')
    assert [prompt.text for prompt in read_prompts(path)] == ["A"]


@pytest.mark.parametrize("line", ['{"question_id": 1, "category": "w"}', "nonsense", ""])
def test_a_bad_file_is_one_line_of_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n", "utf-8")
    with pytest.raises(ScenarioError) as raised:
        read_prompts(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(ScenarioError, match="No such file"):
        read_prompts(tmp_path / "none.jsonl")


def test_none_is_drawn_twice_before_all_were_drawn_once() -> None:
    prompts = read_prompts(OWN)
    drawn = draw(prompts, 60, "seed")
    assert len({prompt.text for prompt in drawn[:48]}) == 48
    assert drawn == draw(prompts, 60, "seed")
    assert drawn != draw(prompts, 60, "another")
