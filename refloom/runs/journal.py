"""The journal of a run: every paid call and every finished sample, in one SQLite file.

`Journal` is the writer's side, one process a directory, held by a lock. What is awaited is on disk
afterwards; `memory.sqlite_writer` writes in groups. Other processes read beside it, read-only.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memory.sqlite_writer import SqliteWriter, Statement
from nodes.llm.fast_json import dumps
from refloom.errors import JournalError

JOURNAL_FORMAT = 1
JOURNAL_NAME = "journal.sqlite"
# Files that a run writes next to its journal, each by way of a `.new` file.
WRITTEN_FILES = (
    *("accepted.jsonl", "rejected.jsonl", "failed.jsonl", "dropped.jsonl"),
    *("run.json", "README.md"),
)
TABLES = """
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
  slots INTEGER NOT NULL, verdicts TEXT NOT NULL DEFAULT '[]', screened INTEGER NOT NULL DEFAULT 0,
  unfit INTEGER NOT NULL DEFAULT 0, surplus INTEGER NOT NULL DEFAULT 0,
  seed_id TEXT NOT NULL DEFAULT '', dropped TEXT NOT NULL DEFAULT '[]',
  PRIMARY KEY (round, position)
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
CREATE TABLE IF NOT EXISTS retries (
  number INTEGER, round INTEGER, position INTEGER, slot INTEGER, moved_to INTEGER,
  draw_round INTEGER NOT NULL, done INTEGER NOT NULL, PRIMARY KEY (number, round, position, slot)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checks (
  key BLOB PRIMARY KEY, name TEXT NOT NULL, verdict TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unusable (
  key BLOB PRIMARY KEY, number INTEGER NOT NULL
) WITHOUT ROWID;
"""
# Columns that journals of earlier versions lack until a run goes on with them.
ADDED_CALL_COLUMNS = {
    "cache_write_tokens": "INTEGER NOT NULL DEFAULT 0",
    "reasoning_tokens": "INTEGER NOT NULL DEFAULT 0",
    "tier": "TEXT",
}
ADDED_TURN_COLUMNS = {
    "verdicts": "TEXT NOT NULL DEFAULT '[]'",
    "screened": "INTEGER NOT NULL DEFAULT 0",
    "unfit": "INTEGER NOT NULL DEFAULT 0",
    "surplus": "INTEGER NOT NULL DEFAULT 0",
    "seed_id": "TEXT NOT NULL DEFAULT ''",
    "dropped": "TEXT NOT NULL DEFAULT '[]'",
}
REVIEWS_TABLE = """
CREATE TABLE IF NOT EXISTS reviews (
  round INTEGER, position INTEGER, slot INTEGER, id TEXT NOT NULL, asked TEXT NOT NULL,
  PRIMARY KEY (round, position, slot)
);
CREATE INDEX IF NOT EXISTS reviews_id ON reviews (id);
CREATE TABLE IF NOT EXISTS review_marks (
  id TEXT, kind TEXT, by TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (id, kind, by)
) WITHOUT ROWID;
"""
# What a run has made of its calls.
TABLES_OF_A_RUN = ("turns", "retrieved", "samples", "learned", "retries", "unusable", "reviews")
# Stages of calls that only find out whether an endpoint answers, and how.
TRYING_STAGES = ("preflight", "probe")
# The tokens of a usage that are counted by call.
TOKEN_FIELDS = (
    "prompt_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "completion_tokens",
    "reasoning_tokens",
)
CALL_COLUMNS = ("key", "stage", "model", "reply", *TOKEN_FIELDS, "tier")
INSERT_CALL = (
    f"INSERT OR IGNORE INTO calls ({', '.join(CALL_COLUMNS)}) "
    f"VALUES ({', '.join('?' * len(CALL_COLUMNS))})"
)
INSERT_TURN = (
    "INSERT OR REPLACE INTO turns (round, position, admitted, verdicts, slots, duplicates, "
    "screened, unfit, surplus, seed_id, dropped) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
UPDATE_META = "UPDATE meta SET value = ? WHERE key = ?"
# The key in `meta` for how the run's files look; whoever changes a sample deletes it.
FILES_KEY = "files"
FORGET_FILES = f"DELETE FROM meta WHERE key = '{FILES_KEY}'"
# Always passed over: another run had no use for the replies of the call.
UNUSABLE_ELSEWHERE = -1
INSERT_UNUSABLE = "INSERT OR IGNORE INTO unusable VALUES (?, ?)"
INSERT_CHECK = "INSERT OR IGNORE INTO checks VALUES (?, ?, ?)"
SELECT_CHECK = "SELECT verdict FROM checks WHERE key = ?"
SELECT_REPLY = (
    "SELECT reply FROM calls WHERE key = ? UNION ALL SELECT reply FROM borrowed WHERE key = ?"
)


class Journal:
    """The journal of the run in `directory`, held by this process alone while it is open."""

    def __init__(self, directory: Path, name: str = JOURNAL_NAME) -> None:
        """Open or create it. Raises `JournalError` if it is held, damaged or cannot be written.

        Under another `name` than a run's, the file is locked and not the directory.
        """
        self.path = directory / name
        # The stage under which all calls are recorded, where they do not make rows.
        self.stage: str | None = None
        self._lock = lock_directory(directory, "" if name == JOURNAL_NAME else name)
        try:
            self._writer = _connect(self.path)
            self._reader = _connect(self.path)
            self._key_prefixes = {
                _prefix(key)
                for table in ("calls", "borrowed", "checks")
                for (key,) in self._reader.execute(f"SELECT key FROM {table}")
            }
            self._read_lock = threading.Lock()
            self.load_unusable()
        except sqlite3.Error as error:
            self._lock.release()
            raise JournalError(f"{self.path}: is damaged ({error})") from error
        except BaseException:
            self._lock.release()
            raise
        self._writing = SqliteWriter(self._writer, self._write_error)

    def _write_error(self, error: BaseException) -> JournalError:
        return JournalError(f"{self.path}: cannot be written: {error}")

    async def put(self, sql: str, *values: Any) -> None:
        """Execute a statement, and return once it is on disk. Raises `JournalError`."""
        await self._writing.put(sql, *values)

    async def put_all(self, statements: Sequence[Statement]) -> None:
        """Execute several statements, all of them or none. Raises `JournalError`."""
        await self._writing.put_all(statements)

    def put_soon(self, sql: str, *values: Any) -> None:
        """Execute a statement without waiting: for what could be found out again at no cost."""
        self._writing.put_soon(sql, *values)

    async def reply(self, key: bytes) -> str | None:
        """The reply of a call that was paid for or borrowed, as JSON; None if there is none."""
        # Most calls of a run are new: those need no look into the file.
        if _prefix(key) not in self._key_prefixes:
            return None
        rows = await asyncio.to_thread(self.read, SELECT_REPLY, key, key)
        return rows[0][0] if rows else None

    async def record(self, key: bytes, stage: str, model: str, reply: dict[str, Any]) -> None:
        """Commit the reply of a paid call, and return once it is on disk."""
        usage = reply["usage"]
        tokens = (usage.get(name, 0) for name in TOKEN_FIELDS)
        values = (key, self.stage or stage, model, dumps(reply).decode(), *tokens)
        await self.put(INSERT_CALL, *values, reply.get("tier"))
        self._key_prefixes.add(_prefix(key))

    async def borrow(self, key: bytes, stage: str, model: str, reply: str) -> None:
        """Commit the reply of a call that another run has paid for."""
        await self.put(
            "INSERT OR IGNORE INTO borrowed VALUES (?, ?, ?, ?)", key, stage, model, reply
        )
        self._key_prefixes.add(_prefix(key))

    async def check(self, key: bytes) -> str | None:
        """The verdict of a check that was made before, as JSON; None if there is none."""
        if _prefix(key) not in self._key_prefixes:
            return None
        rows = await asyncio.to_thread(self.read, SELECT_CHECK, key)
        return rows[0][0] if rows else None

    async def record_check(self, key: bytes, name: str, verdict: str) -> None:
        """Store the verdict of a check, and return once it is on disk."""
        self._key_prefixes.add(_prefix(key))
        await self.put(INSERT_CHECK, key, name, verdict)

    def load_unusable(self) -> None:
        """Read which calls are passed over, once it is written what is tried again. Blocks."""
        self._unusable: dict[bytes, int] = dict(self.read("SELECT key, number FROM unusable"))
        ((number,),) = self.read("SELECT coalesce(max(number), 0) FROM retries")
        self._retry_number = int(number)

    def is_unusable(self, key: bytes) -> bool:
        """Whether a call's replies ended a sample, or a reference, that is now tried again."""
        return self._unusable.get(key, self._retry_number) < self._retry_number

    def mark_unusable(self, keys: Sequence[bytes]) -> list[Statement]:
        """The statements that pass these calls over from the next retry on, not before.

        A session that is killed and taken up meets the same replies again.
        """
        return [Statement(INSERT_UNUSABLE, (key, self._retry_number)) for key in keys]

    async def pass_over(self, key: bytes) -> None:
        """Pass a call over from now on, since another run that is reused had no use for it."""
        await self.put(INSERT_UNUSABLE, key, UNUSABLE_ELSEWHERE)
        self._unusable[key] = UNUSABLE_ELSEWHERE

    async def flush(self) -> None:
        """Return once everything put before is on disk, whether or not anyone waits for it."""
        await self.put("DELETE FROM meta WHERE 0")

    def read(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query. Blocks, so not for the event loop."""
        with self._read_lock:
            return self._reader.execute(sql, values).fetchall()

    def meta(self, key: str) -> Any:
        """The JSON value stored under `key`, or None. Blocks."""
        rows = self.read("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(rows[0][0]) if rows else None

    async def put_meta(self, key: str, value: Any) -> None:
        """Store a JSON value under `key`."""
        await self.put(INSERT_META, key, json.dumps(value))

    def has_work(self) -> bool:
        """Whether anything was paid for but small calls that try an endpoint, or made. Blocks."""
        ((calls, samples),) = self.read(
            f"SELECT EXISTS (SELECT 1 FROM calls WHERE stage NOT IN {TRYING_STAGES}) "
            "OR EXISTS (SELECT 1 FROM borrowed), "
            "EXISTS (SELECT 1 FROM samples WHERE status != 'failed')"
        )
        return bool(calls or samples)

    async def begin_anew(self) -> None:
        """Forget a run without work, and what it was to be; its calls stay."""
        await self.put_all(
            [
                *(Statement(f"DELETE FROM {table}", ()) for table in TABLES_OF_A_RUN),
                Statement("DELETE FROM meta WHERE key != 'format'", ()),
            ]
        )
        await asyncio.to_thread(self.load_unusable)

    def close(self) -> None:
        """Write what is left, close the file and release the directory. Blocks."""
        self._writing.close()
        # A thread that reads outlives the task that waited for it.
        with self._read_lock:
            self._reader.close()
        self._lock.release()


def _prefix(key: bytes) -> int:
    """The first 8 bytes of a key, as a number: what a journal remembers of its keys."""
    return int.from_bytes(key[:8], "big")


def _connect(path: Path) -> sqlite3.Connection:
    """Open to write, with WAL and full sync: a commit survives the process and a power cut."""
    try:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        check_format(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(TABLES + REVIEWS_TABLE)
        for table, columns in (("calls", ADDED_CALL_COLUMNS), ("turns", ADDED_TURN_COLUMNS)):
            known = columns_of(connection, table)
            for name, kind in columns.items():
                if name not in known:
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
        connection.execute(
            "INSERT OR IGNORE INTO meta VALUES ('format', ?)", (str(JOURNAL_FORMAT),)
        )
    except sqlite3.Error as error:
        raise JournalError(f"{path}: is not a refloom journal ({error})") from error
    return connection


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """The columns that a table of a journal has."""
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `JournalError`, before anything is written, for a file this version cannot use."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return
    row = None
    if {"meta", "calls"} <= tables:
        row = connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
    if row is None or not str(row[0]).isdigit():
        raise JournalError(f"{path}: is another program's database; nothing was changed")
    if int(row[0]) > JOURNAL_FORMAT:
        raise JournalError(
            f"{path}: was made by a newer refloom (format {row[0]}); nothing was changed"
        )


# Reading a journal that another process may be writing.


class ReusedCalls:
    """The calls of another run's journal, read-only; that run may be going on."""

    def __init__(self, directory: Path) -> None:
        """Raises `JournalError` if there is no journal in `directory`, which may be one itself."""
        is_journal = directory.suffix == ".sqlite"
        path = directory if is_journal else directory / JOURNAL_NAME
        self._connection = connect_read_only(path, check_same_thread=False)
        self._lock = threading.Lock()
        self._has_checks = has_table(self._connection, "checks")
        self._unusable: set[bytes] = set()
        if has_table(self._connection, "unusable"):
            rows = self._connection.execute("SELECT key FROM unusable")
            self._unusable = {key for (key,) in rows}

    def is_unusable(self, key: bytes) -> bool:
        """Whether that run had no use for the replies of a call."""
        return key in self._unusable

    def reply(self, key: bytes) -> str | None:
        """The reply of a call as JSON, or None. Blocks."""
        rows = self.read(SELECT_REPLY, key, key)
        return rows[0][0] if rows else None

    def check(self, key: bytes) -> str | None:
        """The verdict of a check as JSON, or None. Blocks."""
        # Runs of older versions have none.
        rows = self.read(SELECT_CHECK, key) if self._has_checks else []
        return rows[0][0] if rows else None

    def read(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query. Blocks."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close the file once no thread reads: it outlives the task that waited for it."""
        with self._lock:
            self._connection.close()


def connect_read_only(path: Path, *, check_same_thread: bool = True) -> sqlite3.Connection:
    """A read-only connection to a journal that another process may be writing.

    Raises `JournalError` if there is no journal, or none that this version reads.
    """
    if not path.is_file():
        raise JournalError(f"{path.parent}: there is no run here (no {path.name})")
    # In a directory where nothing can be written nobody writes, and SQLite must not try to lock.
    # But an immutable file is read without the log that a killed process left beside it.
    log = path.with_name(f"{path.name}-wal")
    shut = not os.access(path.parent, os.W_OK) and not (log.is_file() and log.stat().st_size)
    immutable = "&immutable=1" if shut else ""
    address = f"{path.absolute().as_uri()}?mode=ro{immutable}"
    try:
        connection = sqlite3.connect(address, uri=True, check_same_thread=check_same_thread)
        connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchall()
        check_format(connection, path)
    except sqlite3.Error as error:
        raise JournalError(f"{path}: is not a refloom journal ({error})") from error
    return connection


@contextmanager
def open_read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection, closed at the end. Raises `JournalError`, also for a damaged file."""
    with closing(connect_read_only(path)) as connection:
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            raise JournalError(f"{path}: is damaged ({error})") from error


@contextmanager
def read_snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees the journal as it is now, whatever a run adds meanwhile. Blocks.

    Raises `JournalError` if there is no journal or it is damaged.
    """
    with open_read_only(path) as connection:
        connection.execute("BEGIN")
        # A transaction begins with its first read.
        connection.execute("SELECT count(*) FROM samples").fetchone()
        yield connection


def read_records(path: Path, *statuses: str) -> Iterator[str]:
    """The records of some statuses as JSON lines, in the order of slots; streams, blocks.

    Raises `JournalError` if there is no journal or it is damaged.
    """
    with open_read_only(path) as connection:
        yield from iter_records(connection, *statuses)


def iter_records(connection: sqlite3.Connection, *statuses: str) -> Iterator[str]:
    """`read_records` of an open journal: inside `read_snapshot` always the same ones."""
    marks = ", ".join("?" * len(statuses))
    sql = f"SELECT record FROM samples WHERE status IN ({marks}) ORDER BY round, position, slot"
    yield from (record for (record,) in connection.execute(sql, statuses))


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    """Whether an open journal has a table: those of older versions lack some."""
    sql = "SELECT 1 FROM sqlite_master WHERE name = ?"
    return connection.execute(sql, (name,)).fetchone() is not None


def count_pending(connection: sqlite3.Connection) -> int:
    """How many samples of an open journal wait for a person's review."""
    if not has_table(connection, "reviews"):
        return 0
    sql = (
        "SELECT count(*) FROM reviews LEFT JOIN samples USING (round, position, slot) "
        "WHERE samples.record IS NULL"
    )
    return int(connection.execute(sql).fetchone()[0])


def is_experiment(directory: Path) -> bool:
    """Whether a directory holds an experiment, whose arms are runs. Blocks."""
    path = directory / "journal.sqlite"
    if not path.is_file():
        return False
    with open_read_only(path) as connection:
        return _has_experiment(connection)


def _has_experiment(connection: sqlite3.Connection) -> bool:
    sql = "SELECT value FROM meta WHERE key = 'experiment'"
    return connection.execute(sql).fetchone() is not None


def check_own_files(directory: Path) -> None:
    """Raise `JournalError` if a directory without a run holds a file that a run would replace."""
    if (directory / JOURNAL_NAME).exists():
        return
    for name in WRITTEN_FILES:
        if (directory / name).exists():
            raise JournalError(
                f"{directory}: has no run in it, but a file {name}, which a run would replace; "
                "give another directory, or move the file away"
            )


def check_run(directory: Path) -> None:
    """Raise `JournalError` if a directory does not hold a run; says what to name. Blocks."""
    with open_read_only(directory / "journal.sqlite") as connection:
        if _has_experiment(connection):
            arms = sorted(path.parent.name for path in directory.glob("*/journal.sqlite"))
            raise JournalError(
                f"{directory}: holds an experiment; name one of its arms, such as "
                f"{directory / (arms[0] if arms else 'reference')}"
            )


# One process a directory, which leaves its pid for the others.


def lock_directory(directory: Path, name: str = "") -> FileLock:
    """Lock a run's directory, and remove half-written files of a process that was killed.

    With a `name` only the file of that name in it is locked. Raises `JournalError` with the pid of
    the process that has it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # It is acquired in one thread and released in another.
        lock = FileLock(_beside(directory, name, ".lock"), thread_local=False)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise JournalError(
            f"{directory / name}: another process (pid {lock_holder(directory, name)}) is at work "
            "here; wait for it or end it"
        ) from error
    except OSError as error:
        raise JournalError(f"{directory}: cannot be written ({error.strerror or error})") from error
    _beside(directory, name, ".pid").write_text(str(os.getpid()), encoding="utf-8")
    for written in () if name else WRITTEN_FILES:
        for half_written in directory.glob(f"{written}.*.new"):
            half_written.unlink(missing_ok=True)
    return lock


def lock_holder(directory: Path, name: str = "") -> int | None:
    """The pid of the process that has locked `directory`, or a file; None if there is none."""
    path = _beside(directory, name, ".lock")
    if not path.is_file():
        return None
    try:
        with FileLock(path).acquire(timeout=0):
            return None
    except Timeout:
        pid = _beside(directory, name, ".pid").read_text(encoding="utf-8")
        return int(pid) if pid.isdigit() else -1
    except OSError:
        return None


def _beside(directory: Path, name: str, suffix: str) -> Path:
    """The hidden file that says who has locked a directory, or the file of a name in it."""
    return directory / f"{'.' if name else ''}{name}{suffix}"
