"""What a journal adds up to: counts, criteria, calls, tokens, dollars."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

from refloom.runs.kept import waiting_in
from refloom.runs.prices import Price, Prices

STATUSES = ("accepted", "rejected", "failed")
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
_USED = ", ".join(f"sum({name})" for name in TOKENS)


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


def _spent(connection: Any) -> dict[str, Any]:
    """Calls, tokens and dollars, by stage and by model; dollars are None where a price is."""
    prices = prices_kept(connection)
    stages: Counter[str] = Counter()
    used: Counter[str] = Counter()
    costs: dict[str, defaultdict[str, list[float | None]]] = {
        "stage": defaultdict(list),
        "model": defaultdict(list),
    }
    sql = f"SELECT stage, model, count(*), {_USED} FROM calls GROUP BY stage, model"
    for stage, model, calls, *tokens in connection.execute(sql):
        stages[stage] += calls
        of_these = dict(zip(TOKENS, tokens, strict=True))
        used.update(of_these)
        cost = prices.cost(model, {"calls": calls, **of_these})  # type: ignore[typeddict-item]
        costs["stage"][stage].append(cost)
        costs["model"][model].append(cost)
    paid = sum(stages.values())
    return {
        "calls": {"paid": paid, "by_stage": dict(stages)},
        "usage": {"calls": paid, **{name: used[name] for name in TOKENS}},
        "cost_usd": _sum([c for cs in costs["stage"].values() for c in cs]),
        "cost_by_stage": {stage: _sum(found) for stage, found in costs["stage"].items()},
        "cost_by_model": {model: _sum(found) for model, found in costs["model"].items()},
    }


def prices_kept(connection: Any) -> Prices:
    """The prices of a run's models as they were in its last session."""
    found = connection.execute("SELECT value FROM meta WHERE key = 'prices'").fetchone()
    kept = json.loads(found[0]) if found else {}
    return Prices({model: Price(**entry) for model, entry in kept.items()})


def _sum(costs: list[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return round(sum(known), 9) if len(known) == len(costs) else None
