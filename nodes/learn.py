"""What one reference teaches: its characteristics, without the topic, tried, as criteria."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

from memory.characteristics import Learned
from memory.embed import Embed
from memory.references import Reference, content_id, reference_hash
from nodes.context import Context
from nodes.judge import fold_text
from nodes.llm import Answer, CallFailed, CallOrigin, Complete, LenientAnswer, ask, make_call
from nodes.screening import ANSWERABLE_ID, built_in_criteria
from nodes.state import Criterion, add_usage, no_usage
from nodes.trial import try_criteria, try_instruction_criteria
from prompts import prompt_version, render

MAX_CHARACTERISTICS = 4
# Stands in for bars where only the texts of built-in criteria matter.
ANY_BARS = {ANSWERABLE_ID: 0.0}
# A characteristic that starts with one of these does not complete "The response ...".
SENTENCE_STARTS = (
    *("the response ", "this response ", "response "),
    *("the instruction ", "this instruction ", "instruction ", "it "),
)
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


class ExtractedOfPair(LenientAnswer, Extracted):
    """What an extraction brings that asks about the instruction, too.

    An answer without that part is read as well.
    """

    instruction_characteristics: list[Characteristic] = Field(default_factory=list)


def learned_key(reference: Reference, context: Context) -> str:
    """The key of an entry of `learn`; it covers all that the entry depends on."""
    screening: tuple[str, ...] = ()
    if context.screens:
        prompts = prompt_version("screen", "screen_question", edited=context.edited)
        screening = ("screen", prompts, *(c["text"] for c in built_in_criteria(context, ANY_BARS)))
    return content_id(
        reference_hash(reference),
        prompt_version("extract", "critique", "question", edited=context.edited),
        context.model,
        context.judge_names,
        context.method,
        str(context.try_criteria),
        _what_is_learned(context),
        *screening,
        *(() if context.criteria_per_call is None else (f"calls of {context.criteria_per_call}",)),
    )


def _what_is_learned(context: Context) -> str:
    if not context.learns_from_references:
        return context.feedback
    return "reference" if context.extracts else "bars"


async def learn(
    reference: Reference, context: Context, origin: CallOrigin, complete: Complete, embed: Embed
) -> Learned:
    """Extract characteristics, drop unfounded and topical ones, and try the rest as criteria.

    One call, or two if the first brings only topical ones, and those of the trials: of criteria of
    responses, and of instructions if these are screened. Raises `CallFailed`.
    """
    origin = CallOrigin(f"reference {reference['id']}", "", origin.order)
    usage = no_usage()
    subjects: list[str] = []
    skills: list[str] = []
    criteria: list[Criterion] = []
    of_instruction: list[Criterion] = []
    proposed = proposed_of_instruction = 0
    screens = context.extracts_instruction_criteria
    kind = ExtractedOfPair if screens else Extracted
    # If all characteristics are topical they are asked for again, but only a model that can learn
    # from being told: a small one gives the same answer again.
    asks = 2 if context.try_criteria and context.method != "logodds" else 1
    avoid: list[str] = []
    try:
        for draw in range(asks if context.extracts else 0):
            messages = render(
                "extract",
                template=context.extract_prompt,
                reference=reference,
                most=MAX_CHARACTERISTICS,
                avoid=avoid,
                screens=screens,
            )
            call = make_call("extract", messages, kind, context, origin, draw)
            result = await ask(complete, call, kind)
            usage = add_usage(usage, result.usage)
            subjects = subjects or shorten_phrases(result.answer.subject_areas)
            skills = skills or shorten_phrases(result.answer.relevant_skills)
            proposed += len(result.answer.characteristics)
            if isinstance(result.answer, ExtractedOfPair) and not of_instruction:
                asked = result.answer.instruction_characteristics
                proposed_of_instruction += len(asked)
                founded = [c for c in asked if _is_founded(c, reference["instruction"])]
                of_instruction = _to_criteria(founded, reference, prefix="i")
            response = reference["response"]
            founded = [c for c in result.answer.characteristics if _is_founded(c, response)]
            criteria = _to_criteria(founded, reference)
            if criteria or not founded:
                break
            avoid = [c.text for c in founded]
        trial = await try_criteria(complete, embed, context, origin, reference, criteria)
        usage = add_usage(usage, trial.usage)
        screen_trial = await try_instruction_criteria(
            complete, context, origin, reference, of_instruction
        )
    except CallFailed as error:
        error.usage = add_usage(usage, error.usage)
        raise
    dropped = proposed - len(criteria) + trial.counts["dropped"]
    counts = trial.counts | {"proposed": proposed, "dropped": dropped}
    if context.screens:
        dropped = proposed_of_instruction - len(of_instruction) + screen_trial.counts["dropped"]
        of_counts = {"proposed": proposed_of_instruction, **screen_trial.counts, "dropped": dropped}
        counts |= {f"instruction_{name}": count for name, count in of_counts.items()}
    return {
        "reference_id": reference["id"],
        "subject_areas": subjects,
        "relevant_skills": skills,
        "criteria": trial.criteria,
        "answers_bar": trial.answers_bar,
        "topic_bar": trial.topic_bar,
        "instruction_criteria": screen_trial.criteria,
        "answerable_bar": screen_trial.answerable_bar,
        "counts": counts,
        "usage": add_usage(usage, screen_trial.usage),
    }


def shorten_phrases(phrases: Sequence[str]) -> list[str]:
    """At most four phrases of at most 80 characters."""
    return [p.strip()[:80] for p in phrases if p.strip()][:4]


def _is_founded(characteristic: Characteristic, text: str) -> bool:
    """Whether the quote is in the text that the characteristic is said of."""
    quote = fold_text(characteristic.quote)
    return bool(quote and characteristic.text.strip()) and quote in fold_text(text)


def _to_criteria(
    characteristics: Sequence[Characteristic], reference: Reference, prefix: str = "c"
) -> list[Criterion]:
    """The characteristics that do not name the topic, as criteria; ids begin with `prefix`."""
    criteria: dict[str, Criterion] = {}
    for characteristic in characteristics[:MAX_CHARACTERISTICS]:
        ending = _complete_sentence(characteristic.text)
        text = general_part(ending, reference["instruction"], reference["response"])
        if text is not None and text.split()[0] not in NO_VERBS:
            id_ = f"{prefix}{content_id(reference['id'], text)[:8]}"
            criteria[id_] = {
                "id": id_,
                "text": text,
                "must": characteristic.must,
                "reference_id": reference["id"],
                "quote": characteristic.quote.strip(),
                "judged_by": "judge",
            }
    return list(criteria.values())


def _complete_sentence(text: str) -> str:
    """A characteristic as the end of the sentence "The response ..." or "The instruction ..."."""
    ending = " ".join(text.split()).rstrip(" .")
    for start in SENTENCE_STARTS:
        if ending.lower().startswith(start):
            ending = ending[len(start) :]
    return ending[:1].lower() + ending[1:300]


# Whether a characteristic mentions its reference's topic.

_WORD = re.compile(r"[^\W\d_]+|\d+")
_PHRASE_START = re.compile(
    r"[,;:(]|\b(?:of|for|about|on|to|in|with|from|by|at|as|using|including|such|so|that|which|how|"
    r"why|when|where|between|into|while|making|and)\b"
)
_TRAILING_LINK = re.compile(
    r"(?:[\s,;:(]+(?:of|for|about|on|to|in|with|from|by|at|as|and|or|but|the|a|an|its|their|how|why|what|"
    r"when|where|which|that|each|all|both))*[\s,;:(]*$"
)
MAX_STEM_LENGTH = 5
# A shorter part of a characteristic says too little.
MIN_WORDS = 3

# Words about how a text is made or requested, not about its topic.
_GENERAL_WORDS = frozenset(files("nodes").joinpath("general_words.txt").read_text("utf-8").split())


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The first letters that a word shares with its other forms: at most five, without its ending.

    >>> [stem(w) for w in ("tides", "tide", "knotting", "knot", "sewing", "sew")]
    ['tid', 'tid', 'knot', 'knot', 'sew', 'sew']
    """
    for endings in (("s",), ("ing", "ed", "er", "ly"), ("e",)):
        for ending in endings:
            if word.endswith(ending) and len(word) - len(ending) >= 3:
                word = word[: -len(ending)]
                break
    word = word.rstrip("e") if len(word) > 3 else word
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word[:MAX_STEM_LENGTH]


_GENERAL_STEMS = frozenset(stem(word) for word in _GENERAL_WORDS)


def names_its_topic(text: str, instruction: str, response: str) -> bool:
    """Whether a characteristic shares a stem of a content word with its reference's instruction.

    The response's rarer words count too: names, numbers, and long words that it repeats.

    >>> names_its_topic("names the oven temperature", "How hot should my oven be?", "200 degrees.")
    True
    >>> names_its_topic("ends each step with a check", "How hot should my oven be?", "200 degrees.")
    False
    """
    return bool(_stems_of(_content_words(text)) & _topic_stems(instruction, response))


@lru_cache(maxsize=64)
def _topic_stems(instruction: str, response: str) -> frozenset[str]:
    """The stems of a pair's topic; cached, since each of its characteristics needs them."""
    return frozenset(_stems_of(_content_words(instruction)) | _stems_of(_rare_words(response)))


def general_part(text: str, instruction: str, response: str) -> str | None:
    """The part of a characteristic that does not mention the topic: all, its beginning, or None.

    Small models keep naming the topic whatever the prompt says, but mostly at the end, so the text
    is cut before the phrase that first mentions it.

    >>> ask = "How do I push git tags?"
    >>> general_part("gives a step-by-step guide to pushing tags", ask, "Do this.")
    'gives a step-by-step guide'
    >>> general_part("pushes tags", ask, "Do this.") is None
    True
    """
    if not names_its_topic(text, instruction, response):
        return text
    cuts = [m.start() for m in _PHRASE_START.finditer(text)]
    for cut in reversed(cuts):
        part = _TRAILING_LINK.sub("", text[:cut]).rstrip(" ,;:(")
        if len(part.split()) < MIN_WORDS:
            return None
        if not names_its_topic(part, instruction, response):
            return part
    return None


def _content_words(text: str) -> list[str]:
    return [
        w
        for w in _WORD.findall(text.lower())
        if (len(w) > 2 or (w.isdigit() and len(w) > 1)) and w not in _GENERAL_WORDS
    ]


def _stems_of(words: list[str]) -> set[str]:
    return {stem(w) for w in words} - _GENERAL_STEMS


def _rare_words(response: str) -> list[str]:
    counts = Counter(_content_words(response))
    repeated = [w for w, n in counts.items() if n > 1 and len(w) > 5]
    names = re.findall(r"(?<=[a-z,;] )[A-Z][\w-]{2,}", response)
    numbers = re.findall(r"\d{2,}", response)
    return repeated + [w.lower() for w in names] + numbers
