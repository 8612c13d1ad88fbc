"""Asyncio beside Ray: references as coroutines, and tasks that outlive a request."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any


async def value_of(ref: Any) -> Any:
    """Await an object reference as a coroutine, which asyncio's tools ask for."""
    return await ref


def spawn(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that outlives the request it is started from.

    Serve cancels what runs in a request's context when that request ends: so a context of its own.
    """
    task = asyncio.get_running_loop().create_task(coroutine, context=contextvars.Context())
    _spawned.add(task)
    task.add_done_callback(_spawned.discard)
    return task


_spawned: set[asyncio.Task[None]] = set()
