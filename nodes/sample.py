"""One slot of a seed: run its loop, and write down what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, Protocol

from langgraph.runtime import Runtime

from memory.contamination import Contamination
from memory.references import Reference
from nodes.context import Context
from nodes.criteria import contaminated, rule_criteria
from nodes.decisions import pending
from nodes.events import tell
from nodes.llm import CallFailed
from nodes.record import Record, record_of
from nodes.review import awaited
from nodes.state import Failure, SampleState, State, Verdict


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


def failing_softly(
    node: Callable[..., Awaitable[dict[str, Any]]],
) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Turn a failed call inside a sample's node into that sample's `failed`, with what it used.

    A sample that has failed passes through the steps that are left.
    """

    @wraps(node)
    async def run(state: SampleState, runtime: Runtime[Context]) -> dict[str, Any]:
        if state.get("status") == "failed":
            return {}
        try:
            return await node(state, runtime)
        except CallFailed as failed:
            return {"status": "failed", "failure": failure_of(failed), "usage": failed.usage}

    return run


def unless_ended(
    node: Callable[..., Awaitable[dict[str, Any]]],
) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Let a seed that has failed, or is a benchmark's prompt, pass through a step as it is."""

    async def run(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        ended = state.get("failure") or state.get("contaminated")
        return {} if ended else await node(state, runtime)

    return run


def failure_of(failed: CallFailed) -> Failure:
    """The failure as state and record keep it."""
    return {"stage": failed.stage, "kind": failed.kind, "message": failed.message}


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
        final = {**state, **rejected(found)}
    else:
        final = {**state, **await loop.ainvoke(state)}
    record = record_of(final, slot, context)
    if awaited(final, context):
        record = pending(record)
    await finish(record, state.get("references", []))
    why = f" ({record['reason']})" if record["reason"] else ""
    said = f"{record['status']}{why}: {(record['instruction'] or seed['instruction'])[:120]}"
    tell(runtime, "sample", said, id=record["id"], status=record["status"])
    return {"samples": [record]}


async def _contaminated(state: SampleState, contamination: Contamination | None) -> Verdict | None:
    if state.get("contaminated") or contamination is None:
        return state.get("contaminated")
    hit = await asyncio.to_thread(contamination.instruction, state["instruction"])
    return None if hit is None else contaminated(hit)


def rejected(found: Verdict) -> SampleState:
    """How a sample ends whose instruction is a benchmark's prompt."""
    return {
        "status": "rejected",
        "reason": "contaminated",
        "criteria": rule_criteria(),
        "attempts": [{"response": "", "verdicts": [found]}],
    }
