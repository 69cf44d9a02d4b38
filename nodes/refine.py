"""The next candidate: the best so far, with its failed verdicts mended."""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from nodes.changes import changed_parts
from nodes.checked import within
from nodes.context import Context
from nodes.events import tell
from nodes.generate import place_of
from nodes.llm import Answer, Complete, ask, make_call
from nodes.state import Criterion, SampleState, Verdict
from nodes.verdicts import best_of
from prompts import render


class Refined(Answer):
    """What a refinement brings: the plan first, so that it is made before it is followed."""

    plan: list[str]
    response: str


async def refine(
    state: SampleState, runtime: Runtime[Context], *, complete: Complete
) -> dict[str, Any]:
    """Mend what failed in the best candidate so far; nothing else is fed back.

    Reads `instruction`, `criteria`, `attempts`; writes `candidate`, `usage`.
    """
    within(state)
    context = runtime.context or Context()
    attempts, criteria = state["attempts"], state["criteria"]
    best = attempts[best_of(attempts, criteria, context)]
    by_id = {c["id"]: c for c in criteria}
    failed = [v for v in best["verdicts"] if v["verdict"] == "fail"]
    messages = render(
        "refine",
        template=context.refine_prompt,
        criteria=[c for c in criteria if c["judged_by"] == "judge"],
        instruction=state["instruction"],
        response=best["response"],
        failed=[_feedback(v, by_id[v["criterion_id"]]) for v in failed],
    )
    draw = len(attempts)
    call = make_call("refine", messages, Refined, context, place_of(state), draw)
    asked = await ask(complete, call, Refined)
    changed = changed_parts(best["response"], asked.answer.response)
    mends = ", ".join(by_id[v["criterion_id"]]["text"] for v in failed)
    told = f"Refined in {len(changed)} places, so that the response {mends}."
    tell(runtime, "refinement", told, plan=asked.answer.plan, changes=changed)
    return {"candidate": asked.answer.response, "usage": asked.usage}


def _feedback(verdict: Verdict, criterion: Criterion) -> dict[str, str]:
    """A failed verdict as the refinement reads it; a bare log-odds says nothing to a writer."""
    wanted = f"Wanted: the response {criterion['text']}."
    said = verdict["reason"] if verdict["score"] is None else "It does not yet."
    evidence = f'\nIn the response: "{verdict["evidence"]}"' if verdict["evidence"] else ""
    text = f"{wanted}\nFound: {said or 'It does not.'}{evidence}"
    return {"criterion_id": verdict["criterion_id"], "text": text}
