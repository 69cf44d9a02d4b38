"""The candidate against the criteria: rules, checks, then the judge, and what to do next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langgraph.runtime import Runtime

from memory.contamination import Contamination
from memory.embed import Embed, cosine
from nodes.checks import RunCheck, apply_checks, is_check, run_safe_check
from nodes.context import Context
from nodes.criteria import RuleInput, apply_rules, verdict
from nodes.events import emit
from nodes.feedback import give_feedback
from nodes.inputs import check_list_sizes
from nodes.judge import JudgeResult, judge
from nodes.llm import Complete
from nodes.origin import origin_of
from nodes.state import Attempt, Criterion, SampleState, Verdict, add_usage, no_usage
from nodes.verdicts import next_step, vote

# Draws reserved for one vote; more than there are attempts, so that no two votes share a draw.
DRAWS_PER_VOTE = 16


async def critique(
    state: SampleState,
    runtime: Runtime[Context],
    *,
    complete: Complete,
    embed: Embed,
    contamination: Contamination | None = None,
    check: RunCheck = run_safe_check,
) -> dict[str, Any]:
    """Judge the candidate and decide what happens to the sample.

    Reads `instruction`, `candidate`, `criteria`, `attempts`; writes `attempts`, `status`,
    `reason`, `usage`. A failed `must` rule or check saves the judge's call.
    """
    check_list_sizes(state)
    context = runtime.context or Context()
    previous = state.get("attempts") or []
    rules = apply_rules(await _rule_input(state, context, embed, contamination))
    checks = await apply_checks(
        state["criteria"], state["instruction"], state["candidate"], state["references"], check
    )
    judged = await _ask_judge(state, runtime, complete, [*rules, *checks])
    by_id = {v["criterion_id"]: v for v in [*judged.verdicts, *rules, *checks]}
    attempt: Attempt = {
        "response": state["candidate"],
        "verdicts": [by_id[c["id"]] for c in state["criteria"] if c["id"] in by_id],
    }
    usage = judged.usage
    if context.refines_once and not previous:
        # Arms that refine a draft once refine it by feedback.
        if context.pipeline == "refed":
            attempt["feedback"] = state.get("response_feedback", [])
        else:
            result = await give_feedback(
                complete,
                context,
                origin_of(state),
                instruction=state["instruction"],
                response=state["candidate"],
            )
            attempt["feedback"] = [p.strip() for p in result.answer.feedback if p.strip()]
            usage = add_usage(usage, result.usage)
    attempts = [*previous, attempt]
    decision = next_step(attempts, state["criteria"], context)
    outcome = decision.status if decision.status != "open" else "to be refined"
    emit(runtime, "decision", f"Attempt {len(attempts)}: {outcome}.", reason=decision.reason)
    return {
        "attempts": [attempt],
        "response": attempts[decision.best]["response"],
        "status": decision.status,
        "reason": decision.reason,
        "usage": usage,
    }


async def _rule_input(
    state: SampleState, context: Context, embed: Embed, contamination: Contamination | None
) -> RuleInput:
    candidate, topic_bar = state["candidate"], state.get("topic_bar")
    similarity = hit = None
    if context.method == "logodds" and topic_bar is not None and candidate.strip():
        similarity = await cosine(embed, state["instruction"], candidate)
    if contamination is not None:
        hit = await asyncio.to_thread(contamination.find_in_response, candidate)
    return RuleInput(
        state["instruction"],
        candidate,
        state["references"],
        cosine=similarity,
        topic_bar=topic_bar,
        hit=hit,
        checked=contamination is not None,
    )


async def _ask_judge(
    state: SampleState, runtime: Runtime[Context], complete: Complete, rules: list[Verdict]
) -> JudgeResult:
    """The judge's verdicts, by vote where one decides alone; unknown if a `must` rule fails.

    `rules` are the verdicts of rules and checks. Emits an event for each of them that failed, for
    each check that could not be made, and for each verdict of the judge as it comes.
    """
    context, criteria = runtime.context or Context(), state["criteria"]
    texts = {c["id"]: c["text"] for c in criteria}
    checks = {c["id"] for c in criteria if is_check(c)}

    def emit_verdict(result: Verdict) -> None:
        if result["criterion_id"] in texts:
            outcome = result["verdict"].replace("_", " ")
            if result["criterion_id"] in checks:
                outcome = {"fail": "check failed", "unknown": "check unknown"}[result["verdict"]]
            reason = f" {result['reason']}" if result["reason"] else ""
            message = f"{outcome}: the response {texts[result['criterion_id']]}.{reason}"
            emit(runtime, "verdict", message, **result)

    failed = [v for v in rules if v["verdict"] == "fail"]
    unknown = [v for v in rules if v["verdict"] == "unknown"]
    for result in [*failed, *unknown]:
        emit_verdict(result)
    musts = {c["id"] for c in criteria if c["must"]}
    if any(v["criterion_id"] in musts for v in failed):
        what = "rule" if any(v["criterion_id"] not in checks for v in failed) else "check"
        reason = f"The judge was not asked, since a {what} fails."
        judge_ids = [c["id"] for c in criteria if c["judged_by"] == "judge"]
        return JudgeResult([verdict(id_, "unknown", reason) for id_ in judge_ids], no_usage())
    attempt_number = len(state.get("attempts") or [])

    async def ask(criteria: Sequence[Criterion], vote_number: int) -> JudgeResult:
        return await judge(
            complete,
            context,
            origin_of(state),
            instruction=state["instruction"],
            response=state["candidate"],
            criteria=criteria,
            draw=attempt_number + DRAWS_PER_VOTE * vote_number,
            on_verdict=emit_verdict,
        )

    return await vote(await ask(criteria, 0), rules, criteria, context, ask)
