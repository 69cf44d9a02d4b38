"""What a run may take, in calls, tokens and dollars, worked out before any call is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from memory.references import Reference
from nodes.criteria import GENERIC
from nodes.state import Usage
from refloom.data.read import Report
from refloom.runs.estimated import TOKENS, WAYS
from refloom.runs.prices import Prices
from refloom.runs.sizes import Assumptions, Size, size_of, sizes, some, studied
from refloom.settings import Settings

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
