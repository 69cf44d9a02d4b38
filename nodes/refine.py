"""The next candidate: the best attempt so far, refined by what failed in it."""

from __future__ import annotations

import re
from typing import Any

from langgraph.runtime import Runtime

from nodes.context import Context
from nodes.events import emit
from nodes.feedback import Improved, analysis_fields
from nodes.generate import asks_about_errors, asks_for_code_alone
from nodes.inputs import check_list_sizes
from nodes.llm import AskResult, Complete, PlainText, ask, ask_text, make_call
from nodes.origin import origin_of
from nodes.state import Attempt, Criterion, SampleState, Verdict
from nodes.text_diff import diff_parts
from nodes.verdicts import best_of
from prompts import render


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
    answer = result.answer
    if isinstance(answer, Improved):
        candidate, plan = answer.response, answer.plan
    else:
        candidate, plan = answer.text, _steps(answer.plan or "")
    changes = diff_parts(best["response"], candidate)
    if best.get("feedback"):
        aim = f", by {len(best['feedback'])} points of feedback"
    else:
        texts = ", ".join(criterion["text"] for _, criterion in failed)
        aim = f", so that the response {texts}"
    message = f"Refined in {len(changes)} places{aim}."
    emit(runtime, "refinement", message, plan=plan, changes=changes)
    update = {"candidate": candidate, "usage": result.usage}
    if isinstance(answer, Improved):
        update["analysed"] = analysis_fields(answer)
    return update


async def _ask(
    state: SampleState,
    context: Context,
    complete: Complete,
    best: Attempt,
    failed: list[tuple[Verdict, Criterion]],
) -> AskResult[PlainText] | AskResult[Improved]:
    """Ask for plain text, its plan first, so that it is made before it is followed.

    The paper's pipeline asks for JSON, as its authors do.
    """
    origin, draw = origin_of(state), len(state["attempts"])
    refed = context.pipeline == "refed"
    failures = [_describe_failure(*pair) for pair in failed]
    if context.refines_once:
        messages = render(
            "refine_by_feedback",
            instruction=state["instruction"],
            response=best["response"],
            feedback=best.get("feedback", []),
            failed=failures,
            borrowed=refed,
        )
    else:
        messages = render(
            "refine",
            template=context.refine_prompt,
            criteria=[c for c in state["criteria"] if c["judged_by"] == "judge"],
            instruction=state["instruction"],
            response=best["response"],
            failed=failures,
        )
    if refed:
        call = make_call("refine", messages, Improved, context, origin, draw)
        return await ask(complete, call, Improved)
    call = make_call("refine", messages, None, context, origin, draw, text=True)
    code_only = asks_for_code_alone(state["instruction"])
    errors = asks_about_errors(state["instruction"])
    return await ask_text(complete, call, code_only=code_only, errors=errors, planned=True)


def _steps(plan: str) -> list[str]:
    r"""The lines of a plan, without the marks of a list.

    >>> _steps("- say why\n\n2. close with a sum")
    ['say why', 'close with a sum']
    """
    lines = (re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", line).strip() for line in plan.splitlines())
    return [line for line in lines if line]


def _describe_failure(verdict: Verdict, criterion: Criterion) -> dict[str, str]:
    """A failed verdict in the words of the prompt; a log-odds would tell a writer nothing."""
    wanted = f"Wanted: the response {criterion['text']}."
    reason = verdict["reason"] if verdict["score"] is None else "It does not yet."
    evidence = f'\nIn the response: "{verdict["evidence"]}"' if verdict["evidence"] else ""
    text = f"{wanted}\nFound: {reason or 'It does not.'}{evidence}"
    return {"criterion_id": verdict["criterion_id"], "text": text}
