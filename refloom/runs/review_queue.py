"""The review queue of a run: samples that wait for a person, and their decisions.

A waiting sample is a row of the journal's table `reviews`; once decided it is also one of
`samples`. Each step is one short transaction, so a run and its review do not disturb each other.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from memory.contamination import Contamination
from memory.references import Reference
from nodes.decisions import BadDecision, ReviewDecision, apply_decision, review_question
from nodes.llm.fast_json import dumps
from nodes.record import Record
from refloom.errors import JournalError
from refloom.runs.journal import REVIEWS_TABLE, check_format, connect_read_only, count_pending

INSERT_REVIEW = "INSERT OR IGNORE INTO reviews VALUES (?, ?, ?, ?, ?)"
# Seconds to wait while a run is writing.
WRITE_TIMEOUT_S = 20.0
# Waiting samples listed at once.
MAX_LISTED_SAMPLES = 500
# Criteria of one sample that may be marked as wrong.
MAX_WRONG_CRITERIA = 100


class UnknownSample(KeyError):
    """No sample with this id is waiting or decided."""


def review_entry(record: Record, references: Sequence[Reference]) -> str:
    """A waiting sample and its references, as JSON for the journal."""
    return dumps({"sample": record, "references": references}).decode()


class ReviewQueue:
    """The review queue of the run in `directory`. All methods block."""

    def __init__(self, directory: Path, contamination: Contamination | None = None) -> None:
        """Raises `JournalError` if there is no run."""
        self.path = directory / "journal.sqlite"
        self._contamination = contamination
        with closing(connect_read_only(self.path)):
            pass
        with self._writing() as connection:
            connection.executescript(REVIEWS_TABLE)

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

    def queue(self) -> dict[str, Any]:
        """The first `MAX_LISTED_SAMPLES` waiting samples in slot order, and the counts."""
        sql = (
            "SELECT id, asked FROM reviews LEFT JOIN samples USING (round, position, slot) "
            "WHERE samples.record IS NULL ORDER BY round, position, slot LIMIT ?"
        )
        with closing(connect_read_only(self.path)) as connection:
            rows = connection.execute(sql, (MAX_LISTED_SAMPLES,)).fetchall()
            counts = _count_reviews(connection)
        return {**counts, "items": [_list_entry(id_, json.loads(entry)) for id_, entry in rows]}

    def item(self, id_: str) -> dict[str, Any]:
        """One sample with its references, before any decision. Raises `UnknownSample`."""
        with closing(connect_read_only(self.path)) as connection:
            entry = json.loads(_read_entry(connection, id_)[1])
        payload = review_question(entry["sample"], entry["references"])
        return {"sample": payload["sample"], "references": payload["references"]}

    def decide(
        self,
        id_: str,
        decision: ReviewDecision,
        by: str | None = None,
        wrong_criteria: Sequence[str] = (),
    ) -> dict[str, int]:
        """Apply a decision to a waiting sample; a later decision replaces an earlier one.

        `wrong_criteria` are the ids of criteria that the person calls wrong, whatever the verdict:
        they stand with the decision in the record's `review`. Raises `UnknownSample`, or
        `BadDecision` if it cannot be applied.
        """
        with self._writing() as connection:
            slot, text = _read_entry(connection, id_)
            entry = json.loads(text)
            _check_criteria(entry["sample"], wrong_criteria)
            hit = None
            if self._contamination is not None and decision.response:
                hit = self._contamination.find_in_response(decision.response)
            record = apply_decision(
                entry["sample"],
                entry["references"],
                decision,
                by=by,
                hit=hit,
                checked=self._contamination is not None,
            )
            if wrong_criteria:
                marks = list(dict.fromkeys(wrong_criteria))
                record = {**record, "review": {**record["review"], "wrong_criteria": marks}}
            line = dumps(record).decode()
            connection.execute(
                "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?)",
                (*slot, record["status"], line),
            )
            return _count_reviews(connection)

    def undo(self, id_: str) -> dict[str, int]:
        """Undo a decision: the sample waits again. Raises `UnknownSample`."""
        with self._writing() as connection:
            slot, _ = _read_entry(connection, id_)
            sql = "DELETE FROM samples WHERE round = ? AND position = ? AND slot = ?"
            connection.execute(sql, slot)
            return _count_reviews(connection)


def read_wrong_criteria(answer: Any) -> list[str]:
    """The ids of the criteria that an answer marks as wrong. Raises `BadDecision`."""
    marks = answer.get("wrong_criteria") if isinstance(answer, dict) else None
    if marks is None:
        return []
    if not isinstance(marks, list) or not all(isinstance(id_, str) for id_ in marks):
        raise BadDecision("wrong_criteria is not a list of ids of criteria.")
    if len(marks) > MAX_WRONG_CRITERIA:
        raise BadDecision(f"Over {MAX_WRONG_CRITERIA} criteria are marked as wrong.")
    return marks


def _check_criteria(record: Record, ids: Sequence[str]) -> None:
    """Raise `BadDecision` for an id that none of a sample's criteria has."""
    criteria = (*record["criteria"], *(record.get("instruction_criteria") or ()))
    known = {criterion["id"] for criterion in criteria}
    for id_ in ids:
        if id_ not in known:
            raise BadDecision(f"This sample has no criterion {id_[:80]!r} to mark as wrong.")


def _read_entry(connection: sqlite3.Connection, id_: str) -> tuple[tuple[int, int, int], str]:
    sql = "SELECT round, position, slot, asked FROM reviews WHERE id = ?"
    row = connection.execute(sql, (id_,)).fetchone()
    if row is None:
        raise UnknownSample(id_)
    return row[:3], row[3]


def _count_reviews(connection: sqlite3.Connection) -> dict[str, int]:
    (total,) = connection.execute("SELECT count(*) FROM reviews").fetchone()
    waiting = count_pending(connection)
    return {"waiting": waiting, "decided": total - waiting}


def _list_entry(id_: str, entry: dict[str, Any]) -> dict[str, Any]:
    record = entry["sample"]
    review = record["review"]
    return {
        "id": id_,
        "instruction": record["instruction"][:200],
        "status": review["proposed"],
        "reason": review["proposed_reason"],
    }
