"""Requests and answers in both directions between a run and a worker, in batches.

A message costs its bytes, a batch costs a remote call. So messages of the same few milliseconds
travel together.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields
from functools import cache
from typing import Any, Protocol

from memory.references import IndexUnusable
from memory.weights import WeightsUnavailable
from nodes.inputs import BadInput
from nodes.llm import Answer, Call, CallFailed, ProviderStopped, Reply
from nodes.llm.endpoint import Probed
from nodes.llm.fast_json import dumps, loads
from nodes.llm.faults import Fault
from nodes.llm.protocol import Transient
from refloom.errors import BudgetSpent, JournalError
from refloom.runs.client import Interrupted, reply_to_dict


@cache
def _answer_types() -> dict[str, type[Answer]]:
    """Answer types by name, as they cross to another process."""
    # Imported here: nodes import LangGraph, and a run makes its preflight before that.
    from nodes.feedback import Feedback, Improved
    from nodes.generate import Generated
    from nodes.judge import Critiqued
    from nodes.learn import Extracted, ExtractedOfPair
    from nodes.propose import Proposed
    from nodes.screening import Screened

    answers = (
        *(Extracted, ExtractedOfPair, Proposed, Screened),
        *(Generated, Critiqued, Feedback, Improved, Probed),
    )
    return {answer.__name__: answer for answer in answers}


# Errors by name, as they cross to another process.
_ERROR_TYPES: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        ProviderStopped,
        BudgetSpent,
        Interrupted,
        BadInput,
        IndexUnusable,
        WeightsUnavailable,
        JournalError,
    )
}


def call_to_dict(call: Call) -> dict[str, Any]:
    """A call as plain JSON values."""
    values = {field.name: getattr(call, field.name) for field in fields(call)}
    return values | {"answer": call.answer.__name__ if call.answer else None}


def call_from_dict(values: dict[str, Any]) -> Call:
    """The inverse of `call_to_dict`."""
    answer = _answer_types()[values["answer"]] if values["answer"] else None
    messages, order = tuple(values["messages"]), tuple(values["order"])
    return Call(**{**values, "answer": answer, "messages": messages, "order": order})


def outcome_to_dict(outcome: Reply | Fault) -> dict[str, Any]:
    """What a request brought, as plain JSON values; `outcome_from_dict` is the inverse."""
    if isinstance(outcome, Reply):
        return {"reply": reply_to_dict(outcome)}
    return {"fault": asdict(outcome)}


def outcome_from_dict(values: dict[str, Any]) -> Reply | Fault:
    """See `outcome_to_dict`."""
    return Reply(**values["reply"]) if "reply" in values else Fault(**values["fault"])


def error_to_dict(error: Exception) -> dict[str, Any]:
    """An error as plain JSON values: its class and message, and a failed call's details."""
    values: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, CallFailed):
        values |= {"stage": error.stage, "kind": error.kind, "message": error.message}
        values |= {"usage": error.usage, "retry_after": getattr(error, "retry_after", None)}
        values["error"] = "Transient" if isinstance(error, Transient) else "CallFailed"
    return values


def error_from_dict(values: dict[str, Any]) -> Exception:
    """The inverse of `error_to_dict`; an unknown class becomes a new one of the same name."""
    name, message = values["error"], values["message"]
    if name in ("Transient", "CallFailed"):
        kind = Transient if name == "Transient" else CallFailed
        failed = kind(values["stage"], values["kind"], message, values["usage"])
        if isinstance(failed, Transient):
            failed.retry_after = values["retry_after"]
        return failed
    known = _ERROR_TYPES.get(name)
    return known(message) if known else type(name, (Exception,), {})(message)


BATCH_DELAY_S = 0.004
AnswerRequest = Callable[[str, list[Any]], Awaitable[Any]]


class WorkerDied(ConnectionError):
    """The worker at the other end is gone; its pending requests failed."""


class Transport(Protocol):
    """Carries batches to the other end and back. Raises `WorkerDied` once that is gone."""

    async def deliver(self, batch: bytes) -> None:
        """Send a batch."""
        ...

    async def collect(self) -> bytes:
        """Wait for a batch."""
        ...


class RpcChannel:
    """One end of the channel. `answer` handles the other end's requests, many at a time."""

    def __init__(self, answer: AnswerRequest) -> None:
        self._answer = answer
        self._outgoing: list[Any] = []
        self._has_messages = asyncio.Event()
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._answering: set[asyncio.Task[None]] = set()
        self._gone: WorkerDied | None = None

    async def ask(self, what: str, *values: Any) -> Any:
        """Send a request and wait for its answer. Raises what the other end raised."""
        if self._gone is not None:
            raise self._gone
        number = next(self._numbers)
        answer = self._pending[number] = asyncio.get_running_loop().create_future()
        self._send(["ask", number, what, values])
        try:
            return await answer
        except asyncio.CancelledError:
            self._send(["cancel", number])
            raise
        finally:
            self._pending.pop(number, None)

    def notify(self, what: str, *values: Any) -> None:
        """Send a message that has no answer."""
        self._send(["ask", None, what, values])

    async def batch(self) -> bytes:
        """Wait for outgoing messages, and give those of the next few milliseconds as one batch."""
        await self._has_messages.wait()
        await asyncio.sleep(BATCH_DELAY_S)
        self._has_messages.clear()
        messages, self._outgoing = self._outgoing, []
        return dumps(messages)

    def receive(self, batch: bytes) -> None:
        """Handle a batch from the other end."""
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

    def fail_pending(self, reason: WorkerDied) -> None:
        """The other end is gone: fail every pending and every later request."""
        self._gone = reason
        for pending in self._pending.values():
            if not pending.done():
                pending.set_exception(reason)

    async def close(self) -> None:
        """Cancel the requests that are being answered."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def _send(self, message: list[Any]) -> None:
        self._outgoing.append(message)
        self._has_messages.set()

    async def _respond(self, number: int | None, what: str, values: list[Any]) -> None:
        try:
            result = await self._answer(what, values)
        except Exception as error:  # noqa: BLE001 - raised at the other end
            if number is not None:
                self._send(["error", number, error_to_dict(error)])
        else:
            if number is not None:
                self._send(["answer", number, result])

    def _settle(self, number: int, kind: str, result: Any) -> None:
        pending = self._pending.get(number)
        if pending is None or pending.done():
            return
        if kind == "answer":
            pending.set_result(result)
        else:
            pending.set_exception(error_from_dict(result))
