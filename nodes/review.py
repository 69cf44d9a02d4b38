"""A person in the loop: the run stops until somebody accepts, edits or rejects the sample."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import interrupt
from typing_extensions import TypedDict

from memory.contamination import Contamination
from memory.references import Reference
from nodes.context import Context
from nodes.decisions import (
    BadDecision,
    apply_decision,
    mark_pending,
    needs_review,
    read_decision,
    review_question,
)
from nodes.events import emit
from nodes.record import Record, record_of
from nodes.state import SampleState
from nodes.verdicts import best_of

# Asks a question and brings the answer; LangGraph's `interrupt` stops the run until there is one.
Ask = Callable[[Any], Any]


class ReviewState(TypedDict):
    """One sample that waits for a person, with the references it was made from."""

    sample: Record
    references: list[Reference]


def awaits_review(state: SampleState, context: Context) -> bool:
    """Whether a person should see what the loop ended with."""
    if context.review == "never":
        return False
    attempts, criteria = state.get("attempts") or [], state.get("criteria", [])
    best = attempts[best_of(attempts, criteria, context)] if attempts else None
    status = "failed" if state.get("failure") else state["status"]
    return needs_review(status, state.get("reason"), criteria, best, context.review)


async def review(
    state: ReviewState,
    runtime: Runtime[Context],
    *,
    ask: Ask | None = interrupt,
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """Ask a person about one pending sample, until the answer decides it.

    Reads `sample`, `references`; writes `samples`. `ask` None: nobody is there, it stays pending.
    The body runs again from its top when the answer comes, so nothing is paid for in it.
    """
    ended = await _answered(state["sample"], state["references"], runtime, ask, contamination)
    return {} if ended is None else {"samples": [ended]}


async def review_one(
    state: SampleState,
    runtime: Runtime[Context],
    *,
    ask: Ask | None = interrupt,
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """The same at the end of the graph `sample`.

    Writes `status`, `reason`, `response`, `review`, and an edited text as one of `attempts`.
    """
    context = runtime.context or Context()
    record = mark_pending(record_of(state, (0, 0, 0), context))
    ended = await _answered(record, state["references"], runtime, ask, contamination)
    if ended is None:
        return {}
    said = {name: ended[name] for name in ("status", "reason", "response", "review")}
    return {**said, "attempts": ended["attempts"][len(record["attempts"]) :]}


async def _answered(
    record: Record,
    references: Sequence[Reference],
    runtime: Runtime[Context],
    ask: Ask | None,
    contamination: Contamination | None,
) -> Record | None:
    problem = ""
    while ask is not None:
        answer = ask(review_question(record, references, problem))
        try:
            decision = read_decision(answer)
            hit = None
            if contamination is not None and decision.response:
                hit = await asyncio.to_thread(contamination.response, decision.response)
            checked = contamination is not None
            ended = apply_decision(
                record, references, decision, by=_who(runtime), hit=hit, checked=checked
            )
        except BadDecision as bad:
            problem = str(bad)
            continue
        emit(runtime, "review", f"A person said {decision.decision}.", id=record["id"])
        return ended
    return None


def _who(runtime: Runtime[Context]) -> str | None:
    """Whoever answers, by the server's word."""
    info = runtime.server_info
    return None if info is None or info.user is None else info.user.identity
