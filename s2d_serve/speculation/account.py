"""What drafting has saved a target so far, as it came true: estimates that promise too much are
found out here, and speculation never loses for long.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

REST_SHARE = 0.01
"""Of the time without proposals, what trying again may cost: the most that speculation loses."""
START_ROUNDS = 6.0
"""Rounds of the target alone that trying may cost before anything is known: with fewer, bad luck in
the first rounds sends a good draft to rest, and it is long until it has earned another look.
"""
MAX_ROUNDS = 12.0
"""Rounds' worth of savings that count: old ones excuse no long loss."""
NUM_ALONE_ROUNDS = 9
"""Rounds of the target alone over which the median is taken."""


def bucket(num_sequences: int) -> int:
    """Numbers of sequences that are taken together: 1, 2 to 3, 4 to 7, ..."""
    return num_sequences.bit_length()


@dataclass(slots=True)
class AloneRounds:
    """What a round of the target alone takes, by the number of its sequences.

    Medians: a round that had to wait, or to share its cores with a draft that reads, is no measure.
    """

    rounds: dict[int, deque[float]] = field(default_factory=dict)

    def record(self, num_sequences: int, seconds: float) -> None:
        """One round, all of it."""
        latest = self.rounds.setdefault(num_sequences, deque(maxlen=NUM_ALONE_ROUNDS))
        latest.append(seconds)

    def __call__(self, num_sequences: int) -> float:
        """For so many, or the nearest number of its bucket; NaN if none of it was seen."""
        seen = [n for n in self.rounds if bucket(n) == bucket(num_sequences)]
        if not seen:
            return math.nan
        return statistics.median(self.rounds[min(seen, key=lambda n: abs(n - num_sequences))])


@dataclass(slots=True)
class Account:
    """Seconds saved by rounds with proposals, less what they cost."""

    balance_s: float
    """Below zero nothing is proposed."""
    allowance_s: float = 0.0
    """What trying may cost where nothing promises to pay; it grows while nothing is proposed."""
    debt_s: float = 0.0
    """Spent on reading, and not yet set against savings."""
    debt_tokens: float = 0.0
    """Output tokens over which that is to pay."""

    def settle(self, saved_s: float, num_tokens: int, alone_s: float) -> None:
        """Take in a round with proposals.

        Args:
            saved_s: what the target alone would have taken for its tokens, less what it took.
            num_tokens: output tokens of the sequences that were drafted for.
            alone_s: a round of the target alone.
        """
        share = 1.0 if num_tokens >= self.debt_tokens else num_tokens / self.debt_tokens
        self._pay(share)
        self.balance_s = min(self.balance_s + saved_s, MAX_ROUNDS * alone_s)

    def borrow(self, seconds: float, num_tokens: float) -> None:
        """Spend time on reading that is to pay over so many output tokens."""
        self.debt_s += seconds
        self.debt_tokens += num_tokens

    def write_off(self) -> None:
        """Nothing is proposed now: what was read for it is no use."""
        self._pay(1.0)

    def allow(self, seconds: float) -> None:
        """Nothing was proposed for so long: some of that time may be spent on trying again."""
        if self.balance_s < 0:
            self.balance_s += REST_SHARE * seconds
        else:
            self.allowance_s += REST_SHARE * seconds

    def spend(self, seconds: float) -> bool:
        """Take what trying costs out of the allowance, if it is enough."""
        if seconds > self.allowance_s:
            return False
        self.allowance_s -= max(seconds, 0.0)
        return True

    def _pay(self, share: float) -> None:
        self.balance_s -= share * self.debt_s
        self.debt_s *= 1.0 - share
        self.debt_tokens *= 1.0 - share
