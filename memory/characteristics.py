"""What was learned about each reference, stored so that it is paid for once.

An entry is a reference's characteristics and the trials of their criteria. It is stored in a
LangGraph store: the server's own, or a SQLite file of the run.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

from memory.references import IndexUnusable, Reference
from memory.sqlite_writer import SqliteWriter

NAMESPACE = ("characteristics",)
TABLE = """
CREATE TABLE IF NOT EXISTS characteristics (
  number INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, learned TEXT NOT NULL
)
"""
# Entries of other processes are looked for at most this often.
RESCAN_S = 1.0
CACHE_SIZE = 1024

Learned = dict[str, Any]
# Called with a reference's id and its entry, or None if learning from it failed.
OnRecall = Callable[[str, Learned | None], None]


class StoredEntry(NamedTuple):
    """An entry as a store returns it."""

    value: Learned


class Store(Protocol):
    """The part of LangGraph's store interface that is used."""

    async def aget(self, namespace: tuple[str, ...], key: str) -> Any:
        """Return the entry, with its `value`, or None."""
        ...

    async def aput(
        self, namespace: tuple[str, ...], key: str, value: dict[str, Any], index: Literal[False]
    ) -> None:
        """Store an entry."""
        ...


class Characteristics:
    """Looks up what was learned, and learns it if it is not stored.

    The key of an entry covers all that it depends on: reference, prompts, models. Seeds that need
    an entry at the same time wait for one computation of it.
    """

    def __init__(self, store: Store | None = None, on_recall: OnRecall | None = None) -> None:
        """Use `store`; without one, the store passed to `recall`, else this process's memory.

        `on_recall` is called whenever an entry is used or learning has failed.
        """
        # Imported here: what only names a store must not wait for LangGraph.
        from langgraph.store.memory import InMemoryStore

        self._store = store
        self._on_recall = on_recall
        self._fallback = InMemoryStore()
        self._in_progress: dict[tuple[int, str], asyncio.Task[Learned]] = {}

    async def recall(
        self,
        key: str,
        reference_id: str,
        learn: Callable[[], Awaitable[Learned]],
        store: Store | None = None,
    ) -> Learned:
        """Return what was learned of a reference, under `key`, and report it; see `load`."""
        learned = await self.load(key, learn, store)
        self.notify(reference_id, learned)
        return learned

    async def load(
        self, key: str, learn: Callable[[], Awaitable[Learned]], store: Store | None = None
    ) -> Learned:
        """Return the entry under `key`. If there is none, await `learn` and store its result.

        Raises what `learn` raises.
        """
        task_key = (id(asyncio.get_running_loop()), key)
        task = self._in_progress.get(task_key)
        if task is None:
            target = self._store or store or self._fallback
            task = asyncio.ensure_future(self._load_or_learn(key, learn, target))
            self._in_progress[task_key] = task
            task.add_done_callback(lambda done: self._on_done(task_key, done))
        # Cancelling one waiter must not cancel the task for the others.
        return await asyncio.shield(task)

    def _on_done(self, task_key: tuple[int, str], done: asyncio.Task[Learned]) -> None:
        self._in_progress.pop(task_key, None)
        if not done.cancelled():
            # Retrieve the exception, or asyncio complains if every waiter was cancelled.
            done.exception()

    async def aclose(self) -> None:
        """Cancel the computations in progress, and wait for their end."""
        tasks = list(self._in_progress.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def notify(self, reference_id: str, learned: Learned | None) -> None:
        """Report a reference's entry; None if learning from it failed."""
        if self._on_recall is not None:
            self._on_recall(reference_id, learned)

    async def _load_or_learn(
        self, key: str, learn: Callable[[], Awaitable[Learned]], store: Store
    ) -> Learned:
        entry = await store.aget(NAMESPACE, key)
        if entry is not None:
            return cast(Learned, entry.value)
        learned = await learn()
        await store.aput(NAMESPACE, key, learned, index=False)
        return learned


class FileStore:
    """A `Store` in a SQLite file that several processes may share.

    An entry lost in a crash is learned again, from journaled calls.
    """

    def __init__(self, path: Path, rescan_s: float = RESCAN_S) -> None:
        """Open the file or create it. Blocks. Raises `IndexUnusable` if it is damaged.

        Entries of other processes are looked for at most every `rescan_s` seconds.
        """
        try:
            self._reader, writer = _connect(path), _connect(path)
        except sqlite3.Error as error:
            raise IndexUnusable(
                f"{path}: cannot be opened ({error}). If you remove it, the references are learned "
                "from again"
            ) from error
        self._rescan_s = rescan_s
        self._reader_lock = threading.Lock()
        self._known_keys: set[str] = set()
        # Serves an entry before it is on disk, and popular ones later: reading one in a thread
        # takes about 80 us of processor time, fifteen times as much (measured).
        self._cache: OrderedDict[str, Learned] = OrderedDict()
        self._last_number, self._scanned_at = 0, float("-inf")
        self._scan()
        self._writer = SqliteWriter(writer, lambda error: IndexUnusable(f"{path}: {error}"))

    async def aget(self, namespace: tuple[str, ...], key: str) -> StoredEntry | None:
        """See `Store`; there is only one namespace."""
        if key in self._cache:
            return StoredEntry(self._cache[key])
        if key not in self._known_keys and time.monotonic() - self._scanned_at > self._rescan_s:
            self._scanned_at = time.monotonic()
            await asyncio.to_thread(self._scan)
        entry = await asyncio.to_thread(self._read, key) if key in self._known_keys else None
        if entry is not None:
            self._add_to_cache(key, entry.value)
        return entry

    async def aput(
        self, namespace: tuple[str, ...], key: str, value: dict[str, Any], index: Literal[False]
    ) -> None:
        """See `Store`; the entry is on disk within a second."""
        self._add_to_cache(key, value)
        sql = "INSERT OR IGNORE INTO characteristics VALUES (NULL, ?, ?)"
        self._writer.put_soon(sql, key, json.dumps(value))

    def find_outdated(
        self, references: Iterable[Reference], key_of: Callable[[Reference], str]
    ) -> list[Learned]:
        """What is stored of references under no key that `key_of` gives them now. Blocks.

        It was learned by other prompts, models or settings, and is learned once more when needed.
        """
        sql = "SELECT json_extract(learned, '$.reference_id'), learned FROM characteristics"
        with self._reader_lock:
            stored = dict(self._reader.execute(sql).fetchall())
        return [
            json.loads(stored[reference["id"]])
            for reference in references
            if reference["id"] in stored and key_of(reference) not in self._known_keys
        ]

    def _add_to_cache(self, key: str, value: Learned) -> None:
        self._cache[key] = value
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)

    def close(self) -> None:
        """Write what is pending and close the file. Blocks."""
        self._writer.close()
        # A reading thread may outlive the cancelled task that waited for it.
        with self._reader_lock:
            self._reader.close()

    def _read(self, key: str) -> StoredEntry | None:
        sql = "SELECT learned FROM characteristics WHERE key = ?"
        with self._reader_lock:
            row = self._reader.execute(sql, (key,)).fetchone()
        return StoredEntry(json.loads(row[0])) if row else None

    def _scan(self) -> None:
        """Read the keys added since the last scan."""
        sql = "SELECT number, key FROM characteristics WHERE number > ? ORDER BY number"
        with self._reader_lock:
            for number, key in self._reader.execute(sql, (self._last_number,)):
                self._known_keys.add(key)
                self._last_number = number


class StoredCharacteristics:
    """The entries of a `FileStore`, only read; another process may be adding to them."""

    def __init__(self, directory: Path) -> None:
        """Raises `IndexUnusable` if there are none in `directory`. Blocks."""
        path = directory / "characteristics.sqlite"
        # Where nothing can be written nobody writes, and SQLite must not try to lock.
        immutable = "" if os.access(directory, os.W_OK) else "&immutable=1"
        address = f"{path.absolute().as_uri()}?mode=ro{immutable}"
        try:
            self._connection = sqlite3.connect(address, uri=True, check_same_thread=False)
            self._connection.execute("SELECT key FROM characteristics LIMIT 1").fetchall()
        except sqlite3.Error as error:
            raise IndexUnusable(f"{path}: cannot be opened ({error})") from error
        self._lock = threading.Lock()
        self._newest: dict[str, int] | None = None

    def find(self, key: str) -> Learned | None:
        """The entry under a key; None if there is none. Blocks."""
        return self._read("key", key)

    def find_newest(self, reference_id: str) -> Learned | None:
        """The last entry of a reference of this id, by whatever prompts and models. Blocks."""
        with self._lock:
            if self._newest is None:
                sql = (
                    "SELECT json_extract(learned, '$.reference_id'), max(number) "
                    "FROM characteristics GROUP BY 1"
                )
                self._newest = dict(self._connection.execute(sql).fetchall())
        number = self._newest.get(reference_id)
        return None if number is None else self._read("number", number)

    def _read(self, column: str, value: str | int) -> Learned | None:
        sql = f"SELECT learned FROM characteristics WHERE {column} = ?"
        with self._lock:
            row = self._connection.execute(sql, (value,)).fetchone()
        return None if row is None else cast(Learned, json.loads(row[0]))

    def close(self) -> None:
        """Close the file once no thread reads. Blocks."""
        with self._lock:
            self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=20, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(TABLE)
    return connection


@asynccontextmanager
async def open_store(directory: Path, rescan_s: float = RESCAN_S) -> AsyncIterator[FileStore]:
    """Open the `FileStore` of `directory`, for runs outside a LangGraph server."""
    store = await asyncio.to_thread(FileStore, directory / "characteristics.sqlite", rescan_s)
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)
