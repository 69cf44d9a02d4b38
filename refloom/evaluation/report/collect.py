"""The data of a report: one pass over a run's journal, and a sample of its references.

Memory is bounded, whatever the size of the run.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from memory.embed import Embed, Vectors
from memory.references import IndexUnusable, Reference
from memory.store import ReferenceFile
from memory.vectors import VectorStore, vectors_of
from nodes.llm.fast_json import loads
from refloom.data.record_stats import (
    MAX_CRITERIA_COUNTED,
    HashSample,
    RecordStats,
    criterion_key,
    hash_id,
)
from refloom.evaluation.report.reviews import read_reviews
from refloom.evaluation.report.screening import ScreeningStats
from refloom.runs.journal import count_pending, iter_records, read_snapshot
from refloom.runs.outputs import (
    ROW_STATUSES,
    StageUsage,
    read_status,
    refresh_counts,
    usage_by_stage,
)

# Instructions that are compared with each other and embedded.
SAMPLE_SIZE = 400
MAX_CARDS = 24
MAX_REFERENCES_COUNTED = 100_000
MAX_SOURCES = 8
# A larger judge-check.json was not written by refloom.
MAX_JUDGE_CHECK_BYTES = 4 << 20
# How a sample ended, in the order of the cards.
CARD_KINDS = ("refined", "at once", "rejected", "failed")


@dataclass(slots=True)
class InstructionRow:
    """An accepted row's instruction, and its references."""

    instruction: str
    reference_ids: list[str]


@dataclass(slots=True)
class ReferenceStats:
    """What became of the samples that used a reference."""

    judged: int = 0
    accepted: int = 0
    failed: int = 0
    attempts: int = 0
    criteria_judged: int = 0
    criteria_passed: int = 0


@dataclass
class RunData:
    """What the report needs of a run; `add` takes its records one by one."""

    name: str
    directory: Path
    run_json: dict[str, Any] = field(default_factory=dict)
    stats: RecordStats = field(default_factory=RecordStats)
    instruction_words: Counter[int] = field(default_factory=Counter)
    response_words: Counter[int] = field(default_factory=Counter)
    reference_stats: dict[str, ReferenceStats] = field(default_factory=dict)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    rows: HashSample[InstructionRow] = field(default_factory=lambda: HashSample(SAMPLE_SIZE))
    cards: dict[str, HashSample[str]] = field(
        default_factory=lambda: {kind: HashSample(MAX_CARDS) for kind in CARD_KINDS}
    )
    screening: ScreeningStats = field(default_factory=ScreeningStats)
    stages: list[StageUsage] = field(default_factory=list)
    # Judged samples that wait for a person's decision.
    waiting: int = 0
    # Calls paid by another run: another arm of the experiment, or the run that --reuse names.
    borrowed: int = 0
    judge_check: Mapping[str, Any] | None = None
    reviews: Mapping[str, Any] | None = None

    @property
    def judged(self) -> int:
        """Samples that have verdicts: accepted, rejected, and those that wait for a person."""
        counts = self.run_json["counts"]
        return int(counts["accepted"] + counts["rejected"]) + self.waiting

    def add(self, record: dict[str, Any], line: str) -> None:
        """Count a record; `line` is its JSON."""
        self.stats.add(record)
        self.screening.add_record(record)
        digest = hash_id(record["id"])
        kind = str(record["status"])
        if kind == "accepted":
            kind = "refined" if len(record["attempts"]) > 1 else "at once"
        self.cards[kind].add(digest, line)
        self._count_references(record)
        if record["status"] == "accepted":
            self.instruction_words[len(record["instruction"].split())] += 1
            self.response_words[len(record["response"].split())] += 1
            self.rows.add(digest, InstructionRow(record["instruction"], record["reference_ids"]))

    def _count_references(self, record: dict[str, Any]) -> None:
        attempts, failed = record["attempts"], record["status"] == "failed"
        if not attempts and not failed:
            return
        verdicts = (
            {v["criterion_id"]: v["verdict"] for v in attempts[-1]["verdicts"]}
            if (attempts and not failed)
            else {}
        )
        for id_ in record["reference_ids"]:
            stats = self._stats_of(id_)
            if stats is None:
                continue
            stats.failed += failed
            stats.judged += not failed
            stats.accepted += record["status"] == "accepted"
            stats.attempts += 0 if failed else len(attempts)
        for criterion in record["criteria"]:
            id_ = criterion["reference_id"]
            outcome = verdicts.get(criterion["id"])
            if id_ is None or outcome in (None, "not_applicable"):
                continue
            self._count_source(criterion, id_)
            if (stats := self._stats_of(id_)) is not None:
                stats.criteria_judged += 1
                stats.criteria_passed += outcome == "pass"

    def _stats_of(self, id_: str) -> ReferenceStats | None:
        if id_ not in self.reference_stats and len(self.reference_stats) >= MAX_REFERENCES_COUNTED:
            return None
        return self.reference_stats.setdefault(id_, ReferenceStats())

    def _count_source(self, criterion: dict[str, Any], reference_id: str) -> None:
        key = criterion_key(criterion["text"], criterion["must"])
        if key not in self.sources and len(self.sources) >= MAX_CRITERIA_COUNTED:
            return
        sources = self.sources.setdefault(key, Counter())
        if reference_id in sources or len(sources) < MAX_SOURCES:
            sources[reference_id] += 1


def collect_run(name: str, directory: Path) -> RunData:
    """Read a run directory as it stands, whether running, ended or killed. Blocks.

    Raises `JournalError` if there is no run.
    """
    run = RunData(name, directory, run_json=read_status(directory))
    with read_snapshot(directory / "journal.sqlite") as connection:
        # Counts, calls and records of the same moment, although the run may be adding more.
        run.run_json = refresh_counts(run.run_json, connection)
        for line in iter_records(connection, *ROW_STATUSES):
            run.add(loads(line), line)
        run.waiting = count_pending(connection)
        run.reviews = read_reviews(connection)
        run.screening.add_dropped(connection)
        run.stages = sorted(usage_by_stage(connection), key=lambda used: -used.calls)
        run.borrowed = sum(used.calls for used in usage_by_stage(connection, "borrowed"))
    run.judge_check = _read_judge_check(directory / "judge-check.json")
    return run


def _read_judge_check(path: Path) -> Mapping[str, Any] | None:
    """The contents of the run's judge-check.json; None if there is none."""
    try:
        if path.stat().st_size > MAX_JUDGE_CHECK_BYTES:
            return None
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return results if isinstance(results, dict) else None


# References that are compared with the rows, and whose words are counted.
REFERENCE_SAMPLE_SIZE = 2000
MAX_IDS_LOOKED_UP = 200


@dataclass
class ReferenceSample:
    """The references of a run: their number, a random sample, and those the page names."""

    count: int = 0
    references: list[Reference] = field(default_factory=list)
    known: dict[str, Reference] = field(default_factory=dict)
    file: ReferenceFile | None = None
    rows: list[int] = field(default_factory=list)

    def start(self, id_: str) -> str:
        """The beginning of a reference's instruction; empty if the reference is not known."""
        reference = self.known.get(id_)
        return " ".join(reference["instruction"].split())[:160] if reference else ""


def sample_references(run: RunData, wanted: Iterable[str]) -> ReferenceSample:
    """Sample the references of a run; empty if their file is gone or damaged. Blocks.

    `wanted`: the ids of the references that the page names.
    """
    file = _find_reference_file(run)
    if file is None:
        return ReferenceSample()
    total, size = len(file), min(len(file), REFERENCE_SAMPLE_SIZE)
    # Sorted for quick reading, then shuffled, so that the first n are a random sample too.
    rows = np.sort(np.random.default_rng(0).choice(total, size, replace=False))
    try:
        read = file.rows(rows.tolist())
        order = np.random.default_rng(1).permutation(size).tolist()
        named = file.rows(_row_numbers(file, list(dict.fromkeys(wanted))))
        known = {reference["id"]: reference for reference in named}
        return ReferenceSample(total, [read[i] for i in order], known, file, rows[order].tolist())
    except (OSError, ValueError):
        return ReferenceSample()


def _find_reference_file(run: RunData) -> ReferenceFile | None:
    """The file with the references this run used; a memory may be shared by several runs."""
    ids = list(islice(run.reference_stats, MAX_IDS_LOOKED_UP))
    candidates: list[tuple[int, float, ReferenceFile]] = []
    for path in _reference_files(run):
        try:
            file = ReferenceFile(path)
            hits = len(_row_numbers(file, ids))
            candidates.append((hits, path.stat().st_mtime, file))
        except (IndexUnusable, OSError, ValueError):
            continue
    best = max(candidates, key=lambda candidate: candidate[:2], default=None)
    return best[2] if best and (best[0] or not ids) else None


def _reference_files(run: RunData) -> list[Path]:
    settings: Mapping[str, Any] = run.run_json.get("settings") or {}
    shared = settings.get("memory")
    for memory in (Path(str(shared)) if shared else None, run.directory / "memory"):
        if memory is not None and (paths := sorted(memory.glob("references-*.parquet"))):
            return paths
    return []


def _row_numbers(file: ReferenceFile, ids: Sequence[str]) -> list[int]:
    """The row numbers of the ids that the file holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not ids:
        return []
    names = [id_.encode("utf-8", "replace").decode() for id_ in ids]
    column = file.column("id").combine_chunks()
    rows = pc.index_in(pa.array(names, column.type), value_set=column)
    return [row for row in rows.to_pylist() if row is not None]


async def stored_vectors(
    sample: ReferenceSample, embed: Embed, model: str, limit: int
) -> dict[str, Vectors]:
    """The vectors of the sampled instructions in the run's index, by instruction.

    Empty if the index is of another model or of other references; they are then embedded.
    """
    if sample.file is None:
        return {}
    building = VectorStore(sample.file, embed, sample.file.path.parent, model, None)
    try:
        built = await building.load()
        rows = np.array(sample.rows[:limit], np.int64).reshape(1, -1)
        vectors = await asyncio.to_thread(vectors_of, built.index, rows)
    except (IndexUnusable, RuntimeError):
        return {}
    return {r["instruction"]: v for r, v in zip(sample.references, vectors[0], strict=False)}
