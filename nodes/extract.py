"""The characteristics of each reference, tried, and merged into the criteria of a seed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
from langgraph.runtime import Runtime

from memory.characteristics import Characteristics, Learned
from memory.embed import Embed
from memory.index import DrawOther, draw_other
from memory.references import Reference
from nodes.context import Context
from nodes.criteria import answers_instruction, generic_criteria, rule_criteria
from nodes.events import emit
from nodes.feedback import collect_feedback, feedback_key
from nodes.inputs import BadInput, check_list_sizes
from nodes.learn import MAX_CHARACTERISTICS, learn, learned_key
from nodes.llm import CallFailed, CallOrigin, Complete
from nodes.state import Criterion, State, add_usage, no_usage

DUPLICATE_COSINE = 0.8
ONE_ONLY = "feedback swapped: it needs another reference than the seed's own, and there is none"


async def extract(
    state: State,
    runtime: Runtime[Context],
    *,
    complete: Complete,
    embed: Embed,
    characteristics: Characteristics,
    another: DrawOther | None = None,
) -> dict[str, Any]:
    """Learn what makes each reference good, once ever, and merge it into criteria.

    Reads `seed`, `references`; writes `learned`, `criteria`, or `failure` when no reference could
    be learned from. In an arm without criteria there are only the rules.
    """
    check_list_sizes(state)
    context = runtime.context or Context()
    refed = context.pipeline == "refed"
    if context.feedback in ("none", "sample") and not context.paired:
        return {"learned": [], "criteria": rule_criteria()}
    recall = partial(_recall, state, runtime, complete, embed, characteristics)
    studied = state["references"][:1] if refed else state["references"]
    found = await asyncio.gather(*map(recall, studied))
    learned = [entry for entry in found if not isinstance(entry, CallFailed)]
    if found and not learned:
        return _nothing_learned(found)
    judging = learned
    if context.feedback == "swapped":
        swapped = await asyncio.gather(*map(recall, await _others(state, context, another)))
        theirs = [entry for entry in swapped if not isinstance(entry, CallFailed)]
        if not theirs:
            return _nothing_learned(swapped)
        # Their criteria; the bars stay those of the seed's own references.
        judging = [{**entry, "criteria": []} for entry in learned]
        judging += [{**entry, "answers_bar": None} for entry in theirs]
    criteria = rule_criteria() if refed else await merge_criteria(judging, context, embed)
    drawn = [c for c in criteria if c["reference_id"]]
    told = f"{len(drawn)} criteria from {len(learned)} references."
    emit(runtime, "criteria", told, criteria=drawn)
    return {"learned": learned, "criteria": criteria}


async def _recall(
    state: State,
    runtime: Runtime[Context],
    complete: Complete,
    embed: Embed,
    characteristics: Characteristics,
    reference: Reference,
) -> Learned | CallFailed:
    """What is known of a reference, learned now if it never was."""
    context = runtime.context or Context()
    seed = state["seed"]
    place = CallOrigin("", "", (seed.get("round", 0), seed.get("position", 0)))
    given = (reference, context, place, complete)
    if context.pipeline == "refed":
        key, make = feedback_key(reference, context), partial(collect_feedback, *given)
    else:
        key, make = learned_key(reference, context), partial(learn, *given, embed)
    try:
        return await characteristics.recall(key, reference["id"], make, runtime.store)
    except CallFailed as failed:
        characteristics.notify(reference["id"], None)
        return failed


async def _others(state: State, context: Context, another: DrawOther | None) -> list[Reference]:
    """For each reference of the seed another one, fixed by the random seed."""
    own = state["references"]
    avoid = {reference["id"] for reference in own}
    found: dict[str, Reference] = {}
    for reference in own:
        if another is None:
            other = draw_other(own, reference, (), context.random_seed)
        else:
            other = await another(reference, avoid, context.random_seed)
        if other is None:
            raise BadInput(ONE_ONLY)
        found[other["id"]] = other
    return list(found.values())


def _nothing_learned(found: Sequence[Learned | CallFailed]) -> dict[str, Any]:
    lost = [entry for entry in found if isinstance(entry, CallFailed)]
    first = lost[0]
    failure = {"stage": first.stage, "kind": first.kind, "message": first.message}
    usage = reduce(add_usage, (one.usage for one in lost), no_usage())
    return {"failure": failure, "learned": [], "criteria": [], "usage": usage}


async def merge_criteria(
    learned: Sequence[Learned], context: Context, embed: Embed
) -> list[Criterion]:
    """The criteria of several references: the built-in one, at most `max_criteria`, the rules.

    They are taken in turns, each reference's best first. Of two that say nearly the same (cosine
    over 0.8) the first is kept.
    """
    if context.feedback in ("none", "sample"):
        return rule_criteria()
    bars = [e["answers_bar"] for e in learned if e["answers_bar"] is not None]
    fixed = [answers_instruction(sum(bars) / len(bars) if bars else None)]
    if context.feedback == "generic":
        return [*fixed, *generic_criteria(), *rule_criteria()]
    columns = [list(e["criteria"]) for e in learned]
    turns = [
        c for row in range(MAX_CHARACTERISTICS) for column in columns for c in column[row : row + 1]
    ]
    if len(columns) > 1 and len(turns) > 1:
        turns = await _unlike(turns, embed)
    chosen = turns[: context.max_criteria]
    return [*fixed, *chosen, *rule_criteria()]


async def _unlike(criteria: list[Criterion], embed: Embed) -> list[Criterion]:
    vectors = await embed([c["text"] for c in criteria])
    kept: list[int] = []
    for i in range(len(criteria)):
        if not kept or float(np.max(vectors[kept] @ vectors[i])) <= DUPLICATE_COSINE:
            kept.append(i)
    return [criteria[i] for i in kept]
