"""What runs made, as a comparison wants it: a response for each instruction, and what it took."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refloom.data.record_stats import Facts, Passing
from refloom.measure.asking import CHECK
from refloom.measure.stats import share
from refloom.runs.journal import reading, records_in
from refloom.runs.outputs import cost_of, status_of, used_in

# Criteria from references that are shown one by one; the others count in the sum of all.
MOST_SHOWN = 12
TABLES: tuple[Literal["calls", "borrowed"], ...] = ("calls", "borrowed")


@dataclass(frozen=True, slots=True)
class Made:
    """One finished sample: whose it is, its response, whether it was accepted."""

    seed_id: str
    response: str
    accepted: bool


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of a comparison: its samples by instruction, and its account."""

    name: str
    samples: Mapping[str, Made]
    account: dict[str, Any]


def arm_of(name: str, directory: Path) -> Arm:
    """Read a run, finished or not. Blocks. Raises `JournalError` for what is none."""
    said = status_of(directory)
    facts, samples = Facts(), dict[str, Made]()
    with reading(directory / "journal.sqlite") as journal:
        for line in records_in(journal, "accepted", "rejected"):
            record = json.loads(line)
            facts.add(record)
            if record["instruction"] and record["response"]:
                made = Made(record["seed_id"], record["response"], record["status"] == "accepted")
                samples.setdefault(record["instruction"], made)
        spent = _spent(journal)
    counts = said.get("counts", {})
    settings = said.get("settings", {})
    account = {
        "name": name,
        "feedback": settings.get("feedback"),
        "model": settings.get("model"),
        "status": said["status"],
        **{key: counts.get(key, 0) for key in ("accepted", "rejected", "failed", "pending")},
        **spent,
        "criteria": _criteria(facts),
    }
    return Arm(name, samples, account)


def _spent(journal: Any) -> dict[str, Any]:
    """What a run would have cost by itself: calls it shares with others count in each.

    What was asked about the rows later, comparisons and checks of the judge, is no part of it.
    """
    every = [used for table in TABLES for used in used_in(journal, table)]
    every = [used for used in every if used.stage not in ("compare", CHECK)]
    by_stage: Counter[str] = Counter()
    for used in every:
        by_stage[used.stage] += used.calls
    return {
        "calls": by_stage.total(),
        "by_stage": dict(by_stage),
        "tokens": sum(used.prompt_tokens + used.completion_tokens for used in every),
        "cost_usd": cost_of(every),
    }


def _criteria(facts: Facts) -> list[dict[str, Any]]:
    """Pass rates at the last attempt: rules and built-in ones, then those from references."""
    shown = facts.passing(MOST_SHOWN)
    rows = [_passing(f"The response {one.text}", one.judged_by, one.must, [one]) for one in shown]
    drawn = [one for one in facts.criteria.values() if one.drawn and one.times]
    if drawn:
        rows.append(_passing("all criteria from references", "judge", None, drawn))
    return rows


def _passing(text: str, by: str, must: bool | None, parts: list[Passing]) -> dict[str, Any]:
    n, passed = sum(one.times for one in parts), sum(one.last["pass"] for one in parts)
    found = share(passed, n)
    said = {"criterion": text, "judged_by": by, "must": must, "n": n, "passed": passed}
    return {**said, "share": found.value, "low": found.low, "high": found.high}
