"""The characteristics of each reference, tried, and merged into the criteria of a seed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
from langgraph.runtime import Runtime

from memory import index
from memory.characteristics import Characteristics, Learned
from memory.embed import Embed
from memory.index import DrawOther
from memory.references import Reference
from nodes.context import Context
from nodes.criteria import answers_instruction, generic_criteria, rule_criteria
from nodes.events import emit
from nodes.failures import failure_from
from nodes.feedback import collect_feedback, feedback_key
from nodes.inputs import BadInput, check_list_sizes
from nodes.learn import MAX_CHARACTERISTICS, learn, learned_key
from nodes.llm import CallFailed, CallOrigin, Complete
from nodes.screening import ANSWERABLE_ID, MAX_INSTRUCTION_CRITERIA, built_in_criteria
from nodes.state import Criterion, State, add_usage, no_usage

# Criteria whose texts have a higher cosine say the same.
DUPLICATE_COSINE = 0.8


async def extract(
    state: State,
    runtime: Runtime[Context],
    *,
    complete: Complete,
    embed: Embed,
    characteristics: Characteristics,
    draw_other: DrawOther | None = None,
) -> dict[str, Any]:
    """Learn what makes each reference good, once ever, and merge it into criteria.

    Reads `seed`, `references`; writes `learned`, `criteria`, `instruction_criteria`, or `failure`
    if no reference could be learned from. In an arm without criteria there are only the rules, and
    instructions are held to the built-in criteria.
    """
    check_list_sizes(state)
    context = runtime.context or Context()
    if context.feedback in ("none", "sample") and not context.paired:
        of_instruction = await merge_instruction_criteria([], context, embed)
        return {
            "learned": [],
            "criteria": rule_criteria(),
            "instruction_criteria": of_instruction,
        }
    refed = context.pipeline == "refed"
    seed = state["seed"]
    origin = CallOrigin("", "", (seed.get("round", 0), seed.get("position", 0)))

    async def recall(reference: Reference) -> Learned | CallFailed:
        """What is known of a reference, learned now if nothing is."""
        if refed:
            key = feedback_key(reference, context)
            make = partial(collect_feedback, reference, context, origin, complete)
        else:
            key = learned_key(reference, context)
            make = partial(learn, reference, context, origin, complete, embed)
        try:
            return await characteristics.recall(key, reference["id"], make, runtime.store)
        except CallFailed as error:
            characteristics.notify(reference["id"], None)
            return error

    studied = state["references"][:1] if refed else state["references"]
    entries = await asyncio.gather(*map(recall, studied))
    learned = [entry for entry in entries if not isinstance(entry, CallFailed)]
    if entries and not learned:
        return _failure_update(entries)
    sources = learned
    if context.feedback == "swapped":
        others = await _draw_others(state["references"], context, draw_other)
        entries = await asyncio.gather(*map(recall, others))
        swapped = [entry for entry in entries if not isinstance(entry, CallFailed)]
        if not swapped:
            return _failure_update(entries)
        # The others' criteria, with the bars of the seed's own references.
        sources = [{**entry, "criteria": []} for entry in learned]
        sources += [{**entry, "answers_bar": None} for entry in swapped]
    criteria = rule_criteria() if refed else await merge_criteria(sources, context, embed)
    extracted = [c for c in criteria if c["reference_id"]]
    message = f"{len(extracted)} criteria from {len(learned)} references."
    emit(runtime, "criteria", message, criteria=extracted)
    # The seed's own references' in every arm, so that all arms make the same instructions.
    of_instruction = await merge_instruction_criteria(learned, context, embed)
    return {"learned": learned, "criteria": criteria, "instruction_criteria": of_instruction}


async def _draw_others(
    references: Sequence[Reference], context: Context, draw_other: DrawOther | None
) -> list[Reference]:
    """For each of the seed's references another one, fixed by the random seed."""
    avoid = {reference["id"] for reference in references}
    others: dict[str, Reference] = {}
    for reference in references:
        if draw_other is None:
            other = index.draw_other(references, reference, (), context.random_seed)
        else:
            other = await draw_other(reference, avoid, context.random_seed)
        if other is None:
            raise BadInput(
                "feedback swapped: it needs another reference than the seed's own, and there is "
                "none; add references"
            )
        others[other["id"]] = other
    return list(others.values())


def _failure_update(entries: Sequence[Learned | CallFailed]) -> dict[str, Any]:
    """The state's update when no reference could be learned from."""
    errors = [entry for entry in entries if isinstance(entry, CallFailed)]
    usage = reduce(add_usage, (error.usage for error in errors), no_usage())
    failure = {"failure": failure_from(errors[0]), "learned": [], "criteria": [], "usage": usage}
    return failure | {"instruction_criteria": []}


async def merge_criteria(
    learned: Sequence[Learned], context: Context, embed: Embed
) -> list[Criterion]:
    """The criteria of several references: the built-in one, at most `max_criteria`, the rules.

    References take turns, each giving its best criterion first. Of criteria that say nearly the
    same, the first one stays.
    """
    if context.feedback in ("none", "sample"):
        return rule_criteria()
    bars = [entry["answers_bar"] for entry in learned if entry["answers_bar"] is not None]
    built_in = answers_instruction(sum(bars) / len(bars) if bars else None)
    if context.feedback == "generic":
        return [built_in, *generic_criteria(), *rule_criteria()]
    extracted: list[Criterion] = [
        entry["criteria"][rank]
        for rank in range(MAX_CHARACTERISTICS)
        for entry in learned
        if rank < len(entry["criteria"])
    ]
    extracted = await _drop_alike(extracted, len(learned), embed)
    return [built_in, *extracted[: context.max_criteria], *rule_criteria()]


async def merge_instruction_criteria(
    learned: Sequence[Learned], context: Context, embed: Embed
) -> list[Criterion]:
    """What a seed's instructions are held to: the built-in criteria, and those of its references.

    None where instructions are not screened. References take turns, as in `merge_criteria`.
    """
    if not context.screens:
        return []
    known = [entry.get("answerable_bar") for entry in learned]
    bars = [bar for bar in known if bar is not None]
    bar = sum(bars) / len(bars) if bars else None
    built_in = built_in_criteria(context, {ANSWERABLE_ID: bar})
    of_references: list[list[Criterion]] = [
        entry.get("instruction_criteria") or [] for entry in learned
    ]
    extracted: list[Criterion] = [
        criteria[rank]
        for rank in range(MAX_CHARACTERISTICS)
        for criteria in of_references
        if rank < len(criteria)
    ]
    extracted = await _drop_alike(extracted, len(learned), embed)
    return [*built_in, *extracted[:MAX_INSTRUCTION_CRITERIA]]


async def _drop_alike(
    criteria: list[Criterion], n_references: int, embed: Embed
) -> list[Criterion]:
    """The criteria of several references without those that say what an earlier one says."""
    if n_references < 2 or len(criteria) < 2:
        return criteria
    vectors = await embed([c["text"] for c in criteria])
    distinct: list[int] = []
    for i in range(len(criteria)):
        if not distinct or float(np.max(vectors[distinct] @ vectors[i])) <= DUPLICATE_COSINE:
            distinct.append(i)
    return [criteria[i] for i in distinct]
