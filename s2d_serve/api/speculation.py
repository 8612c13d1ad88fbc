"""What speculation did for one choice, in vLLM's shape and ours."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from s2d_serve.api.jsontext import Json


@dataclass(frozen=True, slots=True)
class SpeculationSummary:
    """Counts over the rounds of one choice, of delivered tokens only: what overshot is left out.

    A call in which the target decoded several tokens alone is as many rounds.
    """

    seed: int
    num_rounds: int
    num_committed_tokens: int
    num_draft_tokens: int = 0
    acceptance_histogram: tuple[int, ...] = ()
    """Entry j: rounds with a proposal that accepted j tokens."""
    exit_counts: Mapping[int, int] = field(default_factory=dict)
    """Draft tokens by the exit layer that emitted them; 0: suffix lookup found them."""
    steps: tuple[tuple[int, int], ...] | None = None
    """(drafted, accepted) of each round with a proposal. None unless the client asks: counts per
    token can leak prompts.
    """

    def __post_init__(self) -> None:
        assert self.num_accepted_tokens <= self.num_draft_tokens
        if self.steps is not None:
            assert len(self.steps) == self.num_steps
            assert sum(drafted for drafted, _ in self.steps) == self.num_draft_tokens
            assert sum(accepted for _, accepted in self.steps) == self.num_accepted_tokens

    @property
    def num_steps(self) -> int:
        """Rounds with a proposal."""
        return sum(self.acceptance_histogram)

    @property
    def num_accepted_tokens(self) -> int:
        """Draft tokens kept."""
        return sum(j * rounds for j, rounds in enumerate(self.acceptance_histogram))

    def to_body(self) -> Json:
        """The response's `metrics`.

        The sums that AIPerf checks follow from the histogram, so they always agree. Readers want
        finite numbers: without a proposal the histogram is [0], the acceptance length 1.0 (the
        target's own token) and the rates are 0.0.

        Example: two rounds of 3 draft tokens, of which 3 and 1 are accepted, have the histogram
        [0, 1, 0, 1], mean_acceptance_length 3.0 and draft_acceptance_rate 0.667.
        """
        counts: Json = {
            "mean_acceptance_length": 1 + _ratio(self.num_accepted_tokens, self.num_steps),
            "draft_acceptance_rate": _ratio(self.num_accepted_tokens, self.num_draft_tokens),
            "acceptance_histogram": list(self.acceptance_histogram or (0,)),
            "num_spec_steps": self.num_steps,
            "num_accepted_draft_tokens": self.num_accepted_tokens,
            "num_draft_tokens": self.num_draft_tokens,
            "num_rounds": self.num_rounds,
            "mean_accepted_tokens": _ratio(self.num_committed_tokens, self.num_rounds),
            "exit_counts": {str(layer): n for layer, n in sorted(self.exit_counts.items())},
            "seed": self.seed,
        }
        if self.steps is not None:  # vLLM's names
            counts["per_step_accepted"] = [accepted for _, accepted in self.steps]
            counts["per_step_drafted"] = [drafted for drafted, _ in self.steps]
        return {"speculative_decoding": counts}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
