"""The files of a run's directory, made from its journal: rows by status, and run.json."""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prompts import version as prompts_version
from refloom.data.read import Report, Source
from refloom.runs.journal import Journal, open_to_read, records
from refloom.runs.lock import JournalUnusable, holder
from refloom.settings import Settings

ENDED = ("done", "short")
STATUSES = ("accepted", "rejected", "failed")
PACKAGES = ("refloom", "langgraph", "langchain-openai", "faiss-cpu", "sentence-transformers")


@dataclass
class Summary:
    """What run.json says of a run."""

    settings: Settings
    references: Report
    seeds: Report
    session: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    status: str = "running"
    counts: dict[str, int] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def check_same(self, journal: Journal, references: Source, seeds: Source) -> None:
        """Refuse to go on with a run that was begun otherwise; appended rows are no hindrance.

        Raises `JournalUnusable` naming what differs. Blocks.
        """
        before = journal.meta("settings")
        if before is None:
            return
        now = self.settings.rows_rest_on()
        differing = [k for k in now if now[k] != before.get(k)]
        if differing:
            told = ", ".join(f"{k} ({before.get(k)!r}, now {now[k]!r})" for k in differing)
            raise JournalUnusable(
                f"{journal.path.parent}: holds a run with other settings: {told}. "
                "Give the same ones, or another --out"
            )
        target = journal.meta("target")
        now_target = self.settings.target
        if target != now_target and (None in (target, now_target) or now_target < target):
            raise JournalUnusable(
                f"{journal.path.parent}: holds a run with target {target}; it may be raised, "
                "not lowered, set or left out. Give a higher one, or another --out"
            )
        for name, source in (("references", references), ("seeds", seeds)):
            kept = journal.meta(name)
            if kept and source.digest_of(kept["count"]) != kept["digest"]:
                raise JournalUnusable(
                    f"{journal.path.parent}: holds a run on other {name}; rows may be appended "
                    "to them, not changed. Give the same file, or another --out"
                )

    async def keep(self, journal: Journal) -> None:
        """Write down what the run rests on."""
        await journal.put_meta("settings", self.settings.rows_rest_on())
        await journal.put_meta("target", self.settings.target)
        for name, report in (("references", self.references), ("seeds", self.seeds)):
            await journal.put_meta(name, {"count": report.taken, "digest": report.digest})


def counted(journal: Journal, summary: Summary, status: str) -> None:
    """Count what the journal holds into the summary. Blocks."""
    with closing(open_to_read(journal.path)) as connection:
        found = tally(connection, status in ENDED)
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


def tally(connection: Any, over: bool) -> dict[str, Any]:
    """The counts, criteria, calls and usage of an open journal; `over`: the run has ended."""
    rows = connection.execute("SELECT status, count(*) FROM samples GROUP BY status")
    by_status = dict.fromkeys(STATUSES, 0) | dict(rows.fetchall())
    slots, duplicates = connection.execute(
        "SELECT coalesce(sum(slots), 0), coalesce(sum(duplicates), 0) FROM turns"
    ).fetchone()
    finished = sum(by_status.values())
    # What was admitted and never begun, since the target was met, is not pending.
    pending = 0 if over else max(slots - finished, 0)
    criteria: Counter[str] = Counter()
    for (counts,) in connection.execute("SELECT counts FROM learned WHERE NOT failed"):
        criteria.update(json.loads(counts))
    (failed,) = connection.execute("SELECT count(*) FROM learned WHERE failed").fetchone()
    stages = dict(connection.execute("SELECT stage, count(*) FROM calls GROUP BY stage"))
    used = connection.execute(
        "SELECT coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0), "
        "coalesce(sum(completion_tokens), 0) FROM calls"
    ).fetchone()
    names = ("prompt_tokens", "cached_tokens", "completion_tokens")
    paid = sum(stages.values())
    return {
        "counts": {
            "candidates": finished + pending,
            **by_status,
            "pending": pending,
            "duplicates": duplicates,
            "contaminated": 0,
        },
        "references_failed": failed,
        "criteria": {k: criteria[k] for k in ("proposed", "earned", "demoted", "dropped")},
        "calls": {"paid": paid, "by_stage": stages},
        "usage": {"calls": paid, **dict(zip(names, used, strict=True))},
        "cost_usd": None,
    }


def write_files(out: Path, summary: Summary, status: str) -> None:
    """Write the rows of each status and run.json; each appears whole or not at all. Blocks."""
    if status != "running":
        for name in STATUSES:
            replace_lines(out / f"{name}.jsonl", records(out / "journal.sqlite", name))
    said = {
        "status": status,
        "fingerprint": summary.settings.fingerprint(),
        "settings": summary.settings.shown(),
        "prompt_version": prompts_version(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "counts": summary.counts,
        **summary.more,
        "seconds": round(summary.seconds, 2),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "skipped": [*summary.references.skipped, *summary.seeds.skipped],
        "shapes": {
            "references": dict(summary.references.shapes),
            "seeds": dict(summary.seeds.shapes),
        },
    }
    staged = out / "run.json.new"
    staged.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(staged, out / "run.json")


def replace_lines(path: Path, lines: Any) -> int:
    """Write lines aside and put the file in its place; return how many."""
    staged = path.with_name(path.name + ".new")
    count = 0
    with staged.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    return count


def status_of(out: Path) -> dict[str, Any]:
    """What `refloom status` says: run.json brought up to date from the journal. Blocks.

    Raises `JournalUnusable` when there is no run.
    """
    try:
        said: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {"status": "running", "counts": {}, "calls": {}}
    pid = holder(out)
    if pid is not None:
        said["status"], said["pid"] = "running", pid
    elif said["status"] == "running":
        said["status"] = "interrupted"
    with closing(open_to_read(out / "journal.sqlite")) as connection:
        found = tally(connection, said["status"] in ENDED)
    counts = found.pop("counts") | {"references_failed": found.pop("references_failed")}
    calls = {"reused": 0, "retried": 0} | said.get("calls", {}) | found.pop("calls")
    return said | found | {"counts": said.get("counts", {}) | counts, "calls": calls}
