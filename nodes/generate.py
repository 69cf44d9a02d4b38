"""The first candidate response to an instruction."""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from nodes.context import Context
from nodes.events import emit
from nodes.inputs import check_list_sizes
from nodes.llm import Answer, CallOrigin, Complete, ask, make_call
from nodes.state import SampleState
from prompts import render


class Generated(Answer):
    """What a generation brings."""

    response: str


def origin_of(state: SampleState) -> CallOrigin:
    """Where in a run the calls of a sample come from."""
    seed, slot = state["seed"], state.get("slot", 0)
    round_, position = seed.get("round", 0), seed.get("position", 0)
    draws = f"{seed.get('draw_round', round_)}/{slot}"
    return CallOrigin(seed.get("id", ""), draws, (round_, position, slot))


async def generate(
    state: SampleState, runtime: Runtime[Context], *, complete: Complete
) -> dict[str, Any]:
    """Write a candidate after the example of the first reference, with the criteria in view.

    Reads `instruction`, `references`, `criteria`; writes `candidate`, `usage`.
    """
    check_list_sizes(state)
    context = runtime.context or Context()
    # Arms that are compared share their drafts, so no draft may depend on its arm's criteria.
    criteria = [c for c in state["criteria"] if c["reference_id"] and not context.paired]
    messages = render(
        "generate",
        template=context.generate_prompt,
        reference=next(iter(state["references"]), None),
        criteria=criteria,
        instruction=state["instruction"],
    )
    call = make_call("generate", messages, Generated, context, origin_of(state))
    result = await ask(complete, call, Generated)
    message = f"A draft of {len(result.answer.response.split())} words."
    emit(runtime, "candidate", message, instruction=state["instruction"])
    return {"candidate": result.answer.response, "usage": result.usage}
