"""Evaluation prompts by category, in Spec-Bench's format."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s2d_serve.errors import ConfigError

MT_BENCH = frozenset(
    {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
)
"""Spec-Bench reports these eight as one category, multi-turn conversation."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt; of several turns the first."""

    key: str
    category: str
    text: str


def read_questions(
    path: Path, categories: Sequence[str] = (), per_category: int | None = None
) -> list[Question]:
    """The questions of JSON lines with `question_id`, `category` and `turns`.

    Args:
        categories: those wanted; none: all. MT-Bench's eight go by their own names.
        per_category: so many of each, evenly spread over the file.

    Raises: ConfigError if the file cannot be read so, or has no such category.
    """
    by_category: dict[str, list[Question]] = {}
    try:
        for line in path.read_text("utf-8").splitlines():
            fields = json.loads(line)
            question = Question(
                str(fields["question_id"]), str(fields["category"]), str(fields["turns"][0])
            )
            by_category.setdefault(question.category, []).append(question)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"{path} is not read: {error}; each line needs question_id, category and turns"
        ) from None
    for category in categories:
        if category not in by_category:
            raise ConfigError(f"no category {category!r}; {path} has {', '.join(by_category)}")
    wanted = categories or tuple(by_category)
    return [q for name in wanted for q in _spread(by_category[name], per_category)]


def reported_as(category: str) -> str:
    """The category's row in the tables."""
    return "mt_bench" if category in MT_BENCH else category


def _spread(questions: Sequence[Question], number: int | None) -> list[Question]:
    if number is None or number >= len(questions):
        return list(questions)
    return [questions[i * len(questions) // number] for i in range(number)]
