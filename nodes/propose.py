"""New instructions for a seed, each new to the run before anything is paid for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import reduce
from typing import Any

from langgraph.runtime import Runtime

from memory.novelty import NoveltyFilter
from nodes.context import Context
from nodes.criteria import RuleInput, no_placeholder
from nodes.failures import failure_from
from nodes.feedback import FEATURES, counts_by_feature, feature_phrases
from nodes.hooks import Admitted, RunHooks, near_to
from nodes.llm import Answer, CallFailed, Complete, ask, make_call
from nodes.origin import origin_of_proposals
from nodes.screening import BUILT_IN_IDS
from nodes.state import Criterion, DropReason, Near, Proposal, Seed, State, Usage, add_usage
from prompts import render

# An instruction may always be this long, in characters.
MAX_LENGTH_FLOOR = 400
# How often a seed is asked for instructions.
MAX_ASKS_FOR_PROPOSALS = 2
# Failed verdicts that the second ask is told of.
MAX_FAILED_SHOWN = 12
_SEED_TALK = re.compile(r"\b(?:the|original|given) (?:\w+ )?(?:seed|references?)\b", re.IGNORECASE)


class Proposed(Answer):
    """What a proposal brings."""

    instructions: list[str]


async def propose(
    state: State, runtime: Runtime[Context], *, complete: Complete, hooks: RunHooks
) -> dict[str, Any]:
    """Propose the seed's new instructions; with `answer_seeds` the seed is the instruction.

    Reads `seed`, `references`, `learned`, `instruction_criteria`, `proposals`; writes `proposals`.
    What cannot be an instruction, or is too near to the seed, its references or another proposal,
    is dropped here. The second time it is told what to differ from, and what failed.
    """
    context = runtime.context or Context()
    seed = state["seed"]
    if context.answer_seeds:
        return await _answer_seed(seed, context, hooks)
    if context.pipeline == "refed":
        return await _propose_by_feature(state, context, complete, hooks)
    asks = state.get("asks") or 0
    if asks == 0:
        repeated = await hooks.repeat_turn(seed)
        if repeated is not None:
            return admitted_update(repeated)
    before = [*(state.get("proposals") or [])]
    try:
        texts, usage = await _ask(state, context, complete, count=context.per_seed, draw=asks)
    except CallFailed as error:
        failed = {"failure" if asks == 0 else "second_failure": failure_from(error)}
        return {**failed, "asks": asks + 1, "usage": error.usage}
    proposals = _drop_unfit(texts, before, state, context)
    return {"proposals": proposals, "asks": asks + 1, "usage": usage}


def admitted_update(admitted: Sequence[Admitted]) -> dict[str, Any]:
    """The state's update for instructions that the run has admitted."""
    return {
        "instructions": [one["text"] for one in admitted],
        "instruction_verdicts": {one["text"]: one["verdicts"] for one in admitted},
    }


def drop(
    proposal: Proposal,
    reason: DropReason,
    why: str,
    near: Near | None = None,
) -> Proposal:
    """The proposal, dropped."""
    return {**proposal, "reason": reason, "why": why[:1000], "near": near}


def proposal_of(text: str, ask: int = 1) -> Proposal:
    """A proposed text that nothing is known of yet."""
    return {
        "instruction": text,
        "ask": ask,
        "reason": None,
        "near": None,
        "verdicts": [],
        "why": "",
    }


async def _answer_seed(seed: Seed, context: Context, hooks: RunHooks) -> dict[str, Any]:
    """The seed as the instruction, unless an earlier seed has the same text."""
    repeated = await hooks.repeat_turn(seed)
    if repeated is not None:
        return admitted_update(repeated)
    text = seed["instruction"]
    near = await hooks.compare(seed, [text], context)
    if near is None:
        await hooks.end_turn(seed, [], [])
        return {"instructions": [None]}
    if near[0] is not None:
        proposal = drop(proposal_of(text), "duplicate", "an earlier seed has this text", near[0])
        await hooks.end_turn(seed, [], [proposal])
        return {"instructions": [None]}
    admitted: list[Admitted] = [{"text": text, "verdicts": []}]
    await hooks.end_turn(seed, admitted, [])
    return admitted_update(admitted)


async def _propose_by_feature(
    state: State, context: Context, complete: Complete, hooks: RunHooks
) -> dict[str, Any]:
    """Ask for each feature's share by itself, and never again, as the paper's authors do.

    A feature whose call fails costs its own instructions, not the other's.
    """

    async def ask_for(draw: int, feature: str, count: int) -> tuple[list[str], Usage] | CallFailed:
        try:
            return await _ask(state, context, complete, count=count, draw=draw, feature=feature)
        except CallFailed as error:
            return error

    counts = counts_by_feature(context.per_seed)
    results = await asyncio.gather(
        *(ask_for(draw, feature, n) for draw, (feature, n) in enumerate(counts.items()))
    )
    usages = (r.usage if isinstance(r, CallFailed) else r[1] for r in results)
    usage = reduce(add_usage, usages)
    failures = [result for result in results if isinstance(result, CallFailed)]
    if len(failures) == len(results):
        return {"failure": failure_from(failures[0]), "usage": usage}
    features: dict[str, str] = {}
    for feature, result in zip(counts, results, strict=True):
        if not isinstance(result, CallFailed):
            features |= {text: feature for text in result[0] if text and text not in features}
    update: dict[str, Any] = {"features": features, "usage": usage}
    repeated = await hooks.repeat_turn(state["seed"])
    if repeated is not None:
        return {**update, **admitted_update(repeated)}
    return {
        **update,
        "asks": MAX_ASKS_FOR_PROPOSALS,
        "proposals": [proposal_of(text) for text in features],
    }


def _drop_unfit(
    texts: Sequence[str], before: Sequence[Proposal], state: State, context: Context
) -> list[Proposal]:
    """All proposals of the seed; new ones that cannot be used are dropped.

    One is too near if it is to the seed, a reference of it, or a proposal before it.
    """
    seed, references = state["seed"], state["references"]
    examples = [seed["instruction"], *(r["instruction"] for r in references)]
    ids = [None, *(r["id"] for r in references)]
    known = NoveltyFilter(context.novelty_threshold)
    proposals = [*before]
    for i, example in enumerate((*examples, *(p["instruction"] for p in before))):
        known.add(example, str(i))
    others = [*examples, *(p["instruction"] for p in before)]
    for text in texts:
        proposal = proposal_of(text, ask=(state.get("asks") or 0) + 1)
        unfit = why_unfit(text, examples)
        name = None if unfit else known.admit(text, str(len(others)))
        if unfit is not None:
            proposal = drop(proposal, "unfit", unfit)
        elif name is not None:
            i = int(name)
            id_ = ids[i] if i < len(ids) else None
            what = "the seed" if i == 0 else "a reference" if i < len(ids) else "another proposal"
            near = near_to(text, others[i], reference_id=id_)
            proposal = drop(proposal, "duplicate", f"too near to {what}", near)
        else:
            others.append(text)
        proposals.append(proposal)
    return proposals


async def _ask(
    state: State,
    context: Context,
    complete: Complete,
    *,
    count: int,
    draw: int = 0,
    feature: str | None = None,
) -> tuple[list[str], Usage]:
    """Ask for `count` new instructions, of one `feature` only if it is given, and the usage."""
    seed, learned = state["seed"], state.get("learned", [])
    # The paper's authors ask for each feature once, told of no other proposal.
    before = [] if feature is not None else state.get("proposals") or []
    criteria = [] if feature is not None else state.get("instruction_criteria") or []
    if feature is None:
        phrases = {
            name: list(dict.fromkeys(phrase for entry in learned for phrase in entry[name]))[:8]
            for name in FEATURES
        }
    else:
        phrases = feature_phrases(feature, learned)
    messages = render(
        "propose",
        template=context.propose_prompt,
        count=count,
        seed=seed["instruction"],
        references=[r for r in state["references"] if r["instruction"] != seed["instruction"]],
        criteria=[c for c in criteria if c["judged_by"] == "judge" and c["id"] not in BUILT_IN_IDS],
        avoid=[p["instruction"] for p in before if p["reason"] != "unfit"],
        failed=_describe_failed(before, criteria),
        **phrases,
    )
    call = make_call("propose", messages, Proposed, context, origin_of_proposals(seed), draw)
    result = await ask(complete, call, Proposed)
    texts = [text.strip() for text in result.answer.instructions if text.strip()]
    return texts[:count], result.usage


def _describe_failed(
    proposals: Sequence[Proposal], criteria: Sequence[Criterion]
) -> list[dict[str, str]]:
    """What the judge found wrong with proposals, as the prompt tells it."""
    texts = {c["id"]: c["text"] for c in criteria}
    return [
        {
            "criterion_id": v["criterion_id"],
            "text": f"{p['instruction'][:300]}\nnot: the instruction {texts[v['criterion_id']]}. "
            f"{v['reason'][:300]}".strip(),
        }
        for p in proposals
        if p["reason"] == "screened"
        for v in p["verdicts"]
        if v["verdict"] == "fail"
    ][:MAX_FAILED_SHOWN]


def why_unfit(text: str, examples: Sequence[str]) -> str | None:
    """Why a proposal is no instruction: too long, a placeholder, talk of the prompt; else None.

    `examples` are the seed and the references' instructions. A weak model writes an answer in place
    of a question, which is several times as long as they are.
    """
    max_length = max(MAX_LENGTH_FLOOR, 3 * max(map(len, examples), default=0))
    if len(text) > max_length:
        return f"{len(text)} characters, and {max_length} at most suit its seed"
    if no_placeholder(RuleInput("", text, ()))["verdict"] == "fail":
        return "it has a blank to fill in"
    if _SEED_TALK.search(text) and not any(map(_SEED_TALK.search, examples)):
        return "it speaks of the prompt"
    return None
