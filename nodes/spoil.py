"""Responses made worse on purpose, by plain functions of a reference's content alone."""

from __future__ import annotations

import random
import re
from hashlib import sha256

from memory.novelty import tokens

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


def spoiled(instruction: str, response: str) -> dict[str, str]:
    """Three worse responses to the same instruction: cut, shuffled, and another topic's.

    >>> sorted(spoiled("Why tides?", "The Moon pulls. The Earth turns. So two tides a day."))
    ['another', 'cut', 'shuffled']
    """
    return {
        "cut": cut_in_half(response),
        "shuffled": shuffled(response),
        "another": another_topic(instruction, response),
    }


def cut_in_half(response: str) -> str:
    """The first half of the words, ending in mid-sentence."""
    words = response.split(" ")
    return " ".join(words[: max(len(words) // 2, 1)]).rstrip(" .!?")


def shuffled(response: str) -> str:
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


def another_topic(instruction: str, response: str) -> str:
    """A sound answer to a question nobody asked here."""
    ours = set(tokens(instruction + " " + response))
    return min(_ELSEWHERE, key=lambda text: len(ours & set(tokens(text))))
