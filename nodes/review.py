"""A person in the loop: the graph stops and asks about a sample.

What the answer does to the sample is in `nodes.decisions`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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

# What a decision may change.
OUTCOME = ("status", "reason", "response", "reasoning", "review")


class ReviewState(TypedDict):
    """One sample that waits for a person, with the references it was made from."""

    sample: Record
    references: list[Reference]


def awaits_review(state: SampleState, context: Context) -> bool:
    """Whether a person should see the sample that the loop ended with."""
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
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """Ask a person about one pending sample, until an answer can be read as a decision.

    Reads `sample`, `references`; writes `samples`. LangGraph runs the node again from its top when
    the answer comes, so nothing is paid for in it.
    """
    record = await _ask_person(state["sample"], state["references"], runtime, contamination)
    return {"samples": [record]}


async def review_one(
    state: SampleState,
    runtime: Runtime[Context],
    *,
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """Ask a person about the sample, at the end of the graph `sample`.

    Writes `status`, `reason`, `response`, `reasoning`, `review`, and an edited text as one of
    `attempts`.
    """
    context = runtime.context or Context()
    pending = mark_pending(record_of(state, (0, 0, 0), context))
    record = await _ask_person(pending, state["references"], runtime, contamination)
    update = {name: record[name] for name in OUTCOME}
    return {**update, "attempts": record["attempts"][len(pending["attempts"]) :]}


async def _ask_person(
    record: Record,
    references: Sequence[Reference],
    runtime: Runtime[Context],
    contamination: Contamination | None,
) -> Record:
    """The record after a person's decision; whoever cannot be understood is asked again."""
    user = runtime.server_info.user if runtime.server_info is not None else None
    problem = ""
    while True:
        answer = interrupt(review_question(record, references, problem))
        try:
            decision = read_decision(answer)
            hit = None
            if contamination is not None and decision.response:
                hit = await asyncio.to_thread(contamination.find_in_response, decision.response)
            ended = apply_decision(
                record,
                references,
                decision,
                by=None if user is None else user.identity,
                hit=hit,
                checked=contamination is not None,
            )
        except BadDecision as error:
            problem = str(error)
            continue
        emit(runtime, "review", f"A person said {decision.decision}.", id=record["id"])
        return ended
