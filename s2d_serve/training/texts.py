"""Training text that is there already: conversations in ShareGPT's format, plain text, code."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from s2d_serve.errors import ConfigError
from s2d_serve.training.rows import Row

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""Who speaks, in ShareGPT's words, in the chat template's."""


def conversations(path: Path, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> Iterator[Row]:
    """A row for each line's `conversations` ([{"from": ..., "value": ...}, ...]) or `messages`
    ([{"role": ..., "content": ...}, ...]), cut at `max_tokens`. Learned is what follows the first
    user's message.

    Raises: ConfigError if a line is none of these, or the model has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ConfigError("the model has no chat template; use `s2d data text`")
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        turns = _turns(where, line)
        try:
            first = _templated(tokenizer, turns[:1], is_open=True)
            ids = _templated(tokenizer, turns, is_open=False)
        except TemplateError as error:
            raise ConfigError(f"{where}: the chat template refuses: {error}") from None
        if len(first) < min(len(ids), max_tokens):
            yield Row(tuple(ids[:max_tokens]), len(first), f"{path.name}:{number}")


def documents(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerFast, max_tokens: int
) -> Iterator[Row]:
    """Rows of `max_tokens` tokens from text files, all of them learned but the first token.

    Raises: ConfigError if a file is no text.
    """
    for path in paths:
        text = "\n".join(_lines(path, keep_empty=True))
        ids: list[int] = list(tokenizer(text)["input_ids"])
        for start in range(0, len(ids), max_tokens):
            piece = tuple(ids[start : start + max_tokens])
            if len(piece) > 1:
                yield Row(piece, 1, f"{path}:{start}")


def _turns(where: str, line: str) -> list[dict[str, str]]:
    try:
        fields: dict[str, Any] = json.loads(line)
        turns = [
            {"role": ROLES[turn["from"]], "content": str(turn["value"])}
            for turn in fields.get("conversations", ())
        ] or [
            {"role": str(turn["role"]), "content": str(turn["content"])}
            for turn in fields["messages"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where}: no conversation in ShareGPT's format ({type(error).__name__}: {error})"
        ) from None
    if not turns:
        raise ConfigError(f"{where}: an empty conversation")
    return turns


def _templated(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[dict[str, str]], is_open: bool
) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(  # type: ignore[assignment]  # a list, as asked
        list(turns), add_generation_prompt=is_open, tokenize=True, return_dict=False
    )
    return ids


def _lines(path: Path, keep_empty: bool = False) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not read: {error}") from None
    return [line for line in lines if keep_empty or line.strip()]
