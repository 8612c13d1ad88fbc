"""Training text on disk: JSON lines of token ids, each with what its target would have said."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from transformers import PreTrainedTokenizerFast

from s2d_serve.errors import ConfigError

FORMAT = "s2d-rows-1"


@dataclass(frozen=True, slots=True)
class Row:
    """One text: tokens from `num_prompt_tokens` on are learned."""

    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    key: str = ""
    """Names where it came from, so that work that was cut off goes on where it was."""
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each learned token: the target's most probable ids and their log-probabilities; empty
    where no target was asked.
    """


def vocabulary_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Names a tokenizer's ids: rows are of use to models with the same ones only."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


class RowFile:
    """A file of rows that is added to: with RowFile(path, vocabulary) as file: file.add(row)."""

    def __init__(self, path: Path, vocabulary: str) -> None:
        """Opens a file, or goes on with one that is there.

        Raises: ConfigError if it holds rows of another tokenizer, or none at all.
        """
        self.keys: set[str] = set()
        """Of the rows that are there."""
        self.num_learned = 0
        """Their tokens after the prompts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _drop_torn_line(path)
            for row in read_rows(path, vocabulary):
                self._count(row)
        self._file: TextIO = path.open("a", encoding="utf-8")
        if not self.keys:
            self._write({"format": FORMAT, "vocabulary_sha256": vocabulary})

    def add(self, row: Row) -> None:
        """Append a row; it is on disk when this returns."""
        self._count(row)
        fields = {
            "key": row.key,
            "num_prompt_tokens": row.num_prompt_tokens,
            "token_ids": row.token_ids,
        }
        top = [[(i, round(logprob, 3)) for i, logprob in entry] for entry in row.top]
        self._write(fields | ({"top": top} if top else {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _count(self, row: Row) -> None:
        self.keys.add(row.key)
        self.num_learned += len(row.token_ids) - row.num_prompt_tokens

    def _write(self, value: object) -> None:
        self._file.write(json.dumps(value, separators=(",", ":")) + "\n")
        self._file.flush()


def read_rows(path: Path, vocabulary: str) -> Iterator[Row]:
    """The rows of a file.

    Raises: ConfigError if it holds no rows, or those of another tokenizer.
    """
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline() or "null")
            if not isinstance(head, dict) or head.get("format") != FORMAT:
                raise ConfigError(f"{path} holds no training rows; make some with `s2d data`")
            if head["vocabulary_sha256"] != vocabulary:
                raise ConfigError(f"{path} was made with another tokenizer; make it anew")
            for line in file:
                fields = json.loads(line)
                yield Row(
                    tuple(fields["token_ids"]),
                    fields["num_prompt_tokens"],
                    fields["key"],
                    tuple(tuple((i, p) for i, p in entry) for entry in fields.get("top", ())),
                )
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def read_all(paths: Sequence[Path], vocabulary: str) -> list[Row]:
    """The rows of several files.

    Raises: what `read_rows` raises, or ConfigError if there are none.
    """
    rows = [row for path in paths for row in read_rows(path, vocabulary)]
    if not rows:
        raise ConfigError(f"{', '.join(map(str, paths))}: no rows at all")
    return rows


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that was not written to its end."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
