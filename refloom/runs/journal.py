"""The truth of a run: every paid call and every finished sample, in one SQLite file.

A write is awaited by whoever needs it on disk before going on; see `memory.sqlite_writer` for how.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

from memory.sqlite_writer import Writer
from nodes.llm.fast_json import dumps
from refloom.errors import JournalError
from refloom.runs.kept import FORMAT, REPLY, REVIEWS_TABLE, check_ours
from refloom.runs.lock import hold

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
