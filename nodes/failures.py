"""How a failed call, or a seed that has ended, passes through the graphs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langgraph.runtime import Runtime

from nodes.answer import fail_draw
from nodes.context import Context
from nodes.llm import CallFailed
from nodes.state import Failure, SampleState, State

Node = Callable[..., Awaitable[dict[str, Any]]]


def failure_from(error: CallFailed) -> Failure:
    """A failed call as state and record hold it."""
    return {"stage": error.stage, "kind": error.kind, "message": error.message}


def catch_call_failure(node: Node) -> Node:
    """Wrap a node of the inner loop: a failed call makes the sample `failed`, with its usage.

    A sample that has failed skips the remaining nodes. One that is accepted stays so: a bare answer
    that cannot be had, or judged, costs it nothing else.
    """

    async def run(state: SampleState, runtime: Runtime[Context]) -> dict[str, Any]:
        if state.get("status") == "failed":
            return {}
        try:
            return await node(state, runtime)
        except CallFailed as error:
            if state.get("status") == "accepted":
                return fail_draw(state, error)
            return {"status": "failed", "failure": failure_from(error), "usage": error.usage}

    return run


def skip_if_ended(node: Node) -> Node:
    """Wrap a node of the synthesizer: seeds that failed or are contaminated skip it."""

    async def run(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        ended = state.get("failure") or state.get("contaminated")
        return {} if ended else await node(state, runtime)

    return run
