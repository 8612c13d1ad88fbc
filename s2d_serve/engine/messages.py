"""What draft and target tell each other about a sequence: frozen, small, no device tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from s2d_serve.speculation.params import SamplingParams

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SequenceStart:
    """Everything an executor needs to take a sequence up, new or in the middle.

    Repeating it for a sequence that is open is harmless: an executor that already has more tokens
    keeps them.
    """

    sequence_id: str
    epoch: int
    """Counts the openings of this sequence; a higher one replaces what an executor holds."""
    token_ids: tuple[int, ...]
    """Prompt and committed output."""
    num_prompt_tokens: int
    params: SamplingParams
    max_tokens: int
    """Output tokens at most; prompt + max_tokens fit in a KV slot of the target."""
    num_logprobs: int | None = None
    """Alternatives reported per token; None: no log-probabilities at all."""

    def num_left(self, length: int) -> int:
        """Output tokens that may still come once prompt and output have this length."""
        return self.max_tokens - (length - self.num_prompt_tokens)


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's place among those that share a target."""

    rank: int
    size: int
    """Ranks in all."""
    host: str
    """Address of rank 0's machine."""
    port: int
    """Where rank 0 waits for the others."""
    own_host: str
    """Address of this rank's machine, on the network that connects them."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One round's draft tokens for one sequence."""

    base_length: int
    """Tokens (prompt + committed) that the proposal continues."""
    token_ids: tuple[int, ...] = ()
    exits: tuple[int, ...] = ()
    """Exit layer that emitted each token; `LOOKUP_EXIT` for those that were found."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Raw log-softmax at one position, before any processing."""

    logprob: float
    """Of the committed token."""
    top: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the most probable ones, best first."""


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """Where the time of one round went."""

    draft_s: float = 0.0
    """Work at the draft."""
    verify_s: float = 0.0
    """The target's forward pass."""
    round_s: float = 0.0
    """All in all, as the router saw it: what messages and waiting took is in."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one forward pass of the target gave one sequence."""

    base_length: int
    """Tokens (prompt + committed) before this round."""
    token_ids: tuple[int, ...] = ()
    """Committed: the accepted draft tokens and the target's own. Empty while the prompt is being
    read.
    """
    num_accepted: int = 0
    exits: tuple[int, ...] = ()
    """Exit layer of each token that was proposed; its length is the proposal's."""
    draft_token_ids: tuple[int, ...] = ()
    """The proposal: its first `num_accepted` tokens were committed."""
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per committed token, if asked for."""
    times: RoundTimes = RoundTimes()
    """Filled in by the router."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """One forward pass of the target: an outcome per sequence, and what it cost."""

    outcomes: Mapping[str, Outcome]
    num_tokens: int
    """Tokens in the pass, all sequences together."""
    seconds: float

    @property
    def num_committing(self) -> int:
        """Sequences that got tokens."""
        return sum(bool(outcome.token_ids) for outcome in self.outcomes.values())


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """Who wants proposals in a round."""

    target: str
    limits: Mapping[str, int]
    """Draft tokens at most, by sequence: a cap on what the policy chooses."""
    is_probe: bool = False
    """Draft a little even where it should not pay: first round after a rest."""
    alone_costs: tuple["AloneCost", ...] = ()
    """Of rounds that the draft took no part in."""
    ended_lengths: tuple[int, ...] = ()
    """Output tokens of sequences that ended in such rounds."""


@dataclass(frozen=True, slots=True)
class AloneCost:
    """A round of the target alone."""

    num_sequences: int
    num_tokens: int
    """Read and decoded."""
    seconds: float
    """Of the forward pass."""
    round_s: float
    """From one round's outcomes to the next one's."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A round's proposals for the sequences of one target."""

    proposals: Mapping[str, Proposal]
    """By sequence; none for those whose prompt the draft has not read yet."""
    rest_rounds: int = 0
    """Rounds for which the target is faster alone; then ask again."""

    @property
    def has_tokens(self) -> bool:
        """Whether anything is proposed."""
        return any(proposal.token_ids for proposal in self.proposals.values())
