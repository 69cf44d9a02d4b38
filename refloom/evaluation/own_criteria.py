"""A file of a person's criteria, tried on references without making a row."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory.characteristics import Characteristics, open_store
from memory.references import Reference, distinct
from nodes.llm import CallFailed, CallOrigin, Complete
from nodes.own_criteria import MAX_EXAMPLES, OwnCriteria, OwnCriterion, group_of
from nodes.own_trial import recall_trial, warning_of
from nodes.state import Criterion
from refloom.data.read import Source
from refloom.evaluation.judging import judge_session
from refloom.settings import Settings


async def check_criteria(
    criteria: Sequence[OwnCriterion],
    references: Source,
    settings: Settings,
    complete: Complete | None = None,
) -> dict[str, Any]:
    """Try each criterion of responses for the judge, as a run would. Returns plain JSON.

    What is paid for is kept in the memory that the settings name, and a run with the same finds it
    there. `complete` replaces the endpoint. Raises what `judge_session` raises.
    """
    known = OwnCriteria(criteria)
    counts, examples = await asyncio.to_thread(_look_at, known, references)
    groups: dict[str, list[Criterion]] = {}
    for own in criteria:
        if own["of"] == "response" and own["criterion"]["judged_by"] == "judge":
            groups.setdefault(group_of(own), []).append(own["criterion"])
    context = settings.context()
    tried: dict[str, Any] = {}
    failed: dict[str, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        # Its journal is of use to this command alone.
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        client = await stack.enter_async_context(judge_session(Path(folder), settings, complete))
        store = None
        if settings.memory is not None:
            await asyncio.to_thread(settings.memory.mkdir, parents=True, exist_ok=True)
            store = await stack.enter_async_context(open_store(settings.memory))
        learned = Characteristics(store)
        stack.push_async_callback(learned.aclose)
        for group, together in groups.items():
            if examples[group]:
                origin = CallOrigin("", "", (0, 0))
                try:
                    entry = await recall_trial(
                        f"file {group}", together, examples[group], context, origin, client, learned
                    )
                except CallFailed as error:
                    failed |= {criterion["id"]: error.message for criterion in together}
                else:
                    tried |= entry["criteria"]
        calls = client.counts["paid"]
    return {
        "references": counts[""],
        "calls": calls,
        "criteria": [_describe(own, counts[group_of(own)], tried, failed) for own in criteria],
    }


def _look_at(
    known: OwnCriteria, references: Source
) -> tuple[dict[str, int], dict[str, Sequence[Reference]]]:
    """How many references each group applies to, all under "", and those to try it on. Blocks."""
    groups = {group_of(own): own for own in known.criteria}
    counts, named = dict.fromkeys(("", *groups), 0), dict[str, list[Reference]]()
    for reference in distinct(references):
        counts[""] += 1
        for group, own in groups.items():
            tagged = not own["tags"] or not set(own["tags"]).isdisjoint(reference.get("tags") or ())
            if tagged and own["seed_id"] in (None, reference["id"]):
                counts[group] += 1
                if own["seed_id"]:
                    named.setdefault(group, []).append(reference)
    known.choose_examples(distinct(references))
    examples = {
        group: named.get(group, [])[:MAX_EXAMPLES] if own["seed_id"] else known.examples_of(own)
        for group, own in groups.items()
    }
    return counts, examples


def _describe(
    own: OwnCriterion, applies: int, tried: dict[str, Any], failed: dict[str, str]
) -> dict[str, Any]:
    criterion = own["criterion"]
    outcome = tried.get(criterion["id"], {"bar": None, "trial": None})
    criterion = {**criterion, **outcome}
    trial, warnings = criterion["trial"], []
    if criterion["id"] in failed:
        warnings.append(f"could not be tried: {failed[criterion['id']]}")
    if (failing := warning_of(criterion)) is not None:
        warnings.append(failing.rpartition('": ')[2])
    if not applies:
        what = "tags" if own["tags"] else "seed_id"
        warnings.append(f"no reference has its {what}; it holds where a seed has")
    told = not trial or any(n < trial["references"] for n in trial["spoiled"].values())
    # Spoiled answers hold no pitfall either.
    if not told and (criterion["weight"] or 0) >= 0:
        warnings.append(
            "every spoiled answer passes it too: it tells no good answer from a bad one"
        )
    names = ("id", "text", "must", "judged_by", "check", "weight", "bar", "trial")
    fields = {name: criterion[name] for name in names}  # type: ignore[literal-required]
    placed = {"of": own["of"], "tags": own["tags"], "seed_id": own["seed_id"]}
    return {**fields, **placed, "applies_to": applies, "warnings": warnings}


def format_check(checked: dict[str, Any]) -> str:
    """What `check_criteria` found, as text for a terminal."""
    lines = []
    for one in checked["criteria"]:
        force = "must" if one["must"] else "should"
        lines.append(f"{one['id']}: the {one['of']} {one['text']} ({force})")
        lines.append(f"  applies to {one['applies_to']} of {checked['references']} references")
        lines.append(f"  {_describe_trial(one)}")
        lines += [f"  warning: {warning}" for warning in one["warnings"]]
    lines.append(f"{len(checked['criteria'])} criteria, {checked['calls']} calls")
    return "\n".join(lines)


def _describe_trial(one: dict[str, Any]) -> str:
    trial = one["trial"]
    if one["judged_by"] == "check":
        return f"decided by the check {one['check']}"
    if trial is None:
        return "not tried"
    n = trial["references"]
    caught = ", ".join(f"{name} {n - passed} of {n}" for name, passed in trial["spoiled"].items())
    return f"{trial['own']} of {n} references pass it; spoiled answers caught: {caught or 'none'}"
