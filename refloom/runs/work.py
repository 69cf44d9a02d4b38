"""The seeds of a run on their way through the graph, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from graph.builder import Graph
from memory.index import IndexUnusable
from memory.weights import WeightsUnavailable
from nodes.llm import ProviderStopped
from nodes.propose import Turn
from nodes.sample import Finish, Start, record_of
from nodes.state import SampleState, Seed
from refloom.data.read import Source
from refloom.runs.calls import Interrupted, JournaledCalls
from refloom.runs.journal import Journal
from refloom.runs.lock import JournalUnusable
from refloom.runs.order import Order
from refloom.settings import Settings

WINDOW = 64
# What ends a run, where anything else costs one seed.
STOPS = (ProviderStopped, WeightsUnavailable, IndexUnusable, JournalUnusable)


@dataclass(frozen=True, slots=True)
class Seams:
    """How a run holds the graph: turns, admission of slots, results."""

    turn: Turn
    start: Start
    finish: Finish


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
        seams: Seams,
    ) -> None:
        self._graph, self._settings, self._seeds = graph, settings, seeds
        self._journal, self._order, self._calls = journal, order, calls
        self._seams = seams
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
            # Without a target a seed has one turn; with one, `Order.enough` ends it.
            if not self._settings.target or self._settings.answer_seeds:
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
        fault = None if task.cancelled() else task.exception()
        if fault is not None and not isinstance(fault, Interrupted):
            self._fault = self._fault or fault

    async def _one(self, seed: Seed, resumed: bool) -> None:
        if resumed:
            place = (seed["round"], seed["position"])
            kept = await asyncio.to_thread(statuses, self._journal, *place)
            if await self._order.replay(seed, self._context, kept):
                return
        try:
            await self._graph.ainvoke({"seed": seed}, context=self._context)
        except (Interrupted, *STOPS):
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one seed costs that seed
            await self._lost(seed, error)

    async def _lost(self, seed: Seed, error: Exception) -> None:
        """Write down a seed the graph could not take as one failed sample."""
        slot = (seed["round"], seed["position"], 0)
        message = f"{type(error).__name__}: {error}"[:500]
        state: SampleState = {
            "seed": seed,
            "failure": {"stage": "retrieve", "kind": "bad_input", "message": message},
        }
        if await self._seams.start(slot):
            await self._seams.finish(record_of(state, slot, self._context))


def statuses(journal: Journal, round_: int, position: int) -> dict[int, str]:
    """How the finished slots of a seed ended. Blocks."""
    rows = journal.read(
        "SELECT slot, status FROM samples WHERE round = ? AND position = ?", round_, position
    )
    return {int(slot): str(status) for slot, status in rows}
