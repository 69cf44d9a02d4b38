"""What a seed has got of the run so far, so that another worker can make it again from the start.

A worker that is lost takes only its own work with it: turns that were taken, instructions that were
admitted, slots that were begun and samples that were kept are the run's. Asked again, they are
given again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from nodes.context import Context
from nodes.propose import Admit
from nodes.record import Record
from nodes.state import Seed
from refloom.runs.quota import Quota, Taken
from refloom.runs.seams import Kept


class Held:
    """One seed under way. Each step is taken once, however often it is asked for."""

    def __init__(self, seed: Seed, context: Context, kept: Kept, uses: Quota) -> None:
        self._seed, self._context = seed, context
        self._kept, self._uses = kept, uses
        self._place = (seed["round"], seed["position"])
        self._steps: dict[Any, asyncio.Future[Any]] = {}
        self._turn: AbstractAsyncContextManager[Admit] | None = None
        self._admit: Admit | None = None
        self._admits = 0

    def anew(self) -> None:
        """Another worker begins with it; what it is told are the same answers, in order."""
        self._admits = 0

    async def step(self, what: str, values: list[Any]) -> Any:
        """Take a step the worker asks for, or say again what came of it."""
        steps: dict[str, Callable[..., Awaitable[Any]]] = {
            "taken": self._taken,
            "admit": self._admitted,
            "close": self._close,
            "start": self._start,
            "finish": self._finish,
            "offer": self._offer,
            "take": self._take,
        }
        key: Any = what
        if what == "admit":
            key, self._admits = (what, self._admits), self._admits + 1
        elif what == "start":
            key = (what, values[0])
            if ("finish", values[0]) in self._steps:
                await asyncio.wait([self._steps["finish", values[0]]])
                return False
        elif what == "finish":
            key = (what, values[0]["slot"][2])
        if key not in self._steps:
            self._steps[key] = asyncio.ensure_future(steps[what](*values))
        # The worker that asked may be lost while the step is being taken; it is taken all the same.
        return await asyncio.shield(self._steps[key])

    async def _taken(self, texts: list[str]) -> list[bool]:
        return await self._kept.order.taken(self._seed, texts)

    async def _admitted(self, texts: list[str | None], most: int, last: bool) -> list[str]:
        if self._turn is None:
            turn = self._kept.order.turn(self._seed, self._context)
            self._admit = await turn.__aenter__()
            self._turn = turn
        assert self._admit is not None
        admitted = await self._admit(texts, most, last=last)
        if last or len(admitted) == most:
            await self._close()
        return admitted

    async def _close(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            await turn.__aexit__(None, None, None)

    async def _start(self, slot: int) -> bool:
        return await self._kept.start((*self._place, slot))

    async def _finish(self, record: Record, references: list[Any]) -> None:
        await self._kept.finish(record, references)

    async def _offer(self, taken: list[Any], rows: list[int], k: int) -> list[bool] | None:
        return await self._uses.offer(self._place, Taken(*taken), rows, k)

    async def _take(self, taken: list[Any]) -> None:
        await self._uses.take(self._place, Taken(*taken))

    async def aclose(self) -> None:
        """The seed has ended: nothing of it goes on."""
        for step in self._steps.values():
            step.cancel()
        await asyncio.gather(*self._steps.values(), return_exceptions=True)
        if self._turn is not None:
            # Left without closing it, as a seed that fails in its turn leaves it.
            given_up = asyncio.CancelledError()
            await self._turn.__aexit__(type(given_up), given_up, None)
