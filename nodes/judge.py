"""Judging a response by criteria: by written verdicts, or by the log-odds of one token each."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated, Any, Protocol, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory.references import Turn
from nodes.context import Context
from nodes.criteria import ANSWERS_ID, verdict
from nodes.llm import Answer, Call, CallFailed, CallOrigin, Complete, ask, make_call
from nodes.own_criteria import fault_of
from nodes.state import Criterion, JurorVerdict, Outcome, Usage, Verdict, add_usage, no_usage
from prompts import render

OnVerdict = Callable[[Verdict], None]

# Draws reserved for one response, with each way to judge: asks, or questions.
ASKS_PER_DRAW = 2
QUESTIONS_PER_DRAW = 64
# Draws reserved for each part of criteria that are asked about in several calls: more than all
# asks, votes and attempts take.
DRAWS_PER_PART = 1 << 16
# Faults of what is asked about and not of the endpoint: another juror may take the same call.
FAULTS_OF_CONTENT = ("filtered", "refused", "too_long")
# Other words for a verdict that judges write.
_SPELLINGS = {"passed": "pass", "passes": "pass", "failed": "fail", "fails": "fail"}
NO_JUROR_VERDICT = "The juror's endpoint would not take the call"
_QUOTE_MARKS = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'"})
_SPACE_AND_QUOTES = re.compile(r"[\s\"'`]+")


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
        """The schema for endpoints: verdicts only, without the lenient alternative."""
        schema = super().model_json_schema(*args, **kwargs)
        schema["properties"]["verdicts"]["items"] = {"$ref": "#/$defs/Judgement"}
        return schema


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """Verdicts in the order of the criteria, and the usage of their calls."""

    verdicts: list[Verdict]
    usage: Usage


async def judge(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    *,
    instruction: str,
    response: str,
    criteria: Sequence[Criterion],
    draw: int = 0,
    history: Sequence[Turn] = (),
    on_verdict: OnVerdict = lambda verdict: None,
) -> JudgeResult:
    """Judge a response by its judge criteria, with the context's judge method.

    `history` is the conversation before the instruction, if that is a later turn; `on_verdict` gets
    each verdict as it comes. Raises `CallFailed`.
    """
    criteria = [c for c in criteria if c["judged_by"] == "judge"]
    if not criteria:
        return JudgeResult([], no_usage())
    if context.method == "logodds":
        return await judge_by_log_odds(
            complete, context, origin, instruction, response, criteria, draw, history, on_verdict
        )
    most = context.criteria_per_call or len(criteria)
    parts = [criteria[start : start + most] for start in range(0, len(criteria), most)]

    async def ask_juror(juror: str, part: int) -> JudgeResult:
        return await judge_by_verdict(
            complete,
            context,
            origin,
            instruction,
            response,
            parts[part],
            draw,
            history,
            part=part,
            juror=juror,
        )

    async def ask_jury(part: int) -> JudgeResult:
        asking = partial(ask_juror, part=part)
        result = await judge_by_jury(context.jurors, parts[part], asking)
        for read in result.verdicts:
            on_verdict(read)
        return result

    results = await gather_results([ask_jury(part) for part in range(len(parts))])
    return JudgeResult([v for r in results for v in r.verdicts], sum_usage(results))


async def judge_by_jury(
    jurors: Sequence[str],
    criteria: Sequence[Criterion],
    ask_juror: Callable[[str], Awaitable[JudgeResult]],
) -> JudgeResult:
    """Ask all jurors at once, and combine their verdicts; one judge's stay as they are.

    A juror whose call is refused for its content knows nothing of these criteria. Raises
    `CallFailed` if that is so of all, or for any other fault.
    """
    if len(jurors) == 1:
        return await ask_juror(jurors[0])
    refusals: dict[str, CallFailed] = {}

    async def ask_one(juror: str) -> JudgeResult:
        try:
            return await ask_juror(juror)
        except CallFailed as error:
            if error.kind not in FAULTS_OF_CONTENT:
                raise
            refusals[juror] = error
            reason = f"{NO_JUROR_VERDICT}: {error.message}"
            unknown = [verdict(c["id"], "unknown", reason) for c in criteria]
            return JudgeResult(unknown, error.usage)

    results = await gather_results([ask_one(juror) for juror in jurors])
    usage = sum_usage(results)
    if len(refusals) == len(jurors):
        first = refusals[jurors[0]]
        raise CallFailed(first.stage, first.kind, first.message, usage)
    return JudgeResult(combine(jurors, [result.verdicts for result in results]), usage)


class HasUsage(Protocol):
    """What asking brought, with the usage of its calls."""

    @property
    def usage(self) -> Usage:
        """The usage of all calls."""
        ...


R = TypeVar("R", bound=HasUsage)


async def gather_results(asks: Sequence[Coroutine[Any, Any, R]]) -> list[R]:
    """Wait for all asks, so that what each used is known. Raises the first fault, in their order.

    A `CallFailed` has the usage of all.
    """
    if len(asks) == 1:
        return [await asks[0]]
    outcomes = await asyncio.gather(*asks, return_exceptions=True)
    results = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    faults = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    # What ends the run goes before what costs a sample.
    for fault in sorted(faults, key=lambda fault: isinstance(fault, CallFailed)):
        if isinstance(fault, CallFailed):
            usage = sum_usage([*results, *(f for f in faults if isinstance(f, CallFailed))])
            fault.usage = usage
        raise fault
    return results


def sum_usage(parts: Sequence[HasUsage | CallFailed]) -> Usage:
    """The usage of all parts."""
    usage = no_usage()
    for part in parts:
        usage = add_usage(usage, part.usage)
    return usage


def combine(jurors: Sequence[str], verdicts: Sequence[Sequence[Verdict]]) -> list[Verdict]:
    """One verdict a criterion from what each juror says of all, in the order of the jurors.

    A criterion passes if more than half say pass or not applicable. It is unknown if more than half
    do not know, or if nobody says fail; else it fails, with the words of the first juror who says
    so. The verdicts of a single judge stay as they are.
    """
    if len(jurors) == 1:
        return list(verdicts[0])
    return [_combine_one(jurors, votes) for votes in zip(*verdicts, strict=True)]


def _combine_one(jurors: Sequence[str], votes: Sequence[Verdict]) -> Verdict:
    counts = Counter(vote["verdict"] for vote in votes)
    passing = counts["pass"] + counts["not_applicable"]
    outcome: Outcome = "fail" if counts["fail"] else "unknown"
    if 2 * passing > len(votes):
        outcome = "pass" if counts["pass"] >= counts["not_applicable"] else "not_applicable"
    elif 2 * counts["unknown"] > len(votes):
        outcome = "unknown"
    first = next(vote for vote in votes if vote["verdict"] == outcome)
    said: list[JurorVerdict] = [
        {
            "model": juror,
            "verdict": vote["verdict"],
            "reason": vote["reason"],
            "evidence": vote["evidence"],
        }
        for juror, vote in zip(jurors, votes, strict=True)
    ]
    return {**first, "jurors": said}


async def judge_by_verdict(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    instruction: str,
    response: str,
    criteria: Sequence[Criterion],
    draw: int,
    history: Sequence[Turn] = (),
    *,
    part: int = 0,
    juror: str | None = None,
) -> JudgeResult:
    """Ask for reason, evidence and verdict; ask once more for verdicts that cannot be used.

    `part` is the number of this call's criteria among the parts that are asked about apart, and
    `juror` the model that is asked, if it is not the judge's. A verdict is unknown if it is
    missing, misspelt, or quotes words that the response does not have.
    """
    verdicts: dict[str, Verdict] = {}
    usage = no_usage()
    data = {"history": history, "instruction": instruction, "response": response}
    pitfalls = {c["id"] for c in criteria if fault_of(c) is not None}
    for attempt in range(ASKS_PER_DRAW):
        missing = [c for c in criteria if c["id"] not in verdicts]
        if not missing:
            break
        messages = render("critique", template=context.critique_prompt, criteria=missing, **data)
        number = part * DRAWS_PER_PART + draw * ASKS_PER_DRAW + attempt
        call = make_call("critique", messages, Critiqued, context, origin, number, juror=juror)
        try:
            result = await ask(complete, call, Critiqued)
        except CallFailed as error:
            if error.kind not in ("malformed", "empty", "cut"):
                error.usage = add_usage(usage, error.usage)
                raise
            usage = add_usage(usage, error.usage)
            break
        usage = add_usage(usage, result.usage)
        missing_ids = [c["id"] for c in missing]
        for item in result.answer.verdicts:
            read = read_judgement(item, response, missing_ids, pitfalls)
            if read is not None:
                verdicts.setdefault(read["criterion_id"], read)
    unread = "The judge gave no verdict on this that could be read and checked."
    return JudgeResult(
        [verdicts.get(c["id"]) or verdict(c["id"], "unknown", unread) for c in criteria], usage
    )


def read_judgement(
    item: Any, text: str, ids: Sequence[str], pitfalls: Collection[str] = ()
) -> Verdict | None:
    """A written verdict; None if it cannot be read or its evidence is not in the text judged.

    It has to be on one of the criteria `ids`, whose case and quotes do not matter. Who avoids a
    pitfall leaves nothing to quote.
    """
    try:
        judgement = item if isinstance(item, Judgement) else Judgement.model_validate(item)
    except ValidationError:
        return None
    name = judgement.criterion_id
    if name not in ids:
        name = name.strip(" '\"`<>").casefold()
        name = next((id_ for id_ in ids if id_.casefold() == name), "")
    if not name:
        return None
    outcome = _SPELLINGS.get(outcome := judgement.verdict.strip().rstrip(".").lower(), outcome)
    if outcome not in ("pass", "fail", "not_applicable"):
        return None
    if outcome == "not_applicable" and name == ANSWERS_ID:
        return None
    evidence = judgement.evidence.strip()
    absent = not evidence and (outcome == "fail" or name in pitfalls)
    if outcome != "not_applicable" and not absent:
        quote = fold_text(evidence)
        if not quote or quote not in fold_text(text):
            return None
    reason = judgement.reason.strip()
    return verdict(name, cast(Outcome, outcome), reason, evidence)


@lru_cache(maxsize=64)
def fold_text(text: str) -> str:
    r"""Text with white space, quote marks and case folded, for finding quotes.

    >>> fold_text("say “so”\n now") == fold_text("say 'so' now")
    True
    """
    plain = text.translate(_QUOTE_MARKS)
    return _SPACE_AND_QUOTES.sub(" ", plain).strip(" .…").casefold()


async def judge_by_log_odds(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    instruction: str,
    response: str,
    criteria: Sequence[Criterion],
    draw: int,
    history: Sequence[Turn] = (),
    on_verdict: OnVerdict = lambda verdict: None,
) -> JudgeResult:
    """Ask one yes/no token a criterion; it passes if its log-odds are above the criterion's bar.

    Of a pitfall it is asked whether the response has the fault, and no is what passes: a small
    model reads past a negation (measured). One question after another, so that the endpoint's
    prefix cache serves all but the first.
    """
    verdicts, usage = [], no_usage()
    data = {"history": history, "instruction": instruction, "response": response}
    for number, criterion in enumerate(criteria):
        fault = fault_of(criterion)
        text = criterion["text"] if fault is None else fault
        messages = render("question", template=context.question_prompt, text=text, **data)
        question_draw = draw * QUESTIONS_PER_DRAW + number
        call = make_call("critique", messages, None, context, origin, question_draw)
        try:
            score, call_usage = await log_odds(complete, call)
        except CallFailed as error:
            error.usage = add_usage(usage, error.usage)
            raise
        usage = add_usage(usage, call_usage)
        score = score if fault is None else -score
        bar = criterion.get("bar") or 0.0
        reason = f"log-odds {score:.2f}, bar {bar:.2f}"
        outcome: Outcome = "pass" if score > bar else "fail"
        verdicts.append(verdict(criterion["id"], outcome, reason, score=round(score, 4)))
        on_verdict(verdicts[-1])
    return JudgeResult(verdicts, usage)


async def log_odds(complete: Complete, call: Call) -> tuple[float, Usage]:
    """Log P(yes) - log P(no) of the first token, and the usage.

    1e-4 is added to both probabilities, so the value stays within about 9.2. Raises `CallFailed`
    if the endpoint reports no log-probabilities.
    """
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
