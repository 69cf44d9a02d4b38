"""Writing to a SQLite file beside the event loop, in groups, by one thread.

Whatever has come in while the last group was being committed is the next one, and who waits for
its writes is woken once a group: a thread that wakes the loop costs it more than the write does.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple

# What nobody waits for is written with the next thing somebody does, or after this long.
SOON_S = 0.5
# A thread that wakes for every write costs more than the writes; a call takes a hundred times this.
GATHER_S = 0.003


class Write(NamedTuple):
    """One statement, and who waits for it."""

    sql: str
    values: tuple[Any, ...]
    done: asyncio.Future[None] | None


class Writer:
    """Owns a connection in autocommit mode. `unusable` makes the exception that waiters are told.

    After a database error nothing is written any more; a value that no database takes costs only
    its own write.
    """

    def __init__(
        self, connection: sqlite3.Connection, unusable: Callable[[BaseException], Exception]
    ) -> None:
        self.connection = connection
        self._unusable = unusable
        self._writes: deque[Write] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._awake = self._closing = False
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    async def put(self, sql: str, *values: Any) -> None:
        """Write, and return once it and all that was put before is on disk."""
        if self._fault is not None:
            raise self._unusable(self._fault)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writes.append(Write(sql, values, done))
        self._rouse()
        await done

    def put_soon(self, sql: str, *values: Any) -> None:
        """Write without waiting: for what could be found out again for nothing."""
        self._writes.append(Write(sql, values, None))

    def close(self) -> None:
        """Write what is left and close the connection. Blocks."""
        self._closing = True
        self._wake.put(None)
        self._thread.join()
        self.connection.close()

    def _rouse(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake.put(None)

    def _work(self) -> None:
        while True:
            with suppress(queue.Empty):
                self._wake.get(timeout=SOON_S)
            if GATHER_S and not self._closing:
                time.sleep(GATHER_S)
            closing = self._closing
            # Before the queue is emptied: what comes in after that wakes this thread again.
            self._awake = False
            group = [self._writes.popleft() for _ in range(len(self._writes))]
            if group:
                self._write(group)
            if closing:
                return

    def _write(self, group: list[Write]) -> None:
        try:
            self._commit(group)
        except (ValueError, OverflowError):
            # One value that no database takes must not cost the others of its group.
            for write in group:
                self._write_alone(write)
        except sqlite3.Error as error:
            self._fault = error
            _settle(group, self._unusable(error))
        else:
            _settle(group, None)

    def _write_alone(self, write: Write) -> None:
        try:
            self._commit([write])
        except (ValueError, OverflowError, sqlite3.Error) as error:
            _settle([write], self._unusable(error))
        else:
            _settle([write], None)

    def _commit(self, group: list[Write]) -> None:
        # Each statement lets go of the interpreter and waits to have it back: few are better.
        if len(group) == 1:
            self.connection.execute(group[0].sql, group[0].values)
            return
        self.connection.execute("BEGIN")
        try:
            for sql, alike in groupby(group, key=lambda write: write.sql):
                self.connection.executemany(sql, [write.values for write in alike])
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise


def _settle(group: list[Write], fault: Exception | None) -> None:
    """Tell who waits for a group, each loop once."""
    waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for write in group:
        if write.done is not None:
            waiting.setdefault(write.done.get_loop(), []).append(write.done)
    for loop, futures in waiting.items():
        # A loop that is closed has nobody who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_tell, futures, fault)


def _tell(futures: list[asyncio.Future[None]], fault: Exception | None) -> None:
    for future in futures:
        if future.done():
            continue
        if fault is None:
            future.set_result(None)
        else:
            future.set_exception(fault)
