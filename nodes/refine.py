"""The next candidate: the best attempt so far, refined by what failed in it."""

from __future__ import annotations

from functools import partial
from typing import Any

from langgraph.runtime import Runtime

from nodes.context import Context
from nodes.events import emit
from nodes.feedback import Improved, analysis_fields
from nodes.generate import origin_of
from nodes.inputs import check_list_sizes
from nodes.llm import Answer, AskResult, Complete, ask, make_call
from nodes.state import Attempt, Criterion, SampleState, Verdict
from nodes.text_diff import diff_parts
from nodes.verdicts import best_of
from prompts import render


class Refined(Answer):
    """What a refinement brings: the plan first, so that it is made before it is followed."""

    plan: list[str]
    response: str


async def refine(
    state: SampleState, runtime: Runtime[Context], *, complete: Complete
) -> dict[str, Any]:
    """Refine the best candidate so far by its failed verdicts, and by nothing else.

    In arms that refine a draft once it is refined by feedback, and by the rules that fail.

    Reads `instruction`, `criteria`, `attempts`; writes `candidate`, `usage`.
    """
    check_list_sizes(state)
    context = runtime.context or Context()
    criteria = {c["id"]: c for c in state["criteria"]}
    best = state["attempts"][best_of(state["attempts"], state["criteria"], context)]
    failed = [(v, criteria[v["criterion_id"]]) for v in best["verdicts"] if v["verdict"] == "fail"]
    result = await _ask(state, context, complete, best, failed)
    changes = diff_parts(best["response"], result.answer.response)
    if best.get("feedback"):
        aim = f", by {len(best['feedback'])} points of feedback"
    else:
        texts = ", ".join(criterion["text"] for _, criterion in failed)
        aim = f", so that the response {texts}"
    message = f"Refined in {len(changes)} places{aim}."
    emit(runtime, "refinement", message, plan=result.answer.plan, changes=changes)
    update = {"candidate": result.answer.response, "usage": result.usage}
    if isinstance(result.answer, Improved):
        update["analysed"] = analysis_fields(result.answer)
    return update


async def _ask(
    state: SampleState,
    context: Context,
    complete: Complete,
    best: Attempt,
    failed: list[tuple[Verdict, Criterion]],
) -> AskResult[Refined] | AskResult[Improved]:
    draw = len(state["attempts"])
    make = partial(make_call, "refine", context=context, place=origin_of(state), draw=draw)
    failures = [_describe_failure(*pair) for pair in failed]
    if not context.refines_once:
        messages = render(
            "refine",
            template=context.refine_prompt,
            criteria=[c for c in state["criteria"] if c["judged_by"] == "judge"],
            instruction=state["instruction"],
            response=best["response"],
            failed=failures,
        )
        return await ask(complete, make(messages, Refined), Refined)
    refed = context.pipeline == "refed"
    messages = render(
        "refine_by_feedback",
        instruction=state["instruction"],
        response=best["response"],
        feedback=best.get("feedback", []),
        failed=failures,
        borrowed=refed,
    )
    if refed:
        return await ask(complete, make(messages, Improved), Improved)
    return await ask(complete, make(messages, Refined), Refined)


def _describe_failure(verdict: Verdict, criterion: Criterion) -> dict[str, str]:
    """A failed verdict in the words of the prompt; a log-odds would tell a writer nothing."""
    wanted = f"Wanted: the response {criterion['text']}."
    reason = verdict["reason"] if verdict["score"] is None else "It does not yet."
    evidence = f'\nIn the response: "{verdict["evidence"]}"' if verdict["evidence"] else ""
    text = f"{wanted}\nFound: {reason or 'It does not.'}{evidence}"
    return {"criterion_id": verdict["criterion_id"], "text": text}
