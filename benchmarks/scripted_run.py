"""What a model says in a run that is like a real one: long texts, failures, near-duplicates.

Every answer follows from its prompt alone, but for one thing: a pair that was put to be studied is
known from then on, so that its own response passes its trial and a spoiled one fails.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from typing import Any

from benchmarks import prose

# Shares: of responses that fail their critique, instructions that are screened out, and proposals
# that are near-duplicates of another one.
FAIL, SCREENED_OUT, ALIKE = 0.3, 0.05, 0.1
QUALITIES = """
    gives a reason for every claim it makes
    begins with the main answer and explains it afterwards
    explains each step before the next one starts
    compares at least two ways of doing it
    warns of a common mistake and how to avoid it
    keeps a friendly and calm tone throughout
    uses short sentences and plain words
    ends with what to do next
    illustrates a point by an example
    names the limits of its advice
    puts what belongs together under one heading
    states what it takes for granted
    gives numbers with their units
    says how sure it is of what it claims
    defines a term where it first appears
    shows a finished piece that can be used as it is
    puts the points in order of importance
    answers the question behind the question
    sums up in a sentence what was found
    keeps facts apart from opinions
""".strip().splitlines()
INSTRUCTION_QUALITIES = """
    states who asks and what for
    sets a limit that the answer has to keep to
    asks for one thing only
    gives all that is needed to answer it
    calls for a comparison of two things
    names the form that the answer should have
    asks for reasons and not only for facts
    describes a situation with details
    calls for several steps that build on each other
""".strip().splitlines()
# Few references are good in just the same way.
MANNERS = """
    in the first paragraph already
    wherever the reader could go wrong
    before any detail is given
    without being asked for it
    and keeps to it until the end
    so that the reader can check it
    in words that need no training
    once, and not again
    for the case that was asked about
    and for one that was not
    even where it costs a few words more
    at the place where it is needed
    and says so openly
    in the order in which it is done
    with care for who is reading
    as far as the question calls for it
""".strip().splitlines()
_HOW_MANY = re.compile(r"Asked for: (\d+)")
_CRITERION = re.compile(r'<criterion(?:-\w+)? id="([^"]+)"')
_NUMBERED = re.compile(r'<(instruction(?:-\w+)?) number="(\d+)">\n(.*?)\n</\1>', re.DOTALL)


def last(prompt: str, tag: str) -> str:
    """What stands between the last tags of a name."""
    begin = max(prompt.rfind(f"<{tag}>\n"), prompt.rfind(f"<{tag}-"))
    if begin < 0:
        return ""
    body = prompt.index(">\n", begin) + 2
    return prompt[body : prompt.find(f"\n</{tag}", body)]


def quote(draw: random.Random, text: str) -> str:
    """Five to fifteen words of a text, exactly as they stand there."""
    line = max(text.splitlines() or [""], key=len)
    words = line.split(" ")
    at = draw.randint(0, max(len(words) - 15, 0))
    return " ".join(words[at : at + draw.randint(5, 15)])


class ScriptedRun:
    """Says what a model would; see the module."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, prompt: str, shape: dict[str, Any] | None) -> str:
        """The answer to a prompt: JSON where a shape is asked for, else plain text."""
        draw = random.Random(zlib.crc32(prompt.encode()))
        keys = (shape or {}).get("properties", {})
        if "characteristics" in keys:
            answer = self._extract(prompt, draw, "instruction_characteristics" in keys)
        elif "verdicts" in keys:
            answer = self._critique(prompt, draw)
        elif "number" in json.dumps(shape):
            answer = self._screen(prompt, draw)
        elif "instructions" in keys:
            answer = self._propose(prompt, draw)
        else:
            plan = f"<plan>\n{prose.sentences(draw, 30)}\n</plan>\n" if "<verdict" in prompt else ""
            return plan + prose.response(draw)
        return json.dumps(answer)

    def _extract(self, prompt: str, draw: random.Random, screens: bool) -> dict[str, Any]:
        instruction, response = last(prompt, "instruction"), last(prompt, "response")
        self._known[instruction] = response
        answer: dict[str, Any] = {
            "subject_areas": [" ".join(prose.words(draw, 2)) for _ in range(2)],
            "relevant_skills": [" ".join(prose.words(draw, 3)) for _ in range(3)],
            "characteristics": [
                {
                    "text": f"{text.strip()} {draw.choice(MANNERS).strip()}",
                    "quote": quote(draw, response),
                    "must": i < 2,
                }
                for i, text in enumerate(draw.sample(QUALITIES, 5))
            ],
        }
        if screens:
            answer["instruction_characteristics"] = [
                {"text": text.strip(), "quote": quote(draw, instruction), "must": i < 1}
                for i, text in enumerate(draw.sample(INSTRUCTION_QUALITIES, 3))
            ]
        return answer

    def _propose(self, prompt: str, draw: random.Random) -> dict[str, Any]:
        match = _HOW_MANY.search(prompt)
        texts = [prose.instruction(draw) for _ in range(int(match.group(1)) if match else 1)]
        originals = list(texts)
        for i in range(1, len(texts)):
            if draw.random() < ALIKE:
                texts[i] = prose.edited(draw, draw.choice(originals[:i]))
        return {"instructions": texts}

    def _screen(self, prompt: str, draw: random.Random) -> dict[str, Any]:
        ids = _CRITERION.findall(prompt)
        instructions = []
        for _, number, text in _NUMBERED.findall(prompt):
            # Without a seed it is a trial: only an instruction that was studied is a good one.
            trial = "<seed" not in prompt
            passed = text in self._known if trial else draw.random() >= SCREENED_OUT
            verdicts = [self._verdict(id_, passed, text, draw) for id_ in ids]
            instructions.append({"number": int(number), "verdicts": verdicts})
        return {"instructions": instructions}

    def _critique(self, prompt: str, draw: random.Random) -> dict[str, Any]:
        response = last(prompt, "response")
        own = self._known.get(last(prompt, "instruction"))
        # By the text, not by the call: asked again it says the same.
        lot = random.Random(zlib.crc32(response.encode())).random()
        passed = response == own if own is not None else lot >= FAIL
        ids = _CRITERION.findall(prompt)
        return {"verdicts": [self._verdict(id_, passed, response, draw) for id_ in ids]}

    def _verdict(self, id_: str, passed: bool, text: str, draw: random.Random) -> dict[str, str]:
        return {
            "criterion_id": id_,
            "reason": prose.sentences(draw, 20),
            "evidence": quote(draw, text),
            "verdict": "pass" if passed else "fail",
        }
