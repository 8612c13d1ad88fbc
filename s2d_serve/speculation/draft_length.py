"""How many tokens to draft: the length that maximises expected committed tokens per second, zero
included.

Everything is estimated while serving: acceptance by position, the cost of a draft step, the cost of
a target forward as a function of its tokens. Where nothing pays, the draft rests and is tried again
ever more rarely.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

PRIOR_ACCEPTANCE = 0.7
PRIOR_WEIGHT = 2.0
DECAY = 0.95
"""A round's weight after n more rounds is `DECAY`^n: about the last 20 rounds count."""
TARGET_DECAY = 0.97
"""The same for a target's record over all its sequences: about the last 30 rounds, so that one
long sequence does not stand for all the next ones.
"""
SEQUENCE_PRIOR_WEIGHT = 8.0
"""Rounds that the target's own record is worth beside a sequence's."""
COST_WEIGHT = 0.2
"""Weight of a new measurement in a running cost."""
DRIFT_SHARE = 0.5
"""How far, of one, the other sizes of a cost curve follow the one that was measured."""
PROBE_TOKENS = 2
PROBE_SHARE = 0.02
"""Of the time of a rest, what reading for the probe after it may cost."""
MIN_REST_ROUNDS = 8
MAX_REST_ROUNDS = 256

_Row = tuple[Sequence[float], bool]
"""Probability that each token of a proposal is accepted, all before it included; whether the draft
makes them.
"""


@dataclass(slots=True)
class AcceptanceEstimate:
    """Running probability that there is a draft token at each position and it is accepted, given
    that those before it were.
    """

    tried: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    decay: float = DECAY

    def record(self, num_drafted: int, num_accepted: int, gave_up: bool = False) -> None:
        """One round: the positions after the first rejection say nothing, and what they said
        before fades too, so that they are tried again.

        `gave_up`: the draft was too unsure to go on; the position where it stopped gave nothing.
        """
        num_tried = min(num_drafted + gave_up, num_accepted + 1)
        _count(self.tried, num_tried, num_tried, self.decay)
        _count(self.accepted, num_accepted, num_tried, self.decay)

    def probability(self, position: int, prior: float, prior_weight: float) -> float:
        """Estimate for one position; positions without a record stand on the prior alone."""
        if position >= len(self.tried):
            return prior
        return (self.accepted[position] + prior * prior_weight) / (
            self.tried[position] + prior_weight
        )


def reach(
    shared: AcceptanceEstimate, own: AcceptanceEstimate, prior: float, num_positions: int
) -> list[float]:
    """Probability that each position is accepted, all before it included.

    Args:
        shared, own: records of the target and of the sequence.
        prior: of the first position; each further one starts from the one before it.
    """
    reached, product, estimate = [], 1.0, prior
    for position in range(num_positions):
        estimate = shared.probability(position, estimate, PRIOR_WEIGHT)
        product *= own.probability(position, estimate, SEQUENCE_PRIOR_WEIGHT)
        reached.append(product)
    return reached


@dataclass(slots=True)
class StepEstimate:
    """Running mean of the steps that a proposal takes, as a function of the length asked for: less
    than that where the draft gives up earlier.
    """

    wanted: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)

    def record(self, num_drafted: int, gave_up: bool) -> None:
        """One proposal."""
        _count(self.wanted, num_drafted + gave_up, num_drafted + gave_up)
        _count(self.taken, num_drafted, num_drafted + gave_up)

    def __call__(self, length: int) -> float:
        """Expected steps of a proposal of this length; as many as asked for where none is known."""
        steps, share = 0.0, 1.0
        for position in range(length):
            if position < len(self.wanted) and self.wanted[position] > 0:
                share *= self.taken[position] / self.wanted[position]
            steps += share
        return steps


def _count(counts: list[float], num_hits: int, size: int, decay: float = DECAY) -> None:
    """Let all counts fade and add one to the first `num_hits`."""
    counts.extend([0.0] * (size - len(counts)))
    counts[:] = [c * decay + (i < num_hits) for i, c in enumerate(counts)]


@dataclass(slots=True)
class CostCurve:
    """Seconds of a forward pass as a function of its number of tokens: measured points, linear
    between them.
    """

    seconds: dict[int, float] = field(default_factory=dict)

    def record(self, num_tokens: int, seconds: float) -> None:
        """Add a measurement to the running mean at this size.

        The other sizes follow halfway: what makes one slower (a longer context, a busy machine)
        makes all slower.
        """
        known = self.seconds.get(num_tokens)
        if known is None:
            self.seconds[num_tokens] = seconds
            return
        new = known + COST_WEIGHT * (seconds - known)
        drift = (new / known) ** DRIFT_SHARE
        self.seconds = {size: cost * drift for size, cost in self.seconds.items()}
        self.seconds[num_tokens] = new

    def __call__(self, num_tokens: int) -> float:
        """Estimate for a size; NaN as long as nothing was measured.

        Below the smallest measured size the first two points go on in a line, to half its cost at
        most; above the largest, its cost is taken as it is, so that larger sizes get tried; so is a
        lone point's.
        """
        sizes = sorted(self.seconds)
        if not sizes:
            return math.nan
        if num_tokens >= sizes[-1] or len(sizes) == 1:
            return self.seconds[sizes[-1]]
        above = max(bisect.bisect_left(sizes, num_tokens), 1)
        low, high = sizes[above - 1], sizes[above]
        share = (num_tokens - low) / (high - low)
        cost = self.seconds[low] * (1 - share) + self.seconds[high] * share
        return max(cost, self.seconds[sizes[0]] / 2)


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
    """Cost of one draft step, by the tokens that it reads."""
    read_token_s: float = math.nan
    """Cost per token of reading what the draft has not followed."""
    verify_s: CostCurve = field(default_factory=CostCurve)
    """Cost of one target forward, by tokens."""
    output_tokens: float = math.inf
    """Running mean of the outputs' lengths; nothing is known before the first one ends."""
    probe_budget_s: float = 0.0
    """What may be spent on reading for a probe: it grows with every rest."""
    rest_rounds: int = MIN_REST_ROUNDS
    """Rounds to stay away for, should nothing pay now."""
    promising: bool = False
    """The last proposal was accepted whole: worth another look, whatever the record says."""

    def choose(self, sequences: Sequence[AcceptanceEstimate], probe: bool = False) -> list[int]:
        """Draft tokens for each sequence of a round; all zero if the target is faster alone.

        Args:
            sequences: the record of each sequence in the round.
            probe: draft a little even where it should not pay, to find out.
        """
        if not self.adaptive or not sequences:
            return [self.max_draft_tokens] * len(sequences)
        reached = [self._reach(sequence) for sequence in sequences]
        num_probe = min(PROBE_TOKENS, self.max_draft_tokens)
        rates = self._rates(reached)
        if rates is None:
            return [num_probe] * len(sequences)
        best_rate = max(rates)
        best_length = rates.index(best_rate)
        if best_length > 0:
            self.rest_rounds = MIN_REST_ROUNDS
        else:
            full = [([1.0] * num_probe, True)] * len(sequences)
            promising = self.promising and self._tokens_per_second(full) > best_rate
            if probe and not promising:
                self._rest_longer()
            if probe or promising:
                best_length = num_probe
        return [best_length] * len(sequences)

    def rest(self, probe: bool) -> int:
        """Rounds to stay away for, as nothing was proposed; ever more, where not even a probe
        was.
        """
        if probe:
            self._rest_longer()
        if self.verify_s.seconds:
            self.probe_budget_s += PROBE_SHARE * self.rest_rounds * self.verify_s(1)
        return self.rest_rounds

    def pays_to_read(
        self,
        sequence: AcceptanceEstimate,
        num_unread: int,
        num_made: int,
        num_left: int,
        probe: bool = False,
    ) -> bool:
        """Whether drafting for a sequence will save more than reading it costs.

        Args:
            num_unread: tokens that the draft must read first.
            num_made, num_left: output tokens so far, and allowed still.
            probe: read it also if the budget for that allows it.
        """
        if not self.adaptive or math.isnan(self.read_token_s):
            return True
        rates = self._rates([self._reach(sequence)])
        if rates is None:
            return True
        saved_s = 1 / rates[0] - 1 / max(rates)
        expected = min(num_left, max(self.output_tokens - num_made, num_made))
        cost_s = num_unread * self.read_token_s
        if cost_s <= saved_s * expected:
            return True
        if probe and cost_s <= self.probe_budget_s:
            self.probe_budget_s -= cost_s
            return True
        return False

    def record_read(self, num_tokens: int, seconds: float) -> None:
        """Learn what reading costs."""
        token_s = seconds / num_tokens
        if math.isnan(self.read_token_s):
            self.read_token_s = token_s
        self.read_token_s += COST_WEIGHT * (token_s - self.read_token_s)

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
        length: int,
        found: Sequence[Sequence[float]],
    ) -> list[int]:
        """How many found tokens (see `lookup`) each sequence of a round should propose; 0 where
        the draft does better.

        Args:
            sequences: records; None where the draft is not ready.
            length: tokens that the draft would give each of the others.
            found: probability that each found token is accepted, all before it included.
        """
        rows: list[_Row] = [
            ([], False) if sequence is None else (self._reach(sequence)[:length], True)
            for sequence in sequences
        ]
        chosen = [0] * len(rows)
        if not self.adaptive:
            return chosen
        best_rate = self._tokens_per_second(rows)
        for i in sorted(range(len(rows)), key=lambda i: -sum(found[i])):
            for num_found in range(1, len(found[i]) + 1):
                row = (found[i][:num_found], False)
                rate = self._tokens_per_second([*rows[:i], row, *rows[i + 1 :]])
                if rate > best_rate:
                    best_rate, chosen[i] = rate, num_found
            if chosen[i]:
                rows[i] = (found[i][: chosen[i]], False)
        return chosen

    def _rest_longer(self) -> None:
        self.rest_rounds = min(2 * self.rest_rounds, MAX_REST_ROUNDS)

    def _rates(self, reached: Sequence[Sequence[float]]) -> list[float] | None:
        """Expected tokens per second of a round at each length, 0 first; None while a cost is
        unknown.
        """
        rates = [
            self._tokens_per_second([(row[:length], True) for row in reached])
            for length in range(self.max_draft_tokens + 1)
        ]
        return None if any(map(math.isnan, rates)) else rates

    def _reach(self, sequence: AcceptanceEstimate) -> list[float]:
        return reach(self.acceptance, sequence, PRIOR_ACCEPTANCE, self.max_draft_tokens)

    def _tokens_per_second(self, rows: Sequence[_Row]) -> float:
        """Expected committed tokens of a round over its expected time; NaN while a cost is
        unknown.
        """
        num_drafted = sum(is_drafted and len(reached) > 0 for reached, is_drafted in rows)
        longest = max((len(reached) for reached, is_drafted in rows if is_drafted), default=0)
        num_steps = self.steps(longest)
        num_found = sum(len(reached) for reached, is_drafted in rows if not is_drafted)
        seconds = self.verify_s(round(len(rows) + num_drafted * num_steps + num_found))
        if num_drafted:
            seconds += num_steps * self.draft_step_s(num_drafted)
        return sum(1.0 + sum(reached) for reached, _ in rows) / seconds
