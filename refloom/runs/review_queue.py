"""The review queue of a run: samples that wait for a person, and their decisions.

A waiting sample is a row of the journal's table `reviews`; once decided it is also one of
`samples`. Each step is one short transaction, so a run and its review do not disturb each other.
"""

from __future__ import annotations

import json
import sqlite3
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from memory.contamination import Contamination
from memory.references import Reference
from nodes.decisions import (
    BadDecision,
    ReviewDecision,
    apply_decision,
    edited_instruction,
    find_benchmark_prompt,
    review_question,
)
from nodes.llm.fast_json import dumps
from nodes.record import Record
from nodes.state import Slot
from refloom.errors import JournalError
from refloom.runs.journal import (
    FORGET_FILES,
    REVIEWS_TABLE,
    check_format,
    connect_read_only,
    count_pending,
)
from refloom.runs.known_instructions import KnownInstructions
from refloom.runs.review_figures import seen_verdicts

INSERT_REVIEW = "INSERT OR IGNORE INTO reviews VALUES (?, ?, ?, ?, ?)"
# Seconds to wait while a run is writing.
WRITE_TIMEOUT_S = 20.0
# Samples listed at once, of those that wait and of those that are decided.
MAX_LISTED_SAMPLES = 2_000
# Criteria of one sample that may be marked as wrong.
MAX_WRONG_CRITERIA = 100

MarkKind = Literal["skip", "flag"]


class UnknownSample(KeyError):
    """No sample with this id is waiting or decided."""


class Conflict(ValueError):
    """Somebody else has decided a sample in another way; the message says who and how."""


def review_entry(record: Record, references: Sequence[Reference]) -> str:
    """A waiting sample and its references, as JSON for the journal."""
    return dumps({"sample": record, "references": references}).decode()


class ReviewQueue:
    """The review queue of the run in `directory`. All methods block."""

    def __init__(self, directory: Path, contamination: Contamination | None = None) -> None:
        """Raises `JournalError` if there is no run, or if its directory cannot be written."""
        self.path = directory / "journal.sqlite"
        self._contamination = contamination
        self._known = KnownInstructions(directory)
        # What the lists show of a sample, by id; it never changes.
        self._summaries: dict[str, dict[str, Any]] = {}
        self._texts: dict[str, str] = {}
        # While it is open, no other that is closed moves the write-ahead log into the file: that
        # takes as long as the decision itself.
        held = connect_read_only(self.path, check_same_thread=False)
        self._let_go = weakref.finalize(self, held.close)
        with self._writing() as connection:
            connection.executescript(REVIEWS_TABLE)

    def close(self) -> None:
        """Move the decisions from the write-ahead log into the journal's file.

        Unless somebody else has it open, who will. Raises `JournalError`.
        """
        self._let_go()
        with self._writing():
            pass

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(self.path, timeout=WRITE_TIMEOUT_S, isolation_level=None)
            ) as connection:
                check_format(connection, self.path)
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: cannot be written ({error})") from error

    def counts(self) -> dict[str, int]:
        """The numbers of waiting and of decided samples."""
        with closing(connect_read_only(self.path)) as connection:
            return _count_reviews(connection)

    def queue(self, by: str | None = None) -> dict[str, Any]:
        """The first `MAX_LISTED_SAMPLES` waiting samples in slot order, and the counts.

        Each has `flagged`, and `skipped` if the reviewer `by` has skipped it.
        """
        sql = (
            "SELECT id FROM reviews LEFT JOIN samples USING (round, position, slot) "
            "WHERE samples.record IS NULL ORDER BY round, position, slot LIMIT ?"
        )
        with closing(connect_read_only(self.path)) as connection:
            ids = [id_ for (id_,) in connection.execute(sql, (MAX_LISTED_SAMPLES,))]
            items = [self._listed(connection, id_) for id_ in ids]
            self._add_marks(connection, items, by)
            return {**_count_reviews(connection), "items": items}

    def decided(self, by: str | None = None) -> list[dict[str, Any]]:
        """The last `MAX_LISTED_SAMPLES` decided samples, the newest first, with their decisions."""
        sql = (
            "SELECT id, json_extract(samples.record, '$.review.decision'), "
            "json_extract(samples.record, '$.review.by'), "
            "json_extract(samples.record, '$.review.at') AS at "
            "FROM reviews JOIN samples USING (round, position, slot) "
            "ORDER BY at DESC, samples.rowid DESC LIMIT ?"
        )
        with closing(connect_read_only(self.path)) as connection:
            rows = connection.execute(sql, (MAX_LISTED_SAMPLES,)).fetchall()
            items = [
                {**self._listed(connection, id_), "decision": decision, "by": who, "at": at}
                for id_, decision, who, at in rows
            ]
            self._add_marks(connection, items, by)
            return items

    def search(self, text: str) -> list[str]:
        """The ids of the listed samples whose instruction or response has all words of a text."""
        words = text.casefold().split()
        return [
            id_ for id_, text in list(self._texts.items()) if all(word in text for word in words)
        ]

    def _listed(self, connection: sqlite3.Connection, id_: str) -> dict[str, Any]:
        if id_ not in self._summaries:
            sample = json.loads(_read_entry(connection, id_)[1])["sample"]
            self._summaries[id_] = _list_entry(id_, sample)
            self._texts[id_] = f"{sample['instruction']}\n{sample['response']}".casefold()
        return dict(self._summaries[id_])

    def _add_marks(
        self, connection: sqlite3.Connection, items: list[dict[str, Any]], by: str | None
    ) -> None:
        """Note in items which are flagged, and which the reviewer has skipped."""
        rows = connection.execute("SELECT id, kind, by FROM review_marks").fetchall()
        flagged = {id_ for id_, kind, _ in rows if kind == "flag"}
        skipped = {id_ for id_, kind, who in rows if kind == "skip" and who == (by or "")}
        for item in items:
            item |= {"flagged": item["id"] in flagged, "skipped": item["id"] in skipped}

    def mark(self, id_: str, kind: MarkKind, on: bool, by: str | None = None) -> None:
        """Skip or flag a sample, or take that back. Raises `UnknownSample`.

        A sample is skipped for the reviewer `by` alone; a flag is everybody's.
        """
        with self._writing() as connection:
            _read_entry(connection, id_)
            if on:
                sql = "INSERT OR REPLACE INTO review_marks VALUES (?, ?, ?, ?)"
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                connection.execute(sql, (id_, kind, by or "", now))
            else:
                sql = (
                    "DELETE FROM review_marks WHERE id = ? AND kind = ? AND (by = ? OR ? = 'flag')"
                )
                connection.execute(sql, (id_, kind, by or "", kind))

    def item(self, id_: str) -> dict[str, Any]:
        """One sample with its references, before any decision. Raises `UnknownSample`.

        `decision` is what was decided, as it would be sent, with `by` and `at`; None if it waits.
        """
        with closing(connect_read_only(self.path)) as connection:
            slot, text = _read_entry(connection, id_)
            record = _read_record(connection, slot)
        entry = json.loads(text)
        payload = review_question(entry["sample"], entry["references"])
        return {
            "sample": payload["sample"],
            "references": payload["references"],
            "decision": None if record is None else _decision_of(record),
        }

    def check(self, id_: str, decision: ReviewDecision) -> None:
        """Raise `BadDecision` if a decision could not be applied, `UnknownSample` if unknown."""
        with closing(connect_read_only(self.path)) as connection:
            slot, text = _read_entry(connection, id_)
        self._apply(slot, json.loads(text), decision, None)

    def _apply(
        self, slot: Slot, entry: dict[str, Any], decision: ReviewDecision, by: str | None
    ) -> Record:
        sample = entry["sample"]
        self._check_new(slot, sample, decision)
        return apply_decision(
            sample,
            entry["references"],
            decision,
            by=by,
            hit=find_benchmark_prompt(decision, sample, self._contamination),
            checked=self._contamination is not None,
        )

    def _check_new(self, slot: Slot, sample: Record, decision: ReviewDecision) -> None:
        """Raise `BadDecision` if an edited instruction is too near to one that the run has."""
        instruction = edited_instruction(sample, decision)
        near = None if instruction is None else self._known.find_near(instruction, slot)
        if near is not None:
            place = "of another sample" if near["slot"] else f"of reference {near['reference_id']}"
            raise BadDecision(
                f"The instruction is too near to that {place} (ROUGE-L {near['score']:.2f}): "
                f"“{near['instruction'][:300]}”"
            )

    def decide(
        self,
        id_: str,
        decision: ReviewDecision,
        by: str | None = None,
        wrong_criteria: Sequence[str] = (),
        wrong_verdicts: Sequence[str] = (),
        *,
        revise: bool = False,
    ) -> dict[str, int]:
        """Apply a decision to a waiting sample; a later one of the same person replaces it.

        `wrong_criteria` are the ids of criteria that the person calls wrong, whatever the verdict,
        `wrong_verdicts` those whose verdict they call wrong: both stand with the decision in the
        record's `review`. `revise` replaces what somebody else decided. Raises `UnknownSample`,
        `Conflict`, or `BadDecision` if it cannot be applied.
        """
        with self._writing() as connection:
            slot, text = _read_entry(connection, id_)
            entry = json.loads(text)
            _check_criteria(entry["sample"], (*wrong_criteria, *wrong_verdicts))
            record = self._apply(slot, entry, decision, by)
            wrong = {"wrong_criteria": wrong_criteria, "wrong_verdicts": wrong_verdicts}
            marks = {name: list(dict.fromkeys(ids)) for name, ids in wrong.items() if ids}
            record = {**record, "review": {**record["review"], **marks}}
            connection.execute("BEGIN IMMEDIATE")
            # Another reviewer may have put the same instruction elsewhere meanwhile.
            self._check_new(slot, entry["sample"], decision)
            before = _read_record(connection, slot)
            if before is not None and not revise:
                _check_same(before, record)
            connection.execute(
                "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?)",
                (*slot, record["status"], dumps(record).decode()),
            )
            connection.execute(FORGET_FILES)
            connection.execute("COMMIT")
            return _count_reviews(connection)

    def undo(self, id_: str) -> dict[str, int]:
        """Undo a decision: the sample waits again. Raises `UnknownSample`."""
        with self._writing() as connection:
            slot, _ = _read_entry(connection, id_)
            connection.execute("BEGIN IMMEDIATE")
            sql = "DELETE FROM samples WHERE round = ? AND position = ? AND slot = ?"
            connection.execute(sql, slot)
            connection.execute(FORGET_FILES)
            connection.execute("COMMIT")
            return _count_reviews(connection)


def read_wrong_ids(answer: Any, name: Literal["wrong_criteria", "wrong_verdicts"]) -> list[str]:
    """The ids of criteria that an answer marks under a name. Raises `BadDecision`."""
    marks = answer.get(name) if isinstance(answer, dict) else None
    if marks is None:
        return []
    if not isinstance(marks, list) or not all(isinstance(id_, str) for id_ in marks):
        raise BadDecision(f"{name} is not a list of ids of criteria.")
    if len(marks) > MAX_WRONG_CRITERIA:
        raise BadDecision(f"Over {MAX_WRONG_CRITERIA} criteria are in {name}.")
    return marks


def _check_criteria(record: Record, ids: Sequence[str]) -> None:
    """Raise `BadDecision` for an id that none of a sample's criteria has."""
    criteria = (*record["criteria"], *(record.get("instruction_criteria") or ()))
    known = {criterion["id"] for criterion in criteria}
    for id_ in ids:
        if id_ not in known:
            raise BadDecision(f"This sample has no criterion {id_[:80]!r} to mark as wrong.")


def _check_same(before: Record, record: Record) -> None:
    """Raise `Conflict` if somebody else has decided a sample otherwise."""
    was, now = before["review"], record["review"]
    same = all(before[name] == record[name] for name in ("status", "instruction", "response"))
    if was["by"] != now["by"] and not (same and was["decision"] == now["decision"]):
        who = was["by"] or "Somebody"
        raise Conflict(f"{who} has decided otherwise meanwhile ({was['decision']})")


def _decision_of(record: Record) -> dict[str, Any]:
    """The decision in a record, with the texts that it brought."""
    names = ("decision", "reason", "by", "at", "wrong_criteria", "wrong_verdicts")
    decision = {name: record["review"].get(name) for name in names}
    if decision["decision"] == "edit":
        decision["response"] = record["response"]
        if "instruction_before" in record:
            decision["instruction"] = record["instruction"]
    return {name: value for name, value in decision.items() if value is not None}


def _read_record(connection: sqlite3.Connection, slot: Slot) -> Record | None:
    sql = "SELECT record FROM samples WHERE round = ? AND position = ? AND slot = ?"
    row = connection.execute(sql, slot).fetchone()
    return None if row is None else json.loads(row[0])


def _read_entry(connection: sqlite3.Connection, id_: str) -> tuple[Slot, str]:
    sql = "SELECT round, position, slot, asked FROM reviews WHERE id = ?"
    row = connection.execute(sql, (id_,)).fetchone()
    if row is None:
        raise UnknownSample(id_)
    return row[:3], row[3]


def _count_reviews(connection: sqlite3.Connection) -> dict[str, int]:
    (total,) = connection.execute("SELECT count(*) FROM reviews").fetchone()
    waiting = count_pending(connection)
    return {"waiting": waiting, "decided": total - waiting}


def _list_entry(id_: str, sample: Record) -> dict[str, Any]:
    """What the lists show of a sample, and what they are filtered and sorted by.

    `failed` are the texts of the criteria with a failed or unknown verdict, `length` is that of
    the response in characters.
    """
    review = sample["review"]
    return {
        "id": id_,
        "instruction": sample["instruction"][:200],
        "status": review["proposed"],
        "reason": review["proposed_reason"],
        "failed": [
            criterion["text"]
            for _, criterion, verdict in seen_verdicts(sample)
            if verdict["verdict"] in ("fail", "unknown")
        ],
        "length": len(sample["response"] or ""),
    }
