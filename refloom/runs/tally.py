"""What a journal adds up to: counts, criteria, calls, tokens, dollars."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from refloom.runs.kept import waiting_in
from refloom.runs.prices import Price, Prices

STATUSES = ("accepted", "rejected", "failed")
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
_USED = ", ".join(f"sum({name})" for name in TOKENS)
_USED_IN_REPLIES = ", ".join(f"sum(json_extract(reply, '$.usage.{name}'))" for name in TOKENS)


def tally(connection: Any, over: bool) -> dict[str, Any]:
    """The counts, criteria, calls, usage and cost of an open journal; `over`: the run has ended.

    Blocks.
    """
    rows = connection.execute("SELECT status, count(*) FROM samples GROUP BY status")
    by_status = dict.fromkeys(STATUSES, 0) | dict(rows.fetchall())
    slots, duplicates = connection.execute(
        "SELECT coalesce(sum(slots), 0), coalesce(sum(duplicates), 0) FROM turns"
    ).fetchone()
    finished = sum(by_status.values())
    # What was admitted and never begun, since the target was met, is not pending; what waits for
    # a person is.
    waiting = waiting_in(connection)
    pending = waiting if over else max(slots - finished, waiting)
    (contaminated,) = connection.execute(
        "SELECT count(*) FROM samples WHERE status = 'rejected' "
        "AND json_extract(record, '$.reason') = 'contaminated'"
    ).fetchone()
    criteria: Counter[str] = Counter()
    for (counts,) in connection.execute("SELECT counts FROM learned WHERE NOT failed"):
        criteria.update(json.loads(counts))
    (failed,) = connection.execute("SELECT count(*) FROM learned WHERE failed").fetchone()
    return {
        "counts": {
            "candidates": finished + pending,
            **by_status,
            "pending": pending,
            "duplicates": duplicates,
            "contaminated": contaminated,
        },
        "references_failed": failed,
        "criteria": {k: criteria[k] for k in ("proposed", "earned", "demoted", "dropped")},
        **_spent(connection),
    }


@dataclass(frozen=True, slots=True)
class Used:
    """What the calls of a stage to a model used; dollars are None where a price is."""

    stage: str
    model: str
    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: float | None


def used_in(connection: Any, table: Literal["calls", "borrowed"] = "calls") -> list[Used]:
    """What a journal's calls used, those it paid for or those it has from another run. Blocks."""
    prices = prices_kept(connection)
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
        return []
    sums = _USED if table == "calls" else _USED_IN_REPLIES
    sql = f"SELECT stage, model, count(*), {sums} FROM {table} GROUP BY stage, model"
    found = []
    for stage, model, calls, *counts in connection.execute(sql):
        tokens = dict(zip(TOKENS, (n or 0 for n in counts), strict=True))
        cost = prices.cost(model, {"calls": calls, **tokens})  # type: ignore[typeddict-item]
        found.append(Used(stage, model, calls, cost_usd=cost, **tokens))
    return found


def _spent(connection: Any) -> dict[str, Any]:
    """Calls, tokens and dollars, by stage and by model; dollars are None where a price is."""
    stages: Counter[str] = Counter()
    by: dict[str, defaultdict[str, list[Used]]] = {
        "stage": defaultdict(list),
        "model": defaultdict(list),
    }
    every = used_in(connection)
    for used in every:
        stages[used.stage] += used.calls
        by["stage"][used.stage].append(used)
        by["model"][used.model].append(used)
    paid = sum(stages.values())
    tokens = {name: sum(getattr(used, name) for used in every) for name in TOKENS}
    return {
        "calls": {"paid": paid, "by_stage": dict(stages)},
        "usage": {"calls": paid, **tokens},
        "cost_usd": cost_of(every),
        "cost_by_stage": {stage: cost_of(found) for stage, found in by["stage"].items()},
        "cost_by_model": {model: cost_of(found) for model, found in by["model"].items()},
    }


def prices_kept(connection: Any) -> Prices:
    """The prices of a run's models as they were in its last session."""
    found = connection.execute("SELECT value FROM meta WHERE key = 'prices'").fetchone()
    kept = json.loads(found[0]) if found else {}
    return Prices({model: Price(**entry) for model, entry in kept.items()})


def cost_of(used: Iterable[Used]) -> float | None:
    """The dollars of all; None where one is unknown."""
    costs = [one.cost_usd for one in used]
    known = [cost for cost in costs if cost is not None]
    return round(sum(known), 9) if len(known) == len(costs) else None
