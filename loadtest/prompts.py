"""Prompts by category, from JSON lines in Spec-Bench's format."""

from pathlib import Path
from random import Random

from pydantic import BaseModel, ValidationError

from loadtest.scenario import ScenarioError, first_problem

OWN = Path(__file__).with_name("prompts.jsonl")
"""Our questions: six categories, eight of each."""


class Prompt(BaseModel):
    """One line of the file; of several turns the first is asked."""

    question_id: int | str
    category: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """What is asked."""
        return self.turns[0]


def read_prompts(path: Path) -> list[Prompt]:
    """The file's prompts, as they stand there.

    Raises: ScenarioError naming the first line that is none.
    """
    prompts = []
    try:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if line.strip():
                prompts.append(Prompt.model_validate_json(line))
                if not prompts[-1].turns:
                    raise ScenarioError(f"{path}, line {number}: no turns")
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise ScenarioError(f"{path}, line {number}: {first_problem(error)}") from None
    if not prompts:
        raise ScenarioError(f"{path} has no prompts")
    return prompts


def draw(prompts: list[Prompt], number: int, seed: str) -> list[Prompt]:
    """So many prompts in random order; none a second time before all were drawn once."""
    random = Random(seed)
    drawn: list[Prompt] = []
    while len(drawn) < number:
        drawn += random.sample(prompts, len(prompts))
    return drawn[:number]
