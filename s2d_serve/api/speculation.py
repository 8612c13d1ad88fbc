"""What speculation did for one choice, in vLLM's shape and ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from s2d_serve.api.jsontext import Json
from s2d_serve.api.logprobs import token_text


@dataclass(frozen=True, slots=True)
class RoundToken:
    """A token of a round."""

    token_id: int
    raw: bytes
    """Its bytes, or its name if it is special."""
    is_special: bool = False
    """It adds nothing to the text."""

    def to_body(self) -> Json:
        """`token` is for reading, `bytes` is what it adds to the text."""
        return {
            "token_id": self.token_id,
            "token": token_text(self.raw),
            "bytes": [] if self.is_special else list(self.raw),
        }


@dataclass(frozen=True, slots=True)
class RoundDetails:
    """One round: what the draft guessed, what the target made of it, how long it took."""

    draft: tuple[RoundToken, ...]
    exits: tuple[int, ...]
    """Exit layer of each draft token; 0: suffix lookup found it."""
    num_accepted: int
    """Draft tokens that were delivered, from the first one on."""
    committed: tuple[RoundToken, ...]
    """What was delivered: the accepted tokens, then the target's own."""
    draft_s: float
    verify_s: float
    round_s: float
    """As the router saw it: what messages and waiting took is in."""

    def to_body(self) -> Json:
        """The round in a response."""
        return {
            "draft": [
                {**token.to_body(), "exit": exit_layer}
                for token, exit_layer in zip(self.draft, self.exits, strict=True)
            ],
            "num_accepted": self.num_accepted,
            "committed": [token.to_body() for token in self.committed],
            "draft_s": self.draft_s,
            "verify_s": self.verify_s,
            "round_s": self.round_s,
        }


def rounds_body(rounds: Sequence[RoundDetails]) -> Json:
    """What a chunk of a stream says of the rounds behind it, at its root."""
    return {"rounds": [details.to_body() for details in rounds]}


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
    rounds: tuple[RoundDetails, ...] | None = None
    """Each of them. None unless the client asks: counts per token can leak prompts."""

    def __post_init__(self) -> None:
        assert self.num_accepted_tokens <= self.num_draft_tokens
        if self.rounds is not None:
            assert len(self.rounds) == self.num_rounds
            assert sum(len(one.committed) for one in self.rounds) == self.num_committed_tokens
            assert sum(len(one.draft) for one in self.rounds) == self.num_draft_tokens
            assert sum(one.num_accepted for one in self.rounds) == self.num_accepted_tokens

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
        if self.rounds is not None:
            steps = [one for one in self.rounds if one.draft]
            counts["per_step_accepted"] = [one.num_accepted for one in steps]  # vLLM's names
            counts["per_step_drafted"] = [len(one.draft) for one in steps]
            counts |= rounds_body(self.rounds)
        return {"speculative_decoding": counts}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
