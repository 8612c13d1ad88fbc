import json
from itertools import islice
from pathlib import Path

import pytest

from s2d_serve.errors import ConfigError
from s2d_serve.training.prompts import (
    NearDuplicates,
    built_in_prompts,
    excluded_texts,
    read_prompts,
)


@pytest.mark.parametrize("kind", ["general", "code"])
def test_built_in_prompts_are_many_different_and_the_same_for_a_seed(kind: str) -> None:
    prompts = list(islice(built_in_prompts(kind, 3), 2000))
    assert len(set(prompts)) == 2000
    assert prompts == list(islice(built_in_prompts(kind, 3), 2000))
    assert prompts[:50] != list(islice(built_in_prompts(kind, 4), 50))
    assert not [p for p in prompts if "{topic" in p or "{task" in p or "{name" in p]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="general, code"):
        next(built_in_prompts("poems"))


def test_near_duplicates_are_found_and_others_are_not() -> None:
    near = NearDuplicates(["Write a function that reverses a linked list in Python."])
    assert near.has("write a function that reverses a linked list in python")
    assert near.has("Please write a function that reverses a linked list in Python, with tests.")
    assert not near.has("Write a story about a linked fence and a list of neighbours.")
    assert not NearDuplicates([]).has("anything at all")


def test_prompts_are_read_from_lines_and_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n" + json.dumps({"turns": ["two", "three"]}) + "\n")
    assert read_prompts(path) == ["one", "two"]
    assert excluded_texts([path]) == ["one", "two", "three"]
    path.write_text('{"other": 1}\n')
    with pytest.raises(ConfigError, match="prompt, text, turns"):
        read_prompts(path)
    with pytest.raises(ConfigError, match="text file"):
        read_prompts(tmp_path / "missing")
