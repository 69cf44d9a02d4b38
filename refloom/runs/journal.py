"""The truth of a run: every paid call and every finished sample, in one SQLite file.

One thread writes, in groups: whatever has come in while the last group was being committed is the
next one. A write is awaited by whoever needs it on disk before going on.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

from refloom.runs.lock import JournalUnusable, hold

FORMAT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
  key BLOB PRIMARY KEY, stage TEXT NOT NULL, model TEXT NOT NULL, reply TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS turns (
  round INTEGER, position INTEGER, admitted TEXT NOT NULL, duplicates INTEGER NOT NULL,
  slots INTEGER NOT NULL, PRIMARY KEY (round, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (
  round INTEGER, position INTEGER, slot INTEGER, status TEXT NOT NULL, record TEXT NOT NULL,
  PRIMARY KEY (round, position, slot)
);
CREATE TABLE IF NOT EXISTS learned (
  reference_id TEXT PRIMARY KEY, failed INTEGER NOT NULL, counts TEXT NOT NULL
) WITHOUT ROWID;
"""


Write = tuple[str, tuple[Any, ...], "Future[None] | None"]


class Journal:
    """The journal of the run in `directory`, held by this process alone while it is open."""

    def __init__(self, directory: Path) -> None:
        """Open or make it. Raises `JournalUnusable` when it cannot be had."""
        self.path = directory / "journal.sqlite"
        self._lock = hold(directory)
        try:
            self._writer = _connect(self.path)
            self._reader = _connect(self.path)
            self._known = {key[:8] for (key,) in self._reader.execute("SELECT key FROM calls")}
        except sqlite3.Error as error:
            self._lock.release()
            raise JournalUnusable(f"{self.path}: is damaged ({error})") from error
        except BaseException:
            self._lock.release()
            raise
        self._reading = threading.Lock()
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    async def put(self, sql: str, *values: Any) -> None:
        """Write, and return once it is on disk. Raises `JournalUnusable` if it cannot be."""
        if self._fault is not None:
            raise JournalUnusable(f"{self.path}: cannot be written: {self._fault}")
        done: Future[None] = Future()
        self._queue.put((sql, values, done))
        await asyncio.wrap_future(done)

    def put_soon(self, sql: str, *values: Any) -> None:
        """Write without waiting: for what could be found out again for nothing."""
        self._queue.put((sql, values, None))

    def _write(self) -> None:
        while (first := self._queue.get()) is not None:
            group: list[Write | None] = [first]
            while not self._queue.empty():
                group.append(self._queue.get())
            writes = [w for w in group if w is not None]
            try:
                self._commit(writes)
            except (ValueError, OverflowError):
                # One value that no database takes must not cost the others of its group.
                for write in writes:
                    self._commit_alone(write)
            except sqlite3.Error as error:
                self._fault = error
                for write in writes:
                    self._settle(write, error)
            if len(writes) < len(group):
                return

    def _commit(self, writes: list[Write]) -> None:
        self._writer.execute("BEGIN")
        try:
            for sql, values, _ in writes:
                self._writer.execute(sql, values)
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        for write in writes:
            self._settle(write, None)

    def _commit_alone(self, write: Write) -> None:
        try:
            self._commit([write])
        except (ValueError, OverflowError, sqlite3.Error) as error:
            self._settle(write, error)

    def _settle(self, write: Write, error: Exception | None) -> None:
        """Tell who waits for a write; nobody does any more if that was cancelled."""
        done = write[2]
        if done is None or not done.set_running_or_notify_cancel():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(JournalUnusable(f"{self.path}: cannot be written: {error}"))

    def knows_call(self, key: bytes) -> bool:
        """Whether a call is likely there; no look into the file."""
        return key[:8] in self._known

    async def flush(self) -> None:
        """Return once everything that was put before is on disk, whoever waits for it or not."""
        await self.put("SELECT 1")

    def remember_call(self, key: bytes) -> None:
        """Know a call that was put there just now."""
        self._known.add(key[:8])

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
        self._queue.put(None)
        self._thread.join()
        self._writer.close()
        self._reader.close()
        self._lock.release()


def records(path: Path, status: str) -> Iterator[str]:
    """The records of a status as JSON lines, in slot order; streams, blocks."""
    with closing(open_to_read(path)) as connection:
        yield from (
            record
            for (record,) in connection.execute(
                "SELECT record FROM samples WHERE status = ? ORDER BY round, position, slot",
                (status,),
            )
        )


def open_to_read(path: Path) -> sqlite3.Connection:
    """A read-only connection, for looking at a run while another process makes it."""
    if not path.is_file():
        raise JournalUnusable(f"{path.parent}: no run is kept here (no {path.name})")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchall()
    except sqlite3.Error as error:
        raise JournalUnusable(f"{path}: is no refloom journal ({error})") from error
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    """Open with WAL and full sync: what is committed survives the process and the power."""
    try:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        _check_ours(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_TABLES)
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (str(FORMAT),))
    except sqlite3.Error as error:
        raise JournalUnusable(f"{path}: is no refloom journal ({error})") from error
    return connection


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
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
        raise JournalUnusable(f"{path}: is another program's database; nothing was changed")
    if int(found[0]) > FORMAT:
        raise JournalUnusable(
            f"{path}: was made by a newer refloom (format {found[0]}); nothing was changed"
        )
