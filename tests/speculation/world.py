"""A world for the draft-length policy: costs and acceptance that it must find out while serving."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from s2d_serve.engine.draft import MAX_UNREAD_TOKENS
from s2d_serve.speculation.draft_length import DraftLengthPolicy
from s2d_serve.speculation.estimates import AcceptanceEstimate
from s2d_serve.speculation.reading import Reading, num_worth_reading


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
    """One target and its draft, as the service runs them: reading, rests and probes included."""

    policy: DraftLengthPolicy
    acceptance: Sequence[float]
    """Chance of each position, given those before it; the last one is also that of all further."""
    draft_step_s: float
    verify_s: Callable[[int], float] = flat
    num_rows: int = 1
    seed: int = 0
    jitter: float = 0.05
    """Measured times scatter by this share."""
    others: Sequence[float] | None = None
    """Chances of every second row, where they differ."""
    draft_token_s: float = 0.0
    """What each token that a draft step reads adds to it."""
    overhead_s: float = 0.0
    """Of a round with proposals."""
    prompt_length: int = 1
    output_length: int = 200
    """Tokens after which a sequence gives way to a new one, of which nothing is known."""
    lengths: list[int] = field(default_factory=list)
    """Longest proposal of each round so far."""
    _rounds: list[tuple[float, float]] = field(default_factory=list)
    """Expected tokens, and seconds, of each round."""
    _records: list[AcceptanceEstimate] = field(init=False)
    _made: list[int] = field(init=False)
    _unread: list[int] = field(init=False)
    _random: random.Random = field(init=False)
    _rest_rounds: int = 0
    _is_probe: bool = False

    def __post_init__(self) -> None:
        self._records = [AcceptanceEstimate() for _ in range(self.num_rows)]
        self._made = [0] * self.num_rows
        self._unread = [self.prompt_length] * self.num_rows
        self._random = random.Random(self.seed)

    def run(self, num_rounds: int) -> float:
        """Serve that many rounds; expected tokens per second of what was chosen in them."""
        for _ in range(num_rounds):
            self._round()
        rounds = self._rounds[-num_rounds:]
        return sum(committed for committed, _ in rounds) / sum(seconds for _, seconds in rounds)

    def best_rate(self) -> float:
        """Expected tokens per second of the best fixed length, for all rows that are read."""
        return max(self.rate_of(length) for length in range(self.policy.max_draft_tokens + 1))

    def rate_of(self, length: int) -> float:
        """Expected tokens per second of rounds of this length."""
        lengths = [length] * self.num_rows
        return self._expected(lengths) / self._seconds(lengths, [1] * self.num_rows)

    def _seconds(self, lengths: Sequence[int], unread: Sequence[int]) -> float:
        """What a round takes, without reading."""
        seconds = self.verify_s(self.num_rows + sum(lengths))
        if any(lengths):
            seconds += self.overhead_s + sum(s for _, s in self._steps(lengths, unread))
        return seconds

    def _steps(self, lengths: Sequence[int], unread: Sequence[int]) -> list[tuple[int, float]]:
        """(sequences, seconds) of each draft step."""
        steps = []
        for step in range(max(lengths)):
            rows = [row for row, length in enumerate(lengths) if length > step]
            num_read = len(rows) if step else sum(unread[row] for row in rows)
            steps.append((len(rows), self.draft_step_s + (num_read - 1) * self.draft_token_s))
        return steps

    def _expected(self, lengths: Sequence[int]) -> float:
        committed = 0.0
        for row, length in enumerate(lengths):
            committed += 1.0
            reach = 1.0
            for position in range(length):
                reach *= self._chance(row, position)
                committed += reach
        return committed

    def _chance(self, row: int, position: int) -> float:
        chances = self.acceptance if self.others is None or row % 2 == 0 else self.others
        return chances[min(position, len(chances) - 1)]

    def _round(self) -> None:
        read_s = 0.0
        lengths = [0] * self.num_rows
        if self._rest_rounds > 0:
            self._rest_rounds -= 1
            self._is_probe = self._rest_rounds == 0
        else:
            read_s = self._read()
            lengths = self._choose()
        self.lengths.append(max(lengths))
        for num_sequences, seconds in self._steps(lengths, self._unread):
            self.policy.draft_step_s.record(num_sequences, self._measured(seconds))
        num_tokens = self.num_rows + sum(lengths)
        self.policy.verify_s.record(num_tokens, self._measured(self.verify_s(num_tokens)))
        seconds = self._seconds(lengths, self._unread)
        self._rounds.append((self._expected(lengths), seconds + read_s))
        committed = [self._commit(row, length) for row, length in enumerate(lengths)]
        if any(lengths):
            self.policy.record_overhead(self._measured(self.overhead_s))
            drafted = sum(c for c, length in zip(committed, lengths, strict=True) if length)
            seconds = self._measured(seconds)
            self.policy.record_round(self.num_rows, sum(committed), drafted, seconds)
        else:
            self.policy.record_alone(self.num_rows, self._measured(seconds))

    def _commit(self, row: int, length: int) -> int:
        num_accepted = 0
        while num_accepted < length and self._random.random() < self._chance(row, num_accepted):
            num_accepted += 1
        self.policy.record(self._records[row], length, num_accepted)
        self._made[row] += num_accepted + 1
        self._unread[row] = 1 + (num_accepted == length) if length else self._unread[row] + 1
        if self._made[row] >= self.output_length:
            self.policy.record_end(self._made[row])
            self._made[row], self._unread[row] = 0, self.prompt_length
            self._records[row] = AcceptanceEstimate()
        return num_accepted + 1

    def _read(self) -> float:
        """Read the rows that are worth it beside those that are read: the seconds it takes."""
        lagging = [row for row in range(self.num_rows) if self._unread[row] > MAX_UNREAD_TOKENS]
        lagging.sort(key=lambda row: self._unread[row])
        readings = [
            Reading(
                self._records[row],
                self._unread[row],
                self._made[row],
                self.output_length - self._made[row],
            )
            for row in lagging
        ]
        ready = [self._records[row] for row in range(self.num_rows) if row not in lagging]
        seconds = 0.0
        for row in lagging[: num_worth_reading(self.policy, ready, readings, self._is_probe)]:
            read_s = self.draft_step_s + self._unread[row] * self.draft_token_s
            self.policy.reading_s.record(self._unread[row], self._measured(read_s))
            self._unread[row] = 1
            seconds += read_s
        return seconds

    def _choose(self) -> list[int]:
        lengths = self.policy.choose(
            [
                record if unread <= MAX_UNREAD_TOKENS else None
                for record, unread in zip(self._records, self._unread, strict=True)
            ],
            self._is_probe,
        )
        if not any(lengths):
            self._rest_rounds = self.policy.rest(self._is_probe, self.num_rows)
        self._is_probe = False
        return lengths

    def _measured(self, seconds: float) -> float:
        return seconds * (1 + self.jitter * self._random.uniform(-1, 1))
