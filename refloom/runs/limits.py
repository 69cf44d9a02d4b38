"""How many calls are in flight, which goes next, and when a failed one is made again."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from nodes.faults import Transient
from nodes.llm import Call, ProviderStopped, Reply

# Until a first call has succeeded: enough to get past one that hangs, few enough to fail fast.
OPENING = 4
TRIES = 6
LONGEST_WAIT_S = 60.0
PATIENCE_S = 300.0


class Limiter:
    """Lets calls through: at most `concurrency` at once, those of earlier slots first."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._in_flight = 0
        self._waiting: list[tuple[tuple[int, ...], int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self.opened = False

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        return self._in_flight

    @asynccontextmanager
    async def place(self, order: tuple[int, ...]) -> AsyncIterator[None]:
        """Hold one of the places for the length of a call."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (order, next(self._count), turn))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise
        try:
            yield
        finally:
            self._leave()

    def open(self) -> None:
        """A call has succeeded: from now on all places are used."""
        self.opened = True
        self._let_in()

    def _leave(self) -> None:
        self._in_flight -= 1
        self._let_in()

    def _let_in(self) -> None:
        most = self._concurrency if self.opened else min(OPENING, self._concurrency)
        while self._waiting and self._in_flight < most:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._in_flight += 1
                turn.set_result(None)


async def with_retries(
    send: Callable[[Call], Awaitable[Reply]],
    call: Call,
    *,
    retried: Callable[[], None],
    opened: Callable[[], bool],
) -> Reply:
    """Send a call, again after faults that pass: at most six times and for five minutes.

    Waits with full jitter, or as long as the endpoint asks. An endpoint that has never answered
    and cannot be reached raises `ProviderStopped` after three tries.
    """
    begun = time.monotonic()
    for tries in range(1, TRIES + 1):
        try:
            return await send(call)
        except Transient as fault:
            if fault.kind == "connection" and not opened() and tries >= 3:
                raise ProviderStopped(
                    f"the endpoint cannot be reached: {fault.message}. Check --base-url"
                ) from fault
            wait = random.uniform(0, min(0.5 * 2**tries, LONGEST_WAIT_S))
            if fault.retry_after is not None:
                wait = fault.retry_after + random.uniform(0, 0.5)
            if tries == TRIES or time.monotonic() - begun + wait > PATIENCE_S:
                raise
            retried()
        await asyncio.sleep(wait)
    raise AssertionError("the last try returns or raises")
