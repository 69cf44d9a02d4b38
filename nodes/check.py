"""The first step of the indexer: whether what is given are references."""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from nodes.checked import checked_references
from nodes.given import IndexerState


async def check(state: IndexerState, runtime: Runtime[None]) -> dict[str, Any]:
    """Check the references and name them. Raises `BadInput` naming the first wrong field.

    Reads `references`; writes `references` with ids, and nothing of an earlier turn.
    """
    references = checked_references(state)
    return {"references": references, "added": 0, "known": 0, "total": 0}
