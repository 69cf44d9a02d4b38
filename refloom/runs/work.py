"""The seeds of a run on their way through the graph, a bounded number at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from graph.builder import Graph
from nodes.state import Seed
from refloom.data.read import Source
from refloom.runs.calls import Interrupted, JournaledCalls
from refloom.runs.journal import Journal
from refloom.runs.order import Order
from refloom.settings import Settings

WINDOW = 64


class Work:
    """Sends every seed through the graph, round after round while more rows are wanted."""

    def __init__(
        self,
        graph: Graph,
        settings: Settings,
        seeds: Source,
        *,
        journal: Journal,
        order: Order,
        calls: JournaledCalls,
    ) -> None:
        self._graph, self._settings, self._seeds = graph, settings, seeds
        self._journal, self._order, self._calls = journal, order, calls
        self._context = settings.context()
        # One call at a time means one seed at a time: rows come early, and the endpoint's prefix
        # cache keeps what the next call wants.
        at_once = settings.calls_at_once
        window = 1 if at_once == 1 else max(WINDOW, 2 * at_once)
        self._window = asyncio.Semaphore(window)
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: BaseException | None = None

    async def all(self) -> None:
        """Return when there are enough rows, seeds have run out, or the run is stopping.

        The first fault that is more than a sample's is raised; all else is given up with it.
        """
        resumed = bool(await asyncio.to_thread(self._journal.read, "SELECT 1 FROM turns LIMIT 1"))
        try:
            for seed in self._in_order():
                await self._window.acquire()
                if self._over() or self._order.enough():
                    break
                task = asyncio.create_task(self._one(seed, resumed))
                self._tasks.add(task)
                task.add_done_callback(self._done)
            while self._tasks and not self._over():
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED, timeout=1)
            if self._fault is None and self._tasks:
                await self._let_calls_end()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._fault is not None:
            raise self._fault

    def _in_order(self) -> Iterator[Seed]:
        round_ = 0
        while True:
            for position, seed in enumerate(self._seeds):
                yield {
                    "id": seed["id"],
                    "instruction": seed["instruction"],
                    "round": round_,
                    "position": position,
                }
            # Without a target a seed has one turn; a round in which nothing was new is the last.
            once = not self._settings.target or self._settings.answer_seeds
            if once or self._order.new_in_round.get(round_ - 1, 1) == 0:
                return
            round_ += 1

    def _over(self) -> bool:
        return self._fault is not None or self._calls.stopping

    async def _let_calls_end(self) -> None:
        """Wait for the tasks whose calls are under way; the others wait for what never comes."""
        quiet = 0
        while self._tasks and quiet < 3:
            ended, _ = await asyncio.wait(self._tasks, timeout=0.2)
            quiet = 0 if ended or self._calls.in_flight else quiet + 1

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._window.release()
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = self._fault or fault

    async def _one(self, seed: Seed, resumed: bool) -> None:
        if resumed:
            place = (seed["round"], seed["position"])
            kept = await asyncio.to_thread(statuses, self._journal, *place)
            if await self._order.replay(seed, self._context, kept):
                return
        with contextlib.suppress(Interrupted):
            await self._graph.ainvoke({"seed": seed}, context=self._context)


def statuses(journal: Journal, round_: int, position: int) -> dict[int, str]:
    """How the finished slots of a seed ended. Blocks."""
    rows = journal.read(
        "SELECT slot, status FROM samples WHERE round = ? AND position = ?", round_, position
    )
    return {int(slot): str(status) for slot, status in rows}
