"""The second step of the indexer: references into the index that this server searches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langgraph.runtime import Runtime

from memory.index import AddResult
from memory.references import Reference
from nodes.events import tell
from nodes.inputs import IndexerState, checked_references

# The seam for the index: which one it is, the server says and no client.
Add = Callable[[Sequence[Reference]], Awaitable[AddResult]]


async def add(state: IndexerState, runtime: Runtime[None], *, add_to_index: Add) -> dict[str, Any]:
    """Embed the references that are new, and keep them all.

    Reads `references`; writes `added`, `known`, `total`.
    """
    found = await add_to_index(state["references"])
    told = f"{found.added} added, {found.known} known before, {found.total} in all."
    tell(runtime, "added", told)
    return {"added": found.added, "known": found.known, "total": found.total}


# MERGED nodes~check
# The first step of the indexer: whether what is given are references.
async def check(state: IndexerState, runtime: Runtime[None]) -> dict[str, Any]:
    """Check the references and name them. Raises `BadInput` naming the first wrong field.

    Reads `references`; writes `references` with ids, and nothing of an earlier turn.
    """
    references = checked_references(state)
    return {"references": references, "added": 0, "known": 0, "total": 0}
