"""Requests and answers in both directions between a run and a worker, in batches.

A message costs its bytes, a batch costs a remote call. So messages of the same millisecond travel
together, and so do those that come while a batch is on its way. Ray pickles them: both ends are
processes of one run.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

# A seed's turn is a round trip, and turns are taken in order: with four milliseconds a run of
# answered seeds made a quarter fewer calls a second (measured).
BATCH_DELAY_S = 0.001
# What is asked for, and with which values.
AnswerRequest = Callable[[str, Sequence[Any]], Awaitable[Any]]
Batch = list[Any]


class WorkerDied(ConnectionError):
    """The worker at the other end is gone; its pending requests failed."""


def sendable(error: Exception) -> Exception:
    """The error as Ray carries it, or one of the same name and message if it cannot."""
    from ray import cloudpickle

    try:
        carried: Exception = cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # noqa: BLE001 - a class may fail to be taken apart in any way
        carried = type(type(error).__name__, (Exception,), {})(str(error))
    return carried


class Transport(Protocol):
    """Carries batches to the other end and back. Raises `WorkerDied` once that is gone."""

    async def deliver(self, batch: Batch) -> None:
        """Send a batch."""
        ...

    async def collect(self) -> Batch:
        """Wait for a batch."""
        ...

    def kill(self) -> None:
        """End the other end, whatever it is doing."""
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

    @property
    def load(self) -> int:
        """How many requests the other end has not answered."""
        return len(self._pending)

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

    async def batch(self) -> Batch:
        """Wait for outgoing messages, and give those of the next millisecond as one batch."""
        await self._has_messages.wait()
        await asyncio.sleep(BATCH_DELAY_S)
        self._has_messages.clear()
        messages, self._outgoing = self._outgoing, []
        return messages

    def receive(self, batch: Batch) -> None:
        """Handle a batch from the other end."""
        for kind, number, *rest in batch:
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

    async def _respond(self, number: int | None, what: str, values: Sequence[Any]) -> None:
        try:
            result = await self._answer(what, values)
        except Exception as error:  # noqa: BLE001 - raised at the other end
            if number is not None:
                self._send(["error", number, sendable(error)])
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
            pending.set_exception(result)
