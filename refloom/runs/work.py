"""The seeds of a run on their way through the graph, a bounded number at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from memory.references import IndexUnusable, Reference
from memory.weights import WeightsUnavailable
from nodes.llm import ProviderStopped
from nodes.record import record_of
from nodes.state import SampleState, Seed
from refloom.data.read import Source
from refloom.errors import JournalError, WorkersLost
from refloom.runs.calls import Interrupted
from refloom.runs.quota import Place, Quota
from refloom.runs.seams import Kept, statuses
from refloom.settings import Settings

BATCH = 100
# What ends a run, where anything else costs one seed.
STOPS = (ProviderStopped, WeightsUnavailable, IndexUnusable, JournalError, WorkersLost)


class Maker(Protocol):
    """The seam for making: a seed through the graph, here or elsewhere."""

    async def make(self, seed: Seed) -> None:
        """Make the seed's samples; each is kept as it ends."""
        ...

    def look_ahead(self, seeds: Sequence[Seed]) -> None:
        """These come next. Blocks."""
        ...

    def forget(self, place: Place) -> None:
        """The seed of a place (round, position) has ended."""
        ...


class Work:
    """Sends every seed through the graph, round after round while more rows are wanted."""

    def __init__(
        self,
        maker: Maker,
        settings: Settings,
        seeds: Source,
        kept: Kept,
        uses: Quota,
    ) -> None:
        self._maker, self._settings, self._seeds = maker, settings, seeds
        self._journal, self._order, self._calls = kept.journal, kept.order, kept.calls
        self._kept, self._uses = kept, uses
        self._context = kept.context
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: Exception | None = None

    async def all(self) -> None:
        """Return when there are enough rows, seeds have run out, or the run is stopping.

        The first fault that is more than a sample's is raised once what is in flight has ended.
        """
        resumed = self._kept.resumed
        try:
            async for seed in self._in_order():
                await self._until_fewer_than(self._most)
                if self._over() or self._order.enough():
                    break
                task = asyncio.create_task(self._one(seed, resumed))
                self._tasks.add(task)
                task.add_done_callback(self._done)
            await self._until_fewer_than(lambda: 1)
            self._calls.shut = True
            if self._tasks and not isinstance(self._fault, JournalError):
                await self._let_calls_end()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._fault is not None:
            raise self._fault

    def _most(self) -> int:
        return self._settings.seeds_at_once(self._order.wanted())

    async def _until_fewer_than(self, most: Callable[[], int]) -> None:
        """Wait until fewer seeds than that are under way, or nothing more is to be begun."""
        while len(self._tasks) >= most() and not self._over():
            self._ended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._ended.wait()

    async def _in_order(self) -> AsyncIterator[Seed]:
        round_ = 0
        while True:
            seeds = enumerate(self._seeds)
            # Read by the hundred in a thread: files are not for the event loop.
            while batch := await asyncio.to_thread(self._ahead, round_, seeds):
                for seed in batch:
                    yield seed
            # Without a target a seed has one turn; with one, `Order.enough` ends it.
            if not self._settings.target or self._settings.answer_seeds:
                return
            round_ += 1

    def _ahead(self, round_: int, rows: Iterator[tuple[int, Reference]]) -> list[Seed]:
        """The next seeds, and what can be looked up for them together. Blocks."""
        seeds: list[Seed] = [
            {
                "id": row["id"],
                "instruction": row["instruction"],
                "round": round_,
                "position": position,
            }
            for position, row in islice(rows, BATCH)
        ]
        self._maker.look_ahead(seeds)
        return seeds

    def _over(self) -> bool:
        return self._calls.stopping or self._order.met()

    async def _let_calls_end(self) -> None:
        """Wait for the tasks whose calls are under way; the others wait for what never comes."""
        quiet = 0
        while self._tasks and quiet < 3:
            ended, _ = await asyncio.wait(self._tasks, timeout=0.2)
            quiet = 0 if ended or self._calls.in_flight else quiet + 1

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._ended.set()
        fault = None if task.cancelled() else task.exception()
        if isinstance(fault, Exception) and not isinstance(fault, Interrupted):
            # What is in flight is paid for, and still finished.
            self._fault = self._fault or fault
            self._calls.stop(fault)

    async def _one(self, seed: Seed, resumed: bool) -> None:
        place = (seed["round"], seed["position"])
        try:
            if resumed and await self._replayed(seed, place):
                return
            await self._maker.make(seed)
        except (Interrupted, *STOPS):
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one seed costs that seed
            await self._lost(seed, error)
        finally:
            self._maker.forget(place)
            self._uses.passed(place)

    async def _replayed(self, seed: Seed, place: tuple[int, int]) -> bool:
        """Whether the seed is finished in the journal; then it is counted, and nothing is done."""
        kept = await asyncio.to_thread(statuses, self._journal, *place)
        turned = await self._order.finished_turn(seed, kept)
        if turned is None:
            return False
        await self._uses.replay(place)
        await self._order.replay(seed, self._context, turned, kept)
        return True

    async def _lost(self, seed: Seed, error: Exception) -> None:
        """Write down every sample of a seed that the graph broke off as failed: one at least."""
        place = (seed["round"], seed["position"])
        open_ = self._kept.open_slots(place) or {(*place, 0): False}
        message = f"{type(error).__name__}: {error}"[:500]
        state: SampleState = {
            "seed": seed,
            "failure": {"stage": "retrieve", "kind": "bad_input", "message": message},
        }
        for slot, begun in open_.items():
            if begun or await self._kept.start(slot):
                await self._kept.finish(record_of(state, slot, self._context))
