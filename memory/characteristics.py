"""What was learned about each reference, stored so that it is paid for once."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

from langgraph.store.memory import InMemoryStore

from memory.references import IndexUnusable
from memory.sqlite_writer import SqliteWriter

NAMESPACE = ("characteristics",)
TABLE = """
CREATE TABLE IF NOT EXISTS characteristics (
  number INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, learned TEXT NOT NULL
)
"""
RESCAN_S = 1.0
CACHE_SIZE = 1024
Learned = dict[str, Any]
OnRecall = Callable[[str, Learned | None], None]


class Characteristics:
    """Characteristics and their trials by key, in a LangGraph store.

    The key covers all that an entry depends on: reference, prompts, models. Seeds that need an
    entry at the same time share one computation of it.
    """

    def __init__(self, store: Store | None = None, on_recall: OnRecall | None = None) -> None:
        """`store` None: the server's own store if a run has one, else the memory of this process.

        `on_recall` is called for every entry recalled, and with None for one that failed.
        """
        self._store = store
        self._on_recall = on_recall
        self._fallback = InMemoryStore()
        self._in_progress: dict[tuple[int, str], asyncio.Task[Learned]] = {}

    async def recall(
        self,
        key: str,
        reference_id: str,
        make: Callable[[], Awaitable[Learned]],
        store: Store | None = None,
    ) -> Learned:
        """Return the entry under `key`; make it if there is none. Raises what `make` raises."""
        task_key = (id(asyncio.get_running_loop()), key)
        task = self._in_progress.get(task_key)
        if task is None:
            target = self._store or store or self._fallback
            task = asyncio.ensure_future(self._recall(key, make, target))
            self._in_progress[task_key] = task
            task.add_done_callback(lambda done: self._on_done(task_key, done))
        # Cancelling one waiter must not cancel the task for the others.
        learned = await asyncio.shield(task)
        self.notify(reference_id, learned)
        return learned

    def _on_done(self, task_key: tuple[int, str], done: asyncio.Task[Learned]) -> None:
        self._in_progress.pop(task_key, None)
        if not done.cancelled():
            # Retrieve the exception, or asyncio complains if every waiter was cancelled.
            done.exception()

    async def aclose(self) -> None:
        """Cancel what is in progress."""
        tasks = list(self._in_progress.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def notify(self, reference_id: str, learned: Learned | None) -> None:
        """Report what was learned from a reference; None: nothing could be."""
        if self._on_recall is not None:
            self._on_recall(reference_id, learned)

    async def _recall(
        self, key: str, make: Callable[[], Awaitable[Learned]], store: Store
    ) -> Learned:
        entry = await store.aget(NAMESPACE, key)
        if entry is not None:
            return cast(Learned, entry.value)
        learned = await make()
        await store.aput(NAMESPACE, key, learned, index=False)
        return learned


class StoredEntry(NamedTuple):
    """An entry of a store."""

    value: Learned


class Store(Protocol):
    """The part of LangGraph's store interface that is used."""

    async def aget(self, namespace: tuple[str, ...], key: str) -> Any:
        """The entry, with its `value`, or None."""
        ...

    async def aput(
        self, namespace: tuple[str, ...], key: str, value: dict[str, Any], index: Literal[False]
    ) -> None:
        """Store an entry."""
        ...


class FileStore:
    """A store in a SQLite file that several runs may share.

    Known keys are held in memory; keys added by other processes are found by a scan at most every
    `RESCAN_S`. An entry lost in a crash is made again from journaled calls.
    """

    def __init__(self, path: Path) -> None:
        """Open or create it. Blocks. Raises `IndexUnusable` if it is damaged."""
        try:
            self._reader, writer = _connect(path), _connect(path)
        except sqlite3.Error as error:
            raise IndexUnusable(
                f"{path}: cannot be opened ({error}); without it, references are learned from again"
            ) from error
        self._reading = threading.Lock()
        self._known: set[str] = set()
        # Popular references are recalled often: this saves a thread hop each time.
        self._recent: OrderedDict[str, Learned] = OrderedDict()
        self._last_number, self._scanned_at = 0, float("-inf")
        self._scan()
        self._writer = SqliteWriter(writer, lambda fault: IndexUnusable(f"{path}: {fault}"))

    async def aget(self, namespace: tuple[str, ...], key: str) -> StoredEntry | None:
        """See `Store`; there is one namespace."""
        if key in self._recent:
            return StoredEntry(self._recent[key])
        if key not in self._known and time.monotonic() - self._scanned_at > RESCAN_S:
            self._scanned_at = time.monotonic()
            await asyncio.to_thread(self._scan)
        entry = await asyncio.to_thread(self._read, key) if key in self._known else None
        if entry is not None:
            self._remember(key, entry.value)
        return entry

    async def aput(
        self, namespace: tuple[str, ...], key: str, value: dict[str, Any], index: Literal[False]
    ) -> None:
        """See `Store`; it is on disk soon after."""
        self._remember(key, value)
        sql = "INSERT OR IGNORE INTO characteristics VALUES (NULL, ?, ?)"
        self._writer.put_soon(sql, key, json.dumps(value))

    def _remember(self, key: str, value: Learned) -> None:
        self._recent[key] = value
        if len(self._recent) > CACHE_SIZE:
            self._recent.popitem(last=False)

    def close(self) -> None:
        """Write what is left and close the file. Blocks."""
        self._writer.close()
        # A reading thread may outlive the cancelled task that waited for it.
        with self._reading:
            self._reader.close()

    def _read(self, key: str) -> StoredEntry | None:
        sql = "SELECT learned FROM characteristics WHERE key = ?"
        with self._reading:
            row = self._reader.execute(sql, (key,)).fetchone()
        return StoredEntry(json.loads(row[0])) if row else None

    def _scan(self) -> None:
        sql = "SELECT number, key FROM characteristics WHERE number > ? ORDER BY number"
        with self._reading:
            for number, key in self._reader.execute(sql, (self._last_number,)):
                self._known.add(key)
                self._last_number = number


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=20, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(TABLE)
    return connection


@asynccontextmanager
async def open_store(directory: Path) -> AsyncIterator[FileStore]:
    """A store in a file of `directory`, for runs outside a LangGraph server."""
    store = await asyncio.to_thread(FileStore, directory / "characteristics.sqlite")
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)
