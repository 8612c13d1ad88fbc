"""What a draft length is chosen by, estimated while serving: acceptance by position, steps of a
proposal, seconds of a forward pass.
"""

import bisect
import math
from dataclasses import dataclass, field

DECAY = 0.95
"""A round's weight after n more rounds is `DECAY`^n: about the last 20 rounds count."""
SEQUENCE_PRIOR_WEIGHT = 8.0
"""Rounds that the target's own record is worth beside a sequence's."""
COST_WEIGHT = 0.2
"""Weight of a new measurement in a running cost."""
LESS_COST_WEIGHT = 0.5
"""The same in a `CostCurve`, if it took less: what disturbs a pass makes it slower, never faster. A
cost that was put too high keeps the draft at rest, where few measurements would bring it down.
"""
MAX_READ_S = 0.25
"""Of a pass that reads: a round that comes meanwhile has to wait."""
MIN_READ_TOKENS = 16
"""Of a pass that reads, however slow: fewer cost more, each."""
MIN_SHARE = 0.1
"""Of a pass over few tokens, that further ones take at least: no measurement is so exact that they
are free.
"""
DRIFT_SHARE = 0.5
"""How far, of one, the other sizes of a cost curve follow the one that was measured."""


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
    shared: AcceptanceEstimate,
    own: AcceptanceEstimate,
    num_positions: int,
    prior: float,
    prior_weight: float,
) -> list[float]:
    """Probability that each position is accepted, all before it included.

    Args:
        shared, own: records of the target and of the sequence.
        prior: of the first position; each further one starts from the one before it.
        prior_weight: rounds that it is worth beside the shared record.
    """
    reached, product, estimate = [], 1.0, prior
    for position in range(num_positions):
        estimate = shared.probability(position, estimate, prior_weight)
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
        makes all slower. Smaller ones cost no more: those that are not run, while longer passes
        pay, would never show it.
        """
        known = self.seconds.get(num_tokens, seconds)
        weight = LESS_COST_WEIGHT if seconds < known else COST_WEIGHT
        new = known + weight * (seconds - known)
        drift = (new / known) ** DRIFT_SHARE
        for size, cost in self.seconds.items():
            self.seconds[size] = cost * drift if size > num_tokens else min(cost * drift, new)
        self.seconds[num_tokens] = new

    def correct(self, num_tokens: int, seconds: float) -> None:
        """Take this measurement for true: larger sizes were wrong by as much, and cost no less."""
        error = seconds / self.seconds.get(num_tokens, seconds)
        for size in self.seconds:
            if size > num_tokens:
                self.seconds[size] = max(self.seconds[size] * error, seconds)
        self.seconds[num_tokens] = seconds

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
class ReadingCost:
    """Seconds that reading takes: so much for each pass over the weights, and so much for each
    token.
    """

    token_s: float = math.nan
    """NaN: nothing was measured."""
    pass_s: float = 0.0
    """Without its tokens."""

    def record(self, num_tokens: int, seconds: float, weight: float = COST_WEIGHT) -> None:
        """Add a measurement of a pass to the running costs; both change by the same factor."""
        if math.isnan(self.token_s):
            self.token_s = seconds / num_tokens
        factor = 1 + weight * (seconds / self._of_pass(num_tokens) - 1)
        self.token_s *= factor
        self.pass_s *= factor

    def tell_apart(self, few: int, many: int, seconds: float) -> None:
        """A pass over `many` tokens took so long, one over `few` what it is known to."""
        few_s = self._of_pass(few)
        self.token_s = min(max(seconds - few_s, MIN_SHARE * few_s) / (many - few), few_s / few)
        self.pass_s = few_s - few * self.token_s

    @property
    def max_tokens(self) -> int | None:
        """Tokens of a pass that takes `MAX_READ_S`, or twice what it takes without any, but
        `MIN_READ_TOKENS` at least; None: not known.
        """
        if math.isnan(self.token_s):
            return None
        longest_s = max(MAX_READ_S, 2 * self.pass_s)
        return max(int((longest_s - self.pass_s) / self.token_s), MIN_READ_TOKENS)

    def __call__(self, num_tokens: int) -> float:
        """Estimate for so many; NaN as long as nothing was measured."""
        num_passes = math.ceil(num_tokens / (self.max_tokens or 1))
        return num_passes * self.pass_s + num_tokens * self.token_s

    def _of_pass(self, num_tokens: int) -> float:
        return self.pass_s + num_tokens * self.token_s
