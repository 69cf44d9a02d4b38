"""The characteristics of each reference, tried, and merged into the criteria of a seed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, cast

import numpy as np
from langgraph.runtime import Runtime

from memory import index
from memory.characteristics import Characteristics, Learned
from memory.embed import Embed, Vectors
from memory.index import DrawOther
from memory.references import Reference
from nodes.checks import RunCheck, before_rules, default_checks, run_safe_check
from nodes.context import Context
from nodes.criteria import answers_instruction, generic_criteria, rule_criteria
from nodes.events import emit
from nodes.failures import failure_from
from nodes.feedback import collect_feedback, feedback_key
from nodes.inputs import BadInput, check_list_sizes
from nodes.learn import MAX_CHARACTERISTICS, learn, learned_key
from nodes.llm import CallFailed, CallOrigin, Complete
from nodes.own_criteria import OwnCriteria, OwnCriterion
from nodes.own_trial import try_own_criteria
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
    own_criteria: OwnCriteria | None = None,
    check: RunCheck = run_safe_check,
) -> dict[str, Any]:
    """Learn what makes each reference good, once ever, and merge it into criteria.

    A person's criteria stand before them. Reads `seed`, `references`, `own_criteria`; writes
    `learned`, `criteria`, `instruction_criteria`, or `failure` if no reference could be learned
    from. In an arm without criteria there are only rules and checks, and instructions are held to
    the built-in criteria and a person's.
    """
    check_list_sizes(state)
    context = runtime.context or Context()
    seed, given = state["seed"], cast(Sequence[OwnCriterion], state.get("own_criteria") or ())
    known = own_criteria or OwnCriteria()
    own, own_of_instruction = _select_own(known, state)
    checks = await default_checks(state["references"], check, wanted=context.pipeline != "refed")
    if context.feedback in ("none", "sample") and not context.paired:
        of_instruction = await merge_instruction_criteria([], context, embed, own_of_instruction)
        criteria = [*_checks_of(own), *checks, *rule_criteria()]
        return {"learned": [], "criteria": criteria, "instruction_criteria": of_instruction}
    origin = CallOrigin("", "", (seed.get("round", 0), seed.get("position", 0)))

    async def recall(reference: Reference) -> Learned | CallFailed:
        """What is known of a reference, learned now if nothing is."""
        if context.pipeline == "refed":
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

    studied = _studied(state["references"], context)
    entries = await asyncio.gather(*map(recall, studied))
    learned = [entry for entry in entries if not isinstance(entry, CallFailed)]
    if entries and not learned:
        return _failure_update(entries)
    sources = learned
    if context.feedback == "swapped" and studied:
        others = await _draw_others(state["references"], context, draw_other)
        entries = await asyncio.gather(*map(recall, others))
        swapped = [entry for entry in entries if not isinstance(entry, CallFailed)]
        if not swapped:
            return _failure_update(entries)
        # The others' criteria, with the bars of the seed's own references.
        sources = [{**entry, "criteria": []} for entry in learned]
        sources += [{**entry, "answers_bar": None} for entry in swapped]
    if own and context.try_criteria and context.holds_to_references:
        trying = try_own_criteria(
            known,
            seed,
            state["references"],
            given,
            context=context,
            complete=complete,
            characteristics=characteristics,
            store=runtime.store,
        )
        try:
            own = await trying
        except CallFailed as error:
            return _failure_update([error])
    criteria = before_rules(await merge_criteria(sources, context, embed, own), checks)
    _emit_criteria(runtime, criteria, learned)
    # The seed's own references' in every arm, so that all arms make the same instructions.
    of_instruction = await merge_instruction_criteria(learned, context, embed, own_of_instruction)
    return {"learned": learned, "criteria": criteria, "instruction_criteria": of_instruction}


def _select_own(known: OwnCriteria, state: State) -> tuple[list[Criterion], list[Criterion]]:
    """The criteria of a person for the seed's responses, and for its instructions."""
    given = cast(Sequence[OwnCriterion], state.get("own_criteria") or ())
    try:
        return known.select(state["seed"], state["references"], given)
    except ValueError as error:
        raise BadInput(f"references: criteria: {error}") from error


def _studied(references: list[Reference], context: Context) -> list[Reference]:
    """The references to learn from: none if nothing is extracted and verdicts need no bars."""
    if context.pipeline == "refed":
        return references[:1]
    learns = context.learns_from_references
    return [] if learns and not context.extracts and context.method == "verdict" else references


def _emit_criteria(
    runtime: Runtime[Context], criteria: Sequence[Criterion], learned: Sequence[Learned]
) -> None:
    own = [c for c in criteria if c.get("own")]
    extracted = [c for c in criteria if c["reference_id"] and not c.get("own")]
    message = f"{len(extracted)} criteria from {len(learned)} references."
    if own:
        message = f"{len(own)} criteria of a person's, and {message}"
    emit(runtime, "criteria", message, criteria=[*own, *extracted])


def _checks_of(own: Sequence[Criterion]) -> list[Criterion]:
    return [criterion for criterion in own if criterion["judged_by"] == "check"]


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
    learned: Sequence[Learned], context: Context, embed: Embed, own: Sequence[Criterion] = ()
) -> list[Criterion]:
    """The built-in criterion, a person's `own`, at most `max_criteria` of references, the rules.

    A person's checks are in every arm, the others only in those with the references'. References
    take turns, each giving its best criterion first. Of criteria that say nearly the same, the
    first one stays.
    """
    if context.pipeline == "refed" or context.feedback in ("none", "sample"):
        return [*_checks_of(own), *rule_criteria()]
    bars = [entry["answers_bar"] for entry in learned if entry["answers_bar"] is not None]
    built_in = answers_instruction(sum(bars) / len(bars) if bars else None)
    if context.feedback == "generic":
        return [built_in, *_checks_of(own), *generic_criteria(), *rule_criteria()]
    extracted: list[Criterion] = [
        entry["criteria"][rank]
        for rank in range(MAX_CHARACTERISTICS)
        for entry in learned
        if rank < len(entry["criteria"])
    ]
    extracted = await _drop_alike(extracted, len(learned), embed, context.max_criteria)
    return [built_in, *own, *extracted, *rule_criteria()]


async def merge_instruction_criteria(
    learned: Sequence[Learned],
    context: Context,
    embed: Embed,
    own: Sequence[Criterion] = (),
) -> list[Criterion]:
    """What a seed's instructions are held to: built-in criteria, a person's, its references'.

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
    extracted = await _drop_alike(extracted, len(learned), embed, MAX_INSTRUCTION_CRITERIA)
    return [*built_in, *own, *extracted]


async def _drop_alike(
    criteria: list[Criterion], n_references: int, embed: Embed, most: int
) -> list[Criterion]:
    """The first `most` criteria of several references that say nothing an earlier one says.

    No more texts are embedded than it takes: that is the dearest step of a seed.
    """
    if n_references < 2:
        return criteria[:most]
    distinct: list[Criterion] = []
    vectors: list[Vectors] = []
    left = list(criteria)
    while left and len(distinct) < most:
        part, left = left[: most - len(distinct)], left[most - len(distinct) :]
        for criterion, vector in zip(part, await embed([c["text"] for c in part]), strict=True):
            if not distinct or float(np.max(np.stack(vectors) @ vector)) <= DUPLICATE_COSINE:
                distinct.append(criterion)
                vectors.append(vector)
    return distinct
