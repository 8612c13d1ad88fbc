"""Arms measured side by side: every prompt by every arm in turn, again and again."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from s2d_serve.evaluation.arms import TARGET_ONLY, Arm, Run, Task
from s2d_serve.evaluation.questions import Question, reported_as
from s2d_serve.speculation.statistics import SpeculationStatistics

OVERALL = "overall"


@dataclass(frozen=True, slots=True)
class Result:
    """One arm over the questions of one category."""

    tokens_per_s: float
    """Median over the repeats."""
    speedup: float
    """Tokens per second over the baseline's: median over the repeats of the ratio in each."""
    mean_accepted_tokens: float
    """Committed tokens per round, the target's own included; NaN where the arm does not tell."""
    acceptance_rate: float
    identical: float
    """Share of the prompts whose answer equals the baseline's."""
    num_prompts: int
    accepted_by_position: tuple[int, ...]
    drafted_by_position: tuple[int, ...]
    exit_counts: dict[int, int]


@dataclass(slots=True)
class Measurement:
    """All runs of all arms."""

    baseline: str = TARGET_ONLY
    runs: dict[str, list[list[Run]]] = field(default_factory=dict)
    """By arm: repeats of one run per question."""

    def take(
        self,
        arms: Mapping[str, Arm],
        tasks: Sequence[Task],
        repeats: int,
        progress: Callable[[str], None] = lambda arm: None,
    ) -> None:
        """Run everything, interleaved, after one unmeasured prompt to warm each arm up; the order
        of the arms turns with every prompt.
        """
        names = list(arms)
        for name in names:
            arms[name].run(tasks[-1])
            self.runs[name] = [[] for _ in range(repeats)]
        for repeat in range(repeats):
            for i, task in enumerate(tasks):
                first = (i + repeat) % len(names)
                for name in names[first:] + names[:first]:
                    progress(name)
                    self.runs[name][repeat].append(arms[name].run(task))

    def results(self, questions: Sequence[Question]) -> dict[str, dict[str, Result]]:
        """By category (and overall) and arm."""
        categories: dict[str, list[int]] = {}
        for i, question in enumerate(questions):
            categories.setdefault(reported_as(question.category), []).append(i)
        if len(categories) > 1:
            categories[OVERALL] = list(range(len(questions)))
        return {
            category: {arm: self._result(arm, chosen) for arm in self.runs}
            for category, chosen in categories.items()
        }

    def _result(self, arm: str, chosen: Sequence[int]) -> Result:
        rates = [_rate(runs, chosen) for runs in self.runs[arm]]
        baseline = [_rate(runs, chosen) for runs in self.runs[self.baseline]]
        counts = SpeculationStatistics()
        for runs in self.runs[arm]:
            for i in chosen:
                counts.add(runs[i].statistics)
        own, theirs = self.runs[arm][0], self.runs[self.baseline][0]
        return Result(
            statistics.median(rates),
            statistics.median(a / b for a, b in zip(rates, baseline, strict=True)),
            counts.mean_accepted_tokens,
            counts.acceptance_rate,
            sum(own[i].output == theirs[i].output for i in chosen) / len(chosen),
            len(chosen),
            tuple(counts.accepted_by_position),
            tuple(counts.drafted_by_position),
            dict(sorted(counts.exit_counts.items())),
        )


def _rate(runs: Sequence[Run], chosen: Sequence[int]) -> float:
    return sum(runs[i].num_tokens for i in chosen) / sum(runs[i].seconds for i in chosen)
