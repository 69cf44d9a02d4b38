"""A run: seeds through the graph, calls bounded, everything journaled, taken up where it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from langgraph.store.base import BaseStore

from graph.builder import Graph, build_graph
from memory.characteristics import Characteristics, Learned
from memory.embed import Embed, Embedder
from memory.index import Reference, ReferenceIndex, write_references
from nodes.endpoint import Connection
from nodes.llm import Complete
from nodes.sample import Finish, Record, Start
from refloom.data.read import Source
from refloom.runs.calls import JournaledCalls
from refloom.runs.files import Summary, counted, write_files
from refloom.runs.journal import Journal
from refloom.runs.limits import Limiter
from refloom.runs.order import Order, Slot
from refloom.runs.where import Addresses
from refloom.runs.work import Seams, Work, statuses
from refloom.settings import Settings

WINDOW = 64

OnRecord = Callable[[Record], None]


@dataclass
class Tools:
    """Live things a run may be given instead of making its own; tests do."""

    complete: Complete | None = None
    embed: Embed | None = None


@dataclass
class Run:
    """One session of a run in a directory, from opening its journal to writing its files."""

    settings: Settings
    references: Source
    seeds: Source | None
    out: Path
    on_record: OnRecord | None = None
    tools: Tools = field(default_factory=Tools)
    _calls: JournaledCalls | None = None
    _stopping: bool = False

    def stop(self) -> None:
        """Begin no further call; what is in flight is finished and kept."""
        self._stopping = True
        if self._calls is not None:
            self._calls.stopping = True

    async def go(self) -> Summary:
        """Make rows until there are enough, seeds run out, or the run is stopped.

        Raises `BadFile`, `JournalUnusable` or `ProviderStopped`; whatever was paid for by then is
        in the journal, and the files are written from it.
        """
        begun = time.monotonic()
        references, seeds, summary = await asyncio.to_thread(self._read)
        addresses = Addresses(self.settings)
        if self.tools.complete is None:
            await addresses.check(self.settings)
        journal = await asyncio.to_thread(Journal, self.out)
        try:
            await asyncio.to_thread(summary.check_same, journal, self.references, seeds)
            await summary.keep(journal)
            await self._write(journal, summary, "running")
            summary.status = "stopped"
            try:
                summary.status = await self._make(journal, summary, references, seeds, addresses)
            except asyncio.CancelledError:
                summary.status = "interrupted"
                raise
            finally:
                summary.seconds = time.monotonic() - begun
                await self._write(journal, summary, summary.status)
            return summary
        finally:
            await asyncio.to_thread(journal.close)

    def _read(self) -> tuple[list[Reference], Source, Summary]:
        """Read and check everything that is given, before anything is made."""
        reference_report = self.references.scan()
        references = list({r["id"]: r for r in self.references}.values())
        seeds = self.seeds or Source(
            [{"id": r["id"], "instruction": r["instruction"]} for r in references],
            as_reference=False,
            limit=self.settings.limit,
        )
        return references, seeds, Summary(self.settings, reference_report, seeds.scan())

    async def _write(self, journal: Journal, summary: Summary, status: str) -> None:
        if self._calls is not None:
            summary.session = dict(self._calls.counts)
        await journal.flush()
        await asyncio.to_thread(counted, journal, summary, status)
        await asyncio.to_thread(write_files, self.out, summary, status)

    async def _make(
        self,
        journal: Journal,
        summary: Summary,
        references: list[Reference],
        seeds: Source,
        addresses: Addresses,
    ) -> str:
        settings = self.settings
        connection = Connection(addresses.resolve, max_retries=0)
        calls = self._calls = JournaledCalls(
            self.tools.complete or connection,
            journal,
            Limiter(settings.calls_at_once),
            address=addresses.name,
            stages=dict(settings.stages),
        )
        calls.stopping = self._stopping
        order = self._order(journal, summary)
        memory = settings.memory or self.out / "memory"
        await asyncio.to_thread(write_references, memory, references)
        try:
            async with _store(memory) as store:
                learned = Characteristics(store, _heard(journal))
                seams = Seams(order.turn, self._start(journal, order), self._finish(journal, order))
                graph = self._graph(calls, references, memory, learned, seams)
                work = Work(
                    graph, settings, seeds, journal=journal, order=order, calls=calls, seams=seams
                )
                try:
                    await work.all()
                finally:
                    await calls.aclose()
                    await learned.aclose()
        finally:
            await connection.aclose()
        if calls.stopping:
            return "interrupted"
        return "short" if settings.target and order.accepted < settings.target else "done"

    def _order(self, journal: Journal, summary: Summary) -> Order:
        return Order(
            journal,
            self.settings.context(),
            seeds=summary.seeds.taken,
            target=self.settings.target,
            max_candidates=self.settings.most_candidates,
        )

    def _graph(
        self,
        calls: Complete,
        references: list[Reference],
        memory: Path,
        learned: Characteristics,
        seams: Seams,
    ) -> Graph:
        embed = self.tools.embed or Embedder(self.settings.embedding_model)
        index = ReferenceIndex(references, embed, memory, self.settings.embedding_model)
        return build_graph(
            complete=calls,
            search=index.search,
            embed=embed,
            characteristics=learned,
            turn=seams.turn,
            start=seams.start,
            finish=seams.finish,
        )

    def _start(self, journal: Journal, order: Order) -> Start:
        async def start(slot: Slot) -> bool:
            begun = await order.start(slot)
            kept = await asyncio.to_thread(statuses, journal, slot[0], slot[1])
            if begun and slot[2] in kept:
                await order.finished({"status": kept[slot[2]]})
                return False
            return begun

        return start

    def _finish(self, journal: Journal, order: Order) -> Finish:
        async def finish(record: Record) -> None:
            await journal.put(
                "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)",
                *record["slot"],
                record["status"],
                _line(record),
            )
            await order.finished(record)
            if self.on_record is not None:
                self.on_record(record)

        return finish


def _line(record: Record) -> str:
    """A record as JSON; half a surrogate pair, which is no text, becomes a question mark."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")


def _heard(journal: Journal) -> Callable[[str, Learned | None], None]:
    told: dict[str, bool] = {}

    def heard(reference_id: str, learned: Learned | None) -> None:
        failed = learned is None
        # What failed once may be learned later; what was learned stays so.
        if told.get(reference_id, True) and told.get(reference_id) != failed:
            told[reference_id] = failed
            counts = json.dumps(learned["counts"] if learned else {})
            journal.put_soon(
                "INSERT OR REPLACE INTO learned VALUES (?, ?, ?)",
                reference_id,
                int(failed),
                counts,
            )

    return heard


@contextlib.asynccontextmanager
async def _store(memory: Path) -> AsyncIterator[BaseStore]:
    from langgraph.store.sqlite.aio import AsyncSqliteStore

    async with AsyncSqliteStore.from_conn_string(str(memory / "characteristics.sqlite")) as store:
        await store.setup()
        yield store
