"""The files of a run directory, made from its journal: rows by status, run.json and the card."""

from __future__ import annotations

import asyncio
import json
import platform
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from nodes.checks import rule_versions
from nodes.llm.fast_json import loads
from prompts import prompt_version, prompt_versions
from refloom.data.card import render_card
from refloom.data.read import ReadReport, Source
from refloom.data.record_stats import AnswerStats, collect_stats
from refloom.data.write import replace_lines
from refloom.errors import JournalError
from refloom.runs.cost import Price, Prices
from refloom.runs.dropped import count_dropped, dropped_lines
from refloom.runs.journal import (
    ADDED_CALL_COLUMNS,
    FILES_KEY,
    TOKEN_FIELDS,
    Journal,
    check_run,
    columns_of,
    count_pending,
    has_table,
    iter_records,
    lock_holder,
    open_read_only,
    read_records,
)
from refloom.runs.retry import common_failures, count_retriable
from refloom.settings import DEFAULT_TIER, Settings

ROW_STATUSES = ("accepted", "rejected", "failed")
TRIAL_OUTCOMES = ("proposed", "earned", "demoted", "dropped")
# The run has ended by itself: with all rows that were asked for, or without.
ENDED_STATUSES = ("done", "short")
OTHER_FILES = ("dropped.jsonl", "run.json", "README.md")
# Packages whose versions run.json has.
PACKAGES = ("refloom", "langgraph", "langchain-openai", "faiss-cpu", "sentence-transformers")


def journal_totals(connection: Any, ended: bool) -> dict[str, Any]:
    """The counts, criteria, calls, usage and cost in a journal. Blocks.

    `ended`: the run has ended, so slots that never started are not pending.
    """
    rows = connection.execute("SELECT status, count(*) FROM samples GROUP BY status")
    by_status = dict.fromkeys(ROW_STATUSES, 0) | dict(rows.fetchall())
    (slots,) = connection.execute("SELECT coalesce(sum(slots), 0) FROM turns").fetchone()
    finished = sum(by_status.values())
    if has_table(connection, "retries"):
        # A seed that was proposed for again has its slots in another round.
        sql = "SELECT count(*) FROM retries WHERE done AND moved_to IS NOT NULL"
        slots -= connection.execute(sql).fetchone()[0]
    # Slots that were admitted but never started, because the target was reached, are not pending;
    # samples that wait for review are.
    waiting = count_pending(connection)
    pending = waiting if ended else max(slots - finished, waiting)
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
            **count_dropped(connection),
            "contaminated": contaminated,
        },
        "references_failed": failed,
        "criteria": {name: criteria[name] for name in TRIAL_OUTCOMES},
        "instruction_criteria": {n: criteria[f"instruction_{n}"] for n in TRIAL_OUTCOMES},
        "answers": _count_answers(connection),
        **_usage_totals(connection),
    }


def _count_answers(connection: Any) -> dict[str, int] | None:
    """The counts of bare answers; None in a run without the setting `reasoning`."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
    if row is None or not json.loads(row[0]).get("reasoning"):
        return None
    stats = AnswerStats()
    for line in iter_records(connection, "accepted", "rejected"):
        stats.add(loads(line))
    return asdict(stats)


@dataclass(frozen=True, slots=True)
class StageUsage:
    """The usage of a stage's calls to a model in a service tier.

    `cost_usd` is None if the model has no price.
    """

    stage: str
    model: str
    tier: str
    calls: int
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_usd: float | None


def usage_by_stage(
    connection: Any, table: Literal["calls", "borrowed"] = "calls"
) -> list[StageUsage]:
    """The usage of a journal's calls: those it paid, or those borrowed from another run. Blocks."""
    prices = stored_prices(connection)
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
        return []
    columns = {name: f"json_extract(reply, '$.usage.{name}')" for name in TOKEN_FIELDS}
    columns["tier"] = "json_extract(reply, '$.tier')"
    if table == "calls":
        absent = ADDED_CALL_COLUMNS.keys() - columns_of(connection, "calls")
        columns = {name: "NULL" if name in absent else name for name in columns}
    tier_column = f"coalesce({columns.pop('tier')}, '{DEFAULT_TIER}')"
    sums = ", ".join(f"sum({column})" for column in columns.values())
    sql = f"SELECT stage, model, {tier_column}, count(*), {sums} FROM {table} GROUP BY 1, 2, 3"
    usages = []
    for stage, model, tier, calls, *counts in connection.execute(sql):
        tokens = dict(zip(TOKEN_FIELDS, (n or 0 for n in counts), strict=True))
        usage: Any = {"calls": calls, **tokens}
        cost = prices.cost(model, usage, tier)
        usages.append(StageUsage(stage, model, tier, cost_usd=cost, **usage))
    return usages


def _usage_totals(connection: Any) -> dict[str, Any]:
    """Calls, tokens and dollars in total; calls and dollars by stage, model and service tier."""
    usages = usage_by_stage(connection)
    groups: dict[str, dict[str, list[StageUsage]]] = {"stage": {}, "model": {}, "tier": {}}
    for usage in usages:
        for name, group in groups.items():
            group.setdefault(getattr(usage, name), []).append(usage)
    calls = {
        name: {value: sum(usage.calls for usage in part) for value, part in group.items()}
        for name, group in groups.items()
    }
    paid = sum(usage.calls for usage in usages)
    tokens = {name: sum(getattr(usage, name) for usage in usages) for name in TOKEN_FIELDS}
    return {
        "calls": {"paid": paid, "by_stage": calls["stage"], "by_tier": calls["tier"]},
        "usage": {"calls": paid, **tokens},
        "cost_usd": total_cost(usages),
        **{
            f"cost_by_{name}": {value: total_cost(part) for value, part in group.items()}
            for name, group in groups.items()
        },
        "tokens_by_stage": {
            stage: {
                name: sum(getattr(usage, name) for usage in part)
                for name in ("prompt_tokens", "completion_tokens")
            }
            for stage, part in groups["stage"].items()
        },
    }


def stored_prices(connection: Any) -> Prices:
    """The prices of a run's models in its last session."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'prices'").fetchone()
    entries = json.loads(row[0]) if row else {}
    return Prices({model: Price.from_dict(entry) for model, entry in entries.items()})


def total_cost(usages: Iterable[StageUsage]) -> float | None:
    """The dollars in total; None if one cost is unknown."""
    costs = [usage.cost_usd for usage in usages]
    known = [cost for cost in costs if cost is not None]
    return round(sum(known), 9) if len(known) == len(costs) else None


@dataclass
class RunSummary:
    """The summary of a run, as run.json has it.

    `session` has the calls of this session, `totals` those of the journal: calls, usage and cost.
    `endpoints` is what was learned of each model's endpoint, `retriable` how many failed samples
    the same command tries again, `failures` the commonest reasons with how many samples failed for
    each, `criteria_hash` that of the person's own criteria, empty without any.
    """

    settings: Settings
    references: ReadReport
    seeds: ReadReport
    prices: Prices
    benchmarks: ReadReport
    session: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    status: str = "running"
    counts: dict[str, int] = field(default_factory=dict)
    totals: dict[str, Any] = field(default_factory=dict)
    endpoints: list[dict[str, Any]] = field(default_factory=list)
    stopped: Exception | None = None
    paid_before: int = 0
    retriable: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    criteria_hash: str = ""

    def check_same(self, journal: Journal, references: Source, seeds: Source) -> None:
        """Raise `JournalError` if the directory has another run, naming what differs. Blocks.

        References and seeds may have been appended, and the target raised.
        """
        out = journal.path.parent
        check_run(out)
        settings = journal.meta("settings")
        if settings is None:
            return
        # A setting that did not exist when the run began had its default.
        settings = Settings.model_construct().redacted() | settings
        changes = [
            f"{name} ({settings.get(name)!r}, now {now!r})"
            for name, now in self.settings.row_settings().items()
            if now != settings.get(name)
        ]
        if changes:
            raise JournalError(
                f"{out}: holds a run with other settings: {', '.join(changes)}. "
                "Give the same ones, or another --out"
            )
        # With other prompts the later rows would not be of the same kind as the earlier ones.
        prompts = journal.meta("prompts") or {}
        changed = [name for name, now in prompt_versions().items() if prompts.get(name, now) != now]
        if changed:
            raise JournalError(
                f"{out}: holds a run with other prompts: {', '.join(changed)}. Give another --out "
                "with --reuse of this one; only what they changed is paid again"
            )
        rules, now = journal.meta("rules"), rule_versions()
        changed = [] if rules is None else sorted(k for k, _ in rules.items() ^ now.items())
        if changed:
            raise JournalError(
                f"{out}: holds a run with other rules: {', '.join(dict.fromkeys(changed))}. Give "
                "another --out with --reuse of this one; only what they changed is paid again"
            )
        target, new_target = journal.meta("target"), self.settings.target
        if target != new_target and (None in (target, new_target) or new_target < target):
            raise JournalError(
                f"{out}: holds a run with target {target}; it may be raised, not lowered, added "
                "or removed. Give a higher one, or another --out"
            )
        digest = journal.meta("benchmarks")
        if digest is not None and digest != self.benchmarks.digest:
            raise JournalError(
                f"{out}: holds a run that was checked against other benchmarks. Give the same "
                "files, or another --out with --reuse of this one"
            )
        if self.criteria_hash != (journal.meta("own_criteria") or ""):
            raise JournalError(
                f"{out}: holds a run by other criteria (--criteria). Give a file that says the "
                "same, or another --out with --reuse of this one"
            )
        for name, source in (("references", references), ("seeds", seeds)):
            rows = journal.meta(name)
            if rows and source.digest_of(rows["count"]) != rows["digest"]:
                raise JournalError(
                    f"{out}: holds a run on other {name}; rows may be appended to them, not "
                    "changed or removed (--limit). Give the same, or another --out"
                )

    async def store(self, journal: Journal) -> None:
        """Store in the journal what the run's rows depend on."""
        for key, value in (await asyncio.to_thread(self._row_causes, journal)).items():
            await journal.put_meta(key, value)

    def _row_causes(self, journal: Journal) -> dict[str, Any]:
        """What the run's rows depend on, by its key in the journal. Blocks."""
        models = self.settings.models
        prices = {m: asdict(p) for m in models if (p := self.prices.get(m)) is not None}
        return {
            "settings": self.settings.row_settings(),
            "prompts": prompt_versions(),
            "rules": rule_versions(),
            # Prices of a judge that was asked about the rows later stay.
            "prices": (journal.meta("prices") or {}) | prices,
            "target": self.settings.target,
            "benchmarks": self.benchmarks.digest,
            "own_criteria": self.criteria_hash,
            "references": {"count": self.references.taken, "digest": self.references.digest},
            "seeds": {"count": self.seeds.taken, "digest": self.seeds.digest},
        }

    def reading(self) -> dict[str, Any]:
        """What was read, and what was left out and why, as run.json has it."""
        return {
            "references": self.references.as_json(),
            "seeds": self.seeds.as_json(),
            "benchmarks": self.benchmarks.as_json(),
        }

    def has_all(self, journal: Journal) -> bool:
        """Whether a run that has ended has nothing more to make, nor to write. Blocks.

        So it is if nothing it depends on has changed, no failed sample is to be tried again, and
        its files are as it wrote them.
        """
        out = journal.path.parent
        run_json = _read_run_json(out / "run.json")
        if (
            run_json["status"] not in ENDED_STATUSES
            or run_json.get("settings") != self.settings.redacted()
            or run_json.get("versions") != package_versions()
            or run_json.get("reading") != json.loads(json.dumps(self.reading()))
            or journal.meta(FILES_KEY) != stamp_files(out)
            or any(journal.meta(key) != now for key, now in self._row_causes(journal).items())
            or not (out / (journal.meta("reference_file") or "missing")).is_file()
        ):
            return False
        with open_read_only(journal.path) as connection:
            retriable = count_retriable(connection, self.settings.target)
        return not (self.settings.retry_failed and retriable)


def count_journal(journal: Journal, summary: RunSummary, status: str) -> None:
    """Fill the summary with the journal's totals. Blocks."""
    with open_read_only(journal.path) as connection:
        totals = journal_totals(connection, status in ENDED_STATUSES)
        summary.retriable = count_retriable(connection, summary.settings.target)
        summary.failures = common_failures(connection)
    sources = (summary.references, summary.seeds)
    summary.counts = {
        "seeds": summary.seeds.taken,
        **totals.pop("counts"),
        "references": summary.references.taken,
        "references_failed": totals.pop("references_failed"),
        "rows_skipped": sum(s.skipped_count for s in sources),
    }
    totals["calls"] |= {k: summary.session.get(k, 0) for k in ("reused", "retried")}
    summary.totals = totals
    summary.endpoints = journal.meta("endpoints") or []


@cache
def package_versions() -> dict[str, str]:
    """The versions of Python and of `PACKAGES`, read once in a process."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def write_files(out: Path, summary: RunSummary, status: str) -> None:
    """Write the rows of each status, run.json and the card, each atomically. Blocks."""
    run_json = {
        "status": status,
        "fingerprint": summary.settings.fingerprint(summary.criteria_hash),
        "settings": summary.settings.redacted(),
        "prompt_version": prompt_version(),
        "prompts": prompt_versions(),
        "rules": rule_versions(),
        "versions": package_versions(),
        "counts": summary.counts,
        **summary.totals,
        "seconds": round(summary.seconds, 2),
        "endpoints": summary.endpoints,
        "stopped": None if summary.stopped is None else str(summary.stopped),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "skipped": [*summary.references.skipped, *summary.seeds.skipped],
        "reading": summary.reading(),
    }
    _write_outputs(out, run_json)


def stamp_files(out: Path) -> dict[str, list[int] | None]:
    """The size and the time of change of each file that a run writes; None where it is missing.

    In the journal under `FILES_KEY` as long as the files are what the journal says. Blocks.
    """
    stamps: dict[str, list[int] | None] = {}
    for name in (*(f"{status}.jsonl" for status in ROW_STATUSES), *OTHER_FILES):
        try:
            stat = (out / name).stat()
            stamps[name] = [stat.st_size, stat.st_mtime_ns]
        except OSError:
            stamps[name] = None
    return stamps


def _write_outputs(out: Path, run_json: dict[str, Any]) -> None:
    """Write run.json and, unless the run is running, the rows before it and the card after it.

    Where there is no candidate yet, there is nothing for a card to describe.
    """
    ended = run_json["status"] != "running"
    for name in ROW_STATUSES if ended else ():
        replace_lines(out / f"{name}.jsonl", read_records(out / "journal.sqlite", name))
    if ended:
        with open_read_only(out / "journal.sqlite") as journal:
            replace_lines(out / "dropped.jsonl", dropped_lines(journal))
    replace_lines(out / "run.json", [json.dumps(run_json, indent=2, ensure_ascii=False)])
    if ended and run_json["counts"]["candidates"]:
        with open_read_only(out / "journal.sqlite") as journal:
            replace_lines(out / "README.md", [card_text(journal, run_json).rstrip()])


def rewrite_files(out: Path) -> bool:
    """Rewrite the files after a review; False if a run holds the directory, which will. Blocks."""
    if lock_holder(out) is not None:
        return False
    run_json = read_status(out)
    target = run_json["settings"].get("target") if "settings" in run_json else None
    if run_json["status"] in ENDED_STATUSES and target:
        run_json["status"] = "done" if run_json["counts"]["accepted"] >= target else "short"
    if "reading" in run_json:
        _write_outputs(out, run_json)
    return True


def card_text(journal: sqlite3.Connection, run_json: Mapping[str, Any], **more: Any) -> str:
    """The data-set card of a run, from its journal and run.json. Blocks."""
    from graph.builder import mermaid

    stats = collect_stats(iter_records(journal, *ROW_STATUSES))
    return render_card(run_json, stats, mermaid(), **more)


def prior_usage(journal: Journal) -> tuple[int, float, int]:
    """The calls, dollars and tokens of a run's earlier sessions. Blocks."""
    with open_read_only(journal.path) as connection:
        totals = _usage_totals(connection)
    usage = totals["usage"]
    tokens = usage["prompt_tokens"] + usage["completion_tokens"]
    return usage["calls"], totals["cost_usd"] or 0.0, tokens


def read_status(out: Path) -> dict[str, Any]:
    """What `refloom status` shows: run.json with the counts of the journal. Blocks.

    `retriable` is how many failed samples the same command tries again once the run has ended.

    Raises `JournalError` if there is no run.
    """
    run_json = _read_run_json(out / "run.json")
    pid = lock_holder(out)
    if pid is not None:
        run_json["status"], run_json["pid"] = "running", pid
    elif run_json["status"] == "running":
        run_json["status"] = "interrupted"
    target = run_json["settings"].get("target") if "settings" in run_json else None
    with open_read_only(out / "journal.sqlite") as connection:
        retriable = count_retriable(connection, target)
        return refresh_counts(run_json, connection) | {"retriable": retriable}


def refresh_counts(run_json: dict[str, Any], journal: sqlite3.Connection) -> dict[str, Any]:
    """A run.json with the counts of the journal. Blocks."""
    totals = journal_totals(journal, run_json["status"] in ENDED_STATUSES)
    counts = totals.pop("counts") | {"references_failed": totals.pop("references_failed")}
    calls = {"reused": 0, "retried": 0} | run_json.get("calls", {}) | totals.pop("calls")
    return run_json | totals | {"counts": run_json.get("counts", {}) | counts, "calls": calls}


def _read_run_json(path: Path) -> dict[str, Any]:
    """Read run.json; if it is missing or damaged, that of a run that has just begun."""
    empty: dict[str, Any] = {"status": "running", "counts": {}, "calls": {}}
    try:
        run_json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    valid = isinstance(run_json, dict) and all(
        isinstance(run_json.get(name), type(value)) for name, value in empty.items()
    )
    return run_json if valid else empty
