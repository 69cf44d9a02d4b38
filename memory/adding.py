"""Adding references to an index that others search meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from memory.embed import Embed
from memory.index import ReferenceIndex
from memory.references import Reference, distinct
from memory.store import ReferenceFile, references_in, write_references
from memory.threads import hold, to_end


@dataclass(frozen=True, slots=True)
class Added:
    """How many references are new, how many were known, how many there are now."""

    added: int
    known: int
    total: int


async def add(directory: Path, new: Sequence[Reference], embed: Embed, model: str) -> Added:
    """Add references to the index in `directory`, which is made if there is none.

    One adds at a time, whatever the process. Who searches keeps what it has open, and sees the
    new index once its manifest is there, whole. Raises `IndexUnusable` or `OSError`.
    """
    lock = await hold(directory, ".adding.lock")
    try:
        before = await asyncio.to_thread(_kept, directory)
        known: Iterable[Reference] = before if before is not None else ()
        rows = distinct(chain(known, new))
        there = await asyncio.to_thread(_references_files, directory)
        try:
            references = await to_end(write_references, directory, rows)
            total = await ReferenceIndex(references, embed, directory, model).build()
        finally:
            await to_end(_drop_unused, directory, there)
    finally:
        await asyncio.to_thread(lock.release)
    added = total - (0 if before is None else len(before))
    return Added(added, len(new) - added, total)


def _kept(directory: Path) -> ReferenceFile | None:
    return references_in(directory) if (directory / "index.json").exists() else None


def _references_files(directory: Path) -> set[Path]:
    return set(directory.glob("references-*.parquet"))


def _drop_unused(directory: Path, there: set[Path]) -> None:
    """Remove the references that have come since, where no index came to be built of them."""
    manifest = directory / "index.json"
    if manifest.exists():
        used = json.loads(manifest.read_text(encoding="utf-8"))["references"]
        there = {*there, directory / f"references-{used}.parquet"}
    for path in _references_files(directory) - there:
        path.unlink(missing_ok=True)
