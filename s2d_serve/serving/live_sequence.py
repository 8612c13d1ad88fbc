"""A sequence as its router sees it, and what it is told when its replica is gone."""

import asyncio
from dataclasses import dataclass, field

from s2d_serve.engine.messages import Outcome, SequenceStart
from s2d_serve.observability.tracing import Trace
from s2d_serve.speculation.params import SamplingParams


class ReplicaLostError(Exception):
    """The replica that served a sequence is gone; another one can go on."""

    def __init__(self, reason: str, message: str) -> None:
        """`reason`: one of `MIGRATIONS`."""
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True, eq=False)
class LiveSequence:
    """All that recovery needs, and where the outcomes go."""

    sequence_id: str
    token_ids: list[int]
    """Prompt and committed output."""
    num_prompt_tokens: int
    params: SamplingParams
    max_tokens: int
    num_logprobs: int | None
    max_draft_tokens: int
    """0: never drafted for."""
    outcomes: asyncio.Queue[Outcome | Exception] = field(default_factory=asyncio.Queue)
    epoch: int = 0
    is_joined: bool = False
    """A call was submitted that opens this epoch at the target."""
    is_drafted: bool = False
    """The draft was told of the sequence and of all that came since."""
    is_weighed: bool = False
    """The draft has proposed for it, or said that it would rather rest: a rest that others caused
    does not hold for a sequence it has not weighed.
    """
    trace: Trace | None = None
    """Of its request, if that is sampled."""

    @property
    def num_output_tokens(self) -> int:
        """Committed so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_draftable(self) -> bool:
        """There is something to draft after: the target has read the prompt."""
        return self.max_draft_tokens > 0 and self.num_output_tokens > 0

    def start(self) -> SequenceStart:
        """How to open it as it stands."""
        return SequenceStart(
            self.sequence_id,
            self.epoch,
            tuple(self.token_ids),
            self.num_prompt_tokens,
            self.params,
            self.max_tokens,
            self.num_logprobs,
        )

    def reopen(self) -> None:
        """Have it opened again, by whoever runs its next round."""
        self.epoch += 1
        self.is_joined = False
        self.is_drafted = False
