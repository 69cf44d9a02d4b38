"""Judging a response by criteria in two ways: written verdicts, and one-token log-odds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory.references import Turn
from nodes.context import Context
from nodes.criteria import ANSWERS_ID, verdict
from nodes.llm import Answer, Call, CallFailed, CallOrigin, Complete, ask, make_call
from nodes.state import Criterion, Outcome, Usage, Verdict, add_usage, no_usage
from prompts import render

OnVerdict = Callable[[Verdict], None]

_FOLD = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'"})
_MARKS = re.compile(r"[\s\"'`]+")


class Judgement(BaseModel):
    """One written verdict. Read leniently: one bad verdict must not cost the others."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    criterion_id: str
    reason: str
    evidence: str
    verdict: Annotated[str, Field(json_schema_extra={"enum": ["pass", "fail", "not_applicable"]})]


class Critiqued(Answer):
    """What a critique brings: a verdict for every criterion."""

    verdicts: list[Judgement | Any]

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The strict shape that is asked for: verdicts only."""
        schema = super().model_json_schema(*args, **kwargs)
        schema["properties"]["verdicts"]["items"] = {"$ref": "#/$defs/Judgement"}
        return schema


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """Verdicts in the order of the criteria, and what they used."""

    verdicts: list[Verdict]
    usage: Usage


async def judge(
    complete: Complete,
    context: Context,
    place: CallOrigin,
    *,
    instruction: str,
    response: str,
    criteria: Sequence[Criterion],
    draw: int = 0,
    history: Sequence[Turn] = (),
    heard: OnVerdict = lambda verdict: None,
) -> JudgeResult:
    """Judge a response by every judge criterion, in the way the context says.

    `history` is what was said before the instruction, if it is a later turn of a conversation;
    `heard` is told of each verdict as it comes.
    """
    asked = [c for c in criteria if c["judged_by"] == "judge"]
    if not asked:
        return JudgeResult([], no_usage())
    where = (complete, context, place, instruction, response, asked, draw, history)
    if context.method == "logodds":
        return await judge_by_log_odds(*where, heard)
    judged = await judge_by_verdict(*where)
    for found in judged.verdicts:
        heard(found)
    return judged


async def judge_by_verdict(
    complete: Complete,
    context: Context,
    place: CallOrigin,
    instruction: str,
    response: str,
    criteria: Sequence[Criterion],
    draw: int,
    history: Sequence[Turn] = (),
) -> JudgeResult:
    """Ask for reason, evidence and verdict; ask once more for those that cannot be trusted.

    A verdict that is missing, misspelt or rests on words that are not in the response is unknown.
    """
    found: dict[str, Verdict] = {}
    usage = no_usage()
    said = {"history": history, "instruction": instruction, "response": response}
    for again in (0, 1):
        open_ = [c for c in criteria if c["id"] not in found]
        if not open_:
            break
        messages = render("critique", template=context.critique_prompt, criteria=open_, **said)
        call = make_call("critique", messages, Critiqued, context, place, draw * 2 + again)
        try:
            asked = await ask(complete, call, Critiqued)
        except CallFailed as failed:
            if failed.kind not in ("malformed", "empty", "cut"):
                failed.usage = add_usage(usage, failed.usage)
                raise
            usage = add_usage(usage, failed.usage)
            break
        usage = add_usage(usage, asked.usage)
        wanted = {c["id"] for c in open_}
        for read in (_trusted(item, response) for item in asked.answer.verdicts):
            if read is not None and read["criterion_id"] in wanted:
                found.setdefault(read["criterion_id"], read)
    unread = "The judge gave no verdict on this that could be read and checked."
    verdicts = [found.get(c["id"]) or verdict(c["id"], "unknown", unread) for c in criteria]
    return JudgeResult(verdicts, usage)


def _trusted(item: Any, response: str) -> Verdict | None:
    """The verdict as kept, or None if it cannot be read or its evidence is not there."""
    try:
        got = item if isinstance(item, Judgement) else Judgement.model_validate(item)
    except ValidationError:
        return None
    said = got.verdict.strip().lower()
    if said not in ("pass", "fail", "not_applicable"):
        return None
    if said == "not_applicable" and got.criterion_id == ANSWERS_ID:
        return None
    evidence = got.evidence.strip()
    needs = said == "pass" or (said == "fail" and evidence)
    if needs and not _quoted(evidence, response):
        return None
    return verdict(got.criterion_id, cast(Outcome, said), got.reason.strip(), evidence)


def _quoted(evidence: str, response: str) -> bool:
    folded = fold_text(evidence)
    return bool(folded) and folded in fold_text(response)


@lru_cache(maxsize=64)
def fold_text(text: str) -> str:
    r"""Text with white space and quote marks made alike, for finding quotes.

    >>> fold("say “so”\n now") == fold("say 'so' now")
    True
    """
    return _MARKS.sub(" ", text.translate(_FOLD)).strip(" .…").casefold()


async def judge_by_log_odds(
    complete: Complete,
    context: Context,
    place: CallOrigin,
    instruction: str,
    response: str,
    criteria: Sequence[Criterion],
    draw: int,
    history: Sequence[Turn] = (),
    heard: OnVerdict = lambda verdict: None,
) -> JudgeResult:
    """Ask one yes/no token a criterion; its log-odds pass above the criterion's bar.

    The questions come one after another, so that the endpoint's prefix cache serves all but the
    first.
    """
    verdicts, usage = [], no_usage()
    said = {"history": history, "instruction": instruction, "response": response}
    for number, criterion in enumerate(criteria):
        text = criterion["text"]
        messages = render("question", template=context.question_prompt, text=text, **said)
        call = make_call("critique", messages, None, context, place, draw * 64 + number)
        try:
            score, used = await log_odds(complete, call)
        except CallFailed as failed:
            failed.usage = add_usage(usage, failed.usage)
            raise
        usage = add_usage(usage, used)
        bar = criterion.get("bar") or 0.0
        reason = f"log-odds {score:.2f}, bar {bar:.2f}"
        outcome: Outcome = "pass" if score > bar else "fail"
        verdicts.append(verdict(criterion["id"], outcome, reason, score=round(score, 4)))
        heard(verdicts[-1])
    return JudgeResult(verdicts, usage)


async def log_odds(complete: Complete, call: Call) -> tuple[float, Usage]:
    """Log P(yes) - log P(no) of the first token; both floored at 1e-4, so within about 9.2."""
    reply = await complete(replace(call, temperature=0.0))
    if reply.odds is None:
        raise CallFailed(
            call.stage,
            "malformed",
            "the endpoint gave no log-probabilities; judge with --judge-method verdict",
            reply.usage,
        )
    yes, no = reply.odds.get("yes", 0.0) + 1e-4, reply.odds.get("no", 0.0) + 1e-4
    return math.log(yes / no), reply.usage
