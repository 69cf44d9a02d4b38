"""What was learned about each reference, kept so that it is paid for once."""

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
from typing import Any, Literal, NamedTuple, Protocol

from langgraph.store.memory import InMemoryStore

from memory.references import IndexUnusable
from memory.sqlite_writer import Writer

NAMESPACE = ("characteristics",)
TABLE = """
CREATE TABLE IF NOT EXISTS characteristics (
  number INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, learned TEXT NOT NULL
)
"""
# Files in the form of LangGraph's own store are read on.
FROM_LANGGRAPH = """
INSERT OR IGNORE INTO characteristics (key, learned)
SELECT key, value FROM store WHERE prefix = 'characteristics'
"""
LOOK_S = 1.0
MOST_RECENT = 1024
Learned = dict[str, Any]
Heard = Callable[[str, Learned | None], None]


class Characteristics:
    """Characteristics and their trials by key, in a LangGraph store.

    The key says what the entry rests on: reference content, prompts, models. Two seeds that want
    the same entry at once wait for one making of it.
    """

    def __init__(self, store: Store | None = None, heard: Heard | None = None) -> None:
        """`store` None: the server's own store if a run brings one, else this process's memory.

        `heard` is told of every entry that is recalled, and of those that cannot be made.
        """
        self._store = store
        self._heard = heard
        self._fallback = InMemoryStore()
        self._making: dict[tuple[int, str], asyncio.Task[Learned]] = {}

    async def recall(
        self,
        key: str,
        reference_id: str,
        make: Callable[[], Awaitable[Learned]],
        store: Store | None = None,
    ) -> Learned:
        """The entry under `key`; made and kept if there is none. What `make` raises is raised."""
        at = (id(asyncio.get_running_loop()), key)
        task = self._making.get(at)
        if task is None:
            chosen = self._store or store or self._fallback
            task = asyncio.ensure_future(self._recall(key, make, chosen))
            self._making[at] = task
            task.add_done_callback(lambda done: self._made(at, done))
        # One waiter's cancellation must not take the making from the others.
        learned = await asyncio.shield(task)
        self.tell(reference_id, learned)
        return learned

    def _made(self, at: tuple[int, str], done: asyncio.Task[Learned]) -> None:
        self._making.pop(at, None)
        if not done.cancelled():
            # Looked at here, so that asyncio does not complain when every waiter was cancelled.
            done.exception()

    async def aclose(self) -> None:
        """Give up what is being made."""
        left = list(self._making.values())
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def tell(self, reference_id: str, learned: Learned | None) -> None:
        """Let be known what was learned of a reference; None: that nothing can be."""
        if self._heard is not None:
            self._heard(reference_id, learned)

    async def _recall(
        self, key: str, make: Callable[[], Awaitable[Learned]], store: Store
    ) -> Learned:
        found = await store.aget(NAMESPACE, key)
        if found is not None:
            kept: Learned = found.value
            return kept
        learned = await make()
        await store.aput(NAMESPACE, key, learned, index=False)
        return learned


class Kept(NamedTuple):
    """An entry as a store gives it."""

    value: Learned


class Store(Protocol):
    """What is asked of a store; LangGraph's have it."""

    async def aget(self, namespace: tuple[str, ...], key: str) -> Any:
        """The entry, with its `value`, or None."""
        ...

    async def aput(
        self, namespace: tuple[str, ...], key: str, value: dict[str, Any], index: Literal[False]
    ) -> None:
        """Keep an entry."""
        ...


class FileStore:
    """A store in a SQLite file that several runs may share.

    Which keys there are is known without a look into the file; what other processes add is found
    by a look once a second. An entry that is lost in a crash is made again of kept calls.
    """

    def __init__(self, path: Path) -> None:
        """Open or make it; blocks. Raises `IndexUnusable` when it is damaged."""
        try:
            self._reader, writer = _connect(path), _connect(path)
        except sqlite3.Error as error:
            raise IndexUnusable(
                f"{path}: cannot be opened ({error}); without it, references are learned anew"
            ) from error
        self._reading = threading.Lock()
        self._known: set[str] = set()
        # Popular references come again and again.
        self._recent: OrderedDict[str, Learned] = OrderedDict()
        self._seen, self._looked = 0, float("-inf")
        self._look()
        self._writer = Writer(writer, lambda fault: IndexUnusable(f"{path}: {fault}"))

    async def aget(self, namespace: tuple[str, ...], key: str) -> Kept | None:
        """See `Store`; there is one namespace."""
        if key in self._recent:
            return Kept(self._recent[key])
        if key not in self._known and time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            await asyncio.to_thread(self._look)
        found = await asyncio.to_thread(self._read, key) if key in self._known else None
        if found is not None:
            self._remember(key, found.value)
        return found

    async def aput(
        self, namespace: tuple[str, ...], key: str, value: dict[str, Any], index: Literal[False]
    ) -> None:
        """See `Store`; it is on disk soon after."""
        self._remember(key, value)
        said = json.dumps(value)
        self._writer.put_soon(
            "INSERT OR IGNORE INTO characteristics VALUES (NULL, ?, ?)", key, said
        )

    def _remember(self, key: str, value: Learned) -> None:
        self._recent[key] = value
        if len(self._recent) > MOST_RECENT:
            self._recent.popitem(last=False)

    def close(self) -> None:
        """Write what is left and let go of the file. Blocks."""
        self._writer.close()
        # A thread that reads outlives the task that waited for it.
        with self._reading:
            self._reader.close()

    def _read(self, key: str) -> Kept | None:
        sql = "SELECT learned FROM characteristics WHERE key = ?"
        with self._reading:
            found = self._reader.execute(sql, (key,)).fetchone()
        return Kept(json.loads(found[0])) if found else None

    def _look(self) -> None:
        sql = "SELECT number, key FROM characteristics WHERE number > ? ORDER BY number"
        with self._reading:
            for number, key in self._reader.execute(sql, (self._seen,)):
                self._known.add(key)
                self._seen = number


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=20, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(TABLE)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if "store" in tables:
        connection.execute(FROM_LANGGRAPH)
    return connection


@asynccontextmanager
async def kept_in(directory: Path) -> AsyncIterator[FileStore]:
    """A store in a file of `directory`, for runs that no server brings one to."""
    store = await asyncio.to_thread(FileStore, directory / "characteristics.sqlite")
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)
