"""The tools of a graph that was given none."""

from __future__ import annotations

import asyncio
from functools import cache

from memory.embed import Embed, Embedder
from memory.index import Reference, ReferenceIndex, default_references
from memory.weights import DEFAULT_MODEL


@cache
def shared_embedder() -> Embedder:
    """One embedder for the process; its model loads on first use."""
    return Embedder()


class DemoSearch:
    """A `Search` over the references of `REFLOOM_INDEX`, or the bundled demo ones, read once."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._index: ReferenceIndex | None = None

    async def __call__(self, text: str, k: int) -> list[Reference]:
        """See `memory.index.Search`."""
        if self._index is None:
            references, directory = await asyncio.to_thread(default_references)
            if self._index is None:
                self._index = ReferenceIndex(references, self._embed, directory, DEFAULT_MODEL)
        return await self._index.search(text, k)
