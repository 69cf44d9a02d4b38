"""The one order of work: who is admitted when, so that rows do not depend on timing.

Slots are admitted in the order (round, seed position, place in the seed). A seed's novelty is
decided in its turn, against everything admitted before it, whatever became of that.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from memory.novelty import NoveltyFilter
from memory.references import Reference, exact_key_of
from nodes.context import Context
from nodes.propose import Admit
from nodes.record import Record
from nodes.state import Seed
from refloom.runs.journal import Journal

Slot = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Turned:
    """What a seed's turn left: instructions admitted, duplicates counted, slots."""

    admitted: list[str]
    duplicates: int
    slots: int


class Order:
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

    async def finished_turn(self, seed: Seed, statuses: Collection[int]) -> Turned | None:
        """A seed's turn as the journal has it, if all its slots are finished there."""
        rows = await asyncio.to_thread(
            self._journal.read,
            "SELECT admitted, duplicates, slots FROM turns WHERE round = ? AND position = ?",
            seed["round"],
            seed["position"],
        )
        if not rows or any(slot not in statuses for slot in range(rows[0][2])):
            return None
        return Turned(json.loads(rows[0][0]), rows[0][1], rows[0][2])

    async def replay(
        self, seed: Seed, context: Context, turned: Turned, statuses: dict[int, str]
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
