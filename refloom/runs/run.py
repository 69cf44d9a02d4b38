"""A run: one session in a run directory, from reading its inputs to writing its files.

Every paid call and every finished sample is in the journal before anything uses it, so a session
can end at any moment and the next one resumes. `synthesize` is the Python API over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from memory.characteristics import Characteristics, FileStore, open_store
from memory.contamination import Contamination
from memory.embed import Embed, Embedder
from memory.index import ReferenceIndex
from memory.references import distinct
from memory.store import ReferenceFile, load_or_write_references
from nodes.checks import RunCheck
from nodes.context import is_embedded
from nodes.hooks import RunHooks
from nodes.llm import CallFailed, Complete
from nodes.llm.fast_json import loads
from nodes.llm.provider import variables_of
from nodes.own_criteria import OwnCriteria, OwnCriterion
from nodes.record import Record
from refloom.data.benchmarks import load_benchmarks
from refloom.data.criteria import hash_criteria, load_criteria
from refloom.data.read import ReadReport, Source, read_references, read_seeds
from refloom.errors import InputError, JournalError
from refloom.runs import ray
from refloom.runs.checks import RunChecks, check_permitted
from refloom.runs.client import CachedClient, Endpoints, open_client
from refloom.runs.cost import Prices, check_priced
from refloom.runs.event_log import event
from refloom.runs.garbage_collection import relaxed_gc
from refloom.runs.journal import (
    FILES_KEY,
    FORGET_FILES,
    UPDATE_META,
    Journal,
    ReusedCalls,
    check_own_files,
    check_run,
    read_records,
)
from refloom.runs.outputs import RunSummary, count_journal, prior_usage, stamp_files, write_files
from refloom.runs.preflight import preflight
from refloom.runs.progress import MAKING_ROWS, Progress, RunStats
from refloom.runs.ray.pool import WorkerPool, WorkerStarter
from refloom.runs.retrieval import EmbeddingPace, ReferenceQuota, RunRetrieval
from refloom.runs.retry import Retries, begin_session, has_ended
from refloom.runs.scheduler import (
    Executor,
    LocalExecutor,
    SampleRecorder,
    SeedRunner,
    SlotScheduler,
    record_learned,
)
from refloom.settings import Settings

# Workers get the keys that these variables hold.
API_KEY_VARIABLES = ("OPENAI_API_KEY", "JUDGE_API_KEY")

# Samples of an earlier session that are read from the journal at a time.
STORED_BATCH = 100

OnRecord = Callable[[Record], None]
OnFault = Callable[[str], None]


@dataclass(frozen=True)
class RunInputs:
    """What a run reads before it starts. `reused`, another run's calls, must be closed."""

    seeds: Source
    prices: Prices
    endpoints: Endpoints
    reused: ReusedCalls | None
    contamination: Contamination | None
    own_criteria: list[OwnCriterion]


def load_inputs(
    settings: Settings, references: Source, seeds: Source | None
) -> tuple[RunInputs, RunSummary]:
    """Read and check all inputs before anything is paid. Blocks.

    Without seeds every reference is its own seed. Raises `InputError` or `JournalError`.
    """
    if seeds is None and settings.answer_seeds and settings.turns == "all":
        raise InputError(
            "--answer-seeds with --turns all: a later turn cannot be answered without the turns "
            "before it; give --seeds, or --turns first"
        )
    memory = settings.memory
    if memory is not None and memory.exists() and not memory.is_dir():
        raise InputError(f"--memory {memory}: is a file; give a directory")
    if settings.engine == "ray":
        ray.check_available(settings.ray_address)
    prices = Prices.load(settings.prices)
    check_priced(prices, settings.models, settings.max_cost)
    own_criteria = [] if settings.criteria is None else load_criteria(settings.criteria)
    check_permitted([own["criterion"].get("check") for own in own_criteria], settings)
    reference_report = references.scan()
    seeds = seeds or Source(references, as_reference=False, limit=settings.limit)
    if settings.feedback == "swapped" and reference_report.taken < 2:
        raise InputError(
            f"{references.name}: has one reference, and --feedback swapped takes criteria from "
            "another; give more references, or another --feedback"
        )
    benchmark_report, contamination = ReadReport(), None
    if settings.benchmark:
        contamination = load_benchmarks(settings.benchmark, report=benchmark_report)
    summary = RunSummary(
        settings,
        reference_report,
        seeds.scan(),
        prices,
        benchmark_report,
        criteria_hash=hash_criteria(own_criteria) if own_criteria else "",
    )
    endpoints = Endpoints(settings)
    # Opened last: from here on it must be closed.
    reused = ReusedCalls(settings.reuse) if settings.reuse is not None else None
    inputs = RunInputs(seeds, prices, endpoints, reused, contamination, own_criteria)
    return inputs, summary


def find_unused(inputs: RunInputs, references: Source) -> list[str]:
    """A line for each of a person's criteria whose tags or seed nothing carries. Blocks."""
    narrow = [own for own in inputs.own_criteria if own["tags"] or own["seed_id"]]
    if not narrow:
        return []
    tags: set[str] = set()
    seed_ids: set[str] = set()
    for source in (references, inputs.seeds):
        for row in source:
            tags.update(row.get("tags") or ())
            if source is inputs.seeds:
                seed_ids.add(row["id"])
    lines = []
    for own in narrow:
        untagged = bool(own["tags"]) and tags.isdisjoint(own["tags"])
        if untagged or (own["seed_id"] is not None and own["seed_id"] not in seed_ids):
            what = f"tags {', '.join(own['tags'])}" if untagged else f"seed_id {own['seed_id']}"
            text = own["criterion"]["text"]
            lines.append(
                f"criterion {text!r}: no reference or seed has {what}; it holds for nothing"
            )
    return lines


@dataclass(frozen=True)
class ExecutorInputs:
    """What a run's executor is built from, in this process or on workers."""

    settings: Settings
    inputs: RunInputs
    references: ReferenceFile
    recorder: SampleRecorder
    quota: ReferenceQuota
    store: FileStore
    learned: Characteristics
    own_criteria: OwnCriteria
    check: RunCheck
    on_embedded: Callable[[int, int], None]


def local_executor(parts: ExecutorInputs, embed: Embed) -> LocalExecutor:
    """An executor whose graph uses the run's scheduler, journal and limits directly."""
    # Imported here: a run that its preflight ends does not wait for LangGraph.
    from graph.builder import build_graph

    settings, recorder = parts.settings, parts.recorder
    memory = parts.references.path.parent
    index = ReferenceIndex(
        parts.references, embed, memory, settings.embedding_model, parts.on_embedded
    )
    retrieval = RunRetrieval(index, parts.quota)
    graph = build_graph(
        complete=recorder.calls,
        search=retrieval,
        draw_other=index.draw_other,
        embed=embed,
        characteristics=parts.learned,
        hooks=RunHooks(
            compare=recorder.scheduler.compare,
            end_turn=recorder.scheduler.end_turn,
            repeat_turn=recorder.scheduler.repeat_turn,
            are_known=recorder.scheduler.are_known,
            start=recorder.start,
            finish=recorder.finish,
            interrupts=False,
        ),
        contamination=parts.inputs.contamination,
        own_criteria=parts.own_criteria,
        check=parts.check,
    )
    return LocalExecutor(graph, recorder.context, retrieval)


@asynccontextmanager
async def open_pool(
    parts: ExecutorInputs, pool: WorkerPool, starter: WorkerStarter | None
) -> AsyncIterator[WorkerPool]:
    """Start the workers of a pool; without a `starter` on Ray, connected while this is open."""
    settings = parts.settings
    worker_config = {
        "settings": settings,
        "keys": {
            name: os.environ.get(name, "")
            for name in (*API_KEY_VARIABLES, *variables_of(settings.models))
        },
        "references": parts.references.path.absolute(),
        "resumed": parts.recorder.resumed,
        "own_criteria": parts.own_criteria.to_dict(),
    }
    async with AsyncExitStack() as stack:
        if starter is None:
            await asyncio.to_thread(ray.connect, settings.ray_address, settings.worker_count)
            stack.push_async_callback(asyncio.to_thread, ray.disconnect)
            starter = ray.worker_starter
        start_worker = starter(worker_config, parts.inputs.contamination)
        stack.push_async_callback(pool.aclose)
        await pool.begin(
            start_worker, parts.recorder, parts.quota, parts.store, parts.learned, parts.check
        )
        yield pool


@dataclass
class Tools:
    """Replacements for what a run would build itself: model, embeddings and workers."""

    complete: Complete | None = None
    embed: Embed | None = None
    worker_starter: WorkerStarter | None = None


@dataclass
class Run:
    """One session of a run in the directory `out`, from its inputs to its files.

    `on_record` gets each finished sample, `on_fault` the kind of each failed call, `on_begin` the
    summary once the inputs are read, `on_notice` a line whenever something is learned of an
    endpoint. `before_calls` is awaited once the inputs are read and fit the run, before any call.
    `shared` is the journal of an experiment, which all its runs pay into and whose totals budgets
    count.
    """

    settings: Settings
    references: Source
    seeds: Source | None
    out: Path
    on_record: OnRecord | None = None
    tools: Tools = field(default_factory=Tools)
    on_fault: OnFault | None = None
    on_begin: Callable[[RunSummary], None] | None = None
    on_notice: Callable[[str], None] | None = None
    before_calls: Callable[[], Awaitable[None]] | None = None
    summary: RunSummary | None = None
    shared: Journal | None = None
    _calls: CachedClient | None = None
    _scheduler: SlotScheduler | None = None
    _stopping: bool = False
    # What the run is doing where its counts do not tell; see `_describe_activity`.
    _activity: str = "reading the inputs"
    _embed: Embed | None = None
    _pace: EmbeddingPace = field(default_factory=EmbeddingPace)
    _warnings: set[str] = field(default_factory=set)

    def stop(self) -> None:
        """Begin no further call; what is in flight is finished and recorded."""
        self._stopping = True
        if self._calls is not None:
            self._calls.stop()

    async def run(self) -> RunSummary:
        """Make rows until there are enough, no seeds are left, or the run is stopped.

        Raises `InputError`, `JournalError`, `ProviderStopped`, `BudgetSpent` or `TooManyFailed`;
        every paid call is in the journal by then, and the files are written from it.
        """
        started = time.monotonic()
        inputs, summary = await asyncio.to_thread(
            load_inputs, self.settings, self.references, self.seeds
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(relaxed_gc())
            if inputs.reused is not None:
                stack.callback(inputs.reused.close)
            if self.tools.complete is None:
                if any(map(is_embedded, self.settings.models)):
                    self._activity = "loading the model into this process"
                await inputs.endpoints.check(self.settings)
            self._activity = "opening the run's directory"
            await asyncio.to_thread(check_own_files, self.out)
            journal = await asyncio.to_thread(Journal, self.out)
            try:
                await self._check_same(journal, summary, inputs)
                self.summary = summary
                if self.on_begin is not None:
                    self.on_begin(summary)
                if self.before_calls is not None:
                    await self.before_calls()
                for warning in await asyncio.to_thread(find_unused, inputs, self.references):
                    self._report_warning(warning)
                await self._session(journal, started, inputs)
                return summary
            finally:
                await asyncio.to_thread(journal.close)

    async def _check_same(self, journal: Journal, summary: RunSummary, inputs: RunInputs) -> None:
        """Raise `JournalError` if the directory holds the work of another run.

        One that has paid for nothing is forgotten: a mistake shall not cost its directory.
        """
        try:
            await asyncio.to_thread(summary.check_same, journal, self.references, inputs.seeds)
        except JournalError:
            if self.shared is not None or await asyncio.to_thread(journal.has_work):
                raise
            # What is no run's directory is refused before anything is changed in it.
            await asyncio.to_thread(check_run, self.out)
            await journal.begin_anew()
            self._report_warning(f"{self.out}: held a run that paid for nothing; it begins anew")

    async def _session(self, journal: Journal, started: float, inputs: RunInputs) -> None:
        """Make rows, and write the files however that ends."""
        summary = self.summary
        assert summary is not None
        summary.seconds = await asyncio.to_thread(journal.meta, "seconds") or 0.0
        # Read before run.json says that it is running.
        ended = await asyncio.to_thread(has_ended, journal)
        if ended and await asyncio.to_thread(summary.has_all, journal):
            summary.status = await asyncio.to_thread(journal.meta, "status")
            await asyncio.to_thread(count_journal, journal, summary, summary.status)
            event("end", status=summary.status, counts=summary.counts, stopped=None)
            return
        # First: with the new causes and the old stamps it would be taken for a run that has all.
        await journal.put(FORGET_FILES)
        await summary.store(journal)
        await self._write(journal, summary, "running")
        summary.status = "stopped"
        event(
            "begin", out=str(self.out), seeds=summary.seeds.taken, settings=self.settings.redacted()
        )
        try:
            summary.status = await self._run_calls(journal, summary, inputs, ended)
        except asyncio.CancelledError:
            summary.status = "interrupted"
            raise
        except Exception as error:
            summary.stopped = error
            if isinstance(error, JournalError):
                # Nothing more can be written, but what was paid can be told.
                with contextlib.suppress(JournalError):
                    await self._count(journal, summary, summary.status)
            raise
        finally:
            summary.seconds += time.monotonic() - started
            await journal.put_meta("seconds", summary.seconds)
            await journal.put_meta(FILES_KEY, None)
            await self._write(journal, summary, summary.status)
            if self._scheduler is not None:
                # Not where a decision has come meanwhile, which deletes the entry.
                stamps = json.dumps(await asyncio.to_thread(stamp_files, self.out))
                await journal.put(UPDATE_META, stamps, FILES_KEY)
                # Written last: a run that is killed here has not ended, and nothing is tried again.
                await journal.put_meta("status", summary.status)
            event("end", status=summary.status, counts=summary.counts, stopped=summary.stopped)

    async def _write(self, journal: Journal, summary: RunSummary, status: str) -> None:
        await journal.flush()
        await self._count(journal, summary, status)
        await asyncio.to_thread(write_files, self.out, summary, status)

    async def _count(self, journal: Journal, summary: RunSummary, status: str) -> None:
        if self._calls is not None:
            summary.session = dict(self._calls.counts)
        await asyncio.to_thread(count_journal, journal, summary, status)

    async def _run_calls(
        self, journal: Journal, summary: RunSummary, inputs: RunInputs, ended: bool
    ) -> str:
        """Open the client, make rows, and give the status the run ends with.

        `ended` says whether an earlier session brought the run to an end.
        """
        settings, account = self.settings, self.shared or journal
        summary.paid_before, cost, tokens = await asyncio.to_thread(prior_usage, account)
        pool = None
        if settings.engine == "ray":
            pool = WorkerPool(settings.worker_count, self._report_warning)
        async with open_client(
            settings,
            journal,
            inputs.endpoints,
            inputs.prices,
            prior_cost=cost,
            prior_tokens=tokens,
            complete=None if pool else self.tools.complete,
            attempt=pool.attempt if pool else None,
            reused=inputs.reused,
            shared=self.shared,
            on_fault=self._report_fault,
            on_learned=self._report_learned,
        ) as calls:
            self._calls = calls
            if self._stopping:
                calls.stop()
            if self.tools.complete is None:
                journals = (journal, self.shared, inputs.reused)
                self._activity = "trying the endpoint with one small call"
                await preflight(calls, settings, inputs.endpoints.addresses, *journals)
            if calls.stopping:
                if calls.stopped_by is not None:
                    raise calls.stopped_by
                return "interrupted"
            # After the preflight: one that ends the run must not turn a killed run into an ended
            # one, whose failed samples are tried again.
            await begin_session(journal, settings, ended=ended)
            scheduler = self._scheduler = SlotScheduler(
                journal,
                settings.context(),
                seeds=summary.seeds.taken,
                target=settings.target,
                max_candidates=settings.candidate_limit,
                retries=await asyncio.to_thread(
                    Retries.load, journal, wanted=settings.retry_failed
                ),
            )
            await self._run_seeds(journal, inputs, calls, scheduler, pool)
        if calls.stopped_by is not None:
            raise calls.stopped_by
        if calls.stopping:
            return "interrupted"
        target = settings.target
        return "short" if target and scheduler.accepted < target else "done"

    async def _run_seeds(
        self,
        journal: Journal,
        inputs: RunInputs,
        calls: CachedClient,
        scheduler: SlotScheduler,
        pool: WorkerPool | None,
    ) -> None:
        settings, memory = self.settings, self.settings.memory or self.out / "memory"
        self._activity = "storing the references"
        references = await asyncio.to_thread(
            load_or_write_references, memory, lambda: distinct(self.references)
        )
        # A memory of the run's own moves along with it.
        place = memory.name if settings.memory is None else str(memory.absolute())
        await journal.put_meta("reference_file", f"{place}/{references.path.name}")
        if not settings.answer_seeds:
            await asyncio.to_thread(scheduler.add_known, references)
        await scheduler.resume()
        recorder = SampleRecorder(journal, scheduler, calls, settings, self.on_record)
        quota = ReferenceQuota(
            journal,
            references=len(references),
            seeds=scheduler.seeds,
            quota=settings.reference_quota,
            again=scheduler.retries.rounds,
        )
        await quota.begin()
        async with contextlib.AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(memory))
            await self._tell_outdated(store, references)
            learned = Characteristics(store, record_learned(journal, recorder.draws))
            stack.push_async_callback(learned.aclose)
            own = OwnCriteria(inputs.own_criteria, on_warning=self._report_warning)
            if settings.try_criteria:
                await asyncio.to_thread(own.choose_examples, references)
            checks = RunChecks(
                journal,
                settings,
                calls,
                reused=inputs.reused,
                shared=self.shared,
                on_warning=self._report_warning,
            )
            stack.push_async_callback(checks.aclose)
            parts = ExecutorInputs(
                settings,
                inputs,
                references,
                recorder,
                quota,
                store,
                learned,
                own,
                checks,
                self._count_embedded,
            )
            executor: Executor
            if pool is None:
                embed = self._embed = self.tools.embed or Embedder(settings.embedding_model)
                executor = local_executor(parts, embed)
            else:
                executor = await stack.enter_async_context(
                    open_pool(parts, pool, self.tools.worker_starter)
                )
            stack.push_async_callback(calls.aclose)
            self._activity = ""
            await SeedRunner(executor, settings, inputs.seeds, recorder, quota).run_seeds()

    async def _tell_outdated(self, store: FileStore, references: ReferenceFile) -> None:
        """Say what a memory of earlier prompts, models or settings makes the run pay again."""
        context = self.settings.context()
        if self.on_notice is None or context.pipeline == "refed":
            return
        # Imported here: nodes import LangGraph, and a run makes its preflight before that.
        from nodes.learn import learned_key
        from nodes.trial import CALLS_OF_INSTRUCTION_TRIAL

        outdated = await asyncio.to_thread(
            store.find_outdated, references, lambda reference: learned_key(reference, context)
        )
        if not outdated:
            return
        usages = [entry["usage"] for entry in outdated]
        before = sum(usage["calls"] for usage in usages)
        tried = context.extracts_instruction_criteria and context.try_criteria
        calls = before + (CALLS_OF_INSTRUCTION_TRIAL * len(outdated) if tried else 0)
        costs = [usage.get("cost_usd") for usage in usages]
        known = [cost for cost in costs if cost is not None]
        dollars = ""
        if before and len(known) == len(costs):
            dollars = f", ${sum(known) * calls / before:,.2f}"
        self.on_notice(
            f"the memory knows {len(outdated):,} of the references by other prompts, models or "
            "settings; vectors are used as they are, and each of these that a seed needs is "
            f"learned from once more: about {calls:,} calls{dollars} for all of them"
        )

    def _report_fault(self, fault: CallFailed) -> None:
        if self.on_fault is not None:
            self.on_fault(fault.kind)

    def _report_learned(self, model: str, sentence: str) -> None:
        event("endpoint", model=model, message=sentence)
        if self.on_notice is not None:
            self.on_notice(f"the endpoint of {model} {sentence}")

    def _report_warning(self, sentence: str) -> None:
        """Tell, once, what is wrong with a criterion or a check; workers may find the same."""
        if sentence in self._warnings:
            return
        self._warnings.add(sentence)
        event("criterion", message=sentence)
        if self.on_notice is not None:
            self.on_notice(sentence)

    def _count_embedded(self, done: int, total: int) -> None:
        self._activity = "" if done >= total else self._pace.describe(done, total)

    def _describe_activity(self) -> str:
        """What the run is doing, in words. Plain reads, from any thread."""
        if getattr(self._embed, "loading", False):
            return "loading the embedding model"
        if self._activity:
            return self._activity
        scheduler = self._scheduler
        begun = scheduler is not None and scheduler.candidates
        return MAKING_ROWS if begun else "learning from references"

    def stats(self) -> RunStats:
        """How the run stands now, for a display. Plain reads, from any thread."""
        settings, summary = self.settings, self.summary
        calls, scheduler = self._calls, self._scheduler
        seeds = summary.seeds.taken if summary else 0
        per_seed = 1 if settings.answer_seeds else settings.per_seed
        stats = RunStats(
            target=settings.target,
            seeds=seeds,
            slots=None if settings.target else seeds * per_seed,
            limit=settings.max_in_flight,
            max_cost=settings.max_cost,
            activity=self._describe_activity(),
        )
        if summary is None or calls is None or scheduler is None:
            return stats
        priced = all(summary.prices.get(model) is not None for model in settings.models)
        return replace(
            stats,
            accepted=scheduler.accepted,
            rejected=scheduler.rejected,
            failed=scheduler.failed + scheduler.retries.waiting,
            candidates=scheduler.candidates,
            paid=summary.paid_before + calls.counts["paid"],
            reused=calls.counts["reused"],
            retried=calls.counts["retried"],
            in_flight=calls.limiter.in_flight,
            limit=calls.limiter.limit,
            waiting=calls.limiter.waiting,
            cost=calls.budget.spent_cost if priced else None,
        )


async def synthesize(
    references: str | Path | Iterable[dict[str, Any]],
    seeds: str | Path | Iterable[dict[str, Any]] | None = None,
    settings: Settings | None = None,
    out: str | Path | None = None,
    *,
    progress: bool = False,
) -> AsyncIterator[Record]:
    """Make rows; yields the record of each sample as it ends, accepted, rejected or failed.

    `references` and `seeds` are paths or rows; without seeds every reference is a seed. `progress`
    shows on stderr, or in a notebook's cell, how the run goes. Without `out` nothing is left
    behind. With it the run is stored there, and the next call resumes it: it first yields what is
    there, accepted and rejected samples in the order of slots, and makes no call before all of that
    is taken; then each new sample as it ends, and failed ones that are tried again; then the failed
    ones that were not. So every call that runs to its end yields every sample of the run once. One
    that waits for a person is yielded as it is made, with the status `pending`, and by later calls
    once it is decided.

    Raises `InputError`, `JournalError`, `BudgetSpent`, `TooManyFailed` or `ProviderStopped`, after
    what was there and what was made.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(out) if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chosen = settings or Settings()
        run = Run(
            chosen,
            read_references(references, chosen),
            None if seeds is None else read_seeds(seeds, chosen),
            folder,
        )
        if progress:
            shown = Progress()
            run.on_record, run.on_fault, run.on_notice = shown, shown.count_error, shown.notice
            stack.enter_context(shown.begin(run.stats))
        async with contextlib.aclosing(_stream_records(run)) as records:
            async for record in records:
                yield record


async def _stream_records(run: Run) -> AsyncGenerator[Record, None]:
    """Run to the end; yields as `synthesize` does. The run's own `on_record` is called too."""
    queue: asyncio.Queue[Record | None] = asyncio.Queue()
    begun, may_call = asyncio.Event(), asyncio.Event()
    on_record, tried_again = run.on_record, set[str]()

    def put(record: Record) -> None:
        if on_record is not None:
            on_record(record)
        queue.put_nowait(record)

    async def wait_for_stored() -> None:
        begun.set()
        await may_call.wait()

    def end(_: object) -> None:
        begun.set()
        queue.put_nowait(None)

    run.on_record, run.before_calls = put, wait_for_stored
    task = asyncio.create_task(run.run())
    task.add_done_callback(end)
    try:
        await begun.wait()
        async for stored in _stored_records(run, "accepted", "rejected"):
            yield stored
        may_call.set()
        while (record := await queue.get()) is not None:
            if record["status"] == "failed":
                tried_again.add(record["id"])
            yield record
        async for stored in _stored_records(run, "failed", leave_out=tried_again):
            yield stored
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _stored_records(
    run: Run, *statuses: str, leave_out: Collection[str] = ()
) -> AsyncIterator[Record]:
    """The samples in a run's journal, in the order of slots, but for those of some ids.

    None if the directory holds another run, or the inputs could not be read.
    """
    if run.summary is None:
        return
    lines = read_records(run.out / "journal.sqlite", *statuses)
    while batch := await asyncio.to_thread(lambda: list(islice(lines, STORED_BATCH))):
        for record in map(loads, batch):
            if record["id"] not in leave_out:
                yield record
