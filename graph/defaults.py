"""Default embedder, search and index of this process, for graphs that are built without them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from memory.embed import Embed, Embedder
from memory.index import AddResult, ReferenceIndex, add_references
from memory.references import IndexUnusable, Reference
from memory.store import open_reference_file
from memory.weights import DEFAULT_MODEL

# Modification time, inode and size of an index's manifest; empty without one.
FileStamp = tuple[int, ...]
# An index may be replaced while it is opened: attempts, and the pause that doubles after each.
OPEN_ATTEMPTS = 6
RETRY_PAUSE_S = 0.03


@cache
def shared_embedder() -> Embedder:
    """The embedder of this process; its model loads on first use."""
    return Embedder(os.environ.get("REFLOOM_EMBEDDING_MODEL") or DEFAULT_MODEL)


def index_directory() -> Path | None:
    """The directory of `$REFLOOM_INDEX`; None means the bundled demo references."""
    name = os.environ.get("REFLOOM_INDEX")
    return Path(name) if name else None


def default_references() -> tuple[Sequence[Reference], Path | None]:
    """The references of `$REFLOOM_INDEX` and its directory, else the demo references and None.

    Blocks on files. Raises `IndexUnusable`.
    """
    directory = index_directory()
    if directory is not None:
        return open_reference_file(directory), directory
    text = files("refloom").joinpath("resources/demo/references.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()], None


class DefaultSearch:
    """A `Search` over the default references; reopens their index when it is replaced."""

    def __init__(self, embed: Embed, model: str = DEFAULT_MODEL) -> None:
        """`model` is the name of the model behind `embed`."""
        self.embed = embed
        self._model = model
        self._lock = asyncio.Lock()
        self._opened: tuple[FileStamp, ReferenceIndex] | None = None

    async def __call__(
        self, text: str, k: int, turn: tuple[int, int] | None = None
    ) -> list[Reference]:
        """See `memory.index.Search`."""
        return await (await self.current()).search(text, k)

    async def draw_other(
        self, reference: Reference, avoid: Collection[str], random_seed: int
    ) -> Reference | None:
        """See `memory.index.DrawOther`."""
        return await (await self.current()).draw_other(reference, avoid, random_seed)

    @property
    def count(self) -> int:
        """How many references the index had when it was last opened."""
        return 0 if self._opened is None else len(self._opened[1].references)

    async def current(self) -> ReferenceIndex:
        """The index as it is on disk now, with its vectors. Raises `IndexUnusable`."""
        for attempt in range(1, OPEN_ATTEMPTS):
            try:
                return await self._open_if_replaced()
            except IndexUnusable:
                # It may have been replaced between reading its manifest and its other files.
                await asyncio.sleep(RETRY_PAUSE_S * 2**attempt)
        return await self._open_if_replaced()

    async def _open_if_replaced(self) -> ReferenceIndex:
        stamp = await asyncio.to_thread(_read_stamp)
        opened = self._opened
        if opened is not None and opened[0] == stamp:
            return opened[1]
        async with self._lock:
            if self._opened is None or self._opened[0] != stamp:
                references, directory = await asyncio.to_thread(default_references)
                index = ReferenceIndex(references, self.embed, directory, self._model)
                # Demo references have no directory: each process embeds them again.
                await (index.build() if directory is None else index.open())
                self._opened = (stamp, index)
            return self._opened[1]


def _read_stamp() -> FileStamp:
    """The stamp of the index as it is now. Blocks."""
    directory = index_directory()
    if directory is None:
        return ()
    try:
        stat = (directory / "index.json").stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


@cache
def shared_search() -> DefaultSearch:
    """The search of this process, over the shared embedder."""
    embedder = shared_embedder()
    return DefaultSearch(embedder, embedder.model)


async def add_to_index(references: Sequence[Reference]) -> AddResult:
    """Add references to the index of `$REFLOOM_INDEX`. Raises `IndexUnusable` without one."""
    directory, embedder = index_directory(), shared_embedder()
    if directory is None:
        raise IndexUnusable(
            "there is no index to add to: the bundled references cannot be changed. Start the "
            "server with REFLOOM_INDEX=DIR; DIR is created if it does not exist"
        )
    return await add_references(directory, references, embedder, embedder.model)
