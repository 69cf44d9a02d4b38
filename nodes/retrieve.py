"""The first step: check the input, and retrieve references for the seed."""

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
from nodes.inputs import BadInput, read_input, read_input_criteria
from nodes.state import Seed, State, chat_messages


async def retrieve(
    state: State,
    runtime: Runtime[Context],
    *,
    search: Search,
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """Retrieve the references of a seed; those the input carries are taken as they are.

    Reads `seed`, `references`, `criteria`; writes `seed` with its id, `references`, `own_criteria`,
    `messages`, `usage`. A seed that is a benchmark's prompt only gets `contaminated`, and nothing
    is made from it. Raises `BadInput`.
    """
    context = runtime.context or Context()
    seed, references = read_input(state)
    # A thread may have been used before: None resets a key.
    keys = ("failure", "second_failure", "contaminated", "usage", "samples", "instructions")
    update: dict[str, Any] = dict.fromkeys(keys)
    update |= {"proposals": [], "asks": 0}
    update["messages"] = chat_messages(seed["id"], seed["instruction"])
    own_criteria = read_input_criteria(state)
    update |= {"seed": seed, "references": references, "own_criteria": own_criteria}
    if contamination is not None:
        hit = await asyncio.to_thread(contamination.find_in_instruction, seed["instruction"])
        if hit is not None:
            return {**update, "contaminated": contamination_verdict(hit)}
    in_input = bool(references)
    if not in_input:
        turn = (seed.get("round", 0), seed.get("position", 0))
        references = await search(seed["instruction"], context.references_per_seed, turn)
    if not references and context.learns_from_references:
        raise BadInput("references: the input has none, and the index is empty; add references")
    summaries = [
        {
            "id": reference["id"],
            "instruction": reference["instruction"][:200],
            "why": "given with the seed" if in_input else _why_retrieved(reference, seed),
        }
        for reference in references
    ]
    summary = "; ".join(f"{one['id']} ({one['why']})" for one in summaries)
    emit(runtime, "references", f"{len(summaries)} references: {summary}", references=summaries)
    return {**update, "references": references}


def _why_retrieved(reference: Reference, seed: Seed) -> str:
    if reference["instruction"].strip() == seed["instruction"].strip():
        return "it is the seed itself"
    return f"cosine {reference.get('score', 0.0):.2f} with the seed"
