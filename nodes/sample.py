"""One slot of a seed: run its loop, and write down what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from langgraph.runtime import Runtime

from memory.contamination import Contamination
from memory.references import Reference
from nodes.context import Context
from nodes.criteria import contamination_verdict, rule_criteria
from nodes.decisions import mark_pending
from nodes.events import emit
from nodes.record import Record, record_of
from nodes.review import awaits_review
from nodes.state import SampleState, Verdict


class Loop(Protocol):
    """The compiled `sample` graph."""

    async def ainvoke(self, state: Any, /) -> Any:
        """Run it to its end."""
        ...


class Start(Protocol):
    """The seam for admission: whether a slot may start now; waits until that is known."""

    async def __call__(self, slot: tuple[int, int, int]) -> bool:
        """False: enough rows are accepted, the slot is not begun."""
        ...


class Finish(Protocol):
    """The seam for results: a finished sample's record, before anything else sees it."""

    async def __call__(self, record: Record, references: Sequence[Reference] = ()) -> None:
        """Keep the record; `references` are what a person who reviews it should see."""
        ...


async def at_once(slot: tuple[int, int, int]) -> bool:
    """The `Start` of a seed that is not part of a run."""
    return True


async def not_kept(record: Record, references: Sequence[Reference] = ()) -> None:
    """The `Finish` of a seed that is not part of a run."""


async def sample(
    state: SampleState,
    runtime: Runtime[Context],
    *,
    loop: Loop,
    start: Start,
    finish: Finish,
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """Run the loop of one slot and give its record; a slot that may not start gives nothing.

    An instruction that is a benchmark's prompt is rejected before anything is paid for it.

    Reads a slot's `instruction`, `references`, `criteria`; writes `samples`.
    """
    context = runtime.context or Context()
    seed = state["seed"]
    slot = (seed.get("round", 0), seed.get("position", 0), state["slot"])
    if not await start(slot):
        return {"samples": []}
    # A slot whose seed failed before it had an instruction has no loop to run.
    if state.get("failure"):
        final: SampleState = state
    elif found := await _contaminated(state, contamination):
        final = {**state, **reject_contaminated(found)}
    else:
        final = {**state, **await loop.ainvoke(state)}
    record = record_of(final, slot, context)
    if awaits_review(final, context):
        record = mark_pending(record)
    await finish(record, state.get("references", []))
    why = f" ({record['reason']})" if record["reason"] else ""
    said = f"{record['status']}{why}: {(record['instruction'] or seed['instruction'])[:120]}"
    emit(runtime, "sample", said, id=record["id"], status=record["status"])
    return {"samples": [record]}


async def _contaminated(state: SampleState, contamination: Contamination | None) -> Verdict | None:
    if state.get("contaminated") or contamination is None:
        return state.get("contaminated")
    hit = await asyncio.to_thread(contamination.instruction, state["instruction"])
    return None if hit is None else contamination_verdict(hit)


def reject_contaminated(found: Verdict) -> SampleState:
    """How a sample ends whose instruction is a benchmark's prompt."""
    return {
        "status": "rejected",
        "reason": "contaminated",
        "criteria": rule_criteria(),
        "attempts": [{"response": "", "verdicts": [found]}],
    }
