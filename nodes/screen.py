"""New instructions held to the references' criteria, and admitted to the run in the seed's turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langgraph.runtime import Runtime

from memory.embed import Embed
from nodes.context import Context
from nodes.events import emit
from nodes.failures import failure_from
from nodes.hooks import Admitted, RunHooks
from nodes.llm import CallFailed, Complete
from nodes.origin import origin_of_proposals
from nodes.propose import MAX_ASKS_FOR_PROPOSALS, admitted_update, drop
from nodes.screening import (
    ScreenResult,
    judge_instruction_by_log_odds,
    judge_instructions,
    meets_instruction_criteria,
)
from nodes.state import Criterion, Near, Proposal, State, Verdict, add_usage, no_usage
from nodes.verdicts import passes


async def screen(
    state: State, runtime: Runtime[Context], *, complete: Complete, embed: Embed, hooks: RunHooks
) -> dict[str, Any]:
    """Judge the seed's proposals, ask for others once if too few are good, and admit what is new.

    Reads `seed`, `proposals`, `instruction_criteria`; writes `proposals`, and either nothing else,
    which asks again, or `instructions` and `instruction_verdicts`. Whether it asks again rests on
    the verdicts and on what the run admitted before the seed's turn: before that turn if it is
    known by then, since the seeds behind wait while a call is made in a turn.
    """
    context = runtime.context or Context()
    proposals, usage = [*state["proposals"]], no_usage()
    last = state["asks"] == MAX_ASKS_FOR_PROPOSALS
    failure = state.get("second_failure")
    if state.get("instruction_criteria"):
        try:
            proposals, usage = await _judge(state, runtime, complete, embed)
        except CallFailed as error:
            failure, usage = failure_from(error), error.usage
            if not last:
                return {"failure": failure, "usage": usage}
            why = f"the judge could not be asked: {error.message}"
            proposals = [
                drop(p, "screened", why)
                if p["reason"] is None and p["ask"] == MAX_ASKS_FOR_PROPOSALS
                else p
                for p in proposals
            ]
    texts = [p["instruction"] for p in proposals if p["reason"] is None]
    update: dict[str, Any] = {"proposals": proposals, "usage": usage}
    if not last:
        # What is known stays known: no text counts as known here that its turn would admit.
        enough = len(texts) >= context.per_seed
        known = sum(await hooks.are_known(state["seed"], texts)) if enough else 0
        if len(texts) - known < context.per_seed:
            return update
    near = await hooks.compare(state["seed"], texts, context)
    if near is None:
        # The run needs nothing of this seed any more.
        await hooks.end_turn(state["seed"], [], [])
        return {**update, "instructions": [None] * context.per_seed}
    new = sum(hit is None for hit in near)
    if new < context.per_seed and not last:
        return update
    if failure is not None and not new:
        return {**update, "failure": failure}
    admitted, proposals = _admit(proposals, near, context.per_seed)
    dropped = [p for p in proposals if p["reason"] is not None]
    await hooks.end_turn(state["seed"], admitted, dropped)
    message = f"{len(admitted)} new instructions, {len(dropped)} dropped."
    emit(runtime, "instructions", message, instructions=[one["text"] for one in admitted])
    missing = context.per_seed - len(admitted)
    ended = admitted_update(admitted)
    return {
        **update,
        **ended,
        "proposals": proposals,
        "instructions": [*ended["instructions"], *[None] * missing],
    }


def _admit(
    proposals: Sequence[Proposal], near: Sequence[Near | None], limit: int
) -> tuple[list[Admitted], list[Proposal]]:
    """The first `limit` proposals that are new, and all proposals with why the rest is dropped.

    `near` is for those that stand, in order.
    """
    admitted: list[Admitted] = []
    ended: list[Proposal] = []
    hits = iter(near)
    for proposal in proposals:
        if proposal["reason"] is None:
            hit = next(hits)
            if hit is not None:
                proposal = drop(proposal, "duplicate", "too near to another instruction", hit)
            elif len(admitted) == limit:
                proposal = drop(proposal, "surplus", "the seed has all it asked for")
            else:
                admitted.append({"text": proposal["instruction"], "verdicts": proposal["verdicts"]})
        ended.append(proposal)
    return admitted, ended


async def _judge(
    state: State, runtime: Runtime[Context], complete: Complete, embed: Embed
) -> tuple[list[Proposal], Any]:
    """The proposals with the verdicts on those of the last ask; what fails is dropped."""
    context = runtime.context or Context()
    seed, criteria = state["seed"], state["instruction_criteria"]
    proposals = [*state["proposals"]]
    ask = state["asks"]
    asked = [i for i, p in enumerate(proposals) if p["ask"] == ask and p["reason"] is None]
    texts = [proposals[i]["instruction"] for i in asked]
    if not texts:
        return proposals, no_usage()
    if context.method == "logodds":
        result = await _judge_by_log_odds(state, context, complete, embed, texts, ask)
    else:
        result = await judge_instructions(
            complete,
            context,
            origin_of_proposals(seed),
            texts,
            criteria,
            seed=seed["instruction"],
            draw=ask - 1,
        )
    for i, verdicts in zip(asked, result.verdicts, strict=True):
        proposal: Proposal = {**proposals[i], "verdicts": verdicts}
        if not meets_instruction_criteria(verdicts, criteria, context):
            proposal = drop(proposal, "screened", _describe_failed(verdicts, criteria))
        outcome = "pass" if proposal["reason"] is None else f"fail: {proposal['why']}"
        message = f"{outcome}: {proposal['instruction'][:120]}"
        emit(runtime, "screen", message, instruction=proposal["instruction"], verdicts=verdicts)
        proposals[i] = proposal
    return proposals, result.usage


async def _judge_by_log_odds(
    state: State,
    context: Context,
    complete: Complete,
    embed: Embed,
    texts: Sequence[str],
    ask: int,
) -> ScreenResult:
    seed = state["seed"]
    all_verdicts, usage = [], no_usage()
    for i, text in enumerate(texts):
        try:
            verdicts, used = await judge_instruction_by_log_odds(
                complete,
                context,
                origin_of_proposals(seed),
                text,
                state["instruction_criteria"],
                seed=seed["instruction"],
                embed=embed,
                draw=(ask - 1) * 64 + i,
            )
        except CallFailed as error:
            error.usage = add_usage(usage, error.usage)
            raise
        usage = add_usage(usage, used)
        all_verdicts.append(verdicts)
    return ScreenResult(all_verdicts, usage)


def _describe_failed(verdicts: Sequence[Verdict], criteria: Sequence[Criterion]) -> str:
    """Which criteria an instruction does not meet, each with the judge's reason."""
    texts = {c["id"]: c["text"] for c in criteria}
    failed = [v for v in verdicts if v["verdict"] == "fail"]
    # Where one fails, others may not have been asked.
    unmet = failed or [v for v in verdicts if not passes(v)]
    return "; ".join(
        f"{'' if failed else 'unknown: '}{texts[v['criterion_id']]} ({v['reason']})" for v in unmet
    )
