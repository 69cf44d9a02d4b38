"""How long the calls of each stage are: real prompts rendered on the user's own references."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

from memory.references import Reference
from nodes.feedback import Feedback
from nodes.generate import Generated
from nodes.judge import Critiqued
from nodes.learn import MOST, Extracted, whole
from nodes.llm import Answer
from nodes.llm.protocol import schema_of
from nodes.propose import Proposed
from nodes.refine import Refined
from nodes.trial import spoiled
from prompts import Message, render
from refloom.settings import Settings

MEASURED = 50
# Bytes of prompt and of completion.
Size = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What no file tells before a run: shares, counts, and lengths in bytes of UTF-8."""

    tokens_per_byte: float = 0.25
    attempts_passing: float = 0.5
    characteristics: int = 3
    criterion_bytes: int = 70
    reason_bytes: int = 150
    evidence_bytes: int = 80
    verdicts_fed_back: int = 1
    phrase_bytes: int = 25


def studied(settings: Settings) -> bool:
    """Whether references are studied for their characteristics."""
    return settings.pipeline == "loop" and whole(settings.context())


def some(items: Sequence[Any]) -> list[Any]:
    """Fifty to a hundred of the items, evenly spread, or all when there are fewer."""
    return list(islice(items, 0, None, max(1, len(items) // MEASURED)))


def size_of(text: str) -> int:
    """The bytes of a text."""
    return len(text.encode("utf-8", "replace"))


def sizes(
    settings: Settings,
    references: Sequence[Reference],
    seeds: Sequence[str],
    criteria: int,
    assume: Assumptions,
) -> dict[str, Size]:
    """The mean size of a call of each stage, and of a `trial`'s, which is a critique too.

    `criteria` is by how many a new response is judged. New instructions are taken to be as long
    as the seeds, new responses as the references'.
    """
    pairs = [(seed, references[i % len(references)]) for i, seed in enumerate(seeds)]
    near = references[: settings.references_per_seed]
    writing = [_writing(settings, *pair, near, criteria, assume) for pair in pairs]
    learning = [_learning(settings, reference, assume) for reference in references]
    judging = [_judged(settings, seed, r["response"], criteria, assume) for seed, r in pairs]
    return _mean(writing) | _mean(learning) | _mean([{"critique": size} for size in judging])


def _mean(found: Sequence[dict[str, Size]]) -> dict[str, Size]:
    return {k: (fmean(f[k][0] for f in found), fmean(f[k][1] for f in found)) for k in found[0]}


def _size(messages: Sequence[Message], shape: type[Answer], answer: Any) -> Size:
    prompt = sum(size_of(m["content"]) for m in messages) + size_of(json.dumps(schema_of(shape)))
    return prompt, size_of(json.dumps(answer, ensure_ascii=False))


def _writing(
    settings: Settings,
    seed: str,
    reference: Reference,
    near: Sequence[Reference],
    criteria: int,
    assume: Assumptions,
) -> dict[str, Size]:
    """The calls that write, for one seed."""
    shown = studied(settings) and not settings.paired
    drawn = _criteria(criteria, assume)[1:] if shown else []
    phrases = ["x" * assume.phrase_bytes] * (4 if studied(settings) else 0)
    proposing = render(
        "propose",
        count=settings.per_seed,
        seed=seed,
        references=near,
        subject_areas=phrases,
        relevant_skills=phrases,
        avoid=[],
    )
    generating = render("generate", reference=reference, criteria=drawn, instruction=seed)
    told = "x" * (assume.criterion_bytes + assume.reason_bytes + assume.evidence_bytes)
    refining = render(
        "refine",
        criteria=_criteria(criteria, assume),
        instruction=seed,
        response=reference["response"],
        failed=[{"criterion_id": "c" * 9, "text": told}] * assume.verdicts_fed_back,
    )
    plan = ["x" * assume.phrase_bytes] * assume.verdicts_fed_back
    response = {"response": reference["response"]}
    return {
        "propose": _size(proposing, Proposed, {"instructions": [seed] * settings.per_seed}),
        "generate": _size(generating, Generated, response),
        "refine": _size(refining, Refined, {"plan": plan, **response}),
    }


def _learning(settings: Settings, reference: Reference, assume: Assumptions) -> dict[str, Size]:
    """The call that studies a reference, and the mean one that tries what it brought."""
    phrases = ["x" * assume.phrase_bytes] * 3
    quality = {
        "text": "x" * assume.criterion_bytes,
        "quote": "x" * assume.evidence_bytes,
        "must": True,
    }
    answer = {
        "subject_areas": phrases,
        "relevant_skills": phrases,
        "characteristics": [quality] * MOST,
    }
    asking = render("extract", reference=reference, most=MOST, avoid=[])
    own = assume.characteristics if studied(settings) else 0
    instruction, response = reference["instruction"], reference["response"]
    tried = [
        _judged(settings, instruction, text, 1 + own, assume)
        for text in (response, *spoiled(instruction, response).values())
    ]
    points = {"feedback": ["x" * assume.reason_bytes] * MOST}
    reviewing = render("feedback", instruction=instruction, response=response)
    return {
        "extract": _size(asking, Extracted, answer),
        "feedback": _size(reviewing, Feedback, points),
        "trial": (fmean(t[0] for t in tried), fmean(t[1] for t in tried)),
    }


def _judged(
    settings: Settings, instruction: str, response: str, criteria: int, assume: Assumptions
) -> Size:
    """One call of a judge: all criteria by verdict, one of them and one token by log-odds."""
    if settings.context().method == "logodds":
        text = "x" * assume.criterion_bytes
        asking = render(
            "question", history=[], instruction=instruction, response=response, text=text
        )
        return sum(size_of(m["content"]) for m in asking), 1 / assume.tokens_per_byte
    every = _criteria(criteria, assume)
    found = {"reason": "x" * assume.reason_bytes, "evidence": "x" * assume.evidence_bytes}
    verdicts = [{"criterion_id": c["id"], **found, "verdict": "pass"} for c in every]
    asking = render(
        "critique", history=[], criteria=every, instruction=instruction, response=response
    )
    return _size(asking, Critiqued, {"verdicts": verdicts})


def _criteria(count: int, assume: Assumptions) -> list[dict[str, str]]:
    return [{"id": f"c{i:08}", "text": "x" * assume.criterion_bytes} for i in range(count)]
