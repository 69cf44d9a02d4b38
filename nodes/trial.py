"""The trial of criteria: each is tried on its own reference and on corrupted responses.

The corruptions are plain functions of a reference's content, so a trial costs no more calls than
judging four responses. Criteria of instructions are tried in the same way, on the reference's
instruction and spoiled forms of it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from memory.embed import Embed, cosine
from memory.novelty import tokens
from memory.references import Reference
from nodes.context import Context
from nodes.criteria import ANSWERS_ID, answers_instruction
from nodes.judge import FAULTS_OF_CONTENT, QUESTIONS_PER_DRAW, judge
from nodes.llm import CallFailed, CallOrigin, Complete
from nodes.screening import (
    ANSWERABLE_QUESTIONS,
    UNREADABLE_FAULTS,
    ask_of_instruction,
    judge_instructions,
)
from nodes.state import Criterion, Trial, Usage, Verdict, add_usage, no_usage

# A gap of log-odds up to this is noise: two mismatched responses differ by as much.
NOISE_LOG_ODDS = 1.0
# An instruction and its spoiled forms, each judged in a call of its own.
CALLS_OF_INSTRUCTION_TRIAL = 5
SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+|\n+")

# Good answers to other questions; the one that shares the fewest words with a reference is used.
_OTHER_ANSWERS = (
    "Rinse the rice until the water runs clear, then use one and a half parts of water to one of "
    "rice. Bring it to the boil, cover, and turn the heat to its lowest for twelve minutes. Leave "
    "the lid on for ten more, so that the steam finishes the grains, and loosen them with a fork.",
    "A glacier is a river of ice. Snow that never melts is pressed together under its own weight "
    "until it flows downhill, a few centimetres to a few metres a day. It carries stones that "
    "grind the valley floor, and where it ends they are left as a long curved hill, a moraine.",
    "To tune a guitar, start with the thickest string and compare each open string with the fifth "
    "fret of the one before; only the second string is compared with the fourth fret. Turn the "
    "peg slowly upwards to the note, since a string that is lowered to pitch slips later.",
    "A library's call number tells you where a book stands. The first part names the subject, the "
    "letters after it the author. Shelves are read from left to right and from top to bottom, as "
    "lines on a page are, so find the subject first and then walk along the alphabet.",
)


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The criteria that stand, the bars, and how many criteria came to which outcome."""

    criteria: list[Criterion]
    answers_bar: float | None
    topic_bar: float | None
    counts: dict[str, int]
    usage: Usage


async def try_criteria(
    complete: Complete,
    embed: Embed,
    context: Context,
    origin: CallOrigin,
    reference: Reference,
    criteria: Sequence[Criterion],
) -> TrialResult:
    """Keep the criteria that tell the reference from worse answers to its own instruction.

    A criterion that its own reference fails is dropped. It becomes a `should` if all corrupted
    responses pass it too, or if the endpoint's content filter refused its trial. By log-odds each
    criterion gets its bar here, the midpoint of its own and its corrupted scores, and none stays a
    `must`. Raises `CallFailed`.
    """
    counts = {"earned": 0, "demoted": 0, "dropped": 0}
    topic_bar = await topic_bar_of(embed, reference) if context.method == "logodds" else None
    if not context.try_criteria:
        untried = [_with_bar(c, context, None) for c in criteria]
        return TrialResult(untried, None, topic_bar, counts, no_usage())
    tried = [answers_instruction(None), *criteria]
    (own, *corrupted), usage = await judge_own_and_spoiled(
        complete, context, origin, reference, tried
    )
    if own is None:
        # The reference's own response could not be judged.
        unproven: list[Criterion] = [
            {**_with_bar(c, context, None), "must": False} for c in criteria
        ]
        counts["demoted"] = len(unproven)
        return TrialResult(unproven, None, topic_bar, counts, usage)
    names = corruptions(reference["instruction"], reference["response"])
    spoiled = {n: v for n, v in zip(names, corrupted, strict=True) if v is not None}
    worse = list(spoiled.values())
    standing: list[Criterion] = []
    for criterion in criteria:
        id_ = criterion["id"]
        outcome, bar = _outcome(own[id_], [verdicts[id_] for verdicts in worse], context)
        counts[outcome] += 1
        if outcome != "dropped":
            tested = _with_bar(criterion, context, bar)
            must = tested["must"] and outcome == "earned"
            of_kinds = {name: verdicts[id_] for name, verdicts in spoiled.items()}
            trial = trial_of(own[id_], of_kinds, bar)
            standing.append({**tested, "must": must, "trial": trial})
    answers_bar = _bar(own[ANSWERS_ID], [verdicts[ANSWERS_ID] for verdicts in worse])
    return TrialResult(standing, answers_bar, topic_bar, counts, usage)


async def judge_own_and_spoiled(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    reference: Reference,
    criteria: Sequence[Criterion],
) -> tuple[list[dict[str, Verdict] | None], Usage]:
    """The verdicts on the reference's own response, then on each corrupted one.

    None where the endpoint refused to judge: corrupted text may look suspicious to a content
    filter, which must not cost the reference. By log-odds the own score is indispensable.
    """
    worse = corruptions(reference["instruction"], reference["response"])
    results: list[dict[str, Verdict] | None] = []
    usage = no_usage()
    for draw, response in enumerate((reference["response"], *worse.values())):
        try:
            judged = await judge(
                complete,
                context,
                origin,
                instruction=reference["instruction"],
                response=response,
                criteria=criteria,
                draw=draw,
                history=reference.get("history", ()),
            )
        except CallFailed as error:
            usage = error.usage = add_usage(usage, error.usage)
            dispensable = draw > 0 or context.method == "verdict"
            if error.kind not in FAULTS_OF_CONTENT or not dispensable:
                raise
            results.append(None)
            continue
        usage = add_usage(usage, judged.usage)
        results.append({v["criterion_id"]: v for v in judged.verdicts})
    return results, usage


def trial_of(own: Verdict, spoiled: Mapping[str, Verdict], bar: float | None = None) -> Trial:
    """A trial on one good text and its spoiled ones; by log-odds what is over `bar` passes."""

    def passed(verdict: Verdict) -> int:
        if bar is not None and verdict["score"] is not None:
            return int(verdict["score"] > bar)
        return int(verdict["verdict"] == "pass")

    return {
        "references": 1,
        "own": passed(own),
        "spoiled": {name: passed(verdict) for name, verdict in spoiled.items()},
    }


@dataclass(frozen=True, slots=True)
class InstructionTrial:
    """The criteria of instructions that stand, all `should`, and the outcomes' counts.

    `answerable_bar` is, by log-odds, the bar of the built-in question whether an instruction can be
    answered.
    """

    criteria: list[Criterion]
    answerable_bar: float | None
    counts: dict[str, int]
    usage: Usage


async def try_instruction_criteria(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    reference: Reference,
    criteria: Sequence[Criterion],
) -> InstructionTrial:
    """Keep the criteria that tell the reference's instruction from spoiled forms of it.

    One that its own instruction fails is dropped; one that all spoiled forms pass ranks last. By
    log-odds there are none, and the built-in question gets its bar. Raises `CallFailed`.
    """
    counts = {"earned": 0, "demoted": 0, "dropped": 0}
    shoulds: list[Criterion] = [{**c, "must": False} for c in criteria]
    if not context.try_criteria or not context.screens:
        return InstructionTrial(shoulds, None, counts, no_usage())
    instruction = reference["instruction"]
    spoiled = spoil_instruction(instruction, reference["response"])
    if context.method == "logodds":
        bar, usage = await _answerable_bar(complete, context, origin, reference, spoiled)
        return InstructionTrial([], bar, counts, usage)
    if not criteria:
        return InstructionTrial([], None, counts, no_usage())
    results: list[dict[str, Verdict] | None] = []
    usage = no_usage()
    for draw, text in enumerate((instruction, *spoiled.values())):
        try:
            result = await judge_instructions(
                complete,
                context,
                origin,
                [text],
                shoulds,
                history=reference.get("history", ()),
                draw=draw,
            )
        except CallFailed as error:
            usage = error.usage = add_usage(usage, error.usage)
            if error.kind not in UNREADABLE_FAULTS:
                raise
            # A reference is not lost for verdicts on its instruction.
            results.append(None)
            continue
        usage = add_usage(usage, result.usage)
        (judged,) = result.verdicts
        # All unknown: a content filter refuses the text, or it is too long.
        known = any(v["verdict"] != "unknown" for v in judged)
        results.append({v["criterion_id"]: v for v in judged} if known else None)
    own, *others = results
    by_kind = {n: v for n, v in zip(spoiled, others, strict=True) if v is not None}
    if own is None:
        counts["demoted"] = len(shoulds)
        return InstructionTrial(shoulds, None, counts, usage)
    earned: list[Criterion] = []
    demoted: list[Criterion] = []
    for criterion in shoulds:
        id_ = criterion["id"]
        outcome, _ = _outcome(own[id_], [verdicts[id_] for verdicts in by_kind.values()], context)
        counts[outcome] += 1
        if outcome != "dropped":
            of_kinds = {name: verdicts[id_] for name, verdicts in by_kind.items()}
            tested: Criterion = {**criterion, "trial": trial_of(own[id_], of_kinds)}
            (earned if outcome == "earned" else demoted).append(tested)
    return InstructionTrial([*earned, *demoted], None, counts, usage)


async def _answerable_bar(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    reference: Reference,
    spoiled: Mapping[str, str],
) -> tuple[float | None, Usage]:
    """The mean log-odds of forms of the instruction that lack what is needed.

    Not halfway to its own: such a form can often still be answered, and halfway was over a third of
    the good instructions (measured). None if the instruction itself does not score higher. What a
    content filter refuses is left out; without a score of the instruction itself there is no bar.
    """
    lacking = [spoiled[name] for name in ("first_clause", "cut_out") if name in spoiled]
    if not lacking:
        return None, no_usage()
    scores: list[float] = []
    usage = no_usage()
    for draw, text in enumerate((reference["instruction"], *lacking)):
        try:
            score, call_usage = await ask_of_instruction(
                complete,
                context,
                origin,
                text,
                ANSWERABLE_QUESTIONS,
                draw * QUESTIONS_PER_DRAW,
                reference.get("history", ()),
            )
        except CallFailed as error:
            usage = error.usage = add_usage(usage, error.usage)
            if error.kind not in FAULTS_OF_CONTENT:
                raise
            if draw == 0:
                return None, usage
            continue
        usage = add_usage(usage, call_usage)
        scores.append(score)
    own, *others = scores
    if not others:
        return None, usage
    worse = sum(others) / len(others)
    return (round(worse, 4) if own > worse else None), usage


def _with_bar(criterion: Criterion, context: Context, bar: float | None) -> Criterion:
    """The criterion with its bar; by log-odds it is a `should`."""
    must = criterion["must"] and context.method == "verdict"
    return {**criterion, "must": must, "bar": bar}


def _outcome(own: Verdict, worse: Sequence[Verdict], context: Context) -> tuple[str, float | None]:
    """What a criterion's trial came to, and its bar."""
    if context.method == "verdict":
        if own["verdict"] != "pass":
            return "dropped", None
        return ("demoted" if all(v["verdict"] == "pass" for v in worse) else "earned"), None
    bar = _bar(own, worse)
    if bar is None or own["score"] is None:
        return "dropped", None
    gap = 2 * (own["score"] - bar)
    return ("dropped" if gap <= 0 else "demoted" if gap <= NOISE_LOG_ODDS else "earned"), bar


def _bar(own: Verdict, worse: Sequence[Verdict]) -> float | None:
    return midpoint(own["score"], [v["score"] for v in worse if v["score"] is not None])


def midpoint(own: float | None, worse: Sequence[float]) -> float | None:
    """Halfway between a reference's own score and the mean of its corrupted ones."""
    if own is None or not worse:
        return None
    return round((own + sum(worse) / len(worse)) / 2, 4)


async def topic_bar_of(embed: Embed, reference: Reference) -> float:
    """Halfway between the cosines of the reference's own and an off-topic response."""
    instruction = reference["instruction"]
    own = await cosine(embed, instruction, reference["response"])
    off_topic = off_topic_response(instruction, reference["response"])
    return round((own + await cosine(embed, instruction, off_topic)) / 2, 4)


def corruptions(instruction: str, response: str) -> dict[str, str]:
    """Three worse responses to the same instruction: cut, shuffled, and on another topic.

    >>> sorted(corruptions("Why tides?", "The Moon pulls. The Earth turns. So two tides a day."))
    ['another', 'cut', 'shuffled']
    """
    return {
        "cut": cut_in_half(response),
        "shuffled": shuffle_sentences(response),
        "another": off_topic_response(instruction, response),
    }


def cut_in_half(response: str) -> str:
    """The first half of the words, ending in mid-sentence."""
    words = response.split(" ")
    return " ".join(words[: max(len(words) // 2, 1)]).rstrip(" .!?")


def shuffle_sentences(response: str) -> str:
    """The sentences in another order, fixed by the text; a lone sentence has its halves swapped."""
    sentences = [s for s in SENTENCE_BREAK.split(response) if s]
    if len(sentences) < 2:
        words = response.split()
        half = len(words) // 2
        return " ".join(words[half:] + words[:half])
    order = list(sentences)
    rng = random.Random(sha256(response.encode("utf-8", "replace")).digest())
    while order == sentences and len(set(sentences)) > 1:
        rng.shuffle(order)
    return " ".join(order)


def off_topic_response(instruction: str, response: str) -> str:
    """A good answer to another question."""
    words = set(tokens(instruction + " " + response))
    return min(_OTHER_ANSWERS, key=lambda text: len(words & set(tokens(text))))


_CLAUSE_END = re.compile(
    r"[,;:.?!\n]|\s(?:that|which|who|with|without|for|so|and|or|because|using|when|while|if|in|"
    r"about|to|from|by|on|at|as|of)\s"
)
_MATERIAL = re.compile(
    r"(?s)```.*?```|`[^`\n]+`|\"[^\"\n]{3,}\"|“[^”\n]{3,}”|(?<=[:?])\s*\n.+|(?<=:)\s+\S.{20,}$"
)


def spoil_instruction(instruction: str, response: str) -> dict[str, str]:
    """Worse instructions made of a good one; a kind that would equal it is left out.

    `first_clause` says no more than its beginning, `opening` is the beginning of the response in
    its place, `other_task` asks for something else about the same words, and `cut_out` lacks the
    text, code or quotation that it depends on.

    >>> sorted(spoil_instruction("Sort these: 3, 1, 2, and say why each step.", "It is 1, 2, 3."))
    ['cut_out', 'first_clause', 'opening', 'other_task']
    """
    spoiled = {
        "first_clause": _first_clause(instruction),
        "opening": next((s for s in SENTENCE_BREAK.split(response) if len(s.split()) > 2), ""),
        "other_task": _other_task(instruction),
        "cut_out": _cut_material(instruction),
    }
    plain = tokens(instruction)
    return {name: text for name, text in spoiled.items() if text and tokens(text) != plain}


def _first_clause(instruction: str) -> str:
    """The beginning, up to where it begins to say more: two words at least, else half of it."""
    for match in _CLAUSE_END.finditer(instruction):
        clause, rest = instruction[: match.start()].strip(), instruction[match.end() :]
        if len(clause.split()) >= 2 and rest.split():
            return clause + "."
    words = instruction.split()
    return " ".join(words[: len(words) // 2])


def _other_task(instruction: str) -> str:
    """Another task about the longest words of the instruction."""
    words = list(dict.fromkeys(w for w in re.findall(r"[^\W\d_]+", instruction) if len(w) > 4))
    longest = sorted(words, key=len, reverse=True)[:3]
    if not longest:
        return ""
    return f"Make up a riddle with the words {', '.join(w for w in words if w in longest)}."


def _cut_material(instruction: str) -> str:
    """The instruction without code, quotations, and what follows a colon or the first line."""
    rest = _MATERIAL.sub(" ", instruction)
    return " ".join(rest.split())
