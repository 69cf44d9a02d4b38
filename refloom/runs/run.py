"""A run: seeds through the graph, calls bounded, everything journaled, taken up where it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graph.builder import Graph, build_graph
from memory.characteristics import Characteristics, FileStore, kept_in
from memory.contamination import Contamination
from memory.embed import Embed, Embedder
from memory.index import ReferenceIndex
from memory.references import distinct
from memory.store import ReferenceFile, kept_references
from nodes.context import Context
from nodes.llm import Call, Complete
from nodes.llm.endpoint import Connection
from nodes.record import Record
from nodes.state import Seed
from refloom.data.benchmarks import benchmarks
from refloom.data.read import Report, Source, references_of, seeds_of
from refloom.errors import InputError
from refloom.runs import ray
from refloom.runs.client import Addresses, JournaledCalls, Limits
from refloom.runs.cost import Prices, check_priced
from refloom.runs.event_log import event
from refloom.runs.garbage_collection import relaxed_gc
from refloom.runs.journal import Journal, KeptCalls
from refloom.runs.outputs import RunSummary, count_journal, prior_usage, write_files
from refloom.runs.progress import RunStats
from refloom.runs.ray.pool import WorkerPool, WorkerStarter
from refloom.runs.retrieval import ReferenceQuota, RunRetrieval
from refloom.runs.scheduler import (
    Executor,
    SampleRecorder,
    SeedRunner,
    SlotScheduler,
    has_earlier_work,
    record_learned,
)
from refloom.settings import Settings


# MERGED refloom~runs~given
# What a run is given, read and checked before anything is made or paid.
@dataclass(frozen=True)
class RunInputs:
    """What a run works on and with. `elsewhere` has to be closed."""

    seeds: Source
    prices: Prices
    addresses: Addresses
    elsewhere: KeptCalls | None
    contamination: Contamination | None


def load_inputs(
    settings: Settings, references: Source, seeds: Source | None
) -> tuple[RunInputs, RunSummary]:
    """Read everything once, so that what is wrong is known at the start. Blocks.

    Without seeds every reference is its own. Raises `InputError` or `JournalError`.
    """
    if seeds is None and settings.answer_seeds and settings.turns == "all":
        raise InputError(
            "--answer-seeds with --turns all: a later turn cannot be answered without what was "
            "said before it; give --seeds, or --turns first"
        )
    if settings.engine == "ray":
        ray.check_available(settings.ray_address)
    prices = Prices.load(settings.prices)
    check_priced(prices, [settings.model, settings.judge], settings.max_cost)
    reference_report = references.scan()
    seeds = seeds or Source(references, as_reference=False, limit=settings.limit)
    report = Report()
    if settings.feedback == "swapped" and reference_report.taken < 2:
        raise InputError(
            f"{references.name}: has one reference; --feedback swapped needs another to take "
            "criteria from"
        )
    contamination = benchmarks(settings.benchmark, report=report) if settings.benchmark else None
    summary = RunSummary(settings, reference_report, seeds.scan(), prices, report)
    addresses = Addresses(settings)
    # The last, since from here on somebody has to close it.
    elsewhere = KeptCalls(settings.reuse) if settings.reuse is not None else None
    return RunInputs(seeds, prices, addresses, elsewhere, contamination), summary


# MERGED refloom~runs~making
# Who makes a run's seeds: the graph in this process, or a team of workers.
API_KEY_VARIABLES = ("OPENAI_API_KEY", "JUDGE_API_KEY")


class LocalExecutor:
    """A `Executor` that is the graph in this process."""

    def __init__(self, graph: Graph, context: Context, retrieval: RunRetrieval) -> None:
        self._graph, self._context = graph, context
        self.look_ahead, self.forget = retrieval.look_ahead, retrieval.forget

    async def make(self, seed: Seed) -> None:
        """See `Executor`. What comes of it is kept by the graph's seams; no state is streamed."""
        given: Any = {"seed": seed}
        async for _ in self._graph.astream(given, context=self._context, stream_mode=[]):
            continue


@dataclass(frozen=True)
class ExecutorInputs:
    """What makers stand on: what the run was given, and what it keeps."""

    settings: Settings
    given: RunInputs
    references: ReferenceFile
    kept: SampleRecorder
    uses: ReferenceQuota
    store: FileStore
    learned: Characteristics


def local_executor(ground: ExecutorInputs, embed: Embed | None) -> LocalExecutor:
    """The graph, held by the run's own order, journal and limits."""
    settings, kept = ground.settings, ground.kept
    embed = embed or Embedder(settings.embedding_model)
    memory = ground.references.path.parent
    index = ReferenceIndex(ground.references, embed, memory, settings.embedding_model)
    retrieval = RunRetrieval(index, ground.uses)
    graph = build_graph(
        complete=kept.calls,
        search=retrieval,
        another=index.another,
        embed=embed,
        characteristics=ground.learned,
        turn=kept.order.turn,
        taken=kept.order.taken,
        start=kept.start,
        finish=kept.finish,
        ask=None,
        contamination=ground.given.contamination,
    )
    return LocalExecutor(graph, kept.context, retrieval)


@asynccontextmanager
async def worker_pool(
    ground: ExecutorInputs, team: WorkerPool, hiring: WorkerStarter | None
) -> AsyncIterator[WorkerPool]:
    """A team of workers; `hiring` None: Ray's, connected to while this is open."""
    from refloom.runs import ray

    settings, undo = ground.settings, AsyncExitStack()
    async with undo:
        if hiring is None:
            await asyncio.to_thread(ray.connect, settings.ray_address, settings.at_work)
            undo.push_async_callback(asyncio.to_thread, ray.disconnect)
            hiring = ray.worker_starter
        hire = hiring(worker_config(ground), ground.given.contamination)
        undo.push_async_callback(team.aclose)
        await team.begin(hire, ground.kept, ground.uses, ground.store, ground.learned)
        yield team


def worker_config(ground: ExecutorInputs) -> dict[str, Any]:
    """What a worker has to know to make this run's seeds, keys among it."""
    return {
        "settings": ground.settings.model_dump(mode="json"),
        "keys": {name: os.environ.get(name, "") for name in API_KEY_VARIABLES},
        "references": str(ground.references.path.absolute()),
        "resumed": ground.kept.resumed,
    }


# MERGED refloom~runs~look
# A run at one moment, as the display wants it.
def run_stats(
    settings: Settings,
    calls: JournaledCalls | None,
    limits: Limits | None,
    order: SlotScheduler | None,
    seeds: int,
    paid_before: int,
    priced: bool,
) -> RunStats:
    """How a run stands; what has not begun yet counts as nothing. Plain reads, from any thread."""
    counts = calls.counts if calls else {}
    limiter = limits.limiter if limits else None
    budget = limits.budget if limits else None
    return RunStats(
        accepted=order.accepted if order else 0,
        rejected=order.rejected if order else 0,
        failed=order.failed if order else 0,
        target=settings.target,
        seeds=seeds,
        candidates=order.candidates if order else 0,
        paid=paid_before + counts.get("paid", 0),
        reused=counts.get("reused", 0),
        retried=counts.get("retried", 0),
        in_flight=limiter.in_flight if limiter else 0,
        limit=limiter.limit if limiter else settings.calls_at_once,
        concurrency=settings.calls_at_once,
        waiting=limiter.waiting if limiter else 0,
        cost=budget.spent_cost if budget and priced else None,
        max_cost=settings.max_cost,
        paid_before=paid_before,
        accepted_before=order.accepted_before if order else 0,
        tokens=budget.spent_tokens if budget else 0,
        slots=None
        if settings.target
        else seeds * (1 if settings.answer_seeds else settings.per_seed),
    )


OnRecord = Callable[[Record], None]
OnFault = Callable[[str], None]


@dataclass
class Tools:
    """Live things a run may be given instead of making its own; tests do."""

    complete: Complete | None = None
    embed: Embed | None = None
    hiring: WorkerStarter | None = None


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
    on_begin: Callable[[RunSummary], None] | None = None
    summary: RunSummary | None = None
    # Of an experiment: the journal that all its runs pay into, and whose account budgets go by.
    shared: Journal | None = None
    _calls: JournaledCalls | None = None
    _limits: Limits | None = None
    _order: SlotScheduler | None = None
    _stopping: bool = False

    def stop(self) -> None:
        """Begin no further call; what is in flight is finished and kept."""
        self._stopping = True
        if self._calls is not None:
            self._calls.stop()

    async def go(self) -> RunSummary:
        """Make rows until there are enough, seeds run out, or the run is stopped.

        Raises `InputError`, `JournalError`, `ProviderStopped`, `BudgetSpent` or `TooManyFailed`;
        whatever was paid for by then is in the journal, and the files are written from it.
        """
        begun = time.monotonic()
        given, summary = await asyncio.to_thread(
            load_inputs, self.settings, self.references, self.seeds
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(relaxed_gc())
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

    async def _made(self, journal: Journal, begun: float, given: RunInputs) -> None:
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

    async def _write(self, journal: Journal, summary: RunSummary, status: str) -> None:
        if self._calls is not None:
            summary.session = dict(self._calls.counts)
        await journal.flush()
        await asyncio.to_thread(count_journal, journal, summary, status)
        await asyncio.to_thread(write_files, self.out, summary, status)

    async def _make(self, journal: Journal, summary: RunSummary, given: RunInputs) -> str:
        settings, addresses = self.settings, given.addresses
        account = self.shared or journal
        summary.paid_before, cost, tokens = await asyncio.to_thread(prior_usage, account)
        self._limits = Limits.of(settings, given.prices, cost, tokens)
        limiter = self._limits.limiter

        def heed(call: Call, headers: Mapping[str, str]) -> None:
            limiter.heed(limiter.lane(addresses.name(call.judge), call.model), headers)

        connection = Connection(addresses.resolve, max_retries=0, heed=heed)
        team = WorkerPool(settings.at_work, heed) if settings.engine == "ray" else None
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
        order = self._order = SlotScheduler(
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

    def _ended(self, calls: JournaledCalls, order: SlotScheduler) -> str:
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
        given: RunInputs,
        calls: JournaledCalls,
        order: SlotScheduler,
        team: WorkerPool | None,
    ) -> None:
        settings, memory = self.settings, self.settings.memory or self.out / "memory"
        references = await asyncio.to_thread(
            kept_references, memory, lambda: distinct(self.references)
        )
        if not settings.answer_seeds:
            await asyncio.to_thread(order.know, references)
        kept = SampleRecorder(journal, order, calls, settings, self.on_record)
        kept.resumed = await asyncio.to_thread(has_earlier_work, journal)
        quota, seeds = settings.reference_quota, order.seeds
        uses = ReferenceQuota(journal, references=len(references), seeds=seeds, quota=quota)
        await uses.begin()
        async with contextlib.AsyncExitStack() as stack:
            store = await stack.enter_async_context(kept_in(memory))
            learned = Characteristics(store, record_learned(journal))
            stack.push_async_callback(learned.aclose)
            ground = ExecutorInputs(settings, given, references, kept, uses, store, learned)
            maker: Executor = local_executor(ground, self.tools.embed)
            if team is not None:
                hired = worker_pool(ground, team, self.tools.hiring)
                maker = await stack.enter_async_context(hired)
            stack.push_async_callback(calls.aclose)
            await SeedRunner(maker, settings, given.seeds, kept, uses).all()

    def _faulted(self, stage: str, fault: Exception) -> None:
        if self.on_fault is not None:
            self.on_fault(getattr(fault, "kind", type(fault).__name__))

    def look(self) -> RunStats:
        """How the run stands now, for a display; plain reads, from any thread."""
        paid_before = self.summary.paid_before if self.summary else 0
        seeds = self.summary.seeds.taken if self.summary else 0
        models = (self.settings.model, self.settings.judge)
        prices = self.summary.prices if self.summary else None
        priced = prices is not None and all(prices.of(model) is not None for model in models)
        begun = (self._calls, self._limits, self._order)
        return run_stats(self.settings, *begun, seeds, paid_before, priced)


# MERGED refloom~runs~synthesize
# The Python API: rows as they are made.
async def synthesize(
    references: str | Path | Iterable[dict[str, Any]],
    seeds: str | Path | Iterable[dict[str, Any]] | None = None,
    settings: Settings | None = None,
    out: str | Path | None = None,
) -> AsyncIterator[Record]:
    """Make rows, yielding each sample's record as it ends: accepted, rejected and failed alike.

    `references` and `seeds` are paths or rows; without seeds every reference is one. With `out`
    the run is kept there and taken up again by the next call; without, it leaves nothing behind.
    Raises `InputError`, `JournalError` or `ProviderStopped`.
    """
    queue: asyncio.Queue[Record | None] = asyncio.Queue()
    with contextlib.ExitStack() as stack:
        folder = Path(out) if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chosen = settings or Settings()
        run = Run(
            chosen,
            references_of(references, chosen),
            None if seeds is None else seeds_of(seeds, chosen),
            folder,
            queue.put_nowait,
        )
        task = asyncio.create_task(run.go())
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (record := await queue.get()) is not None:
                yield record
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
