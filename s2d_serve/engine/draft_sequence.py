"""One sequence as the sorted draft holds it: its tokens, and how far each segment read them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from s2d_serve.engine.messages import SequenceStart
from s2d_serve.speculation.exits import ExitPolicy
from s2d_serve.speculation.params import TokenCounts


@dataclass(slots=True)
class DraftSequence:
    """A sequence that holds a draft slot.

    Segment s has cached the first `filled[s]` tokens, never more than the segment before it;
    `parked[s]` are segment s's outputs ([n, hidden]) for the positions from `filled[s + 1]` to
    `filled[s]`, which the next segment has not read.
    """

    start: SequenceStart
    policy: ExitPolicy
    slot: int
    token_ids: list[int]
    """Prompt, committed output, and what was drafted since."""
    num_committed: int
    counts: TokenCounts
    filled: list[int]
    parked: list[Tensor]
    exits: list[int] = field(default_factory=list)
    """Exit layer of each drafted token."""
    is_sure: bool = True
    """The last drafted token was confident enough for another one to follow."""

    @property
    def num_missing(self) -> int:
        """Tokens that not even the first segment has read."""
        return len(self.token_ids) - self.filled[0]

    def truncate(self, length: int, max_filled: int) -> None:
        """Forget everything after the first `length` tokens, and what the segments cached after
        the first `max_filled`.
        """
        self.counts.remove(self.token_ids[max(length, self.start.num_prompt_tokens) :])
        del self.token_ids[length:]
        lengths = [min(filled, length, max_filled) for filled in self.filled]
        for s, parked in enumerate(self.parked):
            first = self.filled[s + 1]
            self.parked[s] = parked[lengths[s + 1] - first : lengths[s] - first]
        self.filled = lengths

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append output tokens."""
        self.token_ids += token_ids
        self.counts.add(token_ids)
