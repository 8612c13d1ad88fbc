"""What router and executors send each other: frozen, picklable, small."""

from dataclasses import dataclass
from typing import Any, Literal

from s2d_serve.engine.messages import Draft, DraftRequest, SequenceStart, StepResult


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an executor runs."""

    name: str
    """The target's name, or "draft"."""
    digest: str
    """Names the weights."""
    dtype: str
    max_context: int
    eos_token_ids: tuple[int, ...]
    exit_layers: tuple[int, ...] = ()
    """Of the draft."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A place on one replica; it lasts as long as the streaming call that gave it."""

    replica: str
    node_id: str
    """Of the executor, in Ray's words."""
    executor: Any
    """Actor handle."""
    info: ModelInfo


@dataclass(frozen=True, slots=True)
class SequenceRef:
    """A sequence as a call names it: another epoch is another opening."""

    sequence_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class DraftCall:
    """One lane asks for a round's proposals; the last round's `VerifyReply` comes by reference."""

    lane_id: str
    round: int
    """That of the `VerifyCall` which the proposals are for."""
    joins: tuple[SequenceStart, ...]
    request: DraftRequest


@dataclass(frozen=True, slots=True)
class DraftReply:
    """A round's proposals for one lane."""

    draft: Draft
    unknown: tuple[str, ...]
    """Sequences that the lane must open (again) at the draft."""
    seconds: float
    """Work on the executor, from the outcome's arrival to the proposals."""
    started_s: float = 0.0
    """When that work began: Unix time of the executor's machine."""


@dataclass(frozen=True, slots=True)
class VerifyCall:
    """One lane asks for a round; its `DraftReply`, if any, comes by reference."""

    lane_id: str
    round: int
    """Grows by one with each call of a lane; a repeated one gets the same reply."""
    joins: tuple[SequenceStart, ...]
    sequences: tuple[SequenceRef, ...]
    num_steps: int
    """Tokens to decode per sequence where nothing is proposed."""
    patience_s: float
    """How long to wait for the proposals once the lane's last round is over."""
    draft_attempt: int
    """Grows when a lost draft is taken up again; one that was late is not waited for before."""


DraftState = Literal["none", "ok", "late", "dead"]


@dataclass(frozen=True, slots=True)
class VerifyReply:
    """What a round gave each sequence of a lane, and how its draft fared."""

    results: tuple[StepResult, ...]
    """One per forward pass, this lane's sequences only."""
    unknown: tuple[SequenceRef, ...] = ()
    """Sequences that the executor does not hold: open them again, in a new epoch."""
    draft_state: DraftState = "none"
    draft_unknown: tuple[str, ...] = ()
    rest_rounds: int = 0
    draft_seconds: float = 0.0
    draft_started_s: float = 0.0
    """As in `DraftReply`."""
    started_s: float = 0.0
    """When the proposals were there: Unix time of the executor's machine."""
    waited_s: float = 0.0
    """Since then, outside passes: for the cores, or for passes of other lanes."""

    @property
    def work_s(self) -> float:
        """Seconds of draft and target, waiting for other work included."""
        verify_s = sum(result.seconds for result in self.results)
        return self.draft_seconds + verify_s + self.waited_s


@dataclass(frozen=True, slots=True)
class ExecutorStatus:
    """Life signs, for /ready and health checks."""

    info: ModelInfo
    pid: int
    """Of the executor's process."""
    num_sequences: int
    num_slots: int
    decode_age_s: float
    """Seconds since the last forward pass that gave a token."""
    num_waiting: int = 0
    """Sequences that a draft knows and has no slot for."""
