"""What the drafter knows: of each target, and of each of its sequences."""

from collections import deque
from dataclasses import dataclass, field

from s2d_serve.engine.messages import Outcome, Proposal, SequenceStart
from s2d_serve.speculation.draft_length import DraftLengthPolicy
from s2d_serve.speculation.estimates import AcceptanceEstimate
from s2d_serve.speculation.exits import LOOKUP_EXIT, ExitPolicy
from s2d_serve.speculation.lookup import LookupEstimate, Match, SuffixLookup

NUM_RECENT_ROUNDS = 8
"""Reading pays over many rounds: it must do so with as many sequences as there were lately, those
between two requests of a client included.
"""


@dataclass(slots=True)
class Pairing:
    """The draft as one target uses it."""

    exits: ExitPolicy
    lengths: DraftLengthPolicy
    lookup: LookupEstimate | None = None
    """None: every token is drafted."""
    num_sequences: deque[int] = field(default_factory=lambda: deque(maxlen=NUM_RECENT_ROUNDS))
    """Of the last rounds."""
    seconds_reading: float = 0.0
    """Of the draft, up to the last round."""
    is_settled: bool = False
    """What drafting costs was measured while the target was serving."""


@dataclass(slots=True)
class SequenceRecord:
    """What is known of a sequence, whether it holds a draft slot or not."""

    start: SequenceStart
    target: str
    text: SuffixLookup
    drafted: AcceptanceEstimate = field(default_factory=AcceptanceEstimate)
    found: AcceptanceEstimate = field(default_factory=AcceptanceEstimate)
    """How far the matches of suffix lookup were right."""
    match: Match | None = None
    """Where the text as it stands went the same way before."""
    is_looked_up: bool = False
    """The last proposal was found, not drafted."""
    is_wanted: bool = False
    """It pays to read what the draft has not followed."""

    @property
    def num_output_tokens(self) -> int:
        """Committed by the target so far."""
        return len(self.text.token_ids) - self.start.num_prompt_tokens

    @property
    def room(self) -> int:
        """Tokens that a proposal can have: the rest of the output but the last."""
        return self.start.num_left(len(self.text.token_ids)) - 1

    def follow(self, outcome: Outcome) -> bool:
        """Take the committed tokens in; False if they continue another text."""
        if outcome.base_length != len(self.text.token_ids):
            return False
        self.text.extend(outcome.token_ids)
        self.match = None
        return True

    def propose(self, num_tokens: int) -> Proposal:
        """The first tokens that were found, an end token last."""
        assert self.match is not None
        token_ids = self.match.token_ids[:num_tokens]
        ends = [i for i, t in enumerate(token_ids) if t in self.start.params.stop_token_ids]
        token_ids = token_ids[: ends[0] + 1] if ends else token_ids
        exits = (LOOKUP_EXIT,) * len(token_ids)
        return Proposal(len(self.text.token_ids), token_ids, exits)
