"""How many calls are in flight, and which goes next.

Calls to one model at one endpoint share a lane: its limit, its pace, its pauses. All lanes share
the places of the run.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from nodes.llm import Call
from refloom.runs.lane import Lane, Turn, Waiting, kind_of
from refloom.runs.pace import pause_of

SWEEP_S = 1.0
# A timer may come this much early by the clock's own grain.
GRAIN_S = 1e-6


class Limiter:
    """Lets calls through: at most `concurrency` at once, those of earlier slots first."""

    def __init__(self, concurrency: int, rpm: int | None = None, tpm: int | None = None) -> None:
        """`rpm` and `tpm` bound the calls and tokens a minute of each lane."""
        self.concurrency = concurrency
        self.in_flight = 0
        self._rpm, self._tpm = rpm, tpm
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._count = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def lane(self, address: str, model: str) -> Lane:
        """The lane of a model at an endpoint."""
        found = self._lanes.get((address, model))
        if found is None:
            found = self._lanes[address, model] = Lane(self.concurrency, self._rpm, self._tpm)
        return found

    @property
    def limit(self) -> int:
        """How many calls may be in flight now, over all lanes."""
        lanes = [lane.limit for lane in self._lanes.values()]
        return min(self.concurrency, sum(lanes)) if lanes else self.concurrency

    @property
    def waiting(self) -> int:
        """How many calls wait for a place."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @asynccontextmanager
    async def place(self, lane: Lane, call: Call, patience: int = 0) -> AsyncIterator[Turn]:
        """Hold one of the places for the length of a call; earlier orders are let in first."""
        let_in: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        waiting = Waiting(kind_of(call), lane.expected(call), patience, let_in)
        heapq.heappush(lane.waiting, (call.order, next(self._count), waiting))
        self._let_in()
        try:
            turn = await let_in
        except asyncio.CancelledError:
            if let_in.done() and not let_in.cancelled():
                self._leave(lane, let_in.result())
            raise
        try:
            yield turn
        finally:
            self._leave(lane, turn)

    def heed(self, lane: Lane, headers: Mapping[str, str]) -> None:
        """Mind the rate-limit headers of an answer."""
        pause = pause_of(headers, lane.waiting[0][2].expected if lane.waiting else 1.0)
        if pause:
            lane.pause(asyncio.get_running_loop().time(), pause)

    def close(self) -> None:
        """Let no timer outlive the run."""
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        self._timer = self._sweeper = None

    def _leave(self, lane: Lane, turn: Turn) -> None:
        lane.turns.discard(turn)
        self.in_flight -= 1
        self._let_in()

    def _let_in(self) -> None:
        """Let in whom the limits allow, and come again when the next may begin."""
        loop = asyncio.get_running_loop()
        now = loop.time() + GRAIN_S
        while self.in_flight < self.concurrency:
            able = [lane for lane in self._lanes.values() if _wants(lane)]
            if not able:
                break
            due = [lane for lane in able if lane.ready_at() <= now]
            if not due:
                self._come_again(loop, min(lane.ready_at() for lane in able))
                break
            lane = min(due, key=lambda lane: lane.waiting[0][:2])
            waiting = heapq.heappop(lane.waiting)[2]
            waiting.let_in.set_result(lane.begin(waiting, loop.time()))
            self.in_flight += 1
        if self.in_flight and self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_S, self._sweep)

    def _come_again(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at, self._let_in)

    def _sweep(self) -> None:
        self._sweeper = None
        loop = asyncio.get_running_loop()
        for lane in self._lanes.values():
            lane.end_late(loop.time())
        if self.in_flight:
            self._sweeper = loop.call_later(SWEEP_S, self._sweep)


def _wants(lane: Lane) -> bool:
    """Whether somebody waits in the lane and it has room."""
    while lane.waiting and lane.waiting[0][2].let_in.done():
        heapq.heappop(lane.waiting)
    return bool(lane.waiting) and len(lane.turns) < lane.limit
