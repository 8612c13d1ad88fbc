"""What the draft's work costs on this machine, learnt from sequences of its own."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from s2d_serve.engine.draft import MAX_UNREAD_TOKENS, SortedDraft
from s2d_serve.engine.messages import SequenceStart
from s2d_serve.engine.pairing import Pairing
from s2d_serve.speculation.params import SamplingParams

FEW_TOKENS, MANY_TOKENS = 32, 128
"""Read to learn what reading costs."""
TRY_OUT_TOKENS = 3
"""Room for what is drafted after it, all but one."""


@dataclass(slots=True)
class Trials:
    """Reads and drafts for nobody, and tells the policies of all targets what it took."""

    draft: SortedDraft
    pairings: Mapping[str, Pairing]
    """By target."""
    computing: Callable[[], AbstractContextManager[None]]
    """Entered while the draft computes."""
    _planned: list[tuple[int, int]] = field(default_factory=list)
    """(Sequences, tokens of each prompt) of what is still to be tried out."""

    def warm_up(self) -> None:
        """Learn what reading and drafting cost, before the first sequence comes.

        What a library makes at its first use is no cost of drafting: the second time counts.
        """
        self._try_out(1, self._fitting(FEW_TOKENS))
        self.plan()
        while self.measure_next():
            pass

    def plan(self) -> None:
        """Begin anew: reading few tokens, many, then steps for 2, 4, ... sequences.

        At the start, and when a target first finds the draft not worth it: other models were
        loading on the same cores before, and a draft that seems too slow would never show that it
        is not.
        """
        reading = [(1, self._fitting(num_tokens)) for num_tokens in (FEW_TOKENS, MANY_TOKENS)]
        num_slots = self.draft.trunk.cache.num_slots
        self._planned = reading + [(2**k, 1) for k in range(1, num_slots.bit_length())]

    def measure_next(self) -> bool:
        """Make the next trial: learn what reading or a draft step costs, whatever was known; False
        if all is known, or there are not so many free slots now.
        """
        if not self._planned:
            return False
        num_sequences, num_tokens = self._planned[0]
        costs = self._try_out(num_sequences, num_tokens)
        if costs is None:
            return False
        del self._planned[0]
        read_s, steps = costs
        few = self._fitting(FEW_TOKENS)
        for policy in (pairing.lengths for pairing in self.pairings.values()):
            policy.draft_step_s.correct(num_sequences, min(s for _, s in steps))
            if num_tokens > few:
                policy.reading_s.tell_apart(few - 1, num_tokens - 1, read_s)
            elif num_tokens > MAX_UNREAD_TOKENS:
                policy.reading_s.record(num_tokens - 1, read_s, weight=1.0)
        return True

    def try_out(self) -> bool:
        """Read and draft for a sequence of our own; False if no slot is free."""
        return self._try_out(1, 1) is not None

    def _fitting(self, num_tokens: int) -> int:
        """So many, or as many as a sequence of our own can have."""
        return min(num_tokens, self.draft.trunk.cache.capacity - TRY_OUT_TOKENS)

    def _try_out(
        self, num_sequences: int, num_prompt_tokens: int
    ) -> tuple[float, list[tuple[int, float]]] | None:
        """Seconds to read such prompts, and (sequences, seconds) of draft steps after it; None if
        there are not so many slots.
        """
        if num_sequences > self.draft.num_free_slots:
            return None
        prompt = (0,) * num_prompt_tokens
        params = SamplingParams(temperature=0.0)
        names = [f"try-out-{i}" for i in range(num_sequences)]
        exits = next(iter(self.pairings.values())).exits
        steps: list[tuple[int, float]] = []
        try:
            for name in names:
                start = SequenceStart(name, 0, prompt, len(prompt), params, TRY_OUT_TOKENS)
                self.draft.open(start, exits)
            with self.computing():
                started = time.perf_counter()
                while self.draft.prefill(names):
                    pass
                read_s = time.perf_counter() - started
                self.draft.propose(dict.fromkeys(names, TRY_OUT_TOKENS - 1), steps)
        finally:
            for name in names:
                self.draft.close(name)
        return read_s, steps
