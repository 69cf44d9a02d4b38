"""Asking and answering in both directions, over batches that somebody else carries.

A message costs its bytes; a batch costs a remote call. So what comes up within a few milliseconds
goes together.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any, Protocol

from memory.references import IndexUnusable
from memory.weights import WeightsUnavailable
from nodes.feedback import Feedback, Improved
from nodes.generate import Generated
from nodes.inputs import BadInput
from nodes.judge import Critiqued
from nodes.learn import Extracted
from nodes.llm import Answer, Call, CallFailed, ProviderStopped
from nodes.llm.fast_json import dumps, loads
from nodes.llm.protocol import Transient
from nodes.propose import Proposed
from nodes.refine import Refined
from refloom.errors import BudgetSpent, JournalError
from refloom.runs.client import Interrupted

# MERGED refloom~runs~plain
# Calls and errors as plain values, for another process.
ANSWERS: dict[str, type[Answer]] = {
    answer.__name__: answer
    for answer in (Extracted, Proposed, Generated, Critiqued, Refined, Feedback, Improved)
}


_SAID: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(ProviderStopped, BudgetSpent, Interrupted, BadInput),
        *(IndexUnusable, WeightsUnavailable, JournalError),
    )
}


def plain_call(call: Call) -> dict[str, Any]:
    """A call as JSON."""
    said = {field.name: getattr(call, field.name) for field in fields(call)}
    return said | {"answer": call.answer.__name__ if call.answer else None}


def call_of(said: dict[str, Any]) -> Call:
    """The call again."""
    answer = ANSWERS[said["answer"]] if said["answer"] else None
    messages, order = tuple(said["messages"]), tuple(said["order"])
    return Call(**{**said, "answer": answer, "messages": messages, "order": order})


def plain_error(error: Exception) -> dict[str, Any]:
    """An error as JSON: its kind, and what it says."""
    said: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, CallFailed):
        said |= {"stage": error.stage, "kind": error.kind, "message": error.message}
        said |= {"usage": error.usage, "retry_after": getattr(error, "retry_after", None)}
        said["error"] = "Transient" if isinstance(error, Transient) else "CallFailed"
    return said


def error_of(said: dict[str, Any]) -> Exception:
    """The error again; one of a kind unknown here bears its name all the same."""
    name, message = said["error"], said["message"]
    if name in ("Transient", "CallFailed"):
        kind = Transient if name == "Transient" else CallFailed
        failed = kind(said["stage"], said["kind"], message, said["usage"])
        if isinstance(failed, Transient):
            failed.retry_after = said["retry_after"]
        return failed
    known = _SAID.get(name)
    return known(message) if known else type(name, (Exception,), {})(message)


GATHER_S = 0.004
Respond = Callable[[str, list[Any]], Awaitable[Any]]


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

    def __init__(self, answer: Respond) -> None:
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
