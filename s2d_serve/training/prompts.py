"""Prompts for training text: built-in combinations, and what is kept out of them."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from s2d_serve.errors import ConfigError

KINDS = ("general", "code")
MAX_DEPTH = 4
"""How deep a building block may hold others."""
SHINGLE_WORDS = 3
MAX_SHARED = 0.5
"""A prompt that shares more than this of its word triples with an excluded text is left out."""


def built_in_prompts(kind: str, seed: int = 0) -> Iterator[str]:
    """Endless different prompts of a kind, always the same for a seed.

    Raises: ConfigError for an unknown kind.
    """
    blocks = _blocks()
    if kind not in KINDS:
        raise ConfigError(f"no built-in prompts {kind!r}; there are {', '.join(KINDS)}")
    drawn = random.Random(f"{kind} {seed}")
    seen: set[str] = set()
    while True:
        prompt = _filled(drawn.choice(blocks[kind]), blocks, drawn, MAX_DEPTH)
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def read_prompts(path: Path) -> list[str]:
    """One prompt per line; or JSON lines with `prompt`, `text` or `turns` (the first counts).

    Raises: ConfigError if the file cannot be read so.
    """
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}; give a text file with a prompt on each line") from None
    return [text for line in lines for text in _texts(path, line)[:1]]


def excluded_texts(paths: Sequence[Path]) -> list[str]:
    """All texts of evaluation files, every turn of theirs.

    Raises: ConfigError if a file cannot be read.
    """
    try:
        return [
            text
            for path in paths
            for line in path.read_text("utf-8").splitlines()
            if line.strip()
            for text in _texts(path, line)
        ]
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None


class NearDuplicates:
    """Recognises prompts that say much the same as one of the excluded texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._known = [shingles for text in texts if (shingles := _shingles(text))]

    def has(self, prompt: str) -> bool:
        """Whether over half of the prompt's word triples, or of a text's, are shared."""
        own = _shingles(prompt)
        return any(
            len(own & known) > MAX_SHARED * min(len(own), len(known)) for known in self._known
        )


def _texts(path: Path, line: str) -> list[str]:
    if not line.lstrip().startswith("{"):
        return [line]
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON: {error}") from None
    found = row.get("turns") or [row[key] for key in ("prompt", "text") if key in row]
    if not found:
        raise ConfigError(f"{path}: a line has none of the fields prompt, text, turns")
    return [str(text) for text in found]


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {
        tuple(words[i : i + SHINGLE_WORDS])
        for i in range(max(len(words) - SHINGLE_WORDS + 1, min(len(words), 1)))
    }


@cache
def _blocks() -> dict[str, Any]:
    text = resources.files("s2d_serve.training").joinpath("prompts.yaml").read_text("utf-8")
    blocks: dict[str, Any] = yaml.safe_load(text)
    return blocks


def _filled(template: str, blocks: dict[str, Any], drawn: random.Random, depth: int) -> str:
    """The template with every {place} drawn anew: {topic2} is another topic than {topic}."""
    assert depth > 0, "blocks must not hold each other"
    values: dict[str, str] = {}
    for place in dict.fromkeys(re.findall(r"(?<!\{)\{(\w+)\}(?!\})", template)):
        values[place] = _drawn(place.rstrip("2"), blocks, drawn, depth)
    return template.format(**values)


def _drawn(kind: str, blocks: dict[str, Any], drawn: random.Random, depth: int) -> str:
    match kind:
        case "number":
            return str(drawn.randint(12, 480))
        case "small":
            return str(drawn.randint(2, 11))
        case "year":
            return str(drawn.randint(1890, 2023))
    plural = {"city": "cities", "query": "queries", "german": "german"}.get(kind, f"{kind}s")
    return _filled(drawn.choice(blocks[plural]), blocks, drawn, depth - 1)
