"""Adding references to an index that others search meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from memory.building import hold
from memory.embed import Embed
from memory.index import ReferenceIndex
from memory.references import Reference, distinct
from memory.store import ReferenceFile, references_in, write_references


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
        references = await asyncio.to_thread(write_references, directory, rows)
        try:
            total = await ReferenceIndex(references, embed, directory, model).build()
        finally:
            await asyncio.to_thread(_drop_unused, directory, references.path)
    finally:
        await asyncio.to_thread(lock.release)
    added = total - (0 if before is None else len(before))
    return Added(added, len(new) - added, total)


def _kept(directory: Path) -> ReferenceFile | None:
    return references_in(directory) if (directory / "index.json").exists() else None


def _drop_unused(directory: Path, path: Path) -> None:
    """Remove references that no index came to be built of."""
    try:
        manifest = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        used = path.name == f"references-{manifest['references']}.parquet"
    except FileNotFoundError:
        used = False
    if not used:
        path.unlink(missing_ok=True)
