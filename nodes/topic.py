"""Telling characteristics of a response from mentions of its topic."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from importlib.resources import files

_WORD = re.compile(r"[^\W\d_]+|\d+")
_LINK = re.compile(
    r"[,;:(]|\b(?:of|for|about|on|to|in|with|from|by|at|as|using|including|such|so|that|which|how|"
    r"why|when|where|between|into|while|making|and)\b"
)
_TRAILING = re.compile(
    r"(?:[\s,;:(]+(?:of|for|about|on|to|in|with|from|by|at|as|and|or|but|the|a|an|its|their|how|why|what|"
    r"when|where|which|that|each|all|both))*[\s,;:(]*$"
)
STEM = 5
LEAST_WORDS = 3

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
    return word[:STEM]


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
        if len(part.split()) < LEAST_WORDS:
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
