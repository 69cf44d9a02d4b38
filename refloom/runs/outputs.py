"""The files of a run's directory, made from its journal: rows by status, and run.json."""

from __future__ import annotations

import asyncio
import json
import platform
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from graph.builder import mermaid
from prompts import version as prompts_version
from prompts import versions
from refloom.data.card import card
from refloom.data.read import Report, Source
from refloom.data.record_stats import facts_of
from refloom.data.write import replace_lines
from refloom.errors import JournalError
from refloom.runs.cost import Price, Prices
from refloom.runs.journal import (
    Journal,
    check_run,
    holder,
    reading,
    records,
    records_in,
    waiting_in,
)
from refloom.settings import Settings

# MERGED refloom~runs~tally
# What a journal adds up to: counts, criteria, calls, tokens, dollars.
ROW_STATUSES = ("accepted", "rejected", "failed")
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
_TOKEN_SUMS = ", ".join(f"sum({name})" for name in TOKENS)
_REPLY_TOKEN_SUMS = ", ".join(f"sum(json_extract(reply, '$.usage.{name}'))" for name in TOKENS)


def journal_totals(connection: Any, over: bool) -> dict[str, Any]:
    """The counts, criteria, calls, usage and cost of an open journal; `over`: the run has ended.

    Blocks.
    """
    rows = connection.execute("SELECT status, count(*) FROM samples GROUP BY status")
    by_status = dict.fromkeys(ROW_STATUSES, 0) | dict(rows.fetchall())
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
        **_usage_totals(connection),
    }


@dataclass(frozen=True, slots=True)
class StageUsage:
    """What the calls of a stage to a model used; dollars are None where a price is."""

    stage: str
    model: str
    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: float | None


def usage_by_stage(
    connection: Any, table: Literal["calls", "borrowed"] = "calls"
) -> list[StageUsage]:
    """What a journal's calls used, those it paid for or those it has from another run. Blocks."""
    prices = stored_prices(connection)
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
        return []
    sums = _TOKEN_SUMS if table == "calls" else _REPLY_TOKEN_SUMS
    sql = f"SELECT stage, model, count(*), {sums} FROM {table} GROUP BY stage, model"
    found = []
    for stage, model, calls, *counts in connection.execute(sql):
        tokens = dict(zip(TOKENS, (n or 0 for n in counts), strict=True))
        cost = prices.cost(model, {"calls": calls, **tokens})  # type: ignore[typeddict-item]
        found.append(StageUsage(stage, model, calls, cost_usd=cost, **tokens))
    return found


def _usage_totals(connection: Any) -> dict[str, Any]:
    """Calls, tokens and dollars, by stage and by model; dollars are None where a price is."""
    stages: Counter[str] = Counter()
    by: dict[str, defaultdict[str, list[StageUsage]]] = {
        "stage": defaultdict(list),
        "model": defaultdict(list),
    }
    every = usage_by_stage(connection)
    for used in every:
        stages[used.stage] += used.calls
        by["stage"][used.stage].append(used)
        by["model"][used.model].append(used)
    paid = sum(stages.values())
    tokens = {name: sum(getattr(used, name) for used in every) for name in TOKENS}
    return {
        "calls": {"paid": paid, "by_stage": dict(stages)},
        "usage": {"calls": paid, **tokens},
        "cost_usd": total_cost(every),
        "cost_by_stage": {stage: total_cost(found) for stage, found in by["stage"].items()},
        "cost_by_model": {model: total_cost(found) for model, found in by["model"].items()},
    }


def stored_prices(connection: Any) -> Prices:
    """The prices of a run's models as they were in its last session."""
    found = connection.execute("SELECT value FROM meta WHERE key = 'prices'").fetchone()
    kept = json.loads(found[0]) if found else {}
    return Prices({model: Price(**entry) for model, entry in kept.items()})


def total_cost(used: Iterable[StageUsage]) -> float | None:
    """The dollars of all; None where one is unknown."""
    costs = [one.cost_usd for one in used]
    known = [cost for cost in costs if cost is not None]
    return round(sum(known), 9) if len(known) == len(costs) else None


ENDED_STATUSES = ("done", "short")
PACKAGES = ("refloom", "langgraph", "langchain-openai", "faiss-cpu", "sentence-transformers")


@dataclass
class RunSummary:
    """What run.json says of a run."""

    settings: Settings
    references: Report
    seeds: Report
    prices: Prices
    benchmarks: Report
    session: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    status: str = "running"
    counts: dict[str, int] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    stopped: Exception | None = None
    paid_before: int = 0

    def check_same(self, journal: Journal, references: Source, seeds: Source) -> None:
        """Refuse to go on with a run that was begun otherwise; appended rows are no hindrance.

        Raises `JournalError` naming what differs. Blocks.
        """
        check_run(journal.path.parent)
        before = journal.meta("settings")
        if before is None:
            return
        # A setting that there was not when the run was begun had what is its default now.
        before = Settings.model_construct().shown() | before
        now = self.settings.rows_rest_on()
        differing = [k for k in now if now[k] != before.get(k)]
        if differing:
            told = ", ".join(f"{k} ({before.get(k)!r}, now {now[k]!r})" for k in differing)
            raise JournalError(
                f"{journal.path.parent}: holds a run with other settings: {told}. "
                "Give the same ones, or another --out"
            )
        self._check_prompts(journal)
        self.seconds = journal.meta("seconds") or 0.0
        self._check_target(journal)
        kept = journal.meta("benchmarks")
        if kept is not None and kept != self.benchmarks.digest:
            raise JournalError(
                f"{journal.path.parent}: holds a run that was checked against other benchmarks. "
                "Give the same files, or another --out with --reuse this one"
            )
        for name, source in (("references", references), ("seeds", seeds)):
            kept = journal.meta(name)
            if kept and source.digest_of(kept["count"]) != kept["digest"]:
                raise JournalError(
                    f"{journal.path.parent}: holds a run on other {name}; rows may be appended "
                    "to them, not changed or left out (--limit). Give the same, or another --out"
                )

    def _check_target(self, journal: Journal) -> None:
        before, now = journal.meta("target"), self.settings.target
        if before != now and (None in (before, now) or now < before):
            raise JournalError(
                f"{journal.path.parent}: holds a run with target {before}; it may be raised, "
                "not lowered, set or left out. Give a higher one, or another --out"
            )

    def _check_prompts(self, journal: Journal) -> None:
        """Refuse other prompts: half of the rows would be made one way, half another."""
        before = journal.meta("prompts") or {}
        changed = [name for name, now in versions().items() if before.get(name, now) != now]
        if changed:
            raise JournalError(
                f"{journal.path.parent}: holds a run with other prompts: {', '.join(changed)}. "
                "Give another --out, with --reuse this one: only what they changed is paid again"
            )

    async def keep(self, journal: Journal) -> None:
        """Write down what the run rests on."""
        await journal.put_meta("settings", self.settings.rows_rest_on())
        await journal.put_meta("prompts", versions())
        models = {self.settings.model, self.settings.judge}
        prices = {m: asdict(p) for m in models if (p := self.prices.of(m)) is not None}
        # Those of a judge that was asked about the rows later stay known.
        known = await asyncio.to_thread(journal.meta, "prices")
        await journal.put_meta("prices", (known or {}) | prices)
        await journal.put_meta("target", self.settings.target)
        await journal.put_meta("benchmarks", self.benchmarks.digest)
        for name, report in (("references", self.references), ("seeds", self.seeds)):
            await journal.put_meta(name, {"count": report.taken, "digest": report.digest})


def count_journal(journal: Journal, summary: RunSummary, status: str) -> None:
    """Count what the journal holds into the summary. Blocks."""
    with reading(journal.path) as connection:
        found = journal_totals(connection, status in ENDED_STATUSES)
    sources = (summary.references, summary.seeds)
    summary.counts = {
        "seeds": summary.seeds.taken,
        **found.pop("counts"),
        "references": summary.references.taken,
        "references_failed": found.pop("references_failed"),
        "rows_skipped": sum(s.skipped_count for s in sources),
    }
    found["calls"] |= {k: summary.session.get(k, 0) for k in ("reused", "retried")}
    summary.more = found


def write_files(out: Path, summary: RunSummary, status: str) -> None:
    """Write the rows of each status and run.json; each appears whole or not at all. Blocks."""
    said = {
        "status": status,
        "fingerprint": summary.settings.fingerprint(),
        "settings": summary.settings.shown(),
        "prompt_version": prompts_version(),
        "prompts": versions(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "counts": summary.counts,
        **summary.more,
        "seconds": round(summary.seconds, 2),
        "stopped": None if summary.stopped is None else str(summary.stopped),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "skipped": [*summary.references.skipped, *summary.seeds.skipped],
        "reading": {
            "references": summary.references.shown(),
            "seeds": summary.seeds.shown(),
            "benchmarks": summary.benchmarks.shown(),
        },
    }
    _write_outputs(out, said)


def _write_outputs(out: Path, said: dict[str, Any]) -> None:
    """Write run.json, and of a run that is not running rows and card; rows come first."""
    over = said["status"] != "running"
    for name in ROW_STATUSES if over else ():
        replace_lines(out / f"{name}.jsonl", records(out / "journal.sqlite", name))
    replace_lines(out / "run.json", [json.dumps(said, indent=2, ensure_ascii=False)])
    if over:
        with reading(out / "journal.sqlite") as journal:
            replace_lines(out / "README.md", [card_text(journal, said).rstrip()])


def rewrite_files(out: Path) -> bool:
    """Write the files anew after a person has decided; False: a run is at work and will. Blocks."""
    if holder(out) is not None:
        return False
    said = read_status(out)
    target = said["settings"].get("target") if "settings" in said else None
    if said["status"] in ENDED_STATUSES and target:
        said["status"] = "done" if said["counts"]["accepted"] >= target else "short"
    if "reading" in said:
        _write_outputs(out, said)
    return True


def card_text(journal: sqlite3.Connection, said: Mapping[str, Any], **more: Any) -> str:
    """The card of a run, of what its journal holds; `said` is its run.json. Blocks."""
    return card(said, facts_of(records_in(journal, *ROW_STATUSES)), mermaid(), **more)


def prior_usage(journal: Journal) -> tuple[int, float, int]:
    """The calls, dollars and tokens of a run's earlier sessions. Blocks."""
    with reading(journal.path) as connection:
        found = journal_totals(connection, over=False)
    usage = found["usage"]
    tokens = usage["prompt_tokens"] + usage["completion_tokens"]
    return usage["calls"], found["cost_usd"] or 0.0, tokens


def read_status(out: Path) -> dict[str, Any]:
    """What `refloom status` says: run.json brought up to date from the journal. Blocks.

    Raises `JournalError` when there is no run.
    """
    said = _read_run_json(out / "run.json")
    pid = holder(out)
    if pid is not None:
        said["status"], said["pid"] = "running", pid
    elif said["status"] == "running":
        said["status"] = "interrupted"
    with reading(out / "journal.sqlite") as connection:
        return refresh_counts(said, connection)


def refresh_counts(said: dict[str, Any], journal: sqlite3.Connection) -> dict[str, Any]:
    """What run.json says, with the counts that the journal holds. Blocks."""
    found = journal_totals(journal, said["status"] in ENDED_STATUSES)
    counts = found.pop("counts") | {"references_failed": found.pop("references_failed")}
    calls = {"reused": 0, "retried": 0} | said.get("calls", {}) | found.pop("calls")
    return said | found | {"counts": said.get("counts", {}) | counts, "calls": calls}


def _read_run_json(path: Path) -> dict[str, Any]:
    """What run.json says; one that is missing or damaged says that a run was begun."""
    begun: dict[str, Any] = {"status": "running", "counts": {}, "calls": {}}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return begun
    whole = isinstance(said, dict) and all(
        isinstance(said.get(name), type(value)) for name, value in begun.items()
    )
    return said if whole else begun
