"""A model in this process of which everything is known: what its answers are truly worth.

It stands behind refloom's own seam for model calls. Drafts are good with a given probability,
refinements mend with another, and its judge errs with a third; every draw follows from the call's
own seed, so that a run made again is the same run.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np

from nodes.criteria import ANSWERS_ID
from nodes.llm import Call, Reply

# Texts of the lengths of LIMA's pairs and of what a model of today writes; four letters a token.
INSTRUCTION_WORDS, RESPONSE_WORDS, REASON_WORDS, EVIDENCE_WORDS = 35, 330, 18, 10
LETTERS_A_TOKEN = 4
SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu".split()  # noqa: SIM905
VOCABULARY = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]
QUALITIES = [
    *("gives a reason for every claim", "closes with a short summary"),
    *("explains each step before the next", "begins with the main answer"),
    *("compares two ways of doing it", "warns of a common mistake"),
    *("keeps a friendly and calm tone", "uses short sentences throughout"),
]


@dataclass(frozen=True)
class World:
    """The probabilities: a draft is good, a refinement mends a bad response or spoils a good one,
    the judge errs, and a bad response shows it plainly enough for a rule to see.
    """

    passes: float
    mends: float = 0.6
    spoils: float = 0.0
    errs: float = 0.1
    plain: float = 0.25
    seed: int = 0


def drawn(*parts: object) -> float:
    """A number from 0 to 1 that the same parts always give."""
    digest = sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def words(n: int, *parts: object) -> str:
    """Sentences of n words in all; the same parts give the same ones."""
    chosen = random.Random("\x1f".join(map(str, parts))).choices(VOCABULARY, k=n)
    sentences = (" ".join(chosen[i : i + 12]) for i in range(0, n, 12))
    return ". ".join(s.capitalize() for s in sentences) + "."


def make_references(n: int) -> list[dict[str, str]]:
    """Made-up pairs, no two alike."""
    return [
        {
            "id": f"r{i}",
            "instruction": words(INSTRUCTION_WORDS, "ask", i),
            "response": words(RESPONSE_WORDS, "say", i),
        }
        for i in range(n)
    ]


def tagged(prompt: str, tag: str) -> list[str]:
    """What stands between a prompt's tags of a name, suffixed or not."""
    pairs = re.findall(rf"<({tag}(?:-\w+)?)(?: [^>]*)?>\n(.*?)\n</\1>", prompt, re.DOTALL)
    return [text for _, text in pairs]


def criterion_ids(prompt: str) -> list[str]:
    """The ids of the criteria that a prompt asks about."""
    return re.findall(r'<criterion(?:-\w+)? id="([^"]+)"', prompt)


def numbered_instructions(prompt: str) -> list[tuple[int, str]]:
    """The instructions that a prompt numbers."""
    pattern = r'<(instruction(?:-\w+)?) number="(\d+)">\n(.*?)\n</\1>'
    return [(int(n), text) for _, n, text in re.findall(pattern, prompt, re.DOTALL)]


def verdict_on(text: str, id_: str, passed: bool, *parts: object) -> dict[str, str]:
    """A verdict with a quote of the text, and a reason that follows from the parts."""
    return {
        "criterion_id": id_,
        "reason": words(REASON_WORDS, *parts, id_),
        "evidence": " ".join(text.split()[:EVIDENCE_WORDS]),
        "verdict": "pass" if passed else "fail",
    }


async def embed(texts: Sequence[str]) -> np.ndarray:
    """Vectors without a model: those of different texts have nothing to do with each other."""
    drawn_vectors = [
        np.random.default_rng(list(sha256(t.encode()).digest()[:8])).normal(size=32) for t in texts
    ]
    vectors = np.array(drawn_vectors, np.float32).reshape(len(texts), 32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class KnownModel:
    """A `Complete` that keeps what it was asked, by part of the pipeline, and what is truly good.

    `used` has calls and tokens a part; a judge's calls on references are the part "trial". `judged`
    counts how often a response was put to the judge, `refined` how often an instruction's was.
    """

    def __init__(self, world: World, references: Sequence[dict[str, str]]) -> None:
        self.world = world
        self._own = {r["instruction"]: r["response"] for r in references}
        self.good: dict[str, bool] = {}
        self.used: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.judged: Counter[str] = Counter()
        self.refined: Counter[str] = Counter()

    async def __call__(self, call: Call) -> Reply:
        """Answer a call; see `nodes.llm.Complete`."""
        await asyncio.sleep(0)
        prompt = "\n".join(m["content"] for m in call.messages)
        part, answer = getattr(self, f"_{call.stage}")(
            prompt, partial(drawn, self.world.seed, call.seed)
        )
        text = answer if isinstance(answer, str) else json.dumps(answer)
        tokens = {
            "prompt_tokens": len(prompt) // LETTERS_A_TOKEN,
            "completion_tokens": len(text) // LETTERS_A_TOKEN,
        }
        self.used[part].update({"calls": 1, **tokens})
        return Reply(text, "stop", {"calls": 1, "cached_tokens": 0, **tokens})

    def _extract(self, prompt: str, draw: Any) -> tuple[str, dict[str, Any]]:
        response = tagged(prompt, "response")[-1].split()
        chosen = random.Random(draw("qualities")).sample(QUALITIES, 4)
        quotes = (" ".join(response[i * 20 : i * 20 + EVIDENCE_WORDS]) for i in range(4))
        texts = zip(chosen, quotes, strict=True)
        return "extract", {
            "subject_areas": ["one field", "another field"],
            "relevant_skills": ["one skill", "another skill"],
            "characteristics": [{"text": t, "quote": q, "must": True} for t, q in texts],
        }

    def _propose(self, prompt: str, draw: Any) -> tuple[str, dict[str, Any]]:
        count = int(re.findall(r"(\d+) instructions", prompt)[0])
        instructions = [words(INSTRUCTION_WORDS, draw("propose"), i) for i in range(count)]
        return "propose", {"instructions": instructions}

    def _screen(self, prompt: str, draw: Any) -> tuple[str, dict[str, Any]]:
        ids = criterion_ids(prompt)
        return "screen", {
            "instructions": [
                {
                    "number": number,
                    "verdicts": [verdict_on(text, id_, True, draw("reason")) for id_ in ids],
                }
                for number, text in numbered_instructions(prompt)
            ]
        }

    def _generate(self, prompt: str, draw: Any) -> tuple[str, str]:
        return "generate", self._written(draw, draw("good") < self.world.passes)

    def _refine(self, prompt: str, draw: Any) -> tuple[str, str]:
        self.refined[tagged(prompt, "instruction")[-1]] += 1
        was = self.good[tagged(prompt, "response")[-1]]
        good = draw("spoils") >= self.world.spoils if was else draw("mends") < self.world.mends
        plan = "\n".join(words(REASON_WORDS, draw("plan"), i) for i in range(2))
        return "refine", f"<plan>\n{plan}\n</plan>\n{self._written(draw, good)}"

    def _answer(self, prompt: str, draw: Any) -> tuple[str, str]:
        thoughts = words(REASON_WORDS, draw("thoughts"))
        good = draw("good") < self.world.passes
        return "answer", f"<think>\n{thoughts}\n</think>\n{self._written(draw, good)}"

    def _written(self, draw: Any, good: bool) -> str:
        """A response whose truth is kept; some bad ones stop in mid-sentence."""
        text = words(RESPONSE_WORDS, draw("response"))
        if not good and draw("plain") < self.world.plain:
            text = text.rstrip(".") + " and the"
        self.good[text] = good
        return text

    def _critique(self, prompt: str, draw: Any) -> tuple[str, dict[str, Any]]:
        instruction, response = tagged(prompt, "instruction")[-1], tagged(prompt, "response")[-1]
        trial = instruction in self._own
        if trial:
            passed = response == self._own[instruction]
        else:
            self.judged[response] += 1
            # By the text, not by the call: asked about the same response it says the same.
            errs = drawn(self.world.seed, response, "errs") < self.world.errs
            passed = self.good[response] != errs
        ids = criterion_ids(prompt)
        # What is wanting shows in the built-in criterion and, by lot, in half of the others.
        failed = {i for i in ids if not passed and (trial or i == ANSWERS_ID or draw(i) < 0.5)}
        reason = draw("reason")
        verdicts = [verdict_on(response, id_, id_ not in failed, reason) for id_ in ids]
        return "trial" if trial else "critique", {"verdicts": verdicts}
