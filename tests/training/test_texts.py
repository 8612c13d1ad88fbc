import json
from pathlib import Path

import pytest

from s2d_serve.errors import ConfigError
from s2d_serve.training.texts import conversations, documents
from tests.engine.tiny import tiny_tokenizer

TALK = [{"from": "human", "value": "the thing"}, {"from": "gpt", "value": "stop"}]


def test_a_conversation_is_learned_from_its_first_answer_on(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    same = [{"role": "user", "content": "the thing"}, {"role": "assistant", "content": "stop"}]
    path.write_text(json.dumps({"conversations": TALK}) + "\n" + json.dumps({"messages": same}))
    tokenizer = tiny_tokenizer()
    first, second = conversations(path, tokenizer, 200)
    assert first.token_ids == second.token_ids
    learned = tokenizer.decode(list(first.token_ids[first.num_prompt_tokens :]))
    assert str(learned).startswith("stop<|im_end|>")
    assert first.key != second.key
    assert list(conversations(path, tokenizer, first.num_prompt_tokens)) == []


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{",
        '{"text": "x"}',
        '{"conversations": [{"from": "x", "value": ""}]}',
        '{"messages": []}',
    ],
)
def test_what_is_no_conversation_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"conversations": TALK}) + "\n" + line)
    with pytest.raises(ConfigError, match="line 2"):
        list(conversations(path, tiny_tokenizer(), 200))


def test_documents_are_cut_into_rows(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the thing stops\n\nthe stop\n" * 5)
    tokenizer = tiny_tokenizer()
    rows = list(documents([path], tokenizer, 16))
    assert {len(row.token_ids) for row in rows[:-1]} == {16}
    assert all(row.num_prompt_tokens == 1 for row in rows)
    joined = [i for row in rows for i in row.token_ids]
    assert tokenizer.decode(joined) == path.read_text().rstrip("\n")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not read"):
        list(documents([path], tokenizer, 16))
