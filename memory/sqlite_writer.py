"""Group commit: one thread writes to a SQLite file, off the event loop.

What is written while a group is committed forms the next group. Waiters are woken once a
group, because waking the event loop from a thread costs more than a write.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple

# Statements nobody waits for are written with the next group, or after this long.
FLUSH_INTERVAL_S = 0.5
# The thread waits this long for a group to fill, since waking for each statement costs more than
# writing it. A model call takes a hundred times as long.
GROUP_DELAY_S = 0.003


class Statement(NamedTuple):
    """A statement of SQL and its values."""

    sql: str
    values: tuple[Any, ...] = ()


class Write(NamedTuple):
    """Statements that are committed together, and the future of their waiter, if there is one."""

    statements: Sequence[Statement]
    done: asyncio.Future[None] | None


class SqliteWriter:
    """Writes to a SQLite database in groups, from a thread of its own.

    After a database error nothing more is written. A value that SQLite refuses fails only its own
    statement.
    """

    def __init__(
        self, connection: sqlite3.Connection, to_error: Callable[[BaseException], Exception]
    ) -> None:
        """Take over `connection`, which is in autocommit mode.

        `to_error` turns a database error into the exception that waiters get.
        """
        self.connection = connection
        self._to_error = to_error
        self._pending: deque[Write] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._awake = self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    async def put(self, sql: str, *values: Any) -> None:
        """Write, and return once this and all earlier statements are on disk."""
        await self.put_all([Statement(sql, values)])

    async def put_all(self, statements: Sequence[Statement]) -> None:
        """Write several statements, all of them or none, and return once they are on disk."""
        if self._failure is not None:
            raise self._to_error(self._failure)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(Write(statements, done))
        if not self._awake:
            self._awake = True
            self._wake.put(None)
        await done

    def put_soon(self, sql: str, *values: Any) -> None:
        """Write without waiting, for data that can be recovered at no cost."""
        self._pending.append(Write([Statement(sql, values)], None))

    def close(self) -> None:
        """Write what is pending and close the connection. Blocks."""
        self._closing = True
        self._wake.put(None)
        self._thread.join()
        self.connection.close()

    def _run(self) -> None:
        while True:
            with suppress(queue.Empty):
                self._wake.get(timeout=FLUSH_INTERVAL_S)
            if GROUP_DELAY_S and not self._closing:
                time.sleep(GROUP_DELAY_S)
            closing = self._closing
            # Set before the queue is emptied, so that what arrives later wakes this thread again.
            self._awake = False
            group = [self._pending.popleft() for _ in range(len(self._pending))]
            if group:
                self._write(group)
            if closing:
                return

    def _write(self, group: list[Write]) -> None:
        try:
            self._commit(group)
        except (ValueError, OverflowError):
            # A value that SQLite refuses must not fail the others of its group.
            for write in group:
                self._write_alone(write)
        except sqlite3.Error as error:
            self._failure = error
            _settle(group, self._to_error(error))
        else:
            _settle(group, None)

    def _write_alone(self, write: Write) -> None:
        try:
            self._commit([write])
        except (ValueError, OverflowError, sqlite3.Error) as error:
            _settle([write], self._to_error(error))
        else:
            _settle([write], None)

    def _commit(self, group: list[Write]) -> None:
        # Each call into SQLite releases the GIL and waits to get it back, so make few of them.
        statements = [statement for write in group for statement in write.statements]
        if len(statements) == 1:
            self.connection.execute(*statements[0])
            return
        self.connection.execute("BEGIN")
        try:
            for sql, alike in groupby(statements, key=lambda statement: statement.sql):
                self.connection.executemany(sql, [statement.values for statement in alike])
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise


def _settle(group: list[Write], error: Exception | None) -> None:
    """Resolve the futures of a group, with one wake-up for each event loop."""
    waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for write in group:
        if write.done is not None:
            waiting.setdefault(write.done.get_loop(), []).append(write.done)
    for loop, futures in waiting.items():
        # A closed loop has no waiters.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, futures, error)


def _resolve(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
