"""Suffix lookup: where a text ends as it ended before, what came next then may come again.

Tokens found so cost no forward pass of the draft. What they are worth is learned without proposing
them: whatever a round commits shows how far the found ones were right.

Source: the suffixes of SuffixDecoding, arXiv:2411.04975, within one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from s2d_serve.speculation.estimates import AcceptanceEstimate, reach

MIN_MATCH = 2
"""Tokens that must be the same at the earlier place."""
MAX_MATCH = 32
"""Longer matches are worth the same."""
MAX_PLACES = 16
"""Earlier places compared, the latest ones."""
PRIOR_ACCEPTANCE = 0.3
PRIOR_WEIGHT = 2.0
"""Rounds."""
MIN_REACH = 0.05
"""Found tokens less likely to be accepted than this are not proposed."""


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier place where the text went as it goes at its end."""

    length: int
    """Tokens that are the same there, up to `MAX_MATCH`."""
    token_ids: tuple[int, ...]
    """What came next."""


class SuffixLookup:
    """A growing text that finds its own end in what came before."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}
        """Where each run of `MIN_MATCH` tokens ended."""
        self.extend(token_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens."""
        first = len(self.token_ids)
        self.token_ids += token_ids
        for end in range(max(first, MIN_MATCH - 1), len(self.token_ids)):
            run = tuple(self.token_ids[end + 1 - MIN_MATCH : end + 1])
            self._ends.setdefault(run, []).append(end)

    def find(self, max_tokens: int) -> Match | None:
        """The longest match, the latest of equals, with up to `max_tokens` of what came next.

        A continuation that reaches the end of the text goes on with itself: what repeats, repeats.

        Example: after 7 8 9 7 8, the match 7 8 goes on with 9 7 8 9 7 8 ...
        """
        ends = self._ends.get(tuple(self.token_ids[-MIN_MATCH:]), [])
        best_length, best_end = 0, 0
        for end in ends[-2 : -2 - MAX_PLACES : -1]:
            length = self._num_same(end)
            if length > best_length:
                best_length, best_end = length, end
        if not best_length:
            return None
        period = len(self.token_ids) - 1 - best_end
        following = self.token_ids[best_end + 1 :]
        return Match(best_length, tuple(following[i % period] for i in range(max_tokens)))

    def _num_same(self, end: int) -> int:
        """Tokens up to `end` that are the same as those up to the end of the text."""
        length = MIN_MATCH
        while (
            length < min(MAX_MATCH, end + 1)
            and self.token_ids[end - length] == self.token_ids[-1 - length]
        ):
            length += 1
        return length


@dataclass(slots=True)
class LookupEstimate:
    """How far found tokens were right, for one target: longer matches are at least as good as
    shorter ones until they show otherwise.
    """

    by_strength: dict[int, AcceptanceEstimate] = field(default_factory=dict)
    """By the binary digits of the match's length: 2-3, 4-7, 8-15, ..."""

    def record(self, match: Match, own: AcceptanceEstimate, committed: Sequence[int]) -> None:
        """Learn from what a round committed, whether the match was proposed in it or not.

        `own`: the sequence's record.
        """
        pairs = list(zip(match.token_ids, committed, strict=False))
        same = [found == token_id for found, token_id in pairs]
        num_right = (*same, False).index(False)
        for estimate in (self._of(match), own):
            estimate.record(len(pairs), num_right)

    def reach(self, match: Match, own: AcceptanceEstimate) -> list[float]:
        """Probability that each found token is accepted, all before it included; cut where it is
        hopeless.
        """
        prior = PRIOR_ACCEPTANCE
        for strength in range(MIN_MATCH.bit_length(), match.length.bit_length()):
            if strength in self.by_strength:
                prior = self.by_strength[strength].probability(0, prior, PRIOR_WEIGHT)
        reached = reach(self._of(match), own, len(match.token_ids), prior, PRIOR_WEIGHT)
        return [share for share in reached if share >= MIN_REACH]

    def _of(self, match: Match) -> AcceptanceEstimate:
        return self.by_strength.setdefault(match.length.bit_length(), AcceptanceEstimate())
