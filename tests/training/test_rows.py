from pathlib import Path

import pytest

from s2d_serve.errors import ConfigError
from s2d_serve.training.rows import Row, RowFile, read_all, read_rows

ROWS = [
    Row((1, 2, 3, 4), 2, "a", (((3, -0.125), (9, -2.5)), ((4, -0.5), (8, -1.0)))),
    Row((5, 6, 7), 1, "b"),
]


def written(path: Path) -> RowFile:
    with RowFile(path, "tokens") as file:
        for row in ROWS:
            file.add(row)
    return file


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    file = written(tmp_path / "deep" / "rows.jsonl")
    assert (file.keys, file.num_learned) == ({"a", "b"}, 4)
    assert list(read_rows(tmp_path / "deep" / "rows.jsonl", "tokens")) == ROWS


def test_a_file_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    written(path)
    path.write_bytes(path.read_bytes()[:-5])  # the last row is torn
    with RowFile(path, "tokens") as file:
        assert (file.keys, file.num_learned) == ({"a"}, 2)
        file.add(ROWS[1])
    assert list(read_rows(path, "tokens")) == ROWS


def test_rows_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    written(path)
    with pytest.raises(ConfigError, match="another tokenizer"):
        list(read_rows(path, "others"))
    with pytest.raises(ConfigError, match="another tokenizer"):
        RowFile(path, "others")


@pytest.mark.parametrize("content", ["", "no json\n", "[1]\n", '{"format": "something else"}\n'])
def test_what_is_no_row_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"rows\.jsonl"):
        list(read_rows(path, "tokens"))


def test_no_rows_at_all_is_an_error(tmp_path: Path) -> None:
    with RowFile(tmp_path / "rows.jsonl", "tokens"):
        pass
    with pytest.raises(ConfigError, match="no rows"):
        read_all([tmp_path / "rows.jsonl"], "tokens")
    with pytest.raises(ConfigError, match="No such file"):
        read_all([tmp_path / "missing.jsonl"], "tokens")
