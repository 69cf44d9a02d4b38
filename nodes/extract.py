"""The characteristics of each reference, tried, and merged into the criteria of a seed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
from langgraph.runtime import Runtime
from pydantic import BaseModel, ConfigDict

from memory.characteristics import Characteristics, Learned
from memory.embed import Embed
from memory.references import Reference, content_id, content_of
from nodes.checked import within
from nodes.context import Context
from nodes.criteria import answers_instruction, generic_criteria, rule_criteria
from nodes.events import tell
from nodes.judge import fold
from nodes.llm import Answer, Asked, CallFailed, Complete, Place, ask, make_call
from nodes.state import Criterion, Seed, State, add_usage, no_usage
from nodes.topic import general_part
from nodes.trial import try_criteria
from prompts import render, version

MOST = 4
ALIKE = 0.8
# A characteristic that starts so does not complete "The response ...".
NO_VERBS = frozenset({"the", "a", "an", "this", "these", "there", "its", "no", "all", "each"})


class Characteristic(BaseModel):
    """One quality of a reference's response, as the model puts it."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    text: str
    quote: str
    must: bool


class Extracted(Answer):
    """What an extraction brings."""

    subject_areas: list[str]
    relevant_skills: list[str]
    characteristics: list[Characteristic]


async def extract(
    state: State,
    runtime: Runtime[Context],
    *,
    complete: Complete,
    embed: Embed,
    characteristics: Characteristics,
) -> dict[str, Any]:
    """Learn what makes each reference good, once ever, and merge it into criteria.

    Reads `seed`, `references`; writes `learned`, `criteria`, or `failure` when no reference could
    be learned from.
    """
    within(state)
    context = runtime.context or Context()
    if context.feedback == "none":
        return {"learned": [], "criteria": rule_criteria()}
    place = _place(state["seed"])

    async def learn(reference: Reference) -> Learned | CallFailed:
        make = partial(_learn, reference, context, place, complete, embed)
        try:
            return await characteristics.recall(
                _key(reference, context), reference["id"], make, runtime.store
            )
        except CallFailed as failed:
            characteristics.tell(reference["id"], None)
            return failed

    found = await asyncio.gather(*(learn(r) for r in state["references"]))
    learned = [entry for entry in found if not isinstance(entry, CallFailed)]
    if learned or not found:
        criteria = await merge(learned, context, embed)
        drawn = [c for c in criteria if c["reference_id"]]
        told = f"{len(drawn)} criteria from {len(learned)} references."
        tell(runtime, "criteria", told, criteria=drawn)
        return {"learned": learned, "criteria": criteria}
    return _nothing_learned([entry for entry in found if isinstance(entry, CallFailed)])


def _nothing_learned(lost: Sequence[CallFailed]) -> dict[str, Any]:
    first = lost[0]
    failure = {"stage": first.stage, "kind": first.kind, "message": first.message}
    usage = reduce(add_usage, (one.usage for one in lost), no_usage())
    return {"failure": failure, "learned": [], "criteria": [], "usage": usage}


def _key(reference: Reference, context: Context) -> str:
    """What an entry rests on; a change of any of it is another entry."""
    return content_id(
        content_of(reference),
        version("extract", "critique", "question", edited=context.edited),
        context.model,
        context.judge,
        context.method,
        str(context.try_criteria),
        context.feedback,
    )


def _place(seed: Seed) -> Place:
    return Place("", "", (seed.get("round", 0), seed.get("position", 0)))


async def _learn(
    reference: Reference, context: Context, place: Place, complete: Complete, embed: Embed
) -> Learned:
    """Extract (one call), drop what is unfounded or topical, and try the rest."""
    at = Place(f"reference {reference['id']}", "", place.order)
    usage = no_usage()
    subjects: list[str] = []
    skills: list[str] = []
    kept: list[Criterion] = []
    proposed = 0
    if context.feedback == "reference":
        avoid: list[str] = []
        for draw in (0, 1):
            asked = await _ask(complete, context, at, reference, avoid, draw)
            usage = add_usage(usage, asked.usage)
            subjects = subjects or _short(asked.answer.subject_areas)
            skills = skills or _short(asked.answer.relevant_skills)
            proposed += len(asked.answer.characteristics)
            founded = [c for c in asked.answer.characteristics if _founded(c, reference)]
            kept = _criteria(founded, reference)
            # Asked again only when every one of them was about the topic, and by a model that can
            # be told so: a small one gives the same again.
            if kept or not founded or not context.try_criteria or context.method == "logodds":
                break
            avoid = [c.text for c in founded]
    tried = await try_criteria(complete, embed, context, at, reference, kept)
    usage = add_usage(usage, tried.usage)
    lost = proposed - len(kept) + tried.counts["dropped"]
    return {
        "reference_id": reference["id"],
        "subject_areas": subjects,
        "relevant_skills": skills,
        "criteria": tried.criteria,
        "answers_bar": tried.answers_bar,
        "topic_bar": tried.topic_bar,
        "counts": tried.counts | {"proposed": proposed, "dropped": lost},
        "usage": usage,
    }


async def _ask(
    complete: Complete,
    context: Context,
    at: Place,
    reference: Reference,
    avoid: Sequence[str],
    draw: int,
) -> Asked[Extracted]:
    prompt = context.extract_prompt
    messages = render("extract", template=prompt, reference=reference, most=MOST, avoid=avoid)
    return await ask(
        complete, make_call("extract", messages, Extracted, context, at, draw), Extracted
    )


def _short(phrases: Sequence[str]) -> list[str]:
    return [p.strip()[:80] for p in phrases if p.strip()][:4]


def _founded(found: Characteristic, reference: Reference) -> bool:
    """Whether the quote really is in the response."""
    quote = fold(found.quote)
    return bool(quote and found.text.strip()) and quote in fold(reference["response"])


def _criteria(found: Sequence[Characteristic], reference: Reference) -> list[Criterion]:
    """The characteristics that do not name the topic, as criteria."""
    criteria: list[Criterion] = []
    for one in found[:MOST]:
        text = general_part(_completing(one.text), reference["instruction"], reference["response"])
        if text is not None and text.split()[0] not in NO_VERBS:
            criteria.append(
                {
                    "id": f"c{content_id(reference['id'], text)[:8]}",
                    "text": text,
                    "must": one.must,
                    "reference_id": reference["id"],
                    "quote": one.quote.strip(),
                    "judged_by": "judge",
                }
            )
    return list({c["id"]: c for c in criteria}.values())


def _completing(text: str) -> str:
    """A characteristic as the end of the sentence "The response ..."."""
    bare = " ".join(text.split()).rstrip(" .")
    for start in ("the response ", "this response ", "response ", "it "):
        if bare.lower().startswith(start):
            bare = bare[len(start) :]
    return bare[:1].lower() + bare[1:300]


async def merge(learned: Sequence[Learned], context: Context, embed: Embed) -> list[Criterion]:
    """The criteria of several references: the built-in one, at most `max_criteria`, the rules.

    They are taken in turns, each reference's best first. Of two that say nearly the same (cosine
    over 0.8) the first is kept.
    """
    bars = [e["answers_bar"] for e in learned if e["answers_bar"] is not None]
    fixed = [answers_instruction(sum(bars) / len(bars) if bars else None)]
    if context.feedback == "generic":
        return [*fixed, *generic_criteria(), *rule_criteria()]
    columns = [list(e["criteria"]) for e in learned]
    turns = [c for row in range(MOST) for column in columns for c in column[row : row + 1]]
    if len(columns) > 1 and len(turns) > 1:
        turns = await _unlike(turns, embed)
    chosen = turns[: context.max_criteria]
    return [*fixed, *chosen, *rule_criteria()]


async def _unlike(criteria: list[Criterion], embed: Embed) -> list[Criterion]:
    vectors = await embed([c["text"] for c in criteria])
    kept: list[int] = []
    for i in range(len(criteria)):
        if not kept or float(np.max(vectors[kept] @ vectors[i])) <= ALIKE:
            kept.append(i)
    return [criteria[i] for i in kept]
