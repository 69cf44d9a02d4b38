"""The tools of a graph that was given none: one of each for the process."""

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
from memory.store import open_references
from memory.weights import DEFAULT_MODEL

# What tells one state of a file from another.
FileStamp = tuple[int, ...]
OPEN_ATTEMPTS = 6
RETRY_PAUSE_S = 0.03


@cache
def shared_embedder() -> Embedder:
    """One embedder for the process; its model loads on first use."""
    return Embedder(os.environ.get("REFLOOM_EMBEDDING_MODEL") or DEFAULT_MODEL)


def index_directory() -> Path | None:
    """The directory of `$REFLOOM_INDEX`; None stands for the bundled demo references."""
    named = os.environ.get("REFLOOM_INDEX")
    return Path(named) if named else None


def default_references() -> tuple[Sequence[Reference], Path | None]:
    """The references of `$REFLOOM_INDEX`, else the bundled demo ones, and where vectors are kept.

    Blocks on files; call it off the event loop. Raises `IndexUnusable`.
    """
    directory = index_directory()
    if directory is not None:
        return open_references(directory), directory
    text = files("refloom").joinpath("resources/demo/references.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()], None


class DefaultSearch:
    """A `Search` over the default references; opened anew when their index is replaced."""

    def __init__(self, embed: Embed, model: str = DEFAULT_MODEL) -> None:
        """`model` names what `embed` embeds with."""
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
        """See `memory.index.Another`."""
        return await (await self.current()).draw_other(reference, avoid, random_seed)

    @property
    def count(self) -> int:
        """How many references there were when the index was opened last."""
        return 0 if self._opened is None else len(self._opened[1].references)

    async def current(self) -> ReferenceIndex:
        """The index as it is on disk now, with its vectors. Raises `IndexUnusable`."""
        for tries in range(1, OPEN_ATTEMPTS + 1):
            try:
                return await self._current()
            except IndexUnusable:
                # Between its manifest and its other files it may have been replaced.
                if tries == OPEN_ATTEMPTS:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S * 2**tries)
        raise AssertionError("the last try returns or raises")

    async def _current(self) -> ReferenceIndex:
        stamp = await asyncio.to_thread(_stamp)
        opened = self._opened
        if opened is not None and opened[0] == stamp:
            return opened[1]
        async with self._lock:
            if self._opened is None or self._opened[0] != stamp:
                references, directory = await asyncio.to_thread(default_references)
                index = ReferenceIndex(references, self.embed, directory, self._model)
                # Demo references have no directory, so their vectors are made each time.
                await (index.build() if directory is None else index.open())
                self._opened = (stamp, index)
            return self._opened[1]


def _stamp() -> FileStamp:
    """What tells the present index from one that replaces it; empty if there is none. Blocks."""
    directory = index_directory()
    try:
        found = (directory / "index.json").stat() if directory else None
    except OSError:
        found = None
    return (found.st_mtime_ns, found.st_ino, found.st_size) if found else ()


@cache
def shared_search() -> DefaultSearch:
    """One search for the process, over the shared embedder."""
    embedder = shared_embedder()
    return DefaultSearch(embedder, embedder.model)


async def add_to_index(references: Sequence[Reference]) -> AddResult:
    """Add references to the index of `$REFLOOM_INDEX`. Raises `IndexUnusable` if none is named."""
    directory, embedder = index_directory(), shared_embedder()
    if directory is None:
        raise IndexUnusable(
            "there is no index to add to: the bundled references stay as they are. Start the "
            "server with REFLOOM_INDEX=DIR; a DIR that is not there yet is made"
        )
    return await add_references(directory, references, embedder, embedder.model)
