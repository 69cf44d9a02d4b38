"""The candidate against the criteria: rules, checks, then the judge, and what to do next.

A bare answer to an accepted instruction is judged in the same way, after the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langgraph.runtime import Runtime

from memory.contamination import Contamination
from memory.embed import Embed, cosine
from nodes.answer import MAX_ANSWERS, count_draws
from nodes.checks import RunCheck, apply_checks, is_check, run_safe_check
from nodes.context import MAX_ATTEMPTS, Context
from nodes.criteria import RuleInput, apply_rules, verdict
from nodes.events import emit
from nodes.feedback import give_feedback
from nodes.inputs import check_list_sizes
from nodes.judge import JudgeResult, judge
from nodes.llm import Complete
from nodes.origin import origin_of
from nodes.reasoning import NO_THOUGHTS, find_fault
from nodes.state import (
    AnswerError,
    Attempt,
    BareAnswer,
    Criterion,
    SampleState,
    Usage,
    Verdict,
    add_usage,
    no_usage,
)
from nodes.verdicts import best_of, is_as_good, next_step, vote

# Draws reserved for one vote: more than there are attempts and bare answers, whose draws come
# behind those of any attempt, so that no two judgements share a draw.
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
    `reason`, `usage`. A failed `must` rule or check saves the judge's call. Of a sample that is
    accepted it reads `bare` and writes `answers`, `answering`, and, if that answer is taken,
    `response` and `reasoning`.
    """
    check_list_sizes(state)
    context = runtime.context or Context()

    async def judge_text(text: str, draw: int, not_asked: str = "") -> tuple[Attempt, Usage]:
        rules = apply_rules(await _rule_input(state, text, context, embed, contamination))
        checks = await apply_checks(
            state["criteria"], state["instruction"], text, state["references"], check
        )
        made = [*rules, *checks]
        judged = await _ask_judge(state, text, runtime, complete, made, draw, not_asked)
        by_id = {v["criterion_id"]: v for v in [*judged.verdicts, *made]}
        verdicts = [by_id[c["id"]] for c in state["criteria"] if c["id"] in by_id]
        return {"response": text, "verdicts": verdicts}, judged.usage

    if state.get("status") == "accepted":
        bare = state.get("bare")
        # Without one its call has failed, and what comes next is decided.
        if bare is None:
            return {}
        return await _judge_bare_answer(state, runtime, bare, contamination, judge_text)
    previous = state.get("attempts") or []
    attempt, usage = await judge_text(state["candidate"], len(previous))
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
        "answering": context.reasoning and decision.status == "accepted",
        "usage": usage,
    }


async def _judge_bare_answer(
    state: SampleState,
    runtime: Runtime[Context],
    bare: BareAnswer,
    contamination: Contamination | None,
    judge_text: Callable[[str, int, str], Awaitable[tuple[Attempt, Usage]]],
) -> dict[str, Any]:
    """Judge a bare answer; it becomes the response if it is as good and its thoughts can be kept.

    If there are no thoughts, the judge is saved the call and no other is drawn: an endpoint that
    gives none with one answer gives none with the next.
    """
    context, criteria = runtime.context or Context(), state["criteria"]
    text, thoughts, draw = bare["response"], bare["thoughts"], count_draws(state)
    hit = None
    if thoughts and contamination is not None:
        hit = await asyncio.to_thread(contamination.find_in_response, thoughts)
    fault = find_fault(thoughts, state["instruction"], hit)
    thoughtless = fault == NO_THOUGHTS
    not_asked = "The judge was not asked, since the answer came without thoughts."
    answer, usage = await judge_text(text, MAX_ATTEMPTS + draw, not_asked if thoughtless else "")
    accepted = state["attempts"][best_of(state["attempts"], criteria, context)]
    taken = fault is None and is_as_good(answer, accepted, criteria)
    why = "taken" if taken else f"left, {(fault or 'not as good').replace('_', ' ')}"
    emit(runtime, "decision", f"Bare answer {draw + 1}: {why}.", reason=None)
    errors: list[AnswerError] = [] if fault is None else [{"stage": "answer", "kind": fault}]
    update: dict[str, Any] = {
        "bare": None,
        "answers": [answer],
        "answer_errors": errors,
        "answering": not taken and not thoughtless and draw + 1 < MAX_ANSWERS,
        "usage": usage,
    }
    return update | {"response": text, "reasoning": thoughts} if taken else update


async def _rule_input(
    state: SampleState,
    candidate: str,
    context: Context,
    embed: Embed,
    contamination: Contamination | None,
) -> RuleInput:
    topic_bar = state.get("topic_bar")
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
    state: SampleState,
    candidate: str,
    runtime: Runtime[Context],
    complete: Complete,
    rules: list[Verdict],
    draw: int,
    not_asked: str,
) -> JudgeResult:
    """The judge's verdicts, by vote where one decides alone; unknown if a `must` rule fails.

    They are unknown as well if `not_asked` says why the judge is not to be asked. `rules` are the
    verdicts of rules and checks. Emits an event for each of them that failed, for each check that
    could not be made, and for each verdict of the judge as it comes.
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
        not_asked = f"The judge was not asked, since a {what} fails."
    if not_asked:
        judge_ids = [c["id"] for c in criteria if c["judged_by"] == "judge"]
        return JudgeResult([verdict(id_, "unknown", not_asked) for id_ in judge_ids], no_usage())

    async def ask(criteria: Sequence[Criterion], vote_number: int) -> JudgeResult:
        return await judge(
            complete,
            context,
            origin_of(state),
            instruction=state["instruction"],
            response=candidate,
            criteria=criteria,
            draw=draw + DRAWS_PER_VOTE * vote_number,
            on_verdict=emit_verdict,
        )

    return await vote(await ask(criteria, 0), rules, criteria, context, ask)
