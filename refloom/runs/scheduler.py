"""The one order of work: who is admitted when, so that rows do not depend on timing.

Slots are admitted in the order (round, seed position, place in the seed). A seed's novelty is
decided in its turn, against everything admitted before it, whatever became of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from memory.characteristics import Learned
from memory.novelty import NoveltyFilter
from memory.references import IndexUnusable, Reference, exact_key_of
from memory.weights import WeightsUnavailable
from nodes.context import Context
from nodes.llm import ProviderStopped
from nodes.llm.fast_json import dumps
from nodes.propose import Admit
from nodes.record import Record, record_of
from nodes.state import SampleState, Seed
from refloom.data.read import Source
from refloom.errors import JournalError, TooManyFailed, WorkersLost
from refloom.runs.client import Interrupted, JournaledCalls
from refloom.runs.event_log import event
from refloom.runs.journal import Journal
from refloom.runs.retrieval import ReferenceQuota, SeedKey
from refloom.runs.review_queue import INSERT_REVIEW, review_entry
from refloom.settings import Settings

Slot = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class CompletedTurn:
    """What a seed's turn left: instructions admitted, duplicates counted, slots."""

    admitted: list[str]
    duplicates: int
    slots: int


class SlotScheduler:
    """Admits the slots of a run in order, and starts one only while it can still be wanted."""

    def __init__(
        self,
        journal: Journal,
        context: Context,
        *,
        seeds: int,
        target: int | None,
        max_candidates: int | None,
    ) -> None:
        self._journal = journal
        self.seeds = seeds
        self._target = target
        self._max_candidates = max_candidates
        self._novelty = NoveltyFilter(context.novelty_threshold)
        self._exact: set[int] = set()
        self._next = 0
        self._turns: dict[int, asyncio.Future[None]] = {}
        self.queue: deque[Slot] = deque()
        self._changed = asyncio.Condition()
        self.in_flight = 0
        self.candidates = self.accepted = self.rejected = self.failed = self.duplicates = 0
        self.pending = 0
        self.accepted_before = 0
        self._new_in_round = 0
        self._barren = False

    def know(self, references: Iterable[Reference]) -> None:
        """Remember what no instruction may be too near to from the start. Blocks."""
        for reference in references:
            self._novelty.add(reference["instruction"], reference["id"])

    def enough(self) -> bool:
        """Whether no further slot is wanted."""
        return self._barren or self._full()

    def met(self) -> bool:
        """Whether as many rows are accepted, or wait for a person, as were asked for."""
        return self.wanted() == 0

    def wanted(self) -> int | None:
        """How many more rows are asked for; None without a target."""
        if self._target is None:
            return None
        return max(self._target - self.accepted - self.pending, 0)

    def _full(self) -> bool:
        """Whether no slot may start any more; one that is admitted outlives a barren round."""
        most = self._max_candidates
        return self.met() or (most is not None and self.candidates >= most)

    @asynccontextmanager
    async def turn(self, seed: Seed, context: Context) -> AsyncIterator[Admit]:
        """See `nodes.propose.Turn`. What was admitted is written down as the turn ends.

        Seeds that are answered as they are count as duplicates only when their text is the same.
        """
        await self._reach(seed)
        admitted: list[str] = []
        duplicates = 0

        async def admit(texts: Sequence[str | None], most: int, *, last: bool = False) -> list[str]:
            nonlocal duplicates
            kept: list[str] = []
            for text in texts:
                if len(kept) == most:
                    break
                if not self._barren and text is not None and self._fresh(text, context):
                    kept.append(text)
                else:
                    duplicates += 1
            admitted.extend(kept)
            return kept

        yield admit
        await self._close(seed, admitted, duplicates, len(admitted))

    async def taken(self, seed: Seed, texts: Sequence[str]) -> list[bool]:
        """See `nodes.propose.Taken`: of each whether an instruction admitted so far is too near."""
        return [self._novelty.collision(text) is not None for text in texts]

    def _fresh(self, text: str, context: Context) -> bool:
        if context.answer_seeds:
            fresh = exact_key_of(text) not in self._exact
        else:
            fresh = self._novelty.collision(text) is None
        if fresh:
            self._remember(text, context)
        return fresh

    def _remember(self, text: str, context: Context) -> None:
        if context.answer_seeds:
            self._exact.add(exact_key_of(text))
        else:
            self._novelty.add(text, "")

    async def _close(self, seed: Seed, admitted: list[str], duplicates: int, slots: int) -> None:
        place = (seed["round"], seed["position"])
        self._journal.put_soon(
            "INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?, ?)",
            *place,
            json.dumps(admitted),
            duplicates,
            slots,
        )
        await self._pass(seed, slots, duplicates)

    async def _pass(self, seed: Seed, slots: int, duplicates: int) -> None:
        place = (seed["round"], seed["position"])
        self.queue.extend((*place, slot) for slot in range(slots))
        self.duplicates += duplicates
        self._new_in_round += slots
        self._next += 1
        if self._next % self.seeds == 0:
            # A round in which nothing was new is the last, however far proposals have run ahead.
            self._barren = self._barren or not self._new_in_round
            self._new_in_round = 0
        waiting = self._turns.pop(self._next, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        await self._tell()

    async def finished_turn(self, seed: Seed, statuses: Collection[int]) -> CompletedTurn | None:
        """A seed's turn as the journal has it, if all its slots are finished there."""
        rows = await asyncio.to_thread(
            self._journal.read,
            "SELECT admitted, duplicates, slots FROM turns WHERE round = ? AND position = ?",
            seed["round"],
            seed["position"],
        )
        if not rows or any(slot not in statuses for slot in range(rows[0][2])):
            return None
        return CompletedTurn(json.loads(rows[0][0]), rows[0][1], rows[0][2])

    async def replay(
        self, seed: Seed, context: Context, turned: CompletedTurn, statuses: dict[int, str]
    ) -> None:
        """Pass a finished turn again, without a call."""
        await self._reach(seed)
        for text in turned.admitted:
            self._remember(text, context)
        await self._pass(seed, turned.slots, turned.duplicates)
        for slot in range(turned.slots):
            if await self.start((seed["round"], seed["position"], slot)):
                await self.finished_before(statuses[slot])

    async def _reach(self, seed: Seed) -> None:
        number = seed["round"] * self.seeds + seed["position"]
        if number > self._next:
            turn = asyncio.get_running_loop().create_future()
            self._turns[number] = turn
            await turn

    async def lost(self, seed: Seed) -> bool:
        """Pass the turn of a seed that failed before it came: it leaves one failed slot.

        False: it leaves none, since the rounds had ended before it.
        """
        await self._reach(seed)
        slots = 0 if self._barren else 1
        await self._close(seed, [], 0, slots)
        return bool(slots)

    def _passed(self, seed: Seed) -> bool:
        return self._next > seed["round"] * self.seeds + seed["position"]

    async def start(self, slot: Slot) -> bool:
        """See `nodes.sample.Start`: slots start in order while accepted + in flight < target."""
        seed: Seed = {"instruction": "", "round": slot[0], "position": slot[1]}
        if not self._passed(seed) and not await self.lost(seed):
            return False
        async with self._changed:
            await self._changed.wait_for(lambda: self._may(slot) is not None)
            begun = bool(self._may(slot))
            if begun:
                self.queue.popleft()
                self.in_flight += 1
                self.candidates += 1
            self._changed.notify_all()
        return begun

    def _may(self, slot: Slot) -> bool | None:
        """Whether a slot may start: yes, no, or not known yet."""
        if self._full():
            return False
        if not self.queue or self.queue[0] != slot:
            return None
        if self._target is None:
            return True
        return True if self.accepted + self.pending + self.in_flight < self._target else None

    async def finished(self, record: Record) -> None:
        """Count a sample that was begun and has ended."""
        await self._count(record["status"])

    async def finished_before(self, status: str) -> None:
        """Count a sample that an earlier session has finished."""
        self.accepted_before += status == "accepted"
        await self._count(status)

    async def _count(self, status: str) -> None:
        self.in_flight -= 1
        self.accepted += status == "accepted"
        self.rejected += status == "rejected"
        self.pending += status == "pending"
        self.failed += status == "failed"
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


# MERGED refloom~runs~seams
# How a run holds its graph: turns, admission of slots, and results, all through the journal.
# How many samples have to be finished before their failure rate says anything.
MIN_SAMPLES_FOR_FAILURE_RATE = 20


class SampleRecorder:
    """Starts slots in order, and commits each finished sample before anybody hears of it."""

    def __init__(
        self,
        journal: Journal,
        order: SlotScheduler,
        calls: JournaledCalls,
        settings: Settings,
        on_record: Callable[[Record], None] | None,
    ) -> None:
        self.order = order
        self.journal = journal
        self.calls = calls
        self.context = settings.context()
        self._begun: set[Slot] = set()
        # Whether an earlier session has finished anything: else nothing has to be looked up.
        self.resumed = True
        self._max_failure_rate = settings.max_failure_rate
        self._at_once = settings.calls_at_once
        self._on_record = on_record

    def open_slots(self, place: tuple[int, int]) -> dict[Slot, bool]:
        """The slots of a seed that are not finished, and of each whether it has begun."""
        waiting = {slot: False for slot in self.order.queue if slot[:2] == place}
        return waiting | {slot: True for slot in sorted(self._begun) if slot[:2] == place}

    async def start(self, slot: Slot) -> bool:
        """See `nodes.sample.Start`; a slot that is finished in the journal does not start again."""
        begun = await self.order.start(slot)
        if begun:
            self._begun.add(slot)
        if not begun or not self.resumed:
            return begun
        kept = await asyncio.to_thread(slot_statuses, self.journal, slot[0], slot[1])
        if slot[2] in kept:
            self._begun.discard(slot)
            await self.order.finished_before(kept[slot[2]])
            return False
        return True

    async def finish(self, record: Record, references: Sequence[Reference] = ()) -> None:
        """See `nodes.sample.Finish`; a pending sample is put aside for a person."""
        if record["status"] == "pending":
            kept = review_entry(record, references)
            await self.journal.put(INSERT_REVIEW, *record["slot"], record["id"], kept)
        else:
            await self.journal.put(
                "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)",
                *record["slot"],
                record["status"],
                record_to_json(record),
            )
        self._begun.discard(tuple(record["slot"]))
        await self.order.finished(record)
        said = {k: record[k] for k in ("id", "seed_id", "slot", "status", "reason", "cost_usd")}
        event("sample", **said, attempts=len(record["attempts"]), error=record.get("error"))
        self._watch_failures()
        if self._on_record is not None:
            self._on_record(record)

    def _watch_failures(self) -> None:
        order = self.order
        ended = order.accepted + order.rejected + order.failed
        # Failures end first. What is under way counts as not failed, or a run would be judged by
        # its quickest samples.
        known = ended + min(order.in_flight, self._at_once)
        if ended >= MIN_SAMPLES_FOR_FAILURE_RATE and order.failed > self._max_failure_rate * known:
            self.calls.stop(
                TooManyFailed(
                    f"{order.failed} of {ended} samples failed, more than --max-failure-rate "
                    f"{self._max_failure_rate} allows: see failed.jsonl for why. Mend that and run "
                    "again to go on, or raise --max-failure-rate"
                )
            )


def has_earlier_work(journal: Journal) -> bool:
    """Whether an earlier session of the run has got anywhere. Blocks."""
    return any(
        journal.read(f"SELECT 1 FROM {table} LIMIT 1") for table in ("turns", "samples", "reviews")
    )


def slot_statuses(journal: Journal, round_: int, position: int) -> dict[int, str]:
    """How the finished slots of a seed ended, or that they wait for a person. Blocks."""
    rows = journal.read(
        "SELECT slot, 'pending' FROM reviews WHERE round = ?1 AND position = ?2 UNION ALL "
        "SELECT slot, status FROM samples WHERE round = ?1 AND position = ?2",
        round_,
        position,
    )
    return {int(slot): str(status) for slot, status in rows}


def record_to_json(record: Record) -> str:
    """A record as JSON; half a surrogate pair, which is no text, becomes a question mark."""
    return dumps(record).decode()


def record_learned(journal: Journal) -> Callable[[str, Learned | None], None]:
    """Write down, without waiting, of each reference whether it was learned from."""
    told: dict[str, bool] = {}

    def hear(reference_id: str, learned: Learned | None) -> None:
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

    return hear


# MERGED refloom~runs~work
# The seeds of a run on their way through the graph, a bounded number at a time.
SEED_BATCH = 100
# What ends a run, where anything else costs one seed.
RUN_ENDING_ERRORS = (ProviderStopped, WeightsUnavailable, IndexUnusable, JournalError, WorkersLost)


class Executor(Protocol):
    """The seam for making: a seed through the graph, here or elsewhere."""

    async def make(self, seed: Seed) -> None:
        """Make the seed's samples; each is kept as it ends."""
        ...

    def look_ahead(self, seeds: Sequence[Seed]) -> None:
        """These come next. Blocks."""
        ...

    def forget(self, place: SeedKey) -> None:
        """The seed of a place (round, position) has ended."""
        ...


class SeedRunner:
    """Sends every seed through the graph, round after round while more rows are wanted."""

    def __init__(
        self,
        maker: Executor,
        settings: Settings,
        seeds: Source,
        kept: SampleRecorder,
        uses: ReferenceQuota,
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
            # Without a target a seed has one turn; with one, `SlotScheduler.enough` ends it.
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
            for position, row in islice(rows, SEED_BATCH)
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
        except (Interrupted, *RUN_ENDING_ERRORS):
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one seed costs that seed
            await self._lost(seed, error)
        finally:
            self._maker.forget(place)
            self._uses.passed(place)

    async def _replayed(self, seed: Seed, place: tuple[int, int]) -> bool:
        """Whether the seed is finished in the journal; then it is counted, and nothing is done."""
        kept = await asyncio.to_thread(slot_statuses, self._journal, *place)
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
