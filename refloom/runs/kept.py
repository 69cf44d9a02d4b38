"""Reading a journal that may be another process's: its calls, its finished samples."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from refloom.errors import JournalError

FORMAT = 1
REVIEWS_TABLE = """
CREATE TABLE IF NOT EXISTS reviews (
  round INTEGER, position INTEGER, slot INTEGER, id TEXT NOT NULL, asked TEXT NOT NULL,
  PRIMARY KEY (round, position, slot)
);
CREATE INDEX IF NOT EXISTS reviews_id ON reviews (id);
"""
REPLY = "SELECT reply FROM calls WHERE key = ? UNION ALL SELECT reply FROM borrowed WHERE key = ?"


class KeptCalls:
    """The calls of another run's journal, to read; that run may be under way."""

    def __init__(self, directory: Path) -> None:
        """Raises `JournalError` when there is no journal in `directory`."""
        path = directory / "journal.sqlite"
        self._connection = open_to_read(path, check_same_thread=False)
        self._lock = threading.Lock()

    def reply(self, key: bytes) -> str | None:
        """The reply of a call as JSON, or None. Blocks."""
        with self._lock:
            found = self._connection.execute(REPLY, (key, key)).fetchone()
        return found[0] if found else None

    def close(self) -> None:
        """Let go of the file, once nobody reads: a thread outlives the task that was given up."""
        with self._lock:
            self._connection.close()


def is_experiment(directory: Path) -> bool:
    """Whether a directory is that of an experiment, whose arms are runs. Blocks."""
    path = directory / "journal.sqlite"
    if not path.is_file():
        return False
    with reading(path) as journal:
        return _of_experiment(journal)


def _of_experiment(journal: sqlite3.Connection) -> bool:
    found = journal.execute("SELECT value FROM meta WHERE key = 'experiment'").fetchone()
    return found is not None


def check_run(directory: Path) -> None:
    """Refuse what is no run's directory. Raises `JournalError` saying what to name. Blocks."""
    with reading(directory / "journal.sqlite") as journal:
        if _of_experiment(journal):
            arms = sorted(path.parent.name for path in directory.glob("*/journal.sqlite"))
            raise JournalError(
                f"{directory}: holds an experiment; name one of its arms, such as "
                f"{directory / (arms[0] if arms else 'reference')}"
            )


def records(path: Path, *statuses: str) -> Iterator[str]:
    """The records of some statuses as JSON lines, in slot order; streams, blocks.

    Raises `JournalError` when there is no journal or it is damaged.
    """
    with reading(path) as connection:
        yield from records_in(connection, *statuses)


def records_in(connection: sqlite3.Connection, *statuses: str) -> Iterator[str]:
    """The same, of an open journal: inside a `snapshot` always the same ones."""
    marks = ", ".join("?" * len(statuses))
    sql = f"SELECT record FROM samples WHERE status IN ({marks}) ORDER BY round, position, slot"
    yield from (record for (record,) in connection.execute(sql, statuses))


def waiting_in(connection: sqlite3.Connection) -> int:
    """How many samples of an open journal wait for a person; one of an older version has none."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'reviews'").fetchone():
        return 0
    sql = (
        "SELECT count(*) FROM reviews LEFT JOIN samples USING (round, position, slot) "
        "WHERE samples.record IS NULL"
    )
    return int(connection.execute(sql).fetchone()[0])


@contextmanager
def snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees the journal as it is now, whatever a run adds meanwhile. Blocks.

    Raises `JournalError` when there is no journal or it is damaged.
    """
    with reading(path) as connection:
        connection.execute("BEGIN")
        # A transaction begins with what is read first.
        connection.execute("SELECT count(*) FROM samples").fetchone()
        yield connection


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to read by, closed in the end; what is damaged raises `JournalError`."""
    with closing(open_to_read(path)) as connection:
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            raise JournalError(f"{path}: is damaged ({error})") from error


def open_to_read(path: Path, *, check_same_thread: bool = True) -> sqlite3.Connection:
    """A read-only connection, for looking at a run while another process makes it.

    Raises `JournalError` for what is none of this version's journals.
    """
    if not path.is_file():
        raise JournalError(f"{path.parent}: no run is kept here (no {path.name})")
    # Where nothing can be written, nobody writes, and SQLite must not try to share.
    alone = "" if os.access(path.parent, os.W_OK) else "&immutable=1"
    address = f"{path.absolute().as_uri()}?mode=ro{alone}"
    try:
        connection = sqlite3.connect(address, uri=True, check_same_thread=check_same_thread)
        connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchall()
        check_ours(connection, path)
    except sqlite3.Error as error:
        raise JournalError(f"{path}: is no refloom journal ({error})") from error
    return connection


def check_ours(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse, before anything is written, what this version of refloom did not make."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return
    kept = (
        connection.execute("SELECT value FROM meta WHERE key = 'format'")
        if ({"meta", "calls"} <= tables)
        else None
    )
    found = kept.fetchone() if kept else None
    if found is None or not str(found[0]).isdigit():
        raise JournalError(f"{path}: is another program's database; nothing was changed")
    if int(found[0]) > FORMAT:
        raise JournalError(
            f"{path}: was made by a newer refloom (format {found[0]}); nothing was changed"
        )
