"""Which sub-model's token is good enough: confidence against a threshold per exit."""

from dataclasses import dataclass

NEVER = 2.0
"""A threshold that no confidence reaches."""
LOOKUP_EXIT = 0
"""Stands for the exit layer of tokens that no layer drafted: suffix lookup found them."""


def exit_name(exit_layer: int) -> str:
    """Where a draft token came from, in words."""
    return "suffix lookup" if exit_layer == LOOKUP_EXIT else f"exit {exit_layer}"


@dataclass(frozen=True, slots=True)
class ExitPolicy:
    """How deep the draft goes for one target.

    Source: S2D, arXiv:2407.01955, section 3.2 (its tau_i -> `thresholds[i]`).
    """

    thresholds: tuple[float, ...]
    """One per exit but the deepest; above 1 the exit never emits and its head is not run."""
    min_confidence: float = 0.0
    """A proposal ends after a token that is less probable than this to the exit that emits it."""

    @property
    def deepest(self) -> int:
        """Index of the last exit that this target may use; it always emits."""
        return len(self.thresholds)

    def tries(self, exit_index: int) -> bool:
        """Whether this exit's head is worth running."""
        return exit_index == self.deepest or self.thresholds[exit_index] <= 1.0

    def emits(self, exit_index: int, confidence: float) -> bool:
        """Whether a token of this confidence is proposed rather than handed to the next exit."""
        return exit_index == self.deepest or confidence >= self.thresholds[exit_index]
