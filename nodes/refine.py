"""The next candidate: the best so far, with its failed verdicts mended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from prompts import Message, render


class Refined(Answer):
    """What a refinement brings: the plan first, so that it is made before it is followed."""

    plan: list[str]
    response: str


async def refine(
    state: SampleState, runtime: Runtime[Context], *, complete: Complete
) -> dict[str, Any]:
    """Mend what failed in the best candidate so far; nothing else is fed back.

    Where a draft is refined once, it is told the feedback there is, and which rules fail.

    Reads `instruction`, `criteria`, `attempts`; writes `candidate`, `usage`.
    """
    check_list_sizes(state)
    context = runtime.context or Context()
    criteria = {c["id"]: c for c in state["criteria"]}
    best = state["attempts"][best_of(state["attempts"], state["criteria"], context)]
    failed = [v for v in best["verdicts"] if v["verdict"] == "fail"]
    told = [_feedback(v, criteria[v["criterion_id"]]) for v in failed]
    asked = await _asked(state, context, complete, best, told)
    changed = diff_parts(best["response"], asked.answer.response)
    said = f"Refined in {len(changed)} places{_aim(best, failed, criteria)}."
    emit(runtime, "refinement", said, plan=asked.answer.plan, changes=changed)
    found = {"candidate": asked.answer.response, "usage": asked.usage}
    if isinstance(asked.answer, Improved):
        found["analysed"] = analysis_fields(asked.answer)
    return found


async def _asked(
    state: SampleState,
    context: Context,
    complete: Complete,
    best: Attempt,
    failed: list[dict[str, str]],
) -> AskResult[Refined] | AskResult[Improved]:
    draw = len(state["attempts"])
    make = partial(make_call, "refine", context=context, place=origin_of(state), draw=draw)
    if context.pipeline == "refed":
        messages = _by_feedback(state, best, failed, borrowed=True)
        return await ask(complete, make(messages, Improved), Improved)
    if context.once:
        messages = _by_feedback(state, best, failed, borrowed=False)
        return await ask(complete, make(messages, Refined), Refined)
    messages = render(
        "refine",
        template=context.refine_prompt,
        criteria=[c for c in state["criteria"] if c["judged_by"] == "judge"],
        instruction=state["instruction"],
        response=best["response"],
        failed=failed,
    )
    return await ask(complete, make(messages, Refined), Refined)


def _by_feedback(
    state: SampleState, best: Attempt, failed: list[dict[str, str]], *, borrowed: bool
) -> list[Message]:
    return render(
        "refine_by_feedback",
        instruction=state["instruction"],
        response=best["response"],
        feedback=best.get("feedback", []),
        failed=failed,
        borrowed=borrowed,
    )


def _aim(best: Attempt, failed: Sequence[Verdict], criteria: Mapping[str, Criterion]) -> str:
    """What a refinement was for, as the end of a sentence."""
    if best.get("feedback"):
        return f", by {len(best['feedback'])} points of feedback"
    return (
        f", so that the response {', '.join(criteria[v['criterion_id']]['text'] for v in failed)}"
    )


def _feedback(verdict: Verdict, criterion: Criterion) -> dict[str, str]:
    """A failed verdict as the refinement reads it; a bare log-odds says nothing to a writer."""
    wanted = f"Wanted: the response {criterion['text']}."
    said = verdict["reason"] if verdict["score"] is None else "It does not yet."
    evidence = f'\nIn the response: "{verdict["evidence"]}"' if verdict["evidence"] else ""
    text = f"{wanted}\nFound: {said or 'It does not.'}{evidence}"
    return {"criterion_id": verdict["criterion_id"], "text": text}
