"""The trial of a person's criteria: on references that they apply to, and on spoiled responses.

It is told and kept. A person's criterion is neither dropped nor demoted by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import reduce
from typing import Any

from memory.characteristics import Characteristics, Learned
from memory.references import Reference, content_id, reference_hash
from nodes.context import Context
from nodes.llm import CallFailed, CallOrigin, Complete
from nodes.own_criteria import MAX_EXAMPLES, Chosen, OwnCriteria, OwnCriterion, fault_of
from nodes.state import Criterion, Seed, Trial, Usage, Verdict, add_usage, no_usage
from nodes.trial import corruptions, judge_own_and_spoiled, midpoint
from nodes.verdicts import passes
from prompts import prompt_version

_Verdicts = dict[str, Verdict]


async def try_own_criteria(
    known: OwnCriteria,
    seed: Seed,
    references: Sequence[Reference],
    given: Sequence[OwnCriterion],
    *,
    context: Context,
    complete: Complete,
    characteristics: Characteristics,
    store: Any = None,
) -> list[Criterion]:
    """The criteria of a seed's responses, as `known` selects them, each judge one with its trial.

    Criteria that hold for the same seeds are tried together, once ever. They stay what the
    person said, whatever comes of it; by log-odds each gets its bar. Raises `CallFailed`.
    """
    chosen = [one for one in known.choose(seed, references, given) if one.of == "response"]
    groups: dict[str, list[Chosen]] = {}
    for one in chosen:
        if one.criterion["judged_by"] == "judge" and one.examples:
            groups.setdefault(one.group, []).append(one)
    tried: dict[str, Criterion] = {}
    origin = CallOrigin("", "", (seed.get("round", 0), seed.get("position", 0)))
    for name, group in groups.items():
        criteria = [one.criterion for one in group]
        examples = sorted(group[0].examples, key=reference_hash)[:MAX_EXAMPLES]
        entry = await recall_trial(
            name, criteria, examples, context, origin, complete, characteristics, store
        )
        for criterion in criteria:
            tried[criterion["id"]] = {**criterion, **entry["criteria"][criterion["id"]]}
            warning = warning_of(tried[criterion["id"]])
            if warning is not None:
                known.warn(warning)
    return [tried.get(one.criterion["id"], one.criterion) for one in chosen]


def warning_of(criterion: Criterion) -> str | None:
    """The sentence to tell about a criterion that references fail."""
    trial = criterion.get("trial")
    if not trial or trial["own"] >= trial["references"]:
        return None
    words = criterion["quote"] or criterion["text"]
    failed, n = trial["references"] - trial["own"], trial["references"]
    return f'criterion "{words}": fails on {failed} of {n} of your references'


async def recall_trial(
    group: str,
    criteria: Sequence[Criterion],
    examples: Sequence[Reference],
    context: Context,
    origin: CallOrigin,
    complete: Complete,
    characteristics: Characteristics,
    store: Any = None,
) -> Learned:
    """The trial of criteria on references, made now if it is not stored: `bar` and `trial` by id.

    `group` names them in the source of their calls. Raises `CallFailed`.
    """
    key = content_id(
        "own criteria",
        *(part for c in criteria for part in (c["id"], c["text"], str(c.get("weight")))),
        *map(reference_hash, examples),
        prompt_version("critique", "question", edited=context.edited),
        context.judge_model or context.model,
        context.method,
        str(context.criteria_per_call),
    )

    async def make() -> Learned:
        source = CallOrigin(f"criteria of {group}", "", origin.order)
        return await _try_together(criteria, examples, context, source, complete)

    return await characteristics.load(key, make, store)


async def _try_together(
    criteria: Sequence[Criterion],
    examples: Sequence[Reference],
    context: Context,
    origin: CallOrigin,
    complete: Complete,
) -> Learned:
    """Judge the examples' own responses and spoiled ones by the criteria."""

    async def try_on(reference: Reference) -> tuple[list[_Verdicts | None], Usage] | CallFailed:
        source = CallOrigin(f"{origin.source}, {reference['id']}", "", origin.order)
        try:
            return await judge_own_and_spoiled(complete, context, source, reference, criteria)
        except CallFailed as error:
            return error

    results = await asyncio.gather(*map(try_on, examples))
    for result in results:
        if isinstance(result, CallFailed):
            usages = [r.usage if isinstance(r, CallFailed) else r[1] for r in results]
            result.usage = reduce(add_usage, usages, no_usage())
            raise result
    judged = [result[0] for result in results if not isinstance(result, CallFailed)]
    return {"criteria": {c["id"]: _trial_of(c, judged, examples) for c in criteria}}


def _trial_of(
    criterion: Criterion, judged: Sequence[list[_Verdicts | None]], examples: Sequence[Reference]
) -> dict[str, Any]:
    """The bar and the trial of a criterion; responses that nobody would judge do not count.

    The bar is halfway between own and spoiled scores. A pitfall's is halfway between own scores and
    even odds, since spoiled responses do not have the fault either.
    """
    id_ = criterion["id"]
    own: list[Verdict] = []
    spoiled: dict[str, list[Verdict]] = {}
    for reference, (first, *others) in zip(examples, judged, strict=True):
        if first is not None:
            own.append(first[id_])
        names = corruptions(reference["instruction"], reference["response"])
        for name, verdicts in zip(names, others, strict=True):
            if verdicts is not None:
                spoiled.setdefault(name, []).append(verdicts[id_])
    scores = [v["score"] for v in own if v["score"] is not None]
    worse = [v["score"] for vs in spoiled.values() for v in vs if v["score"] is not None]
    if fault_of(criterion) is not None:
        worse = [0.0]
    bar = midpoint(sum(scores) / len(scores), worse) if scores else None

    def passed(verdict: Verdict) -> bool:
        if bar is None or verdict["score"] is None:
            return passes(verdict)
        return verdict["score"] > bar

    trial: Trial | None = None
    if own:
        trial = {
            "references": len(own),
            "own": sum(map(passed, own)),
            "spoiled": {name: sum(map(passed, verdicts)) for name, verdicts in spoiled.items()},
        }
    return {"bar": bar, "trial": trial}
