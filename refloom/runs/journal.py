"""The truth of a run: every paid call and every finished sample, in one SQLite file.

A write is awaited by whoever needs it on disk before going on; see `memory.sqlite_writer` for how.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memory.sqlite_writer import Writer
from nodes.llm.fast_json import dumps
from refloom.errors import JournalError

# MERGED refloom~runs~kept
# Reading a journal that may be another process's: its calls, its finished samples.
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


# MERGED refloom~runs~lock
# One process a run directory, and its pid for the others.
FILES = ("accepted.jsonl", "rejected.jsonl", "failed.jsonl", "run.json", "README.md")


def hold(directory: Path) -> FileLock:
    """Take the directory for this process. Raises `JournalError` naming the pid that has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # It is taken in one thread and let go of in another.
        lock = FileLock(directory / ".lock", thread_local=False)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise JournalError(
            f"{directory}: another process (pid {holder(directory)}) is at work here; "
            "wait for it or end it"
        ) from error
    except OSError as error:
        raise JournalError(f"{directory}: cannot be written ({error.strerror or error})") from error
    (directory / ".pid").write_text(str(os.getpid()), encoding="utf-8")
    for name in FILES:
        # Nobody else writes these now: a process that was killed has left its half.
        for half_written in directory.glob(f"{name}.*.new"):
            half_written.unlink(missing_ok=True)
    return lock


def holder(directory: Path) -> int | None:
    """The pid of the process at work in `directory`, or None if there is none."""
    if not (directory / ".lock").is_file():
        return None
    try:
        with FileLock(directory / ".lock").acquire(timeout=0):
            return None
    except Timeout:
        pid = (directory / ".pid").read_text(encoding="utf-8")
        return int(pid) if pid.isdigit() else -1
    except OSError:
        return None


_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
  key BLOB PRIMARY KEY, stage TEXT NOT NULL, model TEXT NOT NULL, reply TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS borrowed (
  key BLOB PRIMARY KEY, stage TEXT NOT NULL, model TEXT NOT NULL, reply TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS turns (
  round INTEGER, position INTEGER, admitted TEXT NOT NULL, duplicates INTEGER NOT NULL,
  slots INTEGER NOT NULL, PRIMARY KEY (round, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS retrieved (
  round INTEGER, position INTEGER, taken TEXT NOT NULL, PRIMARY KEY (round, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (
  round INTEGER, position INTEGER, slot INTEGER, status TEXT NOT NULL, record TEXT NOT NULL,
  PRIMARY KEY (round, position, slot)
);
CREATE TABLE IF NOT EXISTS learned (
  reference_id TEXT PRIMARY KEY, failed INTEGER NOT NULL, counts TEXT NOT NULL
) WITHOUT ROWID;
"""


class Journal:
    """The journal of the run in `directory`, held by this process alone while it is open."""

    def __init__(self, directory: Path) -> None:
        """Open or make it. Raises `JournalError` when it cannot be had."""
        self.path = directory / "journal.sqlite"
        # The stage under which calls are kept, where they are no part of making the rows.
        self.kept_as: str | None = None
        self._lock = hold(directory)
        try:
            self._writer = _connect(self.path)
            self._reader = _connect(self.path)
            self._known = {
                int.from_bytes(key[:8], "big")
                for table in ("calls", "borrowed")
                for (key,) in self._reader.execute(f"SELECT key FROM {table}")
            }
        except sqlite3.Error as error:
            self._lock.release()
            raise JournalError(f"{self.path}: is damaged ({error})") from error
        except BaseException:
            self._lock.release()
            raise
        self._reading = threading.Lock()
        self._writing = Writer(self._writer, self._unusable)

    def _unusable(self, fault: BaseException) -> JournalError:
        return JournalError(f"{self.path}: cannot be written: {fault}")

    async def put(self, sql: str, *values: Any) -> None:
        """Write, and return once it is on disk. Raises `JournalError` if it cannot be."""
        await self._writing.put(sql, *values)

    def put_soon(self, sql: str, *values: Any) -> None:
        """Write without waiting: for what could be found out again for nothing."""
        self._writing.put_soon(sql, *values)

    async def reply(self, key: bytes) -> str | None:
        """The reply of a call that was paid for or borrowed, as JSON; None if it was neither."""
        # Most calls of a run are new: those need no look into the file.
        if int.from_bytes(key[:8], "big") not in self._known:
            return None
        found = await asyncio.to_thread(self.read, REPLY, key, key)
        return found[0][0] if found else None

    async def keep(self, key: bytes, stage: str, model: str, reply: dict[str, Any]) -> None:
        """Commit a paid call's reply; returns once it is on disk."""
        usage = reply["usage"]
        tokens = (usage[k] for k in ("prompt_tokens", "cached_tokens", "completion_tokens"))
        said = dumps(reply).decode()
        sql = "INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)"
        await self.put(sql, key, self.kept_as or stage, model, said, *tokens)
        self._known.add(int.from_bytes(key[:8], "big"))

    async def borrow(self, key: bytes, stage: str, model: str, reply: str) -> None:
        """Commit the reply of a call that another run has paid for."""
        await self.put(
            "INSERT OR IGNORE INTO borrowed VALUES (?, ?, ?, ?)", key, stage, model, reply
        )
        self._known.add(int.from_bytes(key[:8], "big"))

    async def flush(self) -> None:
        """Return once everything that was put before is on disk, whoever waits for it or not."""
        await self.put("DELETE FROM meta WHERE 0")

    def read(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query; blocks, so call it off the event loop."""
        with self._reading:
            return self._reader.execute(sql, values).fetchall()

    def meta(self, key: str) -> Any:
        """What is kept under `key`, or None."""
        found = self.read("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(found[0][0]) if found else None

    async def put_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value under `key`."""
        await self.put("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, json.dumps(value))

    def close(self) -> None:
        """Write what is left, close the file and let go of the directory."""
        self._writing.close()
        # A thread that reads outlives the task that waited for it.
        with self._reading:
            self._reader.close()
        self._lock.release()


def _connect(path: Path) -> sqlite3.Connection:
    """Open with WAL and full sync: what is committed survives the process and the power."""
    try:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        check_ours(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_TABLES + REVIEWS_TABLE)
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (str(FORMAT),))
    except sqlite3.Error as error:
        raise JournalError(f"{path}: is no refloom journal ({error})") from error
    return connection
