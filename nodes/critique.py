"""The candidate against the criteria: rules first, then the judge, then what it adds up to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from langgraph.runtime import Runtime

from memory.contamination import Contamination
from memory.embed import Embed, cosine
from nodes.context import Context
from nodes.criteria import RuleInput, apply_rules, verdict
from nodes.events import emit
from nodes.feedback import give_feedback
from nodes.generate import origin_of
from nodes.inputs import check_list_sizes
from nodes.judge import JudgeResult, judge
from nodes.llm import Complete
from nodes.state import Attempt, Criterion, SampleState, Usage, Verdict, add_usage, no_usage
from nodes.verdicts import next_step, vote

# More draws than there are attempts: what tells one vote's from another's.
VOTES_APART = 16


async def critique(
    state: SampleState,
    runtime: Runtime[Context],
    *,
    complete: Complete,
    embed: Embed,
    contamination: Contamination | None = None,
) -> dict[str, Any]:
    """Judge the candidate and say how the sample stands.

    Reads `instruction`, `candidate`, `criteria`, `attempts`; writes `attempts`, `status`,
    `reason`, `usage`. A `must` rule that fails saves the judge's call.
    """
    check_list_sizes(state)
    context = runtime.context or Context()
    rules = apply_rules(await _facts(state, context, embed, contamination))
    judged = await _judged(state, runtime, complete, rules)
    attempt: Attempt = {
        "response": state["candidate"],
        "verdicts": _in_order(state, [*judged.verdicts, *rules]),
    }
    fed = await _fed_back(state, context, complete)
    if fed is not None:
        attempt["feedback"] = fed[0]
    attempts = [*(state.get("attempts") or []), attempt]
    decision = next_step(attempts, state["criteria"], context)
    said = decision.status if decision.status != "open" else "to be refined"
    emit(runtime, "decision", f"Attempt {len(attempts)}: {said}.", reason=decision.reason)
    return {
        "attempts": [attempt],
        "response": attempts[decision.best]["response"],
        "status": decision.status,
        "reason": decision.reason,
        "usage": add_usage(judged.usage, fed[1]) if fed else judged.usage,
    }


async def _fed_back(
    state: SampleState, context: Context, complete: Complete
) -> tuple[list[str], Usage] | None:
    """What the refinement of a draft is to be told, in arms that refine it once."""
    if not context.once or state.get("attempts"):
        return None
    if context.pipeline == "refed":
        return state.get("response_feedback", []), no_usage()
    texts = {"instruction": state["instruction"], "response": state["candidate"]}
    asked = await give_feedback(complete, context, origin_of(state), **texts)
    return [text.strip() for text in asked.answer.feedback if text.strip()], asked.usage


async def _judged(
    state: SampleState, runtime: Runtime[Context], complete: Complete, rules: list[Verdict]
) -> JudgeResult:
    """The judge's verdicts, unless a rule decides without them; each is told of as it comes."""
    heard = partial(_tell, runtime, {c["id"]: c["text"] for c in state["criteria"]})
    failed = [found for found in rules if found["verdict"] == "fail"]
    for found in failed:
        heard(found)
    musts = {c["id"] for c in state["criteria"] if c["must"]}
    if any(found["criterion_id"] in musts for found in failed):
        return _unasked(state)
    context, draw = runtime.context or Context(), len(state.get("attempts") or [])
    ask = partial(judge, complete, context, origin_of(state), instruction=state["instruction"])
    ask = partial(ask, response=state["candidate"])
    judged = await ask(criteria=state["criteria"], draw=draw, heard=heard)

    async def again(criteria: Sequence[Criterion], number: int) -> JudgeResult:
        return await ask(criteria=criteria, draw=draw + VOTES_APART * number, heard=heard)

    return await vote(judged, rules, state["criteria"], context, again)


def _tell(runtime: Runtime[Context], texts: dict[str, str], found: Verdict) -> None:
    """A verdict as it comes."""
    text = texts.get(found["criterion_id"])
    if text is not None:
        outcome = found["verdict"].replace("_", " ")
        why = f" {found['reason']}" if found["reason"] else ""
        emit(runtime, "verdict", f"{outcome}: the response {text}.{why}", **found)


async def _facts(
    state: SampleState, context: Context, embed: Embed, contamination: Contamination | None
) -> RuleInput:
    bar = state.get("topic_bar")
    near = None
    if context.method == "logodds" and bar is not None and state["candidate"].strip():
        near = await cosine(embed, state["instruction"], state["candidate"])
    candidate, hit = state["candidate"], None
    if contamination is not None:
        hit = await asyncio.to_thread(contamination.response, candidate)
    checked = contamination is not None
    return RuleInput(state["instruction"], candidate, state["references"], near, bar, hit, checked)


def _unasked(state: SampleState) -> JudgeResult:
    reason = "The judge was not asked, since a rule fails."
    asked = [c for c in state["criteria"] if c["judged_by"] == "judge"]
    return JudgeResult([verdict(c["id"], "unknown", reason) for c in asked], no_usage())


def _in_order(state: SampleState, verdicts: list[Verdict]) -> list[Verdict]:
    by_id = {v["criterion_id"]: v for v in verdicts}
    return [by_id[c["id"]] for c in state["criteria"] if c["id"] in by_id]
