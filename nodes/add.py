"""The indexer's only step: add references to the index that this server searches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langgraph.runtime import Runtime

from memory.index import AddResult
from memory.references import Reference
from nodes.events import emit
from nodes.inputs import IndexerState, read_indexer_input

# Which index it is, the server decides and no client.
AddToIndex = Callable[[Sequence[Reference]], Awaitable[AddResult]]


async def add(
    state: IndexerState, runtime: Runtime[None], *, add_to_index: AddToIndex
) -> dict[str, Any]:
    """Check the references, embed those that are new, and add them.

    Reads `references`; writes `references` with ids, `added`, `known`, `total`. Raises `BadInput`
    naming the first wrong field, before anything is added.
    """
    references = read_indexer_input(state)
    result = await add_to_index(references)
    message = f"{result.added} added, {result.known} known before, {result.total} in all."
    emit(runtime, "added", message)
    return {
        "references": references,
        "added": result.added,
        "known": result.known,
        "total": result.total,
    }
