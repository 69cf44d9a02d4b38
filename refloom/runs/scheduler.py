"""The order of work: slots are admitted in one order, so that rows do not depend on timing.

The order is (round, seed position, number in the seed). The novelty of a seed's instructions is
decided in its turn, against everything admitted before, whatever became of it. What earlier
sessions admitted and accepted counts before anything is begun.

`SlotScheduler` keeps the order, `SampleRecorder` connects it with the graph and the journal,
`SeedRunner` sends seeds through an `Executor`, a bounded number at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memory.characteristics import Learned
from memory.novelty import NoveltyFilter
from memory.references import IndexUnusable, Reference, exact_instruction_key
from memory.sqlite_writer import Statement
from memory.weights import WeightsUnavailable
from nodes.context import Context
from nodes.hooks import Admitted, near_to
from nodes.llm import CallOrigin, ProviderStopped
from nodes.llm.endpoint import is_traced
from nodes.llm.fast_json import dumps
from nodes.origin import origin_of, origin_of_proposals
from nodes.record import Record, record_of
from nodes.state import DropReason, Near, Proposal, SampleState, Seed, Slot
from refloom.data.read import Source
from refloom.errors import JournalError, TooManyFailed, WorkersLost
from refloom.runs.client import CachedClient, Interrupted
from refloom.runs.event_log import event
from refloom.runs.journal import INSERT_TURN, Journal, count_pending, open_read_only
from refloom.runs.known_instructions import SELECT_EDITED
from refloom.runs.retrieval import (
    OrderedGate,
    ReferenceQuota,
    Retrieved,
    RunRetrieval,
    SeedKey,
    SeedOrder,
    seed_key,
)
from refloom.runs.retry import RETRY_BY_KIND, DrawLog, Retries, describe_failure
from refloom.runs.review_queue import INSERT_REVIEW, review_entry
from refloom.settings import Settings

if TYPE_CHECKING:
    from graph.builder import Graph

# Finished samples before their failure rate is acted on.
MIN_SAMPLES_FOR_FAILURE_RATE = 20
# Seeds that are read, and looked up in the index, at once.
SEED_BATCH = 100
# Errors that end the run; any other error fails one seed.
RUN_ENDING_ERRORS = (ProviderStopped, WeightsUnavailable, IndexUnusable, JournalError, WorkersLost)


# What drops an instruction before it is a candidate: columns of the journal's table of turns.
DROP_REASONS: tuple[DropReason, ...] = ("duplicate", "screened", "unfit", "surplus")


@dataclass(frozen=True, slots=True)
class CompletedTurn:
    """A finished turn of a seed, as the journal has it."""

    admitted: list[Admitted]
    slots: int
    screened: int


class FinishedSeed(NamedTuple):
    """What the journal has of a seed whose slots are all finished."""

    turn: CompletedTurn
    retrieved: Retrieved | None


class SlotScheduler:
    """Admits the slots of a run in order, and starts one only while a row is still missing.

    `seeds` is the number of seeds in a round, `target` the number of accepted rows to reach,
    `max_candidates` bounds candidates and screened instructions together, `retries` is what is
    tried again.
    """

    def __init__(
        self,
        journal: Journal,
        context: Context,
        *,
        seeds: int,
        target: int | None,
        max_candidates: int | None,
        retries: Retries | None = None,
    ) -> None:
        self._journal = journal
        self.seeds = seeds
        self.retries = Retries() if retries is None else retries
        self._answer_seeds = context.answer_seeds
        self._order = SeedOrder(seeds, self.retries.rounds)
        self._target = target
        self._max_candidates = max_candidates
        self._novelty = NoveltyFilter(context.novelty_threshold)
        # By its name in the filter, what an instruction may be too near to.
        self._references: Sequence[Reference] = ()
        self._admitted: dict[str, str] = {}
        self._exact: dict[int, Slot] = {}
        self._gate = OrderedGate()
        self.queue: deque[Slot] = deque()
        self._changed = asyncio.Condition()
        self.in_flight = 0
        self.candidates = self.accepted = self.rejected = self.failed = 0
        self.pending = 0
        # Slots and screened instructions of all turns so far, and the latter by seed with slots.
        self._slots = self._screened = 0
        self._screened_before: dict[SeedKey, int] = {}
        # Whether an earlier session of the run recorded anything.
        self.resumed = False
        self._new_in_round = 0
        self._rounds_ended = False

    async def resume(self) -> None:
        """Count what earlier sessions finished, and remember what they admitted.

        A failed sample that is tried again counts as neither failed nor new.
        """
        self.resumed = await asyncio.to_thread(has_earlier_work, self._journal)
        if self.resumed:
            before = await asyncio.to_thread(read_earlier_work, self._journal)
            await asyncio.to_thread(self.count_earlier, before)

    def count_earlier(self, before: EarlierWork) -> None:
        """Count and remember what earlier sessions did. Blocks."""
        for slot, text in before.admitted:
            self._remember(text, slot)
        for slot, text in before.edited:
            self._remember(text, slot, "/edited")
        self.accepted = before.accepted
        self.rejected, self.pending = before.rejected, before.pending
        self.failed = before.failed - self.retries.waiting
        self.candidates = self.accepted + self.rejected + self.pending + self.failed
        self.candidates += len(self.retries.in_place)

    def add_known(self, references: Sequence[Reference]) -> None:
        """Add references: no instruction may be too near to them. Blocks."""
        self._references = references
        for i, reference in enumerate(references):
            self._novelty.add(reference["instruction"], str(i))

    def exhausted(self) -> bool:
        """Whether no further seed is needed, but for what is tried again."""
        return self._rounds_ended or self.target_reached() or self._limit_reached()

    def round_is_over(self, round_: int) -> bool:
        """Whether the seeds of a round are not needed, since an earlier one brought nothing new."""
        return self._rounds_ended and round_ not in self.retries.rounds

    def target_reached(self) -> bool:
        """Whether the target is reached by rows that are accepted or wait for review."""
        return self.rows_missing() == 0

    def rows_missing(self) -> int | None:
        """How many rows the target still lacks; None without a target."""
        if self._target is None:
            return None
        return max(self._target - self.accepted - self.pending, 0)

    def _limit_reached(self, screened: int | None = None) -> bool:
        """Whether there are as many candidates, and instructions screened, as there may be.

        `screened` is how many were when a slot was admitted; by default those of all turns.
        """
        screened = self._screened if screened is None else screened
        return self._max_candidates is not None and (
            self.candidates + screened >= self._max_candidates
        )

    async def compare(
        self, seed: Seed, texts: Sequence[str], context: Context
    ) -> list[Near | None] | None:
        """See `RunHooks.compare`: against all that was admitted before the seed's turn.

        With `answer_seeds` only seeds with equal text are near.
        """
        await self._gate.wait(self._number(seed))
        offered = self._slots + self._screened
        limit_reached = self._max_candidates is not None and offered >= self._max_candidates
        if self.round_is_over(seed["round"]) or (
            limit_reached and seed["round"] not in self.retries.rounds
        ):
            return None
        if context.answer_seeds:
            slots = (self._exact.get(exact_instruction_key(text)) for text in texts)
            return [
                None if slot is None else near_to(text, text, slot=slot)
                for text, slot in zip(texts, slots, strict=True)
            ]
        siblings = NoveltyFilter(context.novelty_threshold)
        near: list[Near | None] = []
        for i, text in enumerate(texts):
            name = self._novelty.collision(text)
            if name is not None:
                near.append(self._near_to(text, name))
                continue
            name = siblings.admit(text, str(i))
            near.append(None if name is None else near_to(text, texts[int(name)]))
        return near

    def _near_to(self, text: str, name: str) -> Near:
        """How near a text is to what the filter has under a name."""
        if name in self._admitted:
            slot = [int(number) for number in name.split("/")[:3]]
            return near_to(text, self._admitted[name], slot=slot)
        reference = self._references[int(name)]
        return near_to(text, reference["instruction"], reference_id=reference["id"])

    async def end_turn(
        self,
        seed: Seed,
        admitted: Sequence[Admitted],
        dropped: Sequence[Proposal],
    ) -> None:
        """See `RunHooks.end_turn`. All of it is journaled in one statement."""
        key = seed_key(seed)
        for number, one in enumerate(admitted):
            self._remember(one["text"], (*key, number))
        await self._end_turn(seed, admitted, dropped, len(admitted))

    async def repeat_turn(self, seed: Seed) -> list[Admitted] | None:
        """See `RunHooks.repeat_turn`. Only slots that are not finished, or tried again, start."""
        turn = await self._earlier_turn(seed)
        if turn is None or not turn.admitted:
            return None
        await self._repeat(seed, turn)
        return turn.admitted

    async def _repeat(self, seed: Seed, turn: CompletedTurn) -> None:
        key = seed_key(seed)
        await self._gate.wait(self._number(seed))
        statuses = await asyncio.to_thread(slot_statuses, self._journal, *key)
        slots = [(*key, slot) for slot in range(turn.slots)]
        open_slots = [s for s in slots if s[2] not in statuses or s in self.retries.in_place]
        await self._advance(seed, open_slots, turn.slots, turn.screened)

    async def are_known(self, seed: Seed, texts: Sequence[str]) -> list[bool]:
        """See `RunHooks.are_known`: whether each text is too near to one admitted so far."""
        return [self._novelty.collision(text) is not None for text in texts]

    def _remember(self, text: str, slot: Slot, suffix: str = "") -> None:
        if self._answer_seeds:
            self._exact.setdefault(exact_instruction_key(text), slot)
        else:
            name = "/".join(map(str, slot)) + suffix
            self._admitted[name] = text
            self._novelty.add(text, name)

    async def _end_turn(
        self,
        seed: Seed,
        admitted: Sequence[Admitted],
        dropped: Sequence[Proposal],
        slots: int,
    ) -> None:
        reasons = Counter(proposal["reason"] for proposal in dropped)
        counts = [reasons[reason] for reason in DROP_REASONS]
        turn = Statement(
            INSERT_TURN,
            (
                *seed_key(seed),
                dumps([one["text"] for one in admitted]).decode(),
                dumps([one["verdicts"] for one in admitted]).decode(),
                slots,
                *counts,
                seed.get("id", ""),
                dumps(list(dropped)).decode(),
            ),
        )
        replaced = [] if slots else self.retries.replace((*seed_key(seed), 0))
        if replaced:
            # All that the seed has now is not new: it is no failed sample any more.
            await self._journal.put_all([turn, *replaced])
        else:
            self._journal.put_soon(turn.sql, *turn.values)
        open_slots = [(*seed_key(seed), slot) for slot in range(slots)]
        await self._advance(seed, open_slots, slots, reasons["screened"])

    async def _advance(
        self, seed: Seed, open_slots: Sequence[Slot], slots: int, screened: int
    ) -> None:
        """Queue the slots that are to start, and let the next seed in."""
        self.queue.extend(open_slots)
        self._slots += slots
        self._screened += screened
        if open_slots:
            self._screened_before[seed_key(seed)] = self._screened
        if seed["round"] not in self.retries.rounds:
            # An instruction that was screened was new.
            self._new_in_round += slots + screened
        if self._order.ends_round(seed_key(seed)):
            # A round without a new instruction is the last, however far ahead proposals are.
            self._rounds_ended = self._rounds_ended or not self._new_in_round
            self._new_in_round = 0
        self._gate.leave(self._number(seed))
        await self._notify()

    async def _earlier_turn(self, seed: Seed) -> CompletedTurn | None:
        """The turn that a seed has in the journal, whatever became of its slots."""
        if not self.resumed:
            return None
        round_, position = seed_key(seed)
        turns = await asyncio.to_thread(read_turns, self._journal, round_, position, position)
        return turns.get((round_, position))

    def is_finished(self, key: SeedKey, turn: CompletedTurn, statuses: Collection[int]) -> bool:
        """Whether all slots of a seed's turn are finished in the journal, and stay so."""
        return not any(
            slot not in statuses or (*key, slot) in self.retries.in_place
            for slot in range(turn.slots)
        )

    async def replay(self, seed: Seed, turn: CompletedTurn) -> None:
        """Repeat a finished turn without a call."""
        await self._gate.wait(self._number(seed))
        await self._advance(seed, [], turn.slots, turn.screened)

    def _number(self, seed: Seed) -> int:
        return self._order.number(seed_key(seed))

    async def skip_failed_seed(self, seed: Seed) -> bool:
        """Take the turn of a seed that failed before its turn: it gets one slot, which fails.

        False if it gets none, because the rounds have ended. A seed that had its turn in an earlier
        session keeps what that admitted.
        """
        earlier = await self._earlier_turn(seed)
        if earlier is not None and earlier.admitted:
            await self._repeat(seed, earlier)
            return True
        await self._gate.wait(self._number(seed))
        slots = 0 if self.round_is_over(seed["round"]) else 1
        await self._end_turn(seed, [], [], slots)
        return bool(slots)

    async def end_seed(self, seed: Seed) -> None:
        """The seed has ended: nobody waits for its turn, or for slots that did not start."""
        key = seed_key(seed)
        if not self._gate.has_passed(self._number(seed)):
            await self._gate.wait(self._number(seed))
            earlier = await self._earlier_turn(seed)
            slots, screened = (earlier.slots, earlier.screened) if earlier else (0, 0)
            await self._advance(seed, [], slots, screened)
        self._screened_before.pop(key, None)
        # In a first session all slots of a seed have started, or no further slot will.
        if self.resumed and any(slot[:2] == key for slot in self.queue):
            self.queue = deque(slot for slot in self.queue if slot[:2] != key)
            await self._notify()

    async def start(self, slot: Slot) -> bool:
        """See `RunHooks.start`: slots start in order while accepted + in flight < target."""
        seed: Seed = {"instruction": "", "round": slot[0], "position": slot[1]}
        if not self._gate.has_passed(self._number(seed)) and not await self.skip_failed_seed(seed):
            return False
        async with self._changed:
            await self._changed.wait_for(lambda: self._may_start(slot) is not None)
            may_start = bool(self._may_start(slot))
            if may_start:
                self.queue.popleft()
                self.in_flight += 1
                self.candidates += slot not in self.retries.in_place
            elif slot in self.queue:
                # What is tried again may stand behind it.
                self.queue.remove(slot)
            self._changed.notify_all()
        return may_start

    def _may_start(self, slot: Slot) -> bool | None:
        """Whether a slot may start; None if that is not decided yet."""
        if self.target_reached():
            return False
        screened = self._screened_before.get(slot[:2], self._screened)
        if self._limit_reached(screened) and slot not in self.retries.in_place:
            return False
        if not self.queue or self.queue[0] != slot:
            return None
        if self._target is None:
            return True
        return True if self.accepted + self.pending + self.in_flight < self._target else None

    async def count_finished(self, record: Record) -> None:
        """Count a sample that has ended."""
        status = record["status"]
        self.in_flight -= 1
        self.accepted += status == "accepted"
        self.rejected += status == "rejected"
        self.pending += status == "pending"
        self.failed += status == "failed"
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class SampleRecorder:
    """Starts slots in order, and commits each finished sample before it is reported."""

    def __init__(
        self,
        journal: Journal,
        scheduler: SlotScheduler,
        calls: CachedClient,
        settings: Settings,
        on_record: Callable[[Record], None] | None,
    ) -> None:
        self.scheduler = scheduler
        self.journal = journal
        self.calls = calls
        self.context = settings.context()
        self._started_slots: set[Slot] = set()
        self._reasons: Counter[str] = Counter()
        self._max_failure_rate = settings.max_failure_rate
        self._concurrency = settings.max_in_flight
        self._on_record = on_record
        self.draws = calls.draws = DrawLog()

    def open_slots(self, key: SeedKey) -> dict[Slot, bool]:
        """The unfinished slots of a seed, and whether each has started."""
        waiting = {slot: False for slot in self.scheduler.queue if slot[:2] == key}
        return waiting | {slot: True for slot in sorted(self._started_slots) if slot[:2] == key}

    @property
    def resumed(self) -> bool:
        """Whether an earlier session recorded anything; if not, nothing needs to be looked up."""
        return self.scheduler.resumed

    async def start(self, slot: Slot) -> bool:
        """See `RunHooks.start`; a finished slot starts only if it is tried again."""
        if self.resumed and slot not in self.scheduler.retries.in_place:
            statuses = await asyncio.to_thread(slot_statuses, self.journal, slot[0], slot[1])
            if slot[2] in statuses:
                return False
        started = await self.scheduler.start(slot)
        if started:
            self._started_slots.add(slot)
        return started

    async def finish(self, record: Record, references: Sequence[Reference] = ()) -> None:
        """See `RunHooks.finish`; a pending sample goes to the review queue.

        What it takes the place of goes in the same transaction.
        """
        slot: Slot = (record["slot"][0], record["slot"][1], record["slot"][2])
        statements = self.scheduler.retries.replace(slot)
        if record["status"] == "pending":
            entry = review_entry(record, references)
            statements.append(Statement(INSERT_REVIEW, (*slot, record["id"], entry)))
        else:
            # A lone surrogate, which UTF-8 cannot hold, becomes a question mark.
            values = (*slot, record["status"], dumps(record).decode())
            statements.append(
                Statement("INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)", values)
            )
        statements += self.journal.mark_unusable(self._unusable_draws(record))
        await self.journal.put_all(statements)
        self._started_slots.discard(slot)
        await self.scheduler.count_finished(record)
        fields = {k: record[k] for k in ("id", "seed_id", "slot", "status", "reason", "cost_usd")}
        event("sample", **fields, attempts=len(record["attempts"]), error=record.get("error"))
        if record["status"] == "failed":
            self._reasons[describe_failure(record["error"])] += 1
        self._check_failure_rate()
        if self._on_record is not None:
            self._on_record(record)

    def _unusable_draws(self, record: Record) -> list[bytes]:
        """The keys of the draws by which a sample failed, if their replies could not be used."""
        round_, position, number = record["slot"]
        seed = self.scheduler.retries.with_draws(
            {"instruction": "", "id": record["seed_id"], "round": round_, "position": position}
        )
        source = origin_of({"seed": seed, "slot": number}).source
        error = record.get("error") or {"kind": None, "stage": None}
        if RETRY_BY_KIND.get(error["kind"]) != "next draw":
            self.draws.forget(source)
            return []
        keys = self.draws.take_unusable(source, error["stage"])
        if error["stage"] == "propose":
            source = origin_of_proposals(seed).source
            keys += self.draws.take_unusable(source, "propose")
        return keys

    def _check_failure_rate(self) -> None:
        scheduler = self.scheduler
        ended = scheduler.accepted + scheduler.rejected + scheduler.failed
        # Failures end first. Samples in flight count as not failed, or a run would be judged by
        # its quickest samples.
        known = ended + min(scheduler.in_flight, self._concurrency)
        too_many = scheduler.failed > self._max_failure_rate * known
        if ended >= MIN_SAMPLES_FOR_FAILURE_RATE and too_many:
            commonest = self._reasons.most_common(1)
            mostly = f" (mostly {commonest[0][0]})" if commonest else ""
            self.calls.stop(
                TooManyFailed(
                    f"{scheduler.failed} of {ended} samples failed, more than --max-failure-rate "
                    f"{self._max_failure_rate} allows; failed.jsonl says why{mostly}. "
                    "Fix the cause and run the same command again, which tries them again, or "
                    "raise --max-failure-rate"
                )
            )


@dataclass(frozen=True, slots=True)
class EarlierWork:
    """What earlier sessions of a run admitted and finished."""

    admitted: list[tuple[Slot, str]]
    # What people made of instructions in their review.
    edited: list[tuple[Slot, str]]
    accepted: int
    rejected: int
    failed: int
    pending: int


def read_earlier_work(journal: Journal) -> EarlierWork:
    """What the journal has of earlier sessions. Blocks."""
    admitted: list[tuple[Slot, str]] = []
    sql = "SELECT round, position, admitted FROM turns ORDER BY round, position"
    for round_, position, texts in journal.read(sql):
        admitted += [((round_, position, i), text) for i, text in enumerate(json.loads(texts))]
    edited = [((r, p, s), text) for r, p, s, text in journal.read(SELECT_EDITED)]
    counts = dict(journal.read("SELECT status, count(*) FROM samples GROUP BY status"))
    with open_read_only(journal.path) as connection:
        pending = count_pending(connection)
    return EarlierWork(
        admitted,
        edited,
        accepted=counts.get("accepted", 0),
        rejected=counts.get("rejected", 0),
        failed=counts.get("failed", 0),
        pending=pending,
    )


def has_earlier_work(journal: Journal) -> bool:
    """Whether an earlier session of the run recorded anything. Blocks."""
    return any(
        journal.read(f"SELECT 1 FROM {table} LIMIT 1") for table in ("turns", "samples", "reviews")
    )


def read_turns(
    journal: Journal, round_: int, first: int, last: int
) -> dict[SeedKey, CompletedTurn]:
    """The turns in the journal of the seeds at positions from `first` to `last`. Blocks."""
    turns = {}
    for position, texts, verdicts, slots, screened in journal.read(
        "SELECT position, admitted, verdicts, slots, screened FROM turns "
        "WHERE round = ? AND position BETWEEN ? AND ?",
        round_,
        first,
        last,
    ):
        # A turn of an earlier version has no verdicts.
        of_text = dict(enumerate(json.loads(verdicts)))
        admitted: list[Admitted] = [
            {"text": text, "verdicts": of_text.get(i, [])}
            for i, text in enumerate(json.loads(texts))
        ]
        turns[round_, position] = CompletedTurn(admitted, slots, screened)
    return turns


def slot_statuses(journal: Journal, round_: int, position: int) -> dict[int, str]:
    """The status of each finished slot of a seed. Blocks. See `read_statuses`."""
    return read_statuses(journal, round_, position, position).get((round_, position), {})


def read_statuses(
    journal: Journal, round_: int, first: int, last: int
) -> dict[SeedKey, dict[int, str]]:
    """The status of each finished slot of the seeds at positions from `first` to `last`. Blocks.

    `pending` if it waits for review, `moved` if its seed was proposed for again in another round.
    """
    seeds = "WHERE round = ?1 AND position BETWEEN ?2 AND ?3"
    statuses: dict[SeedKey, dict[int, str]] = {}
    for position, slot, status in journal.read(
        f"SELECT position, slot, 'moved' FROM retries {seeds} AND done "
        f"AND moved_to IS NOT NULL UNION ALL "
        f"SELECT position, slot, 'pending' FROM reviews {seeds} UNION ALL "
        f"SELECT position, slot, status FROM samples {seeds}",
        round_,
        first,
        last,
    ):
        statuses.setdefault((round_, position), {})[int(slot)] = str(status)
    return statuses


def record_learned(
    journal: Journal, draws: DrawLog | None = None
) -> Callable[[str, Learned | None], None]:
    """A callback that journals, without waiting, which references could be learned from.

    And, from `draws`, which replies a reference failed by.
    """
    failures: dict[str, bool] = {}

    def record(reference_id: str, learned: Learned | None) -> None:
        failed = learned is None
        if draws is not None:
            keys = draws.take_unusable(CallOrigin(f"reference {reference_id}").source)
            for statement in journal.mark_unusable(keys if failed else []):
                journal.put_soon(statement.sql, *statement.values)
        # What failed once may be learned later; what was learned stays learned.
        if failures.get(reference_id, True) and failures.get(reference_id) != failed:
            failures[reference_id] = failed
            counts = json.dumps(learned["counts"] if learned else {})
            journal.put_soon(
                "INSERT OR REPLACE INTO learned VALUES (?, ?, ?)",
                reference_id,
                int(failed),
                counts,
            )

    return record


class Executor(Protocol):
    """Sends seeds through the graph, in this process or on workers."""

    async def run_seed(self, seed: Seed) -> None:
        """Run the graph on a seed; each sample is recorded as it ends."""
        ...

    def prefetch(self, seeds: Sequence[Seed]) -> None:
        """Prepare for the seeds that come next. Blocks."""
        ...

    def forget(self, key: SeedKey) -> None:
        """Drop what was prepared for a seed that has ended."""
        ...


class LocalExecutor:
    """An `Executor` that runs the graph in this process."""

    def __init__(self, graph: Graph, context: Context, retrieval: RunRetrieval) -> None:
        # Imported here, as the graph is: a run that its preflight ends does not wait for LangGraph.
        from langgraph.runtime import Runtime

        self._graph, self._context = graph, context
        self._runtime = Runtime(context=context)
        self.prefetch, self.forget = retrieval.prefetch, retrieval.forget

    async def run_seed(self, seed: Seed) -> None:
        """See `Executor`. The graph's hooks record the results, so no state is streamed.

        LangGraph runs the graph if the run is traced; else its steps are walked.
        """
        graph_input: Any = {"seed": seed}
        if self._graph.steps is not None and not is_traced():
            await self._graph.steps.walk(graph_input, self._runtime)
            return
        async for _ in self._graph.astream(graph_input, context=self._context, stream_mode=[]):
            continue


class SeedRunner:
    """Runs all seeds, round after round while rows are missing."""

    def __init__(
        self,
        executor: Executor,
        settings: Settings,
        seeds: Source,
        recorder: SampleRecorder,
        quota: ReferenceQuota,
    ) -> None:
        self._executor = executor
        self._settings = settings
        self._seeds = seeds
        self._recorder = recorder
        self._quota = quota
        self._scheduler = recorder.scheduler
        self._calls = recorder.calls
        self._tasks: set[asyncio.Task[None]] = set()
        self._task_ended = asyncio.Event()
        self._error: Exception | None = None
        # Seeds of the next batch that an earlier session finished: they are passed by.
        self._finished: dict[SeedKey, FinishedSeed] = {}

    async def run_seeds(self) -> None:
        """Run seeds until there are enough rows, no seeds are left, or the run is stopping.

        The first error that is more than one seed's is raised once what is in flight has ended.
        """
        ahead = self._scheduler.retries.seeds()
        try:
            async for seed in self._seeds_in_order():
                await self._until_fewer_than(
                    lambda: self._settings.seeds_in_flight(self._scheduler.rows_missing())
                )
                if self._is_stopping() or (not ahead and self._scheduler.exhausted()):
                    break
                needed = seed_key(seed) in ahead or not self._scheduler.exhausted()
                ahead.discard(seed_key(seed))
                task = asyncio.create_task(self._run_seed(seed, needed))
                self._tasks.add(task)
                task.add_done_callback(self._on_seed_done)
            await self._until_fewer_than(lambda: 1)
            self._calls.closed = True
            if self._tasks and not isinstance(self._error, JournalError):
                await self._wait_for_calls()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error

    async def _until_fewer_than(self, limit: Callable[[], int]) -> None:
        """Wait until fewer than `limit()` seeds are in flight, or the run is stopping."""
        while len(self._tasks) >= limit() and not self._is_stopping():
            self._task_ended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._task_ended.wait()

    async def _seeds_in_order(self) -> AsyncIterator[Seed]:
        again = self._scheduler.retries.rounds
        # Without a target there is one round of all seeds; with one, `exhausted` ends the rounds.
        endless = self._settings.target and not self._settings.answer_seeds
        last = max(again, default=0)
        for round_ in count():
            if round_ > last and not endless:
                return
            if round_ and round_ not in again and not endless:
                continue
            rows: Iterator[tuple[int, Reference]] = enumerate(self._seeds)
            if round_ in again:
                rows = (row for row in rows if row[0] in again[round_])
            # Read in batches in a thread, off the event loop.
            while batch := await asyncio.to_thread(self._prefetch, round_, rows):
                for seed in batch:
                    yield seed

    def _prefetch(self, round_: int, rows: Iterator[tuple[int, Reference]]) -> list[Seed]:
        """Read the next seeds, and let the executor prepare for them. Blocks."""
        seeds: list[Seed] = []
        for position, row in islice(rows, SEED_BATCH):
            seed: Seed = {
                "id": row["id"],
                "instruction": row["instruction"],
                "round": round_,
                "position": position,
            }
            if "tags" in row:
                seed["tags"] = row["tags"]
            seeds.append(self._scheduler.retries.with_draws(seed))
        if seeds and self._recorder.resumed:
            self._finished |= self._read_finished(round_, [seed["position"] for seed in seeds])
        self._executor.prefetch([seed for seed in seeds if seed_key(seed) not in self._finished])
        return seeds

    def _read_finished(self, round_: int, positions: Sequence[int]) -> dict[SeedKey, FinishedSeed]:
        """What the journal has of those seeds that are finished there. Blocks."""
        journal, (first, last) = self._recorder.journal, (min(positions), max(positions))
        statuses = read_statuses(journal, round_, first, last)
        retrieved = self._quota.read(round_, first, last)
        return {
            key: FinishedSeed(turn, retrieved.get(key))
            for key, turn in read_turns(journal, round_, first, last).items()
            if key[1] in positions and self._scheduler.is_finished(key, turn, statuses.get(key, {}))
        }

    def _is_stopping(self) -> bool:
        return self._calls.stopping or self._scheduler.target_reached()

    async def _wait_for_calls(self) -> None:
        """Wait for tasks with calls in flight. Others would wait for slots that never start."""
        quiet = 0
        while self._tasks and quiet < 3:
            ended, _ = await asyncio.wait(
                self._tasks, timeout=0.1, return_when=asyncio.FIRST_COMPLETED
            )
            quiet = 0 if ended or self._calls.limiter.in_flight else quiet + 1

    def _on_seed_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._task_ended.set()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(error, Interrupted):
            # Calls in flight are paid for, and still finish.
            self._error = self._error or error
            self._calls.stop(error)

    async def _run_seed(self, seed: Seed, needed: bool) -> None:
        key = seed_key(seed)
        try:
            if (finished := self._finished.pop(key, None)) is not None:
                await self._quota.replay(key, finished.retrieved)
                await self._scheduler.replay(seed, finished.turn)
                return
            if needed:
                await self._executor.run_seed(seed)
        except (Interrupted, *RUN_ENDING_ERRORS):
            raise
        except Exception as error:  # noqa: BLE001 - any other error fails one seed
            await self._fail_seed(seed, error)
        finally:
            self._executor.forget(key)
            self._quota.leave(key)
            self._recorder.draws.forget(origin_of_proposals(seed).source)
        await self._scheduler.end_seed(seed)

    async def _fail_seed(self, seed: Seed, error: Exception) -> None:
        """Record every unfinished sample of a seed as failed, and at least one."""
        key = seed_key(seed)
        slots = self._recorder.open_slots(key) or {(*key, 0): False}
        message = f"{type(error).__name__}: {error}"[:500]
        state: SampleState = {
            "seed": seed,
            "failure": {"stage": "retrieve", "kind": "bad_input", "message": message},
        }
        for slot, started in slots.items():
            if not started and slot in self._scheduler.retries.in_place:
                # Its failed row says more.
                continue
            if started or await self._recorder.start(slot):
                await self._recorder.finish(record_of(state, slot, self._recorder.context))
