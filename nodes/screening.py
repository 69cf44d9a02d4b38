"""What every new instruction is held to, and its verdicts: by a judge's words or by log-odds.

More than half of what the paper's data gains comes from the instruction side (Mehri et al., EACL
2026, table 3), so instructions are judged before a response is paid for. Built-in criteria are
always a must; those that references bring are `should`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from memory.embed import Embed, cosine
from memory.references import Turn
from nodes.context import Context
from nodes.criteria import verdict
from nodes.judge import (
    FAULTS_OF_CONTENT,
    QUESTIONS_PER_DRAW,
    Judgement,
    combine,
    gather_results,
    log_odds,
    read_judgement,
    sum_usage,
)
from nodes.llm import Answer, CallFailed, CallOrigin, Complete, ask, make_call
from nodes.own_criteria import fault_of
from nodes.state import Criterion, Outcome, Usage, Verdict, add_usage, no_usage
from nodes.verdicts import passes
from prompts import render

REQUEST_ID = "instruction-is-a-request"
ANSWERABLE_ID = "instruction-is-answerable"
SUBJECT_ID = "instruction-is-on-subject"
BUILT_IN_IDS = (REQUEST_ID, ANSWERABLE_ID, SUBJECT_ID)
# The most instruction criteria that a seed's references bring.
MAX_INSTRUCTION_CRITERIA = 4
# Draws reserved for one question about a set of instructions, and the draw from which each
# instruction is judged by itself.
ASKS_PER_SCREEN = 2
DRAWS_PER_INSTRUCTION = 2
FIRST_DRAW_ALONE = 128
# Faults of a call whose answers could not be read.
UNREADABLE_FAULTS = ("malformed", "empty", "cut")
# By log-odds an instruction is off the seed's subject at or below this cosine: of 48 pairs made for
# this, those off the subject came to at most 0.09 and good ones to at least 0.26.
SUBJECT_BAR = 0.2
# By log-odds what the small judge is asked whether an instruction can be answered: the mean of the
# two told vague and unanswerable instructions from good ones better than each alone (measured).
ANSWERABLE_QUESTIONS = (
    "can be answered in text from what it holds, without a file, a picture, a link or an earlier "
    "message that is not there",
    "says clearly and specifically what is wanted",
)
UNREADABLE = "The judge gave no verdict on this that could be read and checked."


class InstructionJudgement(BaseModel):
    """The written verdicts on one instruction. Read leniently: one bad one must not cost others."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    number: int
    verdicts: list[Judgement | Any]


class Screened(Answer):
    """What screening brings: for every instruction a verdict for every criterion."""

    instructions: list[InstructionJudgement | Any]

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The schema for endpoints: verdicts only, without the lenient alternatives."""
        schema = super().model_json_schema(*args, **kwargs)
        schema["properties"]["instructions"]["items"] = {"$ref": "#/$defs/InstructionJudgement"}
        judgement = schema["$defs"]["InstructionJudgement"]["properties"]["verdicts"]
        judgement["items"] = {"$ref": "#/$defs/Judgement"}
        return schema


@dataclass(frozen=True, slots=True)
class ScreenResult:
    """For each instruction its verdicts in the order of the criteria, and the calls' usage."""

    verdicts: list[list[Verdict]]
    usage: Usage


def built_in_criteria(context: Context, bars: Mapping[str, float | None]) -> list[Criterion]:
    """What every instruction must meet. By log-odds two are rules, and the third has its bar.

    Without a bar its question is left out: no fixed one tells good from poor (measured).
    """
    by_log_odds = context.method == "logodds"
    texts = {
        REQUEST_ID: "is a question or a request of a person who wants something done, and neither "
        "an answer, nor advice, nor the beginning of one",
        ANSWERABLE_ID: ANSWERABLE_QUESTIONS[0],
        SUBJECT_ID: "is about the subject that the seed names",
    }
    criteria: list[Criterion] = []
    for id_, text in texts.items():
        judged = not by_log_odds or id_ == ANSWERABLE_ID
        if by_log_odds and judged and bars.get(id_) is None:
            continue
        criterion: Criterion = {
            "id": id_,
            "text": text,
            "must": True,
            "reference_id": None,
            "quote": None,
            "judged_by": "judge" if judged else "rule",
        }
        criteria.append({**criterion, "bar": bars.get(id_)} if by_log_odds else criterion)
    return criteria


def meets_instruction_criteria(
    verdicts: Sequence[Verdict], criteria: Sequence[Criterion], context: Context
) -> bool:
    """Whether all `must` criteria pass, and `should_share` of the others."""
    passed = {v["criterion_id"]: passes(v) for v in verdicts}
    if not all(passed.get(c["id"], False) for c in criteria if c["must"]):
        return False
    shoulds = [c["id"] for c in criteria if not c["must"]]
    n_passed = sum(passed.get(id_, False) for id_ in shoulds)
    return n_passed >= context.should_share * len(shoulds) - 1e-9


async def judge_instructions(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    instructions: Sequence[str],
    criteria: Sequence[Criterion],
    *,
    seed: str | None = None,
    history: Sequence[Turn] = (),
    draw: int = 0,
) -> ScreenResult:
    """The judge's written verdicts on instructions, in one call, and one more for what is unread.

    If the endpoint refuses the call for its content, or it is too long, each instruction is asked
    about by itself; one that is refused alone has unknown verdicts. Of a jury each juror is asked,
    and one of whom nothing can be read knows nothing. `draw` numbers the sets of instructions that
    are judged for one origin. Raises `CallFailed`.
    """
    jurors, faults = context.jurors, list[CallFailed]()

    async def ask_one(juror: str) -> ScreenResult:
        questions = _Questions(complete, context, origin, criteria, seed, history, juror)
        try:
            return await _judge_all(questions, instructions, draw)
        except CallFailed as error:
            if error.kind not in UNREADABLE_FAULTS:
                raise
            faults.append(error)
            unknown = [verdict(c["id"], "unknown", error.message) for c in criteria]
            return ScreenResult([unknown for _ in instructions], error.usage)

    results = await gather_results([ask_one(juror) for juror in jurors])
    usage = sum_usage(results)
    if len(faults) == len(jurors):
        raise CallFailed("screen", faults[0].kind, faults[0].message, usage)
    by_instruction = zip(*(result.verdicts for result in results), strict=True)
    return ScreenResult([combine(jurors, votes) for votes in by_instruction], usage)


async def _judge_all(questions: _Questions, instructions: Sequence[str], draw: int) -> ScreenResult:
    """One judge's verdicts on all instructions. Raises `CallFailed`."""
    criteria, first = questions.criteria, draw * ASKS_PER_SCREEN
    try:
        return await questions.ask_about(instructions, first, ASKS_PER_SCREEN)
    except CallFailed as error:
        if error.kind not in FAULTS_OF_CONTENT:
            raise
        usage = error.usage
    results: list[ScreenResult] = []
    for i, instruction in enumerate(instructions):
        alone = FIRST_DRAW_ALONE * (1 + draw) + i * DRAWS_PER_INSTRUCTION
        try:
            results.append(await questions.ask_about([instruction], alone, DRAWS_PER_INSTRUCTION))
        except CallFailed as error:
            if error.kind not in FAULTS_OF_CONTENT:
                error.usage = add_usage(usage, error.usage)
                raise
            unknown = [_not_judged(c, error) for c in criteria]
            results.append(ScreenResult([unknown], error.usage))
    return ScreenResult(
        [verdicts for result in results for verdicts in result.verdicts],
        reduce(add_usage, (result.usage for result in results), usage),
    )


def _not_judged(criterion: Criterion, error: CallFailed) -> Verdict:
    """What is known of a criterion where the endpoint refuses to judge the text."""
    reason = f"The endpoint would not judge it: {error.message}"[:300]
    return verdict(criterion["id"], "unknown", reason)


@dataclass(frozen=True, slots=True)
class _Questions:
    """What all calls about a set of instructions share."""

    complete: Complete
    context: Context
    origin: CallOrigin
    criteria: Sequence[Criterion]
    seed: str | None
    history: Sequence[Turn]
    juror: str

    async def ask_about(self, instructions: Sequence[str], draw: int, asks: int) -> ScreenResult:
        """Ask for all verdicts, then for those that could not be read. Raises `CallFailed`."""
        ids = [c["id"] for c in self.criteria]
        pitfalls = {c["id"] for c in self.criteria if fault_of(c) is not None}
        known: list[dict[str, Verdict]] = [{} for _ in instructions]
        usage = no_usage()
        for number in range(asks):
            open_ = [i for i, verdicts in enumerate(known) if len(verdicts) < len(ids)]
            if not open_:
                break
            missing = [c for c in self.criteria if any(c["id"] not in known[i] for i in open_)]
            messages = render(
                "screen",
                template=self.context.screen_prompt,
                criteria=missing,
                seed=self.seed,
                history=self.history,
                instructions=[{"number": str(i + 1), "text": instructions[i]} for i in open_],
            )
            call = make_call(
                "screen",
                messages,
                Screened,
                self.context,
                self.origin,
                draw + number,
                juror=self.juror,
            )
            try:
                result = await ask(self.complete, call, Screened)
            except CallFailed as error:
                error.usage = usage = add_usage(usage, error.usage)
                if error.kind in UNREADABLE_FAULTS and any(known):
                    break
                raise
            usage = add_usage(usage, result.usage)
            for item in map(_read_item, result.answer.instructions):
                if item is not None and item.number - 1 in open_:
                    i = item.number - 1
                    for judgement in item.verdicts:
                        read = read_judgement(judgement, instructions[i], ids, pitfalls)
                        if read is not None and _applies(read):
                            known[i].setdefault(read["criterion_id"], read)
        if not any(known):
            raise CallFailed("screen", "malformed", UNREADABLE, usage)
        return ScreenResult(
            [[v.get(id_) or verdict(id_, "unknown", UNREADABLE) for id_ in ids] for v in known],
            usage,
        )


def _read_item(item: Any) -> InstructionJudgement | None:
    """The verdicts on one instruction; None if they have no number. A numeral may be a text."""
    if isinstance(item, InstructionJudgement):
        return item
    try:
        return InstructionJudgement.model_validate(item)
    except ValidationError:
        return None


def _applies(read: Verdict) -> bool:
    """Whether a verdict may stand: a built-in criterion applies to every instruction."""
    return read["verdict"] != "not_applicable" or read["criterion_id"] not in BUILT_IN_IDS


async def judge_instruction_by_log_odds(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    instruction: str,
    criteria: Sequence[Criterion],
    *,
    seed: str,
    embed: Embed,
    draw: int = 0,
) -> tuple[list[Verdict], Usage]:
    """Verdicts on one instruction: the rules, then one yes/no token for each judged criterion.

    The judge is not asked if a rule fails, and a question whose content it refuses is unknown.
    Raises `CallFailed`.
    """
    verdicts, usage = [], no_usage()
    for criterion in criteria:
        if criterion["id"] == REQUEST_ID:
            verdicts.append(is_request(instruction))
        elif criterion["id"] == SUBJECT_ID:
            bar = criterion.get("bar")
            verdicts.append(await is_on_subject(embed, instruction, seed, bar))
    failed = any(v["verdict"] == "fail" for v in verdicts)
    by_id = {v["criterion_id"]: v for v in verdicts}
    for number, criterion in enumerate(criteria):
        if criterion["id"] in by_id:
            continue
        if failed:
            reason = "The judge was not asked, since a rule fails."
            by_id[criterion["id"]] = verdict(criterion["id"], "unknown", reason)
            continue
        fault = fault_of(criterion)
        asks = criterion["text"] if fault is None else fault
        texts = ANSWERABLE_QUESTIONS if criterion["id"] == ANSWERABLE_ID else (asks,)
        first = draw * QUESTIONS_PER_DRAW + number * len(ANSWERABLE_QUESTIONS)
        try:
            score, call_usage = await ask_of_instruction(
                complete, context, origin, instruction, texts, first
            )
        except CallFailed as error:
            usage = error.usage = add_usage(usage, error.usage)
            if error.kind not in FAULTS_OF_CONTENT:
                raise
            by_id[criterion["id"]] = _not_judged(criterion, error)
            continue
        usage = add_usage(usage, call_usage)
        # Of a pitfall it is asked whether the instruction has the fault.
        score = score if fault is None else -score
        bar = criterion.get("bar") or 0.0
        outcome: Outcome = "pass" if score > bar else "fail"
        reason = f"log-odds {score:.2f}, bar {bar:.2f}"
        by_id[criterion["id"]] = verdict(criterion["id"], outcome, reason, score=round(score, 4))
    return [by_id[c["id"]] for c in criteria], usage


async def ask_of_instruction(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    instruction: str,
    texts: Sequence[str],
    draw: int,
    history: Sequence[Turn] = (),
) -> tuple[float, Usage]:
    """The mean log-odds that the judge says yes to texts about an instruction, and the usage."""
    scores, usage = [], no_usage()
    for number, text in enumerate(texts):
        messages = render(
            "screen_question",
            template=context.screen_question_prompt,
            instruction=instruction,
            text=text,
            history=history,
        )
        call = make_call("screen", messages, None, context, origin, draw + number)
        try:
            score, call_usage = await log_odds(complete, call)
        except CallFailed as error:
            error.usage = add_usage(usage, error.usage)
            raise
        usage = add_usage(usage, call_usage)
        scores.append(score)
    return sum(scores) / len(scores), usage


async def is_on_subject(embed: Embed, instruction: str, seed: str, bar: float | None) -> Verdict:
    """Whether the cosine of an instruction with its seed is above the bar."""
    similarity, bar = await cosine(embed, seed, instruction), SUBJECT_BAR if bar is None else bar
    reason = f"cosine {similarity:.2f} with the seed, bar {bar:.2f}"
    outcome: Outcome = "pass" if similarity > bar else "fail"
    return verdict(SUBJECT_ID, outcome, reason, score=round(similarity, 4))


# An answer in place of a request: a 1.5B model's log-odds tell the two apart no better than chance
# (measured), so its form is looked at.
_REQUEST_WORDS = """
    please kindly could can would will should shall may might do does did is are was were am has
    have had what which who whom whose why when where how i my we our given suppose imagine assume
    consider if let lets
    act add adapt adjust advise analyse analyze answer apply argue arrange ask assess assign assist
    brainstorm break build calculate categorise categorize change check choose cite clarify classify
    clean collect combine come compare compile complete compose compute conduct construct continue
    convert convince copy correct count craft create critique cut debate decide decode deduce define
    delete derive describe design detect determine develop devise diagnose differentiate discover
    discuss distinguish divide do draft draw edit elaborate eliminate encode estimate evaluate
    examine expand explain explore express extend extract fill find fix follow form format formulate
    gather generate get give group guess guide help highlight hypothesise hypothesize identify
    illustrate implement improve include infer inform insert interpret introduce invent invert
    investigate join judge justify keep label lay learn lead list locate look make map match measure
    mention merge modify name narrate note offer optimise optimize order organise organize outline
    output paraphrase parse perform pick plan play point predict prepare present print produce
    prove propose provide pull put rank rate read rearrange recall recite recommend reconstruct
    redesign reduce reformulate refactor rephrase remove rename reorder replace report represent
    research respond retell return revise reverse review rewrite role round run say search select
    separate set share show simplify simulate sketch solve sort specify spell split state structure
    study substitute subtract suggest sum summarise summarize supply swap take talk teach tell
    test think trace transcribe transform translate try turn undo unscramble update use using
    validate verify visualise visualize walk weigh write
    alter confirm connect indicate link process re-order rearrange reorganise reorganize reply
    resolve reword showcase view
""".split()  # noqa: SIM905
_REQUEST_START = re.compile(
    rf"(?:^|[.!:;,\n]\s*|\band\s+|\bthen\s+)\W*(?:{'|'.join(_REQUEST_WORDS)})\b", re.IGNORECASE
)
_SENTENCE_ASKS = re.compile(rf"[.!:\n]\s*(?:{'|'.join(_REQUEST_WORDS)})\b", re.IGNORECASE)
_REQUEST_PHRASE = re.compile(
    r"\?|\b(?:i(?:['’]m| am| need| want|['’]d| would)|help me|tell me|can you|could you|how to)\b",
    re.IGNORECASE,
)
_ANSWER_START = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|great question|here (?:is|are)\b|here['’]s|"
    r"to \w+[^.?!]*,? (?:you|one|we) (?:can|could|should|need|must|will|may|might)\b|"
    r"(?:firstly|step 1|start by|begin by|begin with)\b|first,|"
    r"there (?:is|are)\b|"
    r"(?:it|this|these|they|that) (?:is|are|can|could|should|will|may|might|need|must)\b|"
    r"you (?:can|could|should|may|might)\b)",
    re.IGNORECASE,
)
# What an assistant asks the person it serves.
_ASKS_BACK = re.compile(
    r"\b(?:would|do|are) you (?:like|want|prefer|need|looking for|interested in)\b|"
    r"\bwhat (?:is|are) your (?:goals?|budgets?|plans?|preferences?|needs?|priorities|interests|"
    r"questions?)\b|\bhow (?:can|may) i (?:help|assist) you\b",
    re.IGNORECASE,
)
# In a text of more words something that is asked for would show.
_SHORT_TOPIC_WORDS = 6


def is_request(instruction: str) -> Verdict:
    """Whether a text has the form of a question or request, and not that of an answer.

    >>> is_request("How do I iron a shirt?")["verdict"]
    'pass'
    >>> is_request("To iron a shirt without creases, you can follow these steps:")["verdict"]
    'fail'
    >>> is_request("Bread went up in price because the harvest had failed.")["verdict"]
    'fail'
    """
    text = instruction.strip()
    back = _ASKS_BACK.search(text)
    if back and not _SENTENCE_ASKS.search(text):
        reason = "It asks back, as an assistant does."
        return verdict(REQUEST_ID, "fail", reason, back.group(0))
    asks = _REQUEST_PHRASE.search(text)
    answer = _ANSWER_START.match(text)
    if answer and not asks and not _SENTENCE_ASKS.search(text, answer.end()):
        return verdict(REQUEST_ID, "fail", "It begins as an answer does.", answer.group(0).strip())
    if asks or _REQUEST_START.search(text) or len(text.split()) <= _SHORT_TOPIC_WORDS:
        return verdict(REQUEST_ID, "pass")
    reason = "No part of it asks for anything."
    return verdict(REQUEST_ID, "fail", reason, " ".join(text.split()[:12]))
