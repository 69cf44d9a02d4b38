"""What a run may take, in calls, tokens and dollars, worked out before any call is made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import fmean
from typing import Any

from memory.references import Reference
from nodes.criteria import GENERIC
from nodes.feedback import Feedback
from nodes.generate import Generated
from nodes.judge import Critiqued
from nodes.learn import MOST, Extracted, whole
from nodes.llm import Answer
from nodes.llm.protocol import schema_of
from nodes.propose import Proposed
from nodes.refine import Refined
from nodes.state import Usage
from nodes.trial import spoiled
from prompts import Message, render
from refloom.data.read import Report
from refloom.runs.cost import Prices
from refloom.settings import Settings

# MERGED refloom~runs~estimated
# An estimate for people.
WAYS = ("low", "expected", "high")
TOKENS = ("calls", "prompt_tokens", "completion_tokens")


def shown(estimated: Mapping[str, Any]) -> str:
    """An estimate for people, as plain text."""
    lines = ["dry run: no call is made and nothing is written", ""]
    for name in ("references", "seeds"):
        said = estimated[name]
        lines.append(f"{name}: {said['taken']:,} taken, {said['left_out']:,} left out")
    lines += ["", "settings:"]
    lines += [f"  {k} = {json.dumps(v)}" for k, v in estimated["settings"].items()]
    for name in WAYS:
        way = estimated[name]
        lines += ["", f"{name}: {way['candidates']:,} candidates, {way['accepted']:,} accepted"]
        lines.append(f"  {'stage':<10}{'calls':>12}{'prompt':>16}{'completion':>16}  dollars")
        named = [*way["by_stage"].items(), ("total", way["total"])]
        lines += [_row(stage, part) for stage, part in named if part["calls"]]
    lines += ["", "assumed:"]
    for name, one in estimated["assumptions"].items():
        lines.append(f"  {name} = {json.dumps(one['value'])}: {one['why']}")
    return "\n".join(lines)


def _row(stage: str, part: Mapping[str, Any]) -> str:
    calls, prompt, completion = (part[key] for key in TOKENS)
    cost = "unknown" if part["cost_usd"] is None else f"${part['cost_usd']:,.4f}"
    model = f"  {json.dumps(part['model'])}" if "model" in part else ""
    return f"  {stage:<10}{calls:>12,}{prompt:>16,}{completion:>16,}  {cost}{model}"


# MERGED refloom~runs~sizes
# How long the calls of each stage are: real prompts rendered on the user's own references.
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
    drawn = _sample_criteria(criteria, assume)[1:] if shown else []
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
        criteria=_sample_criteria(criteria, assume),
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
    every = _sample_criteria(criteria, assume)
    found = {"reason": "x" * assume.reason_bytes, "evidence": "x" * assume.evidence_bytes}
    verdicts = [{"criterion_id": c["id"], **found, "verdict": "pass"} for c in every]
    asking = render(
        "critique", history=[], criteria=every, instruction=instruction, response=response
    )
    return _size(asking, Critiqued, {"verdicts": verdicts})


def _sample_criteria(count: int, assume: Assumptions) -> list[dict[str, str]]:
    return [{"id": f"c{i:08}", "text": "x" * assume.criterion_bytes} for i in range(count)]


STAGES = ("extract", "propose", "generate", "critique", "refine", "feedback")
TRIED = 4
WHY = {
    "tokens_per_byte": "about what English takes, a character being a byte; other scripts differ",
    "attempts_passing": "share of attempts that pass, a guess; a run with --limit 20 tells",
    "characteristics": "kept of a reference, of the three or four asked for",
    "criterion_bytes": "length of a criterion",
    "reason_bytes": "length of a verdict's reason",
    "evidence_bytes": "length of a verdict's evidence, and of a characteristic's quote",
    "verdicts_fed_back": "failed verdicts that a refinement is told of",
    "phrase_bytes": "length of a skill, a field, or a step of a plan",
    "reference_instruction_bytes": "mean of the references measured",
    "reference_response_bytes": "mean of the references measured; new responses are as long",
    "seed_bytes": "mean of the seeds measured; new instructions are as long",
    "references_used": "the smaller of the references and seeds * references_per_seed",
    "responses_tried": "of each reference used: its own response and three spoiled ones",
    "calls_a_trial": "for a response tried: 1 by verdict, 1 a criterion by log-odds",
    "judge_criteria": "a response is judged by, the built-in one among them",
    "calls_a_critique": "for an attempt: 1 by verdict, 1 a criterion by log-odds",
    "attempts": "a candidate, when attempts_passing of them pass; 1 in low, max_attempts in high",
    "accepted_share": "of candidates, by attempts_passing and max_attempts; all of them in low. "
    "With a target, a run that accepts fewer goes on to max_candidates",
    "seeds_ahead": "proposed for beyond what a target needs, at most; none in low",
    "cached_tokens": "no discount by an endpoint's prefix cache is counted on",
    "asked_again": "every answer can be read; no call is made twice",
    "duplicates": "every proposed instruction is new",
    "reasoning_tokens": "a model that thinks before it answers bills more completion tokens",
    "known_already": "calls that a journal or a memory would save",
    "schemas_unbilled": "an answer's JSON schema is billed with its prompt",
}


def estimate(
    settings: Settings,
    references: Report,
    seeds: Report,
    sample: Sequence[Reference],
    prices: Prices,
    *,
    seed_texts: Sequence[str] = (),
    assume: Assumptions | None = None,
) -> dict[str, Any]:
    """Estimate a run by stage: `low` if every draft passes at once, `expected`, and `high`.

    `high` takes `max_attempts` for every candidate. Prompts are measured on `sample`, references
    of which there is at least one, and `seed_texts` (default: the references' instructions).
    `cost_usd` is None where a price is unknown. All of the result is plain JSON.
    """
    assume = assume or Assumptions()
    measured = some(sample)
    texts = some(seed_texts or [r["instruction"] for r in sample])
    facts = _facts(settings, references.taken, measured, texts, assume)
    sized = sizes(settings, measured, texts, facts["judge_criteria"], assume)
    fewest = facts["attempts"] if settings.context().once else 1.0
    once = {**facts, "attempts": fewest, "accepted_share": 1.0, "seeds_ahead": 0}
    most = facts if facts["attempts"] == fewest else {**facts, "attempts": settings.max_attempts}
    found = {}
    for name, way in zip(WAYS, (once, facts, most), strict=True):
        made = _made(settings, references.taken, seeds.taken, way)
        found[name] = made | _paid(settings, _calls(settings, made, way), sized, prices, assume)
    facts["references_used"] = found["expected"]["references_used"]
    values = {**asdict(assume), **facts}
    return {
        "references": _read(references) | {"measured": len(measured)},
        "seeds": _read(seeds) | {"measured": len(texts)},
        "settings": _effective(settings),
        **found,
        "assumptions": {k: {"value": values.get(k, 0), "why": why} for k, why in WHY.items()},
    }


def _read(report: Report) -> dict[str, Any]:
    return {
        "taken": report.taken,
        "left_out": report.skipped_count,
        "shapes": dict(report.shapes),
    }


def _effective(settings: Settings) -> dict[str, Any]:
    """The settings with what follows from others filled in."""
    return settings.shown() | {
        "judge_model": settings.judge,
        "judge_method": settings.context().method,
        "concurrency": settings.calls_at_once,
        "max_candidates": settings.most_candidates,
    }


def _facts(
    settings: Settings,
    references: int,
    measured: Sequence[Reference],
    texts: Sequence[str],
    assume: Assumptions,
) -> dict[str, Any]:
    """What follows from settings, data and assumptions, for one candidate, turn or trial."""
    context = settings.context()
    by_odds = context.method == "logodds"
    criteria = _criteria(settings, references, assume)
    passing, most = assume.attempts_passing, settings.max_attempts
    if not criteria:
        passing, most = 1.0, 1
    failing = 1 - passing
    attempts = sum(failing**i for i in range(most))
    own = assume.characteristics if studied(settings) else 0
    tried = settings.try_criteria and (studied(settings) or settings.feedback == "generic")
    return {
        "reference_instruction_bytes": round(fmean(size_of(r["instruction"]) for r in measured)),
        "reference_response_bytes": round(fmean(size_of(r["response"]) for r in measured)),
        "seed_bytes": round(fmean(map(size_of, texts))),
        "responses_tried": TRIED if tried else 0,
        "calls_a_trial": 1 + own if by_odds else 1,
        "judge_criteria": criteria,
        "calls_a_critique": criteria if by_odds else min(criteria, 1),
        "attempts": min(2, settings.max_attempts) if context.once else attempts,
        "accepted_share": 1 - failing**most,
        "seeds_ahead": settings.seeds_at_once(settings.target) - 1,
    }


def _criteria(settings: Settings, references: int, assume: Assumptions) -> int:
    """By how many criteria the judge judges a response."""
    if settings.pipeline == "refed" or settings.feedback in ("none", "sample"):
        return 0
    if settings.feedback == "generic":
        return 1 + len(GENERIC)
    drawn = assume.characteristics * _a_seed(settings, references)
    return 1 + min(settings.max_criteria, drawn)


def _a_seed(settings: Settings, references: int) -> int:
    return min(settings.references_per_seed, references)


def _studied(settings: Settings, references: int) -> int:
    """How many references are learned from for a seed, at most."""
    if settings.pipeline == "refed":
        return 1
    return _a_seed(settings, references) * (2 if settings.feedback == "swapped" else 1)


def _made(
    settings: Settings, references: int, seeds: int, facts: Mapping[str, Any]
) -> dict[str, int]:
    """How many candidates and rows are made, of how many seeds' turns and references."""
    a_seed = 1 if settings.answer_seeds else settings.per_seed
    most_turns = math.inf if settings.target and not settings.answer_seeds else seeds
    wanted = math.inf
    if settings.target:
        wanted = math.ceil(settings.target / max(facts["accepted_share"], 1e-9) - 1e-9)
    candidates = min(wanted, most_turns * a_seed, settings.most_candidates or math.inf)
    turns = int(min(most_turns, math.ceil(candidates / a_seed) + facts["seeds_ahead"]))
    accepted = round(candidates * facts["accepted_share"])
    return {
        "candidates": int(candidates),
        "accepted": min(accepted, settings.target or accepted),
        "turns": turns,
        "references_used": min(references, min(turns, seeds) * _studied(settings, references)),
    }


def _calls(settings: Settings, made: Mapping[str, int], facts: Mapping[str, Any]) -> dict[str, int]:
    attempts = math.ceil(made["candidates"] * facts["attempts"])
    used = made["references_used"]
    refed = settings.pipeline == "refed"
    asks = min(2, settings.per_seed) if refed else 1
    told = 2 * used if refed else made["candidates"] if settings.feedback == "sample" else 0
    return {
        "extract": used if studied(settings) else 0,
        "trial": used * facts["responses_tried"] * facts["calls_a_trial"],
        "propose": 0 if settings.answer_seeds else made["turns"] * asks,
        "feedback": told,
        "generate": made["candidates"],
        "critique": attempts * facts["calls_a_critique"],
        "refine": attempts - made["candidates"],
    }


def _paid(
    settings: Settings,
    calls: Mapping[str, int],
    sized: Mapping[str, Size],
    prices: Prices,
    assume: Assumptions,
) -> dict[str, Any]:
    """Calls, tokens and dollars by stage and in total."""
    by_stage: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        kinds = ("trial", "critique") if stage == "critique" else (stage,)
        prompt, completion = (
            math.ceil(sum(calls[k] * sized[k][part] for k in kinds) * assume.tokens_per_byte)
            for part in (0, 1)
        )
        model = settings.judge if stage in ("critique", "feedback") else settings.model
        usage: Usage = {
            "calls": sum(calls[k] for k in kinds),
            "prompt_tokens": prompt,
            "cached_tokens": 0,
            "completion_tokens": completion,
        }
        cost = prices.cost(model, usage) if usage["calls"] else 0.0
        by_stage[stage] = {"model": model, **usage, "cost_usd": cost}
    total: dict[str, Any] = {k: sum(s[k] for s in by_stage.values()) for k in TOKENS}
    costs = [s["cost_usd"] for s in by_stage.values()]
    total["cost_usd"] = None if None in costs else sum(costs)
    return {"by_stage": by_stage, "total": total}
