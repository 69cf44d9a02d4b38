"""One slot of a seed: run its loop, and record how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from langgraph.runtime import Runtime

from memory.contamination import Contamination
from nodes.context import Context
from nodes.criteria import contamination_verdict, rule_criteria
from nodes.decisions import mark_pending
from nodes.events import emit
from nodes.hooks import RunHooks
from nodes.record import record_of
from nodes.review import awaits_review
from nodes.state import SampleState, Slot

# Runs the inner loop of a slot, and returns its state at the end.
RunLoop = Callable[[SampleState], Awaitable[Any]]


async def sample(
    state: SampleState,
    runtime: Runtime[Context],
    *,
    run_loop: RunLoop,
    hooks: RunHooks,
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """Run the inner loop of one slot and record the result; a slot that may not start has none.

    An instruction that is a benchmark's prompt is rejected before anything is paid for it.

    Reads a slot's `instruction`, `references`, `criteria`; writes `samples`.
    """
    context = runtime.context or Context()
    seed = state["seed"]
    slot: Slot = (seed.get("round", 0), seed.get("position", 0), state["slot"])
    if not await hooks.start(slot):
        return {"samples": []}
    final: SampleState
    verdict = state.get("contaminated")
    if state.get("failure"):
        # The seed failed before it had an instruction.
        final = state
    else:
        if verdict is None and contamination is not None:
            hit = await asyncio.to_thread(contamination.find_in_instruction, state["instruction"])
            verdict = None if hit is None else contamination_verdict(hit)
        if verdict is None:
            final = {**state, **await run_loop(state)}
        else:
            final = {
                **state,
                "status": "rejected",
                "reason": "contaminated",
                "criteria": rule_criteria(),
                "attempts": [{"response": "", "verdicts": [verdict]}],
            }
    record = record_of(final, slot, context)
    if awaits_review(final, context):
        record = mark_pending(record)
    await hooks.finish(record, state.get("references", []))
    reason = f" ({record['reason']})" if record["reason"] else ""
    text = (record["instruction"] or seed["instruction"])[:120]
    message = f"{record['status']}{reason}: {text}"
    emit(runtime, "sample", message, id=record["id"], status=record["status"])
    return {"samples": [record]}
