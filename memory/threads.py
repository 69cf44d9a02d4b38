"""Blocking work in threads: waited for to its end, and one at a time over all processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import FileLock, Timeout

ASK_AGAIN = 0.1  # seconds
P = ParamSpec("P")
T = TypeVar("T")


async def to_end(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work off the event loop; cancelled, wait for it, and only then give up.

    A thread cannot be called back. Whoever lets go of a lock while one still writes has two
    writers.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


def _lock(directory: Path, name: str) -> FileLock:
    directory.mkdir(parents=True, exist_ok=True)
    return FileLock(directory / name, thread_local=False)


async def hold(directory: Path, name: str) -> FileLock:
    """Wait for a lock without keeping a thread, which the build that has it may need."""
    lock = await asyncio.to_thread(_lock, directory, name)
    while True:
        try:
            await asyncio.to_thread(lock.acquire, blocking=False)
            return lock
        except Timeout:
            await asyncio.sleep(ASK_AGAIN)
