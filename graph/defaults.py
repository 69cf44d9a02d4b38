"""The tools of a graph that was given none."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from memory.embed import Embed, Embedder
from memory.index import ReferenceIndex
from memory.references import Reference
from memory.store import references_in
from memory.weights import DEFAULT_MODEL


@cache
def shared_embedder() -> Embedder:
    """One embedder for the process; its model loads on first use."""
    return Embedder()


def default_references() -> tuple[Sequence[Reference], Path | None]:
    """The references of `$REFLOOM_INDEX`, else the bundled demo ones, and where vectors are kept.

    Blocks on files; call it off the event loop. Raises `IndexUnusable`.
    """
    named = os.environ.get("REFLOOM_INDEX")
    if named:
        return references_in(Path(named)), Path(named)
    text = files("refloom.demo").joinpath("references.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()], None


class DemoSearch:
    """A `Search` over the default references, read once."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._index: ReferenceIndex | None = None

    async def __call__(
        self, text: str, k: int, turn: tuple[int, int] | None = None
    ) -> list[Reference]:
        """See `memory.index.Search`."""
        if self._index is None:
            references, directory = await asyncio.to_thread(default_references)
            if self._index is None:
                self._index = ReferenceIndex(references, self._embed, directory, DEFAULT_MODEL)
        return await self._index.search(text, k)
