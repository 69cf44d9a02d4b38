"""How a run holds its graph: turns, admission of slots, and results, all through the journal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from memory.characteristics import Learned
from memory.references import Reference
from nodes.llm.fast_json import dumps
from nodes.record import Record
from refloom.errors import TooManyFailed
from refloom.runs.calls import JournaledCalls
from refloom.runs.journal import Journal
from refloom.runs.log import event
from refloom.runs.order import Order, Slot
from refloom.runs.reviews import PARK, asked
from refloom.settings import Settings

# How many samples have to be finished before their failure rate says anything.
JUDGED_AFTER = 20


class Kept:
    """Starts slots in order, and commits each finished sample before anybody hears of it."""

    def __init__(
        self,
        journal: Journal,
        order: Order,
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
        kept = await asyncio.to_thread(statuses, self.journal, slot[0], slot[1])
        if slot[2] in kept:
            self._begun.discard(slot)
            await self.order.finished_before(kept[slot[2]])
            return False
        return True

    async def finish(self, record: Record, references: Sequence[Reference] = ()) -> None:
        """See `nodes.sample.Finish`; a pending sample is put aside for a person."""
        if record["status"] == "pending":
            kept = asked(record, references)
            await self.journal.put(PARK, *record["slot"], record["id"], kept)
        else:
            await self.journal.put(
                "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)",
                *record["slot"],
                record["status"],
                line_of(record),
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
        if ended >= JUDGED_AFTER and order.failed > self._max_failure_rate * known:
            self.calls.stop(
                TooManyFailed(
                    f"{order.failed} of {ended} samples failed, more than --max-failure-rate "
                    f"{self._max_failure_rate} allows: see failed.jsonl for why. Mend that and run "
                    "again to go on, or raise --max-failure-rate"
                )
            )


def begun_before(journal: Journal) -> bool:
    """Whether an earlier session of the run has got anywhere. Blocks."""
    return any(
        journal.read(f"SELECT 1 FROM {table} LIMIT 1") for table in ("turns", "samples", "reviews")
    )


def statuses(journal: Journal, round_: int, position: int) -> dict[int, str]:
    """How the finished slots of a seed ended, or that they wait for a person. Blocks."""
    rows = journal.read(
        "SELECT slot, 'pending' FROM reviews WHERE round = ?1 AND position = ?2 UNION ALL "
        "SELECT slot, status FROM samples WHERE round = ?1 AND position = ?2",
        round_,
        position,
    )
    return {int(slot): str(status) for slot, status in rows}


def line_of(record: Record) -> str:
    """A record as JSON; half a surrogate pair, which is no text, becomes a question mark."""
    return dumps(record).decode()


def heard(journal: Journal) -> Callable[[str, Learned | None], None]:
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
