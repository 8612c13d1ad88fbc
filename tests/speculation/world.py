"""A world for the draft-length policy: costs and acceptance that it must find out while serving."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from s2d_serve.speculation.draft_length import AcceptanceEstimate, DraftLengthPolicy

SEQUENCE_LENGTH = 200
"""Tokens after which a sequence gives way to a new one, of which nothing is known."""


def flat(num_tokens: int) -> float:
    """Memory-bound: a second for any number of tokens."""
    return 1.0


def rising(num_tokens: int) -> float:
    """A tenth more for each token."""
    return 0.9 + 0.1 * num_tokens


def saturating(num_tokens: int) -> float:
    """Flat up to eight tokens, then rising: a device that fills up."""
    return 1.0 + 0.05 * max(0, num_tokens - 8)


@dataclass(slots=True)
class World:
    """One target and its draft, as the reference loop runs them: rests and probes included."""

    policy: DraftLengthPolicy
    acceptance: Sequence[float]
    """Chance of each position, given those before it; the last one is also that of all further."""
    draft_step_s: float
    verify_s: Callable[[int], float] = flat
    num_rows: int = 1
    seed: int = 0
    jitter: float = 0.05
    """Measured times scatter by this share."""
    lengths: list[int] = field(default_factory=list)
    """Draft tokens of each round so far."""
    _records: list[AcceptanceEstimate] = field(init=False)
    _tokens: list[int] = field(init=False)
    _random: random.Random = field(init=False)
    _rest_rounds: int = 0
    _is_probe: bool = False

    def __post_init__(self) -> None:
        self._records = [AcceptanceEstimate() for _ in range(self.num_rows)]
        self._tokens = [0] * self.num_rows
        self._random = random.Random(self.seed)

    def run(self, num_rounds: int) -> float:
        """Serve that many rounds; expected tokens per second of the lengths chosen in them."""
        for _ in range(num_rounds):
            self._round()
        return self.rate_of(self.lengths[-num_rounds:])

    def best_rate(self) -> float:
        """Expected tokens per second of the best fixed length."""
        return max(self.rate_of([length]) for length in range(self.policy.max_draft_tokens + 1))

    def rate_of(self, lengths: Sequence[int]) -> float:
        """Expected tokens per second of rounds of these lengths."""
        committed = sum(self._expected(length) for length in lengths)
        seconds = sum(
            length * self.draft_step_s + self.verify_s(self.num_rows * (1 + length))
            for length in lengths
        )
        return committed / seconds

    def _expected(self, length: int) -> float:
        committed, reach = 1.0, 1.0
        for position in range(length):
            reach *= self._chance(position)
            committed += reach
        return self.num_rows * committed

    def _chance(self, position: int) -> float:
        return self.acceptance[min(position, len(self.acceptance) - 1)]

    def _round(self) -> None:
        length = self._next_length()
        self.lengths.append(length)
        for _ in range(length):
            self.policy.draft_step_s.record(self.num_rows, self._measured(self.draft_step_s))
        num_tokens = self.num_rows * (1 + length)
        self.policy.verify_s.record(num_tokens, self._measured(self.verify_s(num_tokens)))
        for row in range(self.num_rows):
            num_accepted = 0
            while num_accepted < length and self._random.random() < self._chance(num_accepted):
                num_accepted += 1
            self.policy.record(self._records[row], length, num_accepted)
            self._tokens[row] += num_accepted + 1
            if self._tokens[row] >= SEQUENCE_LENGTH:
                self._tokens[row] = 0
                self._records[row] = AcceptanceEstimate()

    def _next_length(self) -> int:
        if self._rest_rounds > 0:
            self._rest_rounds -= 1
            self._is_probe = self._rest_rounds == 0
            return 0
        lengths = self.policy.choose(self._records, self._is_probe)
        assert len(set(lengths)) == 1
        self._rest_rounds = 0 if any(lengths) else self.policy.rest(self._is_probe)
        self._is_probe = self._is_probe and not any(lengths)
        return lengths[0]

    def _measured(self, seconds: float) -> float:
        return seconds * (1 + self.jitter * self._random.uniform(-1, 1))
