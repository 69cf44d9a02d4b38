"""Made-up prose of natural lengths: words as unequally common as in English (Zipf), lists, code.

The words are those of the demo's references, by how common they are there, and after them made-up
ones. The same seed gives the same text.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = ROOT / "refloom" / "resources" / "demo" / "references.jsonl"
SYLLABLES = "ba cen di for gu har je kil lo mun na per ri sol tu van we xi yor zan".split()  # noqa: SIM905
# By two and by three syllables.
RARE = [a + b + c for a in ["", *SYLLABLES] for b in SYLLABLES for c in SYLLABLES]
_ROWS = map(json.loads, REFERENCES.read_text("utf-8").splitlines())
_TEXTS = (f"{row['instruction']} {row['response']}".lower() for row in _ROWS)
_COUNTS = Counter(word for text in _TEXTS for word in re.findall(r"\b[a-z]{2,}\b", text))
COMMON = [word for word, _ in _COUNTS.most_common()]
WORDS = COMMON + RARE
# About one word in fourteen is made up.
_WEIGHTS = list(accumulate((1 if i < len(COMMON) else 0.4) / (i + 1) for i in range(len(WORDS))))
OPENINGS = ("Explain how", "Compare", "Write", "Describe why", "Plan", "List", "Show me how")


def words(draw: random.Random, n: int) -> list[str]:
    """So many words, in lower case."""
    return draw.choices(WORDS, cum_weights=_WEIGHTS, k=n)


def sentences(draw: random.Random, n: int) -> str:
    """Sentences of 8 to 24 words, n words in all."""
    said, at, texts = words(draw, n), 0, []
    while at < n:
        length = draw.randint(8, 24)
        texts.append(" ".join(said[at : at + length]).capitalize() + ".")
        at += length
    return " ".join(texts)


def instruction(draw: random.Random) -> str:
    """A request of 10 to 60 words."""
    opening = draw.choice(OPENINGS)
    text = sentences(draw, draw.randint(10, 60) - len(opening.split()))
    return f"{opening} {text[0].lower()}{text[1:]}"


def response(draw: random.Random) -> str:
    """A response of 80 to 400 words: paragraphs, in a third of them a list, in a fifth code."""
    left, parts = draw.randint(80, 400), []
    while left > 0:
        n = min(left, draw.randint(40, 90))
        parts.append(sentences(draw, n))
        left -= n
    if draw.random() < 1 / 3:
        lines = [f"{i}. {sentences(draw, draw.randint(6, 14))}" for i in range(1, 6)]
        parts.insert(len(parts) // 2, "\n".join(lines))
    if draw.random() < 1 / 5:
        names = [word for word in words(draw, 40) if len(word) > 3][:4] or ["value"]
        lines = [f"    {name} = {name}_of(text, {i})" for i, name in enumerate(names)]
        block = "\n".join(["```python", "def run(text):", *lines, f"    return {names[0]}", "```"])
        parts.insert(len(parts) // 2, block)
    return "\n\n".join(parts)


def edited(draw: random.Random, text: str) -> str:
    """A near-duplicate: every twelfth word is another one."""
    said = text.split()
    for i in range(draw.randrange(1, 6), len(said), 12):
        said[i] = words(draw, 1)[0]
    return " ".join(said)


def make_pairs(n: int) -> list[dict[str, str]]:
    """Made-up references, no two alike."""
    draw = random.Random(7)
    return [
        {"id": f"r{i}", "instruction": instruction(draw), "response": response(draw)}
        for i in range(n)
    ]
