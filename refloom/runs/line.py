"""Asking and answering in both directions, over batches that somebody else carries.

A message costs its bytes; a batch costs a remote call. So what comes up within a few milliseconds
goes together.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from nodes.llm.fast_json import dumps, loads
from refloom.runs.plain import error_of, plain_error

GATHER_S = 0.004
Answer = Callable[[str, list[Any]], Awaitable[Any]]


class Lost(ConnectionError):
    """The other end is gone, and with it whatever it was asked."""


class Far(Protocol):
    """What carries batches to the other end and back; raises `Lost` once that is gone."""

    async def deliver(self, batch: bytes) -> None:
        """Bring a batch there."""
        ...

    async def collect(self) -> bytes:
        """Wait for a batch from there."""
        ...


class Line:
    """One end of a line. `answer` is called with what the other end asks, many at a time."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._out: list[Any] = []
        self._some = asyncio.Event()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._answering: set[asyncio.Task[None]] = set()
        self._gone: Lost | None = None

    async def ask(self, what: str, *values: Any) -> Any:
        """Ask the other end; what it raises is raised here, `Lost` if it is gone."""
        if self._gone is not None:
            raise self._gone
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send(["ask", number, what, values])
        try:
            return await asked
        except asyncio.CancelledError:
            self._send(["cancel", number])
            raise
        finally:
            self._asked.pop(number, None)

    def tell(self, what: str, *values: Any) -> None:
        """Tell the other end something it has nothing to answer to."""
        self._send(["ask", None, what, values])

    async def batch(self) -> bytes:
        """What is to go to the other end, as soon as there is anything."""
        await self._some.wait()
        await asyncio.sleep(GATHER_S)
        self._some.clear()
        out, self._out = self._out, []
        return dumps(out)

    def receive(self, batch: bytes) -> None:
        """Take in what came from the other end."""
        for kind, number, *rest in loads(batch):
            if kind == "ask":
                task = asyncio.ensure_future(self._respond(number, *rest))
                task.set_name(f"answer {number}")
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            elif kind == "cancel":
                for task in self._answering:
                    if task.get_name() == f"answer {number}":
                        task.cancel()
            else:
                self._settle(number, kind, rest[0])

    def cut(self, why: Lost) -> None:
        """The other end is gone: whoever asked it is told."""
        self._gone = why
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(why)

    async def close(self) -> None:
        """Give up what is being answered."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def _send(self, message: list[Any]) -> None:
        self._out.append(message)
        self._some.set()

    async def _respond(self, number: int | None, what: str, values: list[Any]) -> None:
        try:
            said = await self._answer(what, values)
        except Exception as error:  # noqa: BLE001 - it is raised at the other end
            if number is not None:
                self._send(["error", number, plain_error(error)])
        else:
            if number is not None:
                self._send(["said", number, said])

    def _settle(self, number: int, kind: str, said: Any) -> None:
        asked = self._asked.get(number)
        if asked is None or asked.done():
            return
        if kind == "said":
            asked.set_result(said)
        else:
            asked.set_exception(error_of(said))
