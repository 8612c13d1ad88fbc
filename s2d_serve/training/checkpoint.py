"""A run on disk: everything that it needs to go on exactly where it was."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from s2d_serve.engine.checkpoint import Checkpoint
from s2d_serve.errors import ConfigError
from s2d_serve.training.rows import Row
from s2d_serve.training.settings import TrainingSettings

FILE = "training.pt"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    num_steps: int
    learning_rate: float
    losses: tuple[float, ...]
    """By trained exit."""
    acceptance: tuple[float, ...] | None
    """Share of held-out tokens that each exit would have drafted; None between two looks."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What a run remembers beside weights and optimizer."""

    untrained: tuple[float, ...]
    """Acceptance of each trained exit before the first step."""
    history: Sequence[Progress]
    seconds: float
    """Spent so far, interruptions left out."""


def fingerprint(base: Checkpoint, rows: Sequence[Row], settings: TrainingSettings) -> str:
    """Names a run: the same base, rows and settings."""
    named = hashlib.sha256(json.dumps([base.digest, asdict(settings)]).encode())
    for row in rows:
        named.update(json.dumps([row.token_ids, row.num_prompt_tokens, row.top]).encode())
    return named.hexdigest()


def read(folder: Path, run: str) -> dict[str, Any] | None:
    """The folder's checkpoint; None if it has none.

    Raises: ConfigError if it is another run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FILE).exists():
        return None
    state: dict[str, Any] = torch.load(folder / FILE, weights_only=True)
    if state["fingerprint"] != run:
        raise ConfigError(
            f"{folder} holds a run with another base, other rows or other settings; "
            "go on with those, or choose another folder"
        )
    return state


def write(
    folder: Path,
    run: str,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    notes: Notes,
) -> None:
    """Write a checkpoint in one step."""
    state = {
        "fingerprint": run,
        "untrained": list(notes.untrained),
        "seconds": notes.seconds,
        "history": json.dumps([asdict(reached) for reached in notes.history]),
        "weights": {name: p.detach().cpu() for name, p in weights.items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, folder / f"{FILE}.partial")
    (folder / f"{FILE}.partial").rename(folder / FILE)


@torch.no_grad()
def restore(
    state: Mapping[str, Any],
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> list[Progress]:
    """Bring weights and optimizer back, in place; returns the history."""
    for name, parameter in weights.items():
        parameter.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    history = []
    for entry in json.loads(state["history"]):
        for name in ("losses", "acceptance"):
            entry[name] = None if entry[name] is None else tuple(entry[name])
        history.append(Progress(**entry))
    return history
