"""Equal work that is wanted several times at once is done once, and all wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """The work in progress, by its key."""

    def __init__(self) -> None:
        self._pending: dict[bytes, asyncio.Future[T]] = {}

    def tasks(self) -> list[asyncio.Future[T]]:
        """What is in progress."""
        return list(self._pending.values())

    async def do(self, key: bytes, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work of a key, or wait for it where it is in progress. Raises what it raises."""
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = asyncio.ensure_future(work())

            def discard(task: asyncio.Future[T]) -> None:
                del self._pending[key]
                if not task.cancelled():
                    # Retrieved here: asyncio warns of an exception that no waiter has seen.
                    task.exception()

            pending.add_done_callback(discard)
        # One who is cancelled must not take the work from another who waits for it.
        return await asyncio.shield(pending)
