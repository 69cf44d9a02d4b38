"""A person's decisions about a run's samples: kept in its journal, and taken back if they wish.

A sample that waits for a person is a row of `reviews`; decided, it is one of `samples` as well.
Each is one short transaction, so that a run under way and a review of it do not disturb each other.
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
from nodes.decisions import Decision, decided, question
from nodes.llm.fast_json import dumps
from nodes.record import Record
from refloom.errors import JournalError
from refloom.runs.journal import REVIEWS_TABLE, check_ours, open_to_read, waiting_in

INSERT_REVIEW = "INSERT OR IGNORE INTO reviews VALUES (?, ?, ?, ?, ?)"
# Seconds to wait for a run that is just writing.
WRITE_TIMEOUT_S = 20.0
# How many waiting samples are listed at once.
MAX_LISTED_SAMPLES = 500


class UnknownSample(KeyError):
    """No sample of this id waits, or is decided."""


def review_entry(record: Record, references: Sequence[Reference]) -> str:
    """What is kept of a sample that waits: itself and its references, as JSON."""
    return dumps({"sample": record, "references": references}).decode()


class ReviewQueue:
    """The samples of the run in `directory` that wait for a person. Everything here blocks."""

    def __init__(self, directory: Path, contamination: Contamination | None = None) -> None:
        """Raises `JournalError` when no run is kept there."""
        self.path = directory / "journal.sqlite"
        self._contamination = contamination
        with closing(open_to_read(self.path)):
            pass
        with self._writing() as connection:
            connection.executescript(REVIEWS_TABLE)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(self.path, timeout=WRITE_TIMEOUT_S, isolation_level=None)
            ) as connection:
                check_ours(connection, self.path)
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: cannot be written ({error})") from error

    def counts(self) -> dict[str, int]:
        """How many samples wait and how many are decided."""
        with closing(open_to_read(self.path)) as connection:
            return _counts(connection)

    def queue(self) -> dict[str, Any]:
        """The samples that wait, in slot order, the first few hundred of them, and the counts."""
        sql = (
            "SELECT id, asked FROM reviews LEFT JOIN samples USING (round, position, slot) "
            "WHERE samples.record IS NULL ORDER BY round, position, slot LIMIT ?"
        )
        with closing(open_to_read(self.path)) as connection:
            found = connection.execute(sql, (MAX_LISTED_SAMPLES,)).fetchall()
            counts = _counts(connection)
        return {**counts, "items": [_list_entry(id_, json.loads(said)) for id_, said in found]}

    def item(self, id_: str) -> dict[str, Any]:
        """One sample with its references, as the judge left it. Raises `UnknownSample`."""
        with closing(open_to_read(self.path)) as connection:
            kept = json.loads(_read_entry(connection, id_)[1])
        said = question(kept["sample"], kept["references"])
        return {"sample": said["sample"], "references": said["references"]}

    def decide(self, id_: str, decision: Decision, by: str | None = None) -> dict[str, int]:
        """Make a waiting sample what a person decided; a later decision takes the former's place.

        Raises `UnknownSample`, or `BadDecision` when it cannot be.
        """
        with self._writing() as connection:
            slot, said = _read_entry(connection, id_)
            kept = json.loads(said)
            hit = None
            if self._contamination is not None and decision.response:
                hit = self._contamination.response(decision.response)
            record = decided(
                kept["sample"],
                kept["references"],
                decision,
                by=by,
                hit=hit,
                checked=self._contamination is not None,
            )
            line = dumps(record).decode()
            connection.execute(
                "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?)",
                (*slot, record["status"], line),
            )
            return _counts(connection)

    def undo(self, id_: str) -> dict[str, int]:
        """Let a decided sample wait again. Raises `UnknownSample`."""
        with self._writing() as connection:
            slot, _ = _read_entry(connection, id_)
            sql = "DELETE FROM samples WHERE round = ? AND position = ? AND slot = ?"
            connection.execute(sql, slot)
            return _counts(connection)


def _read_entry(connection: sqlite3.Connection, id_: str) -> tuple[tuple[int, int, int], str]:
    sql = "SELECT round, position, slot, asked FROM reviews WHERE id = ?"
    found = connection.execute(sql, (id_,)).fetchone()
    if found is None:
        raise UnknownSample(id_)
    return found[:3], found[3]


def _counts(connection: sqlite3.Connection) -> dict[str, int]:
    (all_,) = connection.execute("SELECT count(*) FROM reviews").fetchone()
    waiting = waiting_in(connection)
    return {"waiting": waiting, "decided": all_ - waiting}


def _list_entry(id_: str, kept: dict[str, Any]) -> dict[str, Any]:
    record = kept["sample"]
    review = record["review"]
    return {
        "id": id_,
        "instruction": record["instruction"][:200],
        "status": review["proposed"],
        "reason": review["proposed_reason"],
    }
