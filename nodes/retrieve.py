"""The first step: check the input, and find the references that bear on the seed."""

from __future__ import annotations

import asyncio
from typing import Any

from langgraph.runtime import Runtime

from memory.contamination import Contamination
from memory.index import Search
from memory.references import Reference
from nodes.context import Context
from nodes.criteria import contamination_verdict
from nodes.events import emit
from nodes.inputs import BadInput, read_input
from nodes.state import Seed, State


async def retrieve(
    state: State,
    runtime: Runtime[Context],
    *,
    search: Search,
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """Retrieve the references of a seed; those the input carries are taken as they are.

    Reads `seed`, `references`; writes `seed` with its id, `references`, `usage`; for a seed that is
    a benchmark's prompt only `contaminated`, since nothing should be made of it.
    """
    context = runtime.context or Context()
    seed, references = read_input(state)
    # A thread that is used again begins anew.
    begun: dict[str, Any] = dict.fromkeys(("failure", "contaminated", "usage", "samples"))
    begun |= {"seed": seed, "references": references}
    if contamination is not None:
        hit = await asyncio.to_thread(contamination.instruction, seed["instruction"])
        if hit is not None:
            return {**begun, "contaminated": contamination_verdict(hit)}
    given = bool(references)
    if not given:
        turn = (seed.get("round", 0), seed.get("position", 0))
        references = await search(seed["instruction"], context.references_per_seed, turn)
    if not references and (context.paired or context.feedback in ("reference", "swapped")):
        raise BadInput("references: none were given, and the index has none")
    told = [
        {"id": r["id"], "instruction": r["instruction"][:200], "why": _why(r, seed, given)}
        for r in references
    ]
    said = "; ".join(f"{one['id']} ({one['why']})" for one in told)
    emit(runtime, "references", f"{len(told)} references: {said}", references=told)
    return {**begun, "references": references}


def _why(reference: Reference, seed: Seed, given: bool) -> str:
    """Why a reference was taken, in a person's words."""
    if given:
        return "given with the seed"
    if reference["instruction"].strip() == seed["instruction"].strip():
        return "it is the seed itself"
    return f"cosine {reference.get('score', 0.0):.2f} with the seed"
