"""What a run's journal adds up to for its report, gone through once, in bounded memory."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, TypeVar

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
