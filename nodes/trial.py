"""The trial of criteria: each is tried on its own reference and on spoiled responses to it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from memory.embed import Embed, cosine
from memory.novelty import tokens
from memory.references import Reference
from nodes.context import Context
from nodes.criteria import ANSWERS_ID, answers_instruction
from nodes.judge import judge
from nodes.llm import CallFailed, CallOrigin, Complete
from nodes.state import Criterion, Usage, Verdict, add_usage, no_usage

# MERGED nodes~spoil
# Responses made worse on purpose, by plain functions of a reference's content alone.
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")

# Good answers, each to something else; the one least like the reference's words is taken.
_ELSEWHERE = (
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


def corruptions(instruction: str, response: str) -> dict[str, str]:
    """Three worse responses to the same instruction: cut, shuffled, and another topic's.

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
    """The sentences in another order, fixed by the text; halves change places if there is one."""
    sentences = [s for s in _SENTENCE.split(response) if s]
    if len(sentences) < 2:
        words = response.split()
        half = len(words) // 2
        return " ".join(words[half:] + words[:half])
    order = list(sentences)
    draw = random.Random(sha256(response.encode("utf-8", "replace")).digest())
    while order == sentences and len(set(sentences)) > 1:
        draw.shuffle(order)
    return " ".join(order)


def off_topic_response(instruction: str, response: str) -> str:
    """A sound answer to a question nobody asked here."""
    ours = set(tokens(instruction + " " + response))
    return min(_ELSEWHERE, key=lambda text: len(ours & set(tokens(text))))


# A gap of log-odds within this is noise: two mismatched responses differ by as much.
NOISE_LOG_ODDS = 1.0


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a trial leaves: the criteria that stand, the bars, and how many came to what."""

    criteria: list[Criterion]
    answers_bar: float | None
    topic_bar: float | None
    counts: dict[str, int]
    usage: Usage


async def try_criteria(
    complete: Complete,
    embed: Embed,
    context: Context,
    place: CallOrigin,
    reference: Reference,
    criteria: Sequence[Criterion],
) -> TrialResult:
    """Keep what tells the reference from worse answers to its own instruction.

    A criterion its own reference fails is dropped; one that every spoiled response passes too, or
    whose trial the endpoint's content filter refused, is no more than a `should`. By log-odds each
    criterion gets its bar here, the midpoint of its own and its spoiled scores, and none of them
    stays a `must`.
    """
    counts = {"earned": 0, "demoted": 0, "dropped": 0}
    topic_bar = await topic_bar_of(embed, reference) if context.method == "logodds" else None
    if not context.try_criteria:
        untried: list[Criterion] = [_as_should(c, context, None) for c in criteria]
        return TrialResult(untried, None, topic_bar, counts, no_usage())
    every: list[Criterion] = [answers_instruction(None), *criteria]
    (own, *spoils), usage = await _judged(complete, context, place, reference, every)
    bad = [spoil for spoil in spoils if spoil is not None]
    if own is None:
        return _unproven(criteria, context, topic_bar, usage)
    kept: list[Criterion] = []
    for criterion in criteria:
        id_ = criterion["id"]
        outcome, bar = _outcome(own[id_], [b[id_] for b in bad], context)
        counts[outcome] += 1
        if outcome != "dropped":
            standing = _as_should(criterion, context, bar)
            kept.append({**standing, "must": standing["must"] and outcome == "earned"})
    answers_bar = _bar(own[ANSWERS_ID], [b[ANSWERS_ID] for b in bad])
    return TrialResult(kept, answers_bar, topic_bar, counts, usage)


def _unproven(
    criteria: Sequence[Criterion], context: Context, topic_bar: float | None, usage: Usage
) -> TrialResult:
    """What is left when the reference's own response could not be judged."""
    kept: list[Criterion] = [{**_as_should(c, context, None), "must": False} for c in criteria]
    counts = {"earned": 0, "demoted": len(kept), "dropped": 0}
    return TrialResult(kept, None, topic_bar, counts, usage)


async def _judged(
    complete: Complete,
    context: Context,
    place: CallOrigin,
    reference: Reference,
    criteria: Sequence[Criterion],
) -> tuple[list[dict[str, Verdict] | None], Usage]:
    """The verdicts on the reference's own response, then on each spoiled one.

    None where a content filter refused the question: spoiled text looks odd, and what one response
    lacks in evidence must not cost the reference. By log-odds the own score is indispensable.
    """
    worse = corruptions(reference["instruction"], reference["response"])
    found: list[dict[str, Verdict] | None] = []
    usage = no_usage()
    for draw, response in enumerate((reference["response"], *worse.values())):
        try:
            judged = await judge(
                complete,
                context,
                place,
                instruction=reference["instruction"],
                response=response,
                criteria=criteria,
                draw=draw,
                history=reference.get("history", ()),
            )
        except CallFailed as failed:
            failed.usage = add_usage(usage, failed.usage)
            if failed.kind not in ("filtered", "refused", "too_long") or not (
                draw or context.method == "verdict"
            ):
                raise
            usage = failed.usage
            found.append(None)
            continue
        usage = add_usage(usage, judged.usage)
        found.append({v["criterion_id"]: v for v in judged.verdicts})
    return found, usage


def _as_should(criterion: Criterion, context: Context, bar: float | None) -> Criterion:
    must = criterion["must"] and context.method == "verdict"
    return {**criterion, "must": must, "bar": bar}


def _outcome(own: Verdict, bad: Sequence[Verdict], context: Context) -> tuple[str, float | None]:
    if context.method == "verdict":
        if own["verdict"] != "pass":
            return "dropped", None
        return ("demoted" if all(b["verdict"] == "pass" for b in bad) else "earned"), None
    bar = _bar(own, bad)
    if bar is None or own["score"] is None:
        return "dropped", None
    gap = 2 * (own["score"] - bar)
    return ("dropped" if gap <= 0 else "demoted" if gap <= NOISE_LOG_ODDS else "earned"), bar


def _bar(own: Verdict, bad: Sequence[Verdict]) -> float | None:
    return midpoint(own["score"], [b["score"] for b in bad if b["score"] is not None])


def midpoint(own: float | None, bad: Sequence[float]) -> float | None:
    """Halfway between a reference's own score and the mean of its spoiled ones."""
    if own is None or not bad:
        return None
    return round((own + sum(bad) / len(bad)) / 2, 4)


async def topic_bar_of(embed: Embed, reference: Reference) -> float:
    """Halfway between the cosines of the reference's own and a mismatched response."""
    instruction = reference["instruction"]
    own = await cosine(embed, instruction, reference["response"])
    mismatched = off_topic_response(instruction, reference["response"])
    return round((own + await cosine(embed, instruction, mismatched)) / 2, 4)
