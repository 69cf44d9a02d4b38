"""A run: seeds through the graph, calls bounded, everything journaled, taken up where it ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from memory.characteristics import Characteristics, kept_in
from memory.embed import Embed
from memory.references import distinct
from memory.store import kept_references
from nodes.llm import Call, Complete
from nodes.llm.endpoint import Connection
from nodes.record import Record
from refloom.data.read import Source
from refloom.runs.calls import JournaledCalls, Limits
from refloom.runs.files import Summary, counted, used_before, write_files
from refloom.runs.garbage import seldom_collected
from refloom.runs.given import Given, read_given
from refloom.runs.journal import Journal
from refloom.runs.log import event
from refloom.runs.look import seen
from refloom.runs.making import Ground, alone, together
from refloom.runs.order import Order
from refloom.runs.quota import Quota
from refloom.runs.seams import Kept, begun_before, heard
from refloom.runs.shown import Seen
from refloom.runs.team import Hiring, Team
from refloom.runs.work import Maker, Work
from refloom.settings import Settings

OnRecord = Callable[[Record], None]
OnFault = Callable[[str], None]


@dataclass
class Tools:
    """Live things a run may be given instead of making its own; tests do."""

    complete: Complete | None = None
    embed: Embed | None = None
    hiring: Hiring | None = None


@dataclass
class Run:
    """One session of a run in a directory, from opening its journal to writing its files."""

    settings: Settings
    references: Source
    seeds: Source | None
    out: Path
    on_record: OnRecord | None = None
    tools: Tools = field(default_factory=Tools)
    on_fault: OnFault | None = None
    on_begin: Callable[[Summary], None] | None = None
    summary: Summary | None = None
    # Of an experiment: the journal that all its runs pay into, and whose account budgets go by.
    shared: Journal | None = None
    _calls: JournaledCalls | None = None
    _limits: Limits | None = None
    _order: Order | None = None
    _stopping: bool = False

    def stop(self) -> None:
        """Begin no further call; what is in flight is finished and kept."""
        self._stopping = True
        if self._calls is not None:
            self._calls.stop()

    async def go(self) -> Summary:
        """Make rows until there are enough, seeds run out, or the run is stopped.

        Raises `InputError`, `JournalError`, `ProviderStopped`, `BudgetSpent` or `TooManyFailed`;
        whatever was paid for by then is in the journal, and the files are written from it.
        """
        begun = time.monotonic()
        given, summary = await asyncio.to_thread(
            read_given, self.settings, self.references, self.seeds
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(seldom_collected())
            if given.elsewhere is not None:
                stack.callback(given.elsewhere.close)
            if self.tools.complete is None:
                await given.addresses.check(self.settings)
            journal = await asyncio.to_thread(Journal, self.out)
            try:
                await asyncio.to_thread(summary.check_same, journal, self.references, given.seeds)
                self.summary = summary
                if self.on_begin is not None:
                    self.on_begin(summary)
                await self._made(journal, begun, given)
                return summary
            finally:
                await asyncio.to_thread(journal.close)

    async def _made(self, journal: Journal, begun: float, given: Given) -> None:
        """Make rows, and write the files whatever becomes of it."""
        summary = self.summary
        assert summary is not None
        await summary.keep(journal)
        await self._write(journal, summary, "running")
        summary.status = "stopped"
        event("begin", out=str(self.out), seeds=summary.seeds.taken, settings=self.settings.shown())
        try:
            summary.status = await self._make(journal, summary, given)
        except asyncio.CancelledError:
            summary.status = "interrupted"
            raise
        except Exception as error:
            summary.stopped = error
            raise
        finally:
            summary.seconds += time.monotonic() - begun
            await journal.put_meta("seconds", summary.seconds)
            await self._write(journal, summary, summary.status)
            event("end", status=summary.status, counts=summary.counts, stopped=summary.stopped)

    async def _write(self, journal: Journal, summary: Summary, status: str) -> None:
        if self._calls is not None:
            summary.session = dict(self._calls.counts)
        await journal.flush()
        await asyncio.to_thread(counted, journal, summary, status)
        await asyncio.to_thread(write_files, self.out, summary, status)

    async def _make(self, journal: Journal, summary: Summary, given: Given) -> str:
        settings, addresses = self.settings, given.addresses
        account = self.shared or journal
        summary.paid_before, cost, tokens = await asyncio.to_thread(used_before, account)
        self._limits = Limits.of(settings, given.prices, cost, tokens)
        limiter = self._limits.limiter

        def heed(call: Call, headers: Mapping[str, str]) -> None:
            limiter.heed(limiter.lane(addresses.name(call.judge), call.model), headers)

        connection = Connection(addresses.resolve, max_retries=0, heed=heed)
        team = Team(settings.at_work, heed) if settings.engine == "ray" else None
        calls = self._calls = JournaledCalls(
            team.send if team else self.tools.complete or connection,
            journal,
            self._limits,
            address=addresses.name,
            stages=dict(settings.stages),
            prices=given.prices,
            elsewhere=given.elsewhere,
            shared=self.shared,
            faulted=self._faulted,
        )
        if self._stopping:
            calls.stop()
        order = self._order = Order(
            journal,
            settings.context(),
            seeds=summary.seeds.taken,
            target=settings.target,
            max_candidates=settings.most_candidates,
        )
        try:
            await self._work(journal, given, calls, order, team)
        finally:
            await connection.aclose()
        return self._ended(calls, order)

    def _ended(self, calls: JournaledCalls, order: Order) -> str:
        """How the run ended; what stopped it is raised."""
        if calls.stopped_by is not None:
            raise calls.stopped_by
        if calls.stopping:
            return "interrupted"
        target = self.settings.target
        return "short" if target and order.accepted < target else "done"

    async def _work(
        self,
        journal: Journal,
        given: Given,
        calls: JournaledCalls,
        order: Order,
        team: Team | None,
    ) -> None:
        settings, memory = self.settings, self.settings.memory or self.out / "memory"
        references = await asyncio.to_thread(
            kept_references, memory, lambda: distinct(self.references)
        )
        if not settings.answer_seeds:
            await asyncio.to_thread(order.know, references)
        kept = Kept(journal, order, calls, settings, self.on_record)
        kept.resumed = await asyncio.to_thread(begun_before, journal)
        quota, seeds = settings.reference_quota, order.seeds
        uses = Quota(journal, references=len(references), seeds=seeds, quota=quota)
        await uses.begin()
        async with contextlib.AsyncExitStack() as stack:
            store = await stack.enter_async_context(kept_in(memory))
            learned = Characteristics(store, heard(journal))
            stack.push_async_callback(learned.aclose)
            ground = Ground(settings, given, references, kept, uses, store, learned)
            maker: Maker = alone(ground, self.tools.embed)
            if team is not None:
                hired = together(ground, team, self.tools.hiring)
                maker = await stack.enter_async_context(hired)
            stack.push_async_callback(calls.aclose)
            await Work(maker, settings, given.seeds, kept, uses).all()

    def _faulted(self, stage: str, fault: Exception) -> None:
        if self.on_fault is not None:
            self.on_fault(getattr(fault, "kind", type(fault).__name__))

    def look(self) -> Seen:
        """How the run stands now, for a display; plain reads, from any thread."""
        paid_before = self.summary.paid_before if self.summary else 0
        seeds = self.summary.seeds.taken if self.summary else 0
        models = (self.settings.model, self.settings.judge)
        prices = self.summary.prices if self.summary else None
        priced = prices is not None and all(prices.of(model) is not None for model in models)
        begun = (self._calls, self._limits, self._order)
        return seen(self.settings, *begun, seeds, paid_before, priced)
