"""How many tokens to draft: the length that maximises expected committed tokens per second, zero
included.

Everything is estimated while serving: acceptance by position, the cost of a draft step, the cost of
a target forward as a function of its tokens. Where nothing pays, the draft rests and is tried again
ever more rarely.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from s2d_serve.speculation.account import START_ROUNDS, Account, AloneRounds, bucket
from s2d_serve.speculation.estimates import (
    COST_WEIGHT,
    AcceptanceEstimate,
    CostCurve,
    ReadingCost,
    StepEstimate,
    reach,
)

PRIOR_ACCEPTANCE = 0.9
"""Of what was never tried: a draft that seems too poor to read a prompt would never be found out.
The account bounds what that may cost.
"""
PRIOR_WEIGHT = 6.0
"""Rounds that it is worth beside the target's record: the first text may be one that the draft does
badly at.
"""
TARGET_DECAY = 0.97
"""`DECAY` of a target's record over all its sequences: about the last 30 rounds, so that one
long sequence does not stand for all the next ones.
"""
NUM_OVERHEADS = 8
"""Rounds over which the least overhead counts."""
PROBE_TOKENS = 2
MIN_REST_ROUNDS = 8
MAX_REST_ROUNDS = 256
MARGIN = 1.08
"""How many times the target's own speed drafting must promise: costs are estimates, and the best of
many estimates is one that errs upwards.
"""


class _Row(NamedTuple):
    """One sequence's share of a round."""

    reached: Sequence[float] = ()
    """Probability that each token of its proposal is accepted, all before it included."""
    is_drafted: bool = False
    """The draft makes them; else they are found."""


class Plan(NamedTuple):
    """What a round would bring."""

    lengths: list[int]
    """Draft tokens for each sequence."""
    rate: float
    """Expected tokens per second."""
    alone: float
    """The same of the target alone."""


@dataclass(slots=True)
class DraftLengthPolicy:
    """Draft lengths for the sequences of one target.

    One instance per target lives with the draft; the outcomes of all its sequences feed it.
    """

    max_draft_tokens: int
    adaptive: bool = True
    acceptance: AcceptanceEstimate = field(
        default_factory=lambda: AcceptanceEstimate(decay=TARGET_DECAY)
    )
    steps: StepEstimate = field(default_factory=StepEstimate)
    draft_step_s: CostCurve = field(default_factory=CostCurve)
    """Cost of one draft step, by the sequences that it serves."""
    reading_s: ReadingCost = field(default_factory=ReadingCost)
    """Cost of reading what the draft has not followed, by tokens."""
    verify_s: CostCurve = field(default_factory=CostCurve)
    """Cost of one target forward, by tokens."""
    alone_s: AloneRounds = field(default_factory=AloneRounds)
    overhead_s: float = 0.0
    """What a round with proposals takes beside the passes of draft and target."""
    output_tokens: float = math.inf
    """Running mean of the outputs' lengths; nothing is known before the first one ends."""
    rest_rounds: int = MIN_REST_ROUNDS
    """Rounds to stay away for, should nothing pay now."""
    promising: bool = False
    """The last proposal was accepted whole: worth another look, whatever the record says."""
    accounts: dict[int, Account] = field(default_factory=dict)
    """What drafting has saved, by `bucket`: it may pay for one sequence and not for eight."""
    _overheads: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_OVERHEADS))

    def choose(
        self,
        sequences: Sequence[AcceptanceEstimate | None],
        probe: bool = False,
    ) -> list[int]:
        """Draft tokens for each sequence of a round; all zero if the target is faster alone.

        The sequences whose drafts are accepted most often come first: some may be left out, the
        others get proposals of one length, since a draft step serves all of them at once.

        Args:
            sequences: the record of each sequence in the round; None where the draft is not ready.
            probe: draft a little even where it should not pay, to find out.
        """
        if not self.adaptive:
            return [0 if s is None else self.max_draft_tokens for s in sequences]
        account = self.account_in_credit(len(sequences))
        if account is None or not any(sequences):
            return [0] * len(sequences)
        plan = self.plan(sequences)
        if plan is None:
            length = min(PROBE_TOKENS, self.max_draft_tokens)
            return [0 if s is None else length for s in sequences]
        if any(plan.lengths):
            self.rest_rounds = MIN_REST_ROUNDS
            return plan.lengths
        return self._probe(self._rows(sequences), plan.alone, probe, account)

    def plan(self, sequences: Sequence[AcceptanceEstimate | None]) -> Plan | None:
        """Who should get proposals, and how long ones, arguments as in `choose`; None while a cost
        is unknown.
        """
        rows = self._rows(sequences)
        lengths = [0] * len(rows)
        alone = rate = len(rows) / self.alone_now_s(len(rows))
        least = MARGIN * alone
        order = _by_hope(rows)
        for length in range(1, self.max_draft_tokens + 1):
            tried = [_Row()] * len(rows)
            for count, i in enumerate(order, 1):
                tried[i] = rows[i]._replace(reached=rows[i].reached[:length])
                found = self._tokens_per_second(tried)
                if math.isnan(found):
                    return None
                if found > max(rate, least):
                    lengths = [length * (k in order[:count]) for k in range(len(rows))]
                    rate = found
        return Plan(lengths, rate, alone)

    def rest(self, probe: bool, num_sequences: int = 1) -> int:
        """Rounds to stay away for, as nothing was proposed; ever more, where not even a probe
        was.
        """
        if probe:
            self._rest_longer()
        account = self._account(num_sequences)
        if account is not None:
            account.write_off()
        return self.rest_rounds

    def record_alone(self, num_sequences: int, seconds: float) -> None:
        """Learn what a round of the target alone takes, all of it; a share of that time may be
        spent on trying to draft again.
        """
        self.alone_s.record(num_sequences, seconds)
        account = self._account(num_sequences)
        if account is not None:
            account.allow(seconds)

    def record_round(
        self, num_sequences: int, num_committed: int, num_drafted_for: int, seconds: float
    ) -> None:
        """Take in what came of a round with proposals, reading left out.

        Args:
            num_sequences: in the round.
            num_committed: output tokens of all of them.
            num_drafted_for: output tokens of those that had proposals.
            seconds: from asking the draft to the target's outcomes.
        """
        account = self._account(num_sequences)
        if account is not None:
            alone_s = self.alone_now_s(num_sequences)
            saved_s = num_committed / num_sequences * alone_s - seconds
            account.settle(saved_s, num_drafted_for, alone_s)

    def record_overhead(self, seconds: float) -> None:
        """Learn what a round with proposals takes beside its passes.

        The least of the last ones counts: what others make it wait for is no cost of drafting. One
        alone says nothing: the first of all makes what others find made.
        """
        self._overheads.append(seconds)
        if len(self._overheads) > 1:
            self.overhead_s = max(min(self._overheads), 0.0)

    def record_end(self, num_output_tokens: int) -> None:
        """Learn how long an output was."""
        if math.isinf(self.output_tokens):
            self.output_tokens = num_output_tokens
        self.output_tokens += COST_WEIGHT * (num_output_tokens - self.output_tokens)

    def record(
        self,
        sequence: AcceptanceEstimate,
        num_drafted: int,
        num_accepted: int,
        gave_up: bool = False,
    ) -> None:
        """Learn from one sequence's round; `gave_up`: its draft stopped before it had to."""
        if num_drafted:
            self.acceptance.record(num_drafted, num_accepted, gave_up)
            sequence.record(num_drafted, num_accepted, gave_up)
            self.steps.record(num_drafted, gave_up)
            self.promising = num_accepted == num_drafted

    def look_up(
        self,
        sequences: Sequence[AcceptanceEstimate | None],
        lengths: Sequence[int],
        found: Sequence[Sequence[float]],
    ) -> list[int]:
        """How many found tokens (see `lookup`) each sequence of a round should propose; 0 where
        the draft does better.

        Args:
            sequences: records; None where the draft is not ready.
            lengths: tokens that the draft would give each of them.
            found: probability that each found token is accepted, all before it included.
        """
        rows = [
            _Row() if sequence is None else _Row(self._reach(sequence)[:length], True)
            for sequence, length in zip(sequences, lengths, strict=True)
        ]
        chosen = [0] * len(rows)
        if not self.adaptive or self.account_in_credit(len(rows)) is None:
            return chosen
        best_rate = MARGIN * len(rows) / self.alone_now_s(len(rows))
        if any(lengths):
            best_rate = max(best_rate, self._tokens_per_second(rows))
        for i in sorted(range(len(rows)), key=lambda i: -sum(found[i])):
            for num_found in range(1, len(found[i]) + 1):
                row = _Row(found[i][:num_found])
                rate = self._tokens_per_second([*rows[:i], row, *rows[i + 1 :]])
                if rate > best_rate:
                    best_rate, chosen[i] = rate, num_found
            if chosen[i]:
                rows[i] = _Row(found[i][: chosen[i]])
        return chosen

    def account_in_credit(self, num_sequences: int) -> Account | None:
        """For so many sequences; None where it lets nothing be proposed."""
        account = self._account(num_sequences)
        return None if account is None or account.balance_s < 0 else account

    def alone_now_s(self, num_sequences: int) -> float:
        """Seconds of a round of the target alone, as it would be now; NaN as long as none was seen.

        While drafting pays there are none: then its pass, as rounds with proposals show it, is what
        it takes at most, with what they take beside their passes; and all that is known of it
        where there was never one with about as many sequences.
        """
        now_s = self.verify_s(num_sequences) + self.overhead_s
        seen_s = self.alone_s(num_sequences)
        if math.isnan(seen_s) and self.alone_s.rounds:
            return now_s
        return min(seen_s, now_s)

    def _rows(self, sequences: Sequence[AcceptanceEstimate | None]) -> list[_Row]:
        """Each sequence with the longest proposal that it may get."""
        return [_Row() if s is None else _Row(self._reach(s), True) for s in sequences]

    def _probe(
        self, rows: Sequence[_Row], alone: float, probe: bool, account: Account
    ) -> list[int]:
        """Short proposals for as many sequences as the account's allowance is enough for.

        `alone`: expected tokens per second without any.
        """
        length = min(PROBE_TOKENS, self.max_draft_tokens)
        lengths = [0] * len(rows)
        full = [row._replace(reached=[1.0] * length) if row.is_drafted else row for row in rows]
        promising = self.promising and self._tokens_per_second(full) > MARGIN * alone
        if not (probe or promising):
            return lengths
        tried, paid_s = [_Row()] * len(rows), 0.0
        for i in _by_hope(rows):
            tried[i] = rows[i]._replace(reached=rows[i].reached[:length])
            rate = self._tokens_per_second(tried)
            tokens = sum(1.0 + sum(row.reached) for row in tried)
            loss_s = tokens / rate - tokens / alone
            if not account.spend(loss_s - paid_s):
                break
            lengths[i], paid_s = length, loss_s
        if any(lengths) and not promising:
            self._rest_longer()
        return lengths

    def _account(self, num_sequences: int) -> Account | None:
        """For so many sequences; None before a round of the target alone was seen."""
        alone_s = self.alone_now_s(num_sequences)
        if math.isnan(alone_s):
            return None
        start = Account(START_ROUNDS * alone_s)
        return self.accounts.setdefault(bucket(num_sequences), start)

    def _rest_longer(self) -> None:
        self.rest_rounds = min(2 * self.rest_rounds, MAX_REST_ROUNDS)

    def _reach(self, sequence: AcceptanceEstimate) -> list[float]:
        return reach(
            self.acceptance, sequence, self.max_draft_tokens, PRIOR_ACCEPTANCE, PRIOR_WEIGHT
        )

    def _tokens_per_second(self, rows: Sequence[_Row]) -> float:
        """Expected committed tokens of a round over its expected time; NaN while a cost is
        unknown.
        """
        drafted = [row for row in rows if row.is_drafted and row.reached]
        num_steps = self.steps(max((len(row.reached) for row in drafted), default=0))
        num_found = sum(len(row.reached) for row in rows if not row.is_drafted)
        seconds = self.verify_s(round(len(rows) + len(drafted) * num_steps + num_found))
        if drafted:
            seconds += num_steps * self.draft_step_s(len(drafted))
        if drafted or num_found:
            seconds += self.overhead_s
        return sum(1.0 + sum(row.reached) for row in rows) / seconds


def _by_hope(rows: Sequence[_Row]) -> list[int]:
    """Indices of the rows that can be drafted for, those first whose drafts are accepted most."""
    ready = [i for i, row in enumerate(rows) if row.is_drafted]
    return sorted(ready, key=lambda i: -sum(rows[i].reached))
