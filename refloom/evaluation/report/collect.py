"""What a run's journal adds up to for its report, gone through once, in bounded memory."""

from __future__ import annotations

import asyncio
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from memory.embed import Embed, Vectors
from memory.references import IndexUnusable, Reference
from memory.store import ReferenceFile
from memory.vectors import Building, vectors_of
from nodes.llm.fast_json import loads
from refloom.data.record_stats import Facts
from refloom.runs.journal import records_in, snapshot
from refloom.runs.outputs import STATUSES, Used, status_of, up_to_date, used_in

# So many instructions are compared with each other and embedded.
SAMPLE = 400
CARDS = 24
MOST_TAUGHT = 100_000
MOST_DRAWN = 20_000
MOST_SOURCES = 8
# Beyond this a judge-check.json is not what refloom writes.
MOST_BYTES = 4 << 20
# What becomes of a sample, in the order the cards stand in.
ENDS = ("refined", "at once", "rejected", "failed")

T = TypeVar("T")


class Draw(Generic[T]):
    """A fair draw without luck: the items whose names have the smallest hashes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, T]] = []
        self._seen = 0

    def offer(self, digest: int, item: T) -> None:
        """Take the item if its hash is small enough."""
        self._seen += 1
        entry = (-digest, self._seen, item)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def drawn(self) -> list[T]:
        """The items, by hash: the first n of them are a fair draw of n."""
        return [item for _, _, item in sorted(self._heap, key=lambda e: (-e[0], e[1]))]


@dataclass(slots=True)
class Row:
    """An accepted row, as far as its instruction is looked at."""

    instruction: str
    reference_ids: list[str]


@dataclass(slots=True)
class Taught:
    """What came of the samples that were made from a reference."""

    judged: int = 0
    accepted: int = 0
    failed: int = 0
    attempts: int = 0
    criteria_judged: int = 0
    criteria_passed: int = 0


@dataclass
class Account:
    """A run as its report tells of it; `add` takes its records one by one."""

    name: str
    directory: Path
    said: dict[str, Any] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    instruction_words: Counter[int] = field(default_factory=Counter)
    response_words: Counter[int] = field(default_factory=Counter)
    taught: dict[str, Taught] = field(default_factory=dict)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    rows: Draw[Row] = field(default_factory=lambda: Draw(SAMPLE))
    cards: dict[str, Draw[str]] = field(default_factory=lambda: {e: Draw(CARDS) for e in ENDS})
    stages: list[Used] = field(default_factory=list)
    # Calls that another run paid for: an arm of an experiment, or one that --reuse named.
    borrowed: int = 0
    checked: Mapping[str, Any] | None = None

    @property
    def judged(self) -> int:
        """Samples that ended with a judgement: accepted and rejected ones."""
        counts = self.said["counts"]
        return int(counts["accepted"] + counts["rejected"])

    def add(self, record: dict[str, Any], line: str) -> None:
        """Count a record; `line` is the same as JSON."""
        self.facts.add(record)
        digest = int.from_bytes(sha256(record["id"].encode("utf-8", "replace")).digest()[:8], "big")
        self.cards[_end(record)].offer(digest, line)
        self._teach(record)
        if record["status"] == "accepted":
            self.instruction_words[len(record["instruction"].split())] += 1
            self.response_words[len(record["response"].split())] += 1
            self.rows.offer(digest, Row(record["instruction"], record["reference_ids"]))

    def _teach(self, record: dict[str, Any]) -> None:
        attempts, failed = record["attempts"], record["status"] == "failed"
        if not attempts and not failed:
            return
        found = (
            {v["criterion_id"]: v["verdict"] for v in attempts[-1]["verdicts"]}
            if (attempts and not failed)
            else {}
        )
        for id_ in record["reference_ids"]:
            taught = self._taught(id_)
            if taught is None:
                continue
            taught.failed += failed
            taught.judged += not failed
            taught.accepted += record["status"] == "accepted"
            taught.attempts += 0 if failed else len(attempts)
        for criterion in record["criteria"]:
            id_ = criterion["reference_id"]
            outcome = found.get(criterion["id"])
            if id_ is None or outcome in (None, "not_applicable"):
                continue
            self._drawn(criterion, id_)
            if (taught := self._taught(id_)) is not None:
                taught.criteria_judged += 1
                taught.criteria_passed += outcome == "pass"

    def _taught(self, id_: str) -> Taught | None:
        if id_ not in self.taught and len(self.taught) >= MOST_TAUGHT:
            return None
        return self.taught.setdefault(id_, Taught())

    def _drawn(self, criterion: dict[str, Any], reference_id: str) -> None:
        key = source_key(criterion["text"], criterion["must"])
        if key not in self.sources and len(self.sources) >= MOST_DRAWN:
            return
        sources = self.sources.setdefault(key, Counter())
        if reference_id in sources or len(sources) < MOST_SOURCES:
            sources[reference_id] += 1


def source_key(text: str, must: bool) -> str:
    """The name under which criteria of the same words are one, as `Facts` has them."""
    return f"{text} {must}"


def _end(record: dict[str, Any]) -> str:
    if record["status"] != "accepted":
        return str(record["status"])
    return "refined" if len(record["attempts"]) > 1 else "at once"


def account_of(name: str, directory: Path) -> Account:
    """Read a run's directory as it stands, be it running, ended or killed. Blocks.

    Raises `JournalError` when there is no run.
    """
    account = Account(name, directory, said=status_of(directory))
    with snapshot(directory / "journal.sqlite") as connection:
        # Counts, calls and records of one moment, whatever a run adds meanwhile.
        account.said = up_to_date(account.said, connection)
        for line in records_in(connection, *STATUSES):
            account.add(loads(line), line)
        account.stages = sorted(used_in(connection), key=lambda used: -used.calls)
        account.borrowed = sum(used.calls for used in used_in(connection, "borrowed"))
    account.checked = _checked(directory / "judge-check.json")
    return account


def _checked(path: Path) -> Mapping[str, Any] | None:
    """What `refloom judge-check` found of this run's judge, if it was asked to."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


# MERGED refloom~measure~report_references
# A run's references, as far as its report looks at them.
# So many are compared with the rows, and have their words counted.
REFERENCE_SAMPLE = 2000
MOST_ASKED = 200


@dataclass
class Shelf:
    """The references of a run: how many, a fair sample of them, and those that were asked for."""

    count: int = 0
    sample: list[Reference] = field(default_factory=list)
    known: dict[str, Reference] = field(default_factory=dict)
    file: ReferenceFile | None = None
    rows: list[int] = field(default_factory=list)

    def start(self, id_: str) -> str:
        """How the instruction of a reference begins; nothing where it is not known."""
        found = self.known.get(id_)
        return " ".join(found["instruction"].split())[:160] if found else ""


def shelf_of(account: Account, wanted: Iterable[str]) -> Shelf:
    """The references of a run; none where their file is gone or damaged. Blocks.

    `wanted` are the ids of those that are named on the page.
    """
    file = _file_of(account)
    if file is None:
        return Shelf()
    many, some = len(file), min(len(file), REFERENCE_SAMPLE)
    # Sorted for quick reading; mixed again, so that the first n of them are a fair draw too.
    rows = np.sort(np.random.default_rng(0).choice(many, some, replace=False))
    try:
        read = file.rows(rows.tolist())
        order = np.random.default_rng(1).permutation(some).tolist()
        known = _by_id(file, list(dict.fromkeys(wanted)))
        return Shelf(many, [read[i] for i in order], known, file, rows[order].tolist())
    except (OSError, ValueError):
        return Shelf()


def _file_of(account: Account) -> ReferenceFile | None:
    """The file that holds the references this run has used; a memory may be that of several."""
    asked = list(islice(account.taught, MOST_ASKED))
    found: list[tuple[int, float, ReferenceFile]] = []
    for path in _files(account):
        try:
            file = ReferenceFile(path)
            hits = len(_rows_of(file, asked))
            found.append((hits, path.stat().st_mtime, file))
        except (IndexUnusable, OSError, ValueError):
            continue
    best = max(found, key=lambda one: one[:2], default=None)
    return best[2] if best and (best[0] or not asked) else None


def _files(account: Account) -> list[Path]:
    settings: Mapping[str, Any] = account.said.get("settings") or {}
    given = settings.get("memory")
    for memory in (Path(str(given)) if given else None, account.directory / "memory"):
        if memory is not None and (paths := sorted(memory.glob("references-*.parquet"))):
            return paths
    return []


def _rows_of(file: ReferenceFile, ids: Sequence[str]) -> list[int]:
    """The rows of those of the ids that the file holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not ids:
        return []
    said = [id_.encode("utf-8", "replace").decode() for id_ in ids]
    column = file.column("id").combine_chunks()
    found = pc.index_in(pa.array(said, column.type), value_set=column)
    return [row for row in found.to_pylist() if row is not None]


def _by_id(file: ReferenceFile, ids: Sequence[str]) -> dict[str, Reference]:
    return {reference["id"]: reference for reference in file.rows(_rows_of(file, ids))}


async def kept_vectors(shelf: Shelf, embed: Embed, model: str, most: int) -> dict[str, Vectors]:
    """The vectors that the run's index has of the sampled instructions, by instruction.

    Nothing where the index is of another model or of other references: then they are embedded.
    """
    if shelf.file is None:
        return {}
    building = Building(shelf.file, embed, shelf.file.path.parent, model, None)
    try:
        built = await building.opened()
        rows = np.array(shelf.rows[:most], np.int64).reshape(1, -1)
        found = await asyncio.to_thread(vectors_of, built.index, rows)
    except (IndexUnusable, RuntimeError):
        return {}
    return {r["instruction"]: v for r, v in zip(shelf.sample, found[0], strict=False)}
