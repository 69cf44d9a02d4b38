"""What one reference teaches: its characteristics, tried, as criteria."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict

from memory.characteristics import Learned
from memory.embed import Embed
from memory.references import Reference, content_id, reference_hash
from nodes.context import Context
from nodes.judge import fold_text
from nodes.llm import Answer, AskResult, CallOrigin, Complete, ask, make_call
from nodes.state import Criterion, add_usage, no_usage
from nodes.trial import try_criteria
from prompts import render, version

# MERGED nodes~topic
# Telling characteristics of a response from mentions of its topic.
_WORD = re.compile(r"[^\W\d_]+|\d+")
_LINK = re.compile(
    r"[,;:(]|\b(?:of|for|about|on|to|in|with|from|by|at|as|using|including|such|so|that|which|how|"
    r"why|when|where|between|into|while|making|and)\b"
)
_TRAILING = re.compile(
    r"(?:[\s,;:(]+(?:of|for|about|on|to|in|with|from|by|at|as|and|or|but|the|a|an|its|their|how|why|what|"
    r"when|where|which|that|each|all|both))*[\s,;:(]*$"
)
MAX_STEM_LENGTH = 5
MIN_WORDS = 3

# Words that say how a text is made or asked for, not what it is about.
_GENERAL = frozenset(files("nodes").joinpath("general_words.txt").read_text("utf-8").split())


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The beginning a word shares with its other forms: at most five letters, no ending.

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


_GENERAL_STEMS = frozenset(stem(word) for word in _GENERAL)


def names_its_topic(text: str, instruction: str, response: str) -> bool:
    """Whether a characteristic shares a content word with its reference's instruction.

    Compared by stems. The response's own rarer words count as well: names,
    numbers, and long words that it repeats.

    >>> names_its_topic("names the oven temperature", "How hot should my oven be?", "200 degrees.")
    True
    >>> names_its_topic("ends each step with a check", "How hot should my oven be?", "200 degrees.")
    False
    """
    return bool(_stems(_words(text)) & _topic(instruction, response))


@lru_cache(maxsize=64)
def _topic(instruction: str, response: str) -> frozenset[str]:
    """What a pair is about, by stems: asked for again with every characteristic of it."""
    return frozenset(_stems(_words(instruction)) | _stems(_rare(response)))


def general_part(text: str, instruction: str, response: str) -> str | None:
    """A characteristic without its mention of the topic: the whole, its beginning, or None.

    Small models cannot be talked out of naming the topic, but they mostly name it last, so the
    text is cut before the phrase in which it first comes up.

    >>> ask = "How do I push git tags?"
    >>> general_part("gives a step-by-step guide to pushing tags", ask, "Do this.")
    'gives a step-by-step guide'
    >>> general_part("pushes tags", ask, "Do this.") is None
    True
    """
    if not names_its_topic(text, instruction, response):
        return text
    cuts = [m.start() for m in _LINK.finditer(text)]
    for cut in reversed(cuts):
        part = _TRAILING.sub("", text[:cut]).rstrip(" ,;:(")
        if len(part.split()) < MIN_WORDS:
            return None
        if not names_its_topic(part, instruction, response):
            return part
    return None


def _words(text: str) -> list[str]:
    return [
        w
        for w in _WORD.findall(text.lower())
        if (len(w) > 2 or (w.isdigit() and len(w) > 1)) and w not in _GENERAL
    ]


def _stems(words: list[str]) -> set[str]:
    return {stem(w) for w in words} - _GENERAL_STEMS


def _rare(response: str) -> list[str]:
    counts = Counter(_words(response))
    repeated = [w for w, n in counts.items() if n > 1 and len(w) > 5]
    inside = re.findall(r"(?<=[a-z,;] )[A-Z][\w-]{2,}", response)
    numbers = re.findall(r"\d{2,}", response)
    return repeated + [w.lower() for w in inside] + numbers


MAX_CHARACTERISTICS = 4
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


def learns_from_references(context: Context) -> bool:
    """Whether references are studied, or only the built-in criterion is calibrated on them."""
    return context.paired or context.feedback in ("reference", "swapped")


def learned_key(reference: Reference, context: Context) -> str:
    """What an entry rests on; a change of any of it is another entry."""
    return content_id(
        reference_hash(reference),
        version("extract", "critique", "question", edited=context.edited),
        context.model,
        context.judge,
        context.method,
        str(context.try_criteria),
        "reference" if learns_from_references(context) else context.feedback,
    )


async def learn(
    reference: Reference, context: Context, place: CallOrigin, complete: Complete, embed: Embed
) -> Learned:
    """Extract (one call), drop what is unfounded or topical, and try the rest."""
    at = CallOrigin(f"reference {reference['id']}", "", place.order)
    usage = no_usage()
    subjects: list[str] = []
    skills: list[str] = []
    kept: list[Criterion] = []
    proposed = 0
    if learns_from_references(context):
        avoid: list[str] = []
        for draw in (0, 1):
            asked = await _ask(complete, context, at, reference, avoid, draw)
            usage = add_usage(usage, asked.usage)
            subjects = subjects or shorten_phrases(asked.answer.subject_areas)
            skills = skills or shorten_phrases(asked.answer.relevant_skills)
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
    at: CallOrigin,
    reference: Reference,
    avoid: Sequence[str],
    draw: int,
) -> AskResult[Extracted]:
    prompt = context.extract_prompt
    messages = render(
        "extract", template=prompt, reference=reference, most=MAX_CHARACTERISTICS, avoid=avoid
    )
    return await ask(
        complete, make_call("extract", messages, Extracted, context, at, draw), Extracted
    )


def shorten_phrases(phrases: Sequence[str]) -> list[str]:
    """A few phrases, none of them long."""
    return [p.strip()[:80] for p in phrases if p.strip()][:4]


def _founded(found: Characteristic, reference: Reference) -> bool:
    """Whether the quote really is in the response."""
    quote = fold_text(found.quote)
    return bool(quote and found.text.strip()) and quote in fold_text(reference["response"])


def _criteria(found: Sequence[Characteristic], reference: Reference) -> list[Criterion]:
    """The characteristics that do not name the topic, as criteria."""
    criteria: list[Criterion] = []
    for one in found[:MAX_CHARACTERISTICS]:
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
