"""The Python API: rows as they are made."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from nodes.record import Record
from refloom.data.read import references_of, seeds_of
from refloom.runs.engine import Run
from refloom.settings import Settings


async def synthesize(
    references: str | Path | Iterable[dict[str, Any]],
    seeds: str | Path | Iterable[dict[str, Any]] | None = None,
    settings: Settings | None = None,
    out: str | Path | None = None,
) -> AsyncIterator[Record]:
    """Make rows, yielding each sample's record as it ends: accepted, rejected and failed alike.

    `references` and `seeds` are paths or rows; without seeds every reference is one. With `out`
    the run is kept there and taken up again by the next call; without, it leaves nothing behind.
    Raises `InputError`, `JournalError` or `ProviderStopped`.
    """
    queue: asyncio.Queue[Record | None] = asyncio.Queue()
    with contextlib.ExitStack() as stack:
        folder = Path(out) if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chosen = settings or Settings()
        run = Run(
            chosen,
            references_of(references, chosen),
            None if seeds is None else seeds_of(seeds, chosen),
            folder,
            queue.put_nowait,
        )
        task = asyncio.create_task(run.go())
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (record := await queue.get()) is not None:
                yield record
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
