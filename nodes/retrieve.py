"""The first step: check the input, and find the references that bear on the seed."""

from __future__ import annotations

import asyncio
from typing import Any

from langgraph.runtime import Runtime
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory.contamination import Contamination
from memory.index import Search
from memory.references import Reference, content_id
from nodes.context import Context
from nodes.criteria import contaminated
from nodes.state import Seed, State, no_usage


class BadInput(ValueError):
    """The input has no usable seed or reference; the message says which field and why.

    A `ValueError`, since the server shows a client no other error's message.
    """


class _Seed(BaseModel):
    model_config = ConfigDict(extra="allow", str_strip_whitespace=True)

    instruction: str = Field(min_length=1, max_length=100_000)
    id: str | None = None
    round: int = Field(0, ge=0)
    position: int = Field(0, ge=0)


class _Reference(BaseModel):
    model_config = ConfigDict(extra="allow")

    instruction: str = Field(min_length=1)
    response: str = Field(min_length=1)
    id: str | None = None


class _Input(BaseModel):
    seed: _Seed
    references: list[_Reference] = Field(default_factory=list, max_length=20)


async def retrieve(
    state: State,
    runtime: Runtime[Context],
    *,
    search: Search,
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """Retrieve the references of a seed; those the input carries are taken as they are.

    Reads `seed`, `references`; writes `seed` with its id, `references`, `usage`; for a seed that is
    a benchmark's prompt only `contaminated`, since whatever comes of it had better not be made.
    """
    context = runtime.context or Context()
    seed, references = checked(state)
    begun = {"seed": seed, "references": references, "usage": no_usage(), "samples": []}
    if contamination is not None:
        hit = await asyncio.to_thread(contamination.instruction, seed["instruction"])
        if hit is not None:
            return {**begun, "contaminated": contaminated(hit)}
    if not references:
        turn = (seed.get("round", 0), seed.get("position", 0))
        references = await search(seed["instruction"], context.references_per_seed, turn)
    if not references and context.feedback == "reference":
        raise BadInput("references: none were given, and the index has none")
    return {**begun, "references": references}


def checked(state: State) -> tuple[Seed, list[Reference]]:
    """The input's seed and references with ids. Raises `BadInput` naming the first wrong field."""
    try:
        given = _Input.model_validate(
            {"seed": state.get("seed"), "references": state.get("references") or []}
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{where}: {first['msg']}") from error
    text = given.seed.instruction
    seed: Seed = {
        "id": given.seed.id or content_id(text),
        "instruction": text,
        "round": given.seed.round,
        "position": given.seed.position,
    }
    references: list[Reference] = [
        {
            "id": r.id or content_id(r.instruction, r.response),
            "instruction": r.instruction,
            "response": r.response,
        }
        for r in given.references
    ]
    return seed, references
