"""The accepted samples of a journal as it is now, read from any thread."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodes.llm.fast_json import loads
from refloom.errors import JournalError
from refloom.measure.improved import Sample, Slot
from refloom.runs.journal import open_to_read, records_in


@contextmanager
def stored_in(path: Path) -> Iterator[Stored]:
    """A journal as it is now, to read in any thread. Raises `JournalError`."""
    stored = Stored(open_to_read(path, check_same_thread=False))
    try:
        stored.begin()
        yield stored
    except sqlite3.DatabaseError as error:
        raise JournalError(f"{path}: is damaged ({error})") from error
    finally:
        stored.close()


class Stored:
    """The accepted samples of a journal; their texts are read again when they are wanted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def begin(self) -> None:
        """See the journal from now on as it is now."""
        self._connection.execute("BEGIN")

    def close(self) -> None:
        """Let go of the file, once nobody reads; whoever was given up may still do."""
        with self._lock:
            self._connection.close()

    def samples(self) -> list[Sample]:
        """All of them, in slot order. Blocks."""
        found = []
        for line in records_in(self._connection, "accepted"):
            record = loads(line)
            attempts = record["attempts"]
            changed = bool(attempts) and attempts[0]["response"] != record["response"]
            slot = tuple(record["slot"])
            about = (record["id"], slot, record["seed_id"], record["instruction"])
            found.append(Sample(*about, changed))
        return found

    def pair(self, slot: Slot) -> tuple[str, str]:
        """The response of a sample, and its draft. Blocks."""
        sql = "SELECT record FROM samples WHERE round = ? AND position = ? AND slot = ?"
        with self._lock:
            (line,) = self._connection.execute(sql, slot).fetchone()
        record = loads(line)
        return record["response"], record["attempts"][0]["response"]
