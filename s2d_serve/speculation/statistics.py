"""What speculation did, as counts; rates are derived from them."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class SpeculationStatistics:
    """Counts over the rounds of one sequence (or of many, when added)."""

    num_rounds: int = 0
    """Target forward passes that committed something."""
    num_drafts: int = 0
    """Rounds with a non-empty proposal."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_committed_tokens: int = 0
    acceptance_histogram: list[int] = field(default_factory=list)
    """Entry j: rounds with a non-empty proposal that accepted j tokens."""
    accepted_by_position: list[int] = field(default_factory=list)
    """Entry j: rounds that accepted the draft token at position j."""
    drafted_by_position: list[int] = field(default_factory=list)
    """Entry j: rounds whose proposal had a position j."""
    exit_counts: dict[int, int] = field(default_factory=dict)
    """Draft tokens by the exit layer that emitted them; 0: suffix lookup found them."""

    def record(
        self, num_committed: int, num_accepted: int = 0, exits: tuple[int, ...] = ()
    ) -> None:
        """Count one round.

        Args:
            num_committed: tokens that the round gave, the target's own included.
            num_accepted: draft tokens among them.
            exits: exit layer of each draft token; its length is the proposal's.
        """
        self.num_rounds += 1
        self.num_committed_tokens += num_committed
        if not exits:
            return
        self.num_drafts += 1
        self.num_draft_tokens += len(exits)
        self.num_accepted_tokens += num_accepted
        _grow(self.acceptance_histogram, num_accepted + 1)
        self.acceptance_histogram[num_accepted] += 1
        _grow(self.accepted_by_position, len(exits))
        _grow(self.drafted_by_position, len(exits))
        for position, exit_layer in enumerate(exits):
            self.drafted_by_position[position] += 1
            self.accepted_by_position[position] += position < num_accepted
            self.exit_counts[exit_layer] = self.exit_counts.get(exit_layer, 0) + 1

    def add(self, other: "SpeculationStatistics") -> None:
        """Add the counts of other rounds."""
        self.num_rounds += other.num_rounds
        self.num_drafts += other.num_drafts
        self.num_draft_tokens += other.num_draft_tokens
        self.num_accepted_tokens += other.num_accepted_tokens
        self.num_committed_tokens += other.num_committed_tokens
        for ours, theirs in (
            (self.acceptance_histogram, other.acceptance_histogram),
            (self.accepted_by_position, other.accepted_by_position),
            (self.drafted_by_position, other.drafted_by_position),
        ):
            _grow(ours, len(theirs))
            for i, count in enumerate(theirs):
                ours[i] += count
        for exit_layer, count in other.exit_counts.items():
            self.exit_counts[exit_layer] = self.exit_counts.get(exit_layer, 0) + count

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens."""
        return _ratio(self.num_accepted_tokens, self.num_draft_tokens)

    @property
    def mean_accepted_tokens(self) -> float:
        """Committed tokens per round, the target's own included (1.0 = autoregressive)."""
        return _ratio(self.num_committed_tokens, self.num_rounds)


def _grow(counts: list[int], size: int) -> None:
    counts.extend([0] * (size - len(counts)))


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")
