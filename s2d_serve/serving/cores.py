"""Models that each want all cores of a machine compute in turns.

Threads of a forward pass meet at hundreds of barriers, and one that waits spins on its core for a
while. Where two models spin on the same cores, each barrier waits for a time slice of the other:
three SmolLM2 on two cores gave 15 tokens/s together so, and 88 in turns. Threads that sleep instead
(OMP_WAIT_POLICY=PASSIVE) gave 110, but cost a model that is alone 43 % of its speed; turns cost it
nothing.
"""

import fcntl
import os
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from s2d_serve.config import ModelConfig

MAX_WAIT_S = 2.0
"""Longer than a pass takes: whoever holds the cores that long is stopped."""
POLL_S = 0.0005


class CoreTurns:
    """A context in which no other model that takes turns computes; locks of dead processes end
    with them.

    A waiter holds the place next in line, so that a model whose passes follow close on each other
    does not keep the others out.
    """

    def __init__(self, folder: Path, max_wait_s: float = MAX_WAIT_S) -> None:
        """`folder`: those who share it take turns."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._next = os.open(folder / "next", os.O_CREAT | os.O_RDWR)
        self._cores = os.open(folder / "cores", os.O_CREAT | os.O_RDWR)
        self._max_wait_s = max_wait_s
        self._is_stuck = False
        """The last wait was in vain: the holder is not waited for again until it lets go."""

    def __enter__(self) -> None:
        deadline = time.monotonic() + (0.0 if self._is_stuck else self._max_wait_s)
        is_next = _lock(self._next, deadline)
        self._is_stuck = not _lock(self._cores, deadline)
        if is_next:
            fcntl.flock(self._next, fcntl.LOCK_UN)

    def __exit__(self, *exception: object) -> None:
        fcntl.flock(self._cores, fcntl.LOCK_UN)  # no harm where it is not held


def core_turns(model: ModelConfig) -> AbstractContextManager[None]:
    """What a pass of this model runs in: turns, if it takes all cores of the machine."""
    if model.device != "cpu" or model.num_threads:
        return nullcontext()
    return CoreTurns(Path(tempfile.gettempdir()) / f"s2d-cores-{os.getuid()}")


def _lock(file: int, deadline: float) -> bool:
    """Whether the lock was to be had in time."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        else:
            return True
