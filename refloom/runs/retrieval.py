"""Retrieval within a run: in seed order, and with a quota that leaves room for rare references."""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from memory.index import Candidates, ReferenceIndex, choose_by_mmr, with_score
from memory.references import Reference
from nodes.state import Seed
from refloom.runs.journal import Journal
from refloom.runs.progress import format_seconds

# A reference may be used this often, however few references there are.
MIN_QUOTA = 3
# Batches of references over which the pace of their embedding is taken.
PACE_STEPS = 10

# A seed's round and its position in the round.
SeedKey = tuple[int, int]


def seed_key(seed: Seed) -> SeedKey:
    """The key of a seed, which orders the work of a run."""
    return seed["round"], seed["position"]


class SeedOrder:
    """Numbers the seeds of a run in the order of their turns: round after round, by position.

    A round in which seeds are proposed for again has only those seeds.
    """

    def __init__(self, seeds: int, again: Mapping[int, Collection[int]] | None = None) -> None:
        """`seeds` is the number of seeds in a round, `again` the positions in such other rounds."""
        self._seeds = seeds
        self._again = {round_: sorted(positions) for round_, positions in (again or {}).items()}

    def number(self, key: SeedKey) -> int:
        """The number of a seed's turn, from 0."""
        round_, position = key
        earlier = [positions for other, positions in self._again.items() if other < round_]
        before = (round_ - len(earlier)) * self._seeds + sum(map(len, earlier))
        own = self._again.get(round_)
        return before + (position if own is None else bisect_left(own, position))

    def ends_round(self, key: SeedKey) -> bool:
        """Whether a seed is the last of a round of all seeds."""
        return key[0] not in self._again and key[1] == self._seeds - 1


class OrderedGate:
    """Lets numbered visitors through one after another; each must leave, whatever happens."""

    def __init__(self) -> None:
        self._next = 0
        self._left: set[int] = set()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def wait(self, number: int) -> None:
        """Wait until all earlier numbers have left."""
        if number > self._next:
            turn = self._waiting[number] = asyncio.get_running_loop().create_future()
            await turn

    def has_passed(self, number: int) -> bool:
        """Whether the number has left, and all before it."""
        return number < self._next

    def leave(self, number: int) -> None:
        """Let the next one in. Leaving twice, or before one's turn, does no harm."""
        if number < self._next:
            return
        self._left.add(number)
        while self._next in self._left:
            self._left.discard(self._next)
            self._next += 1
        waiting = self._waiting.pop(self._next, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The references of a seed: their rows and scores, and the rows that count as used."""

    rows: list[int]
    scores: list[float]
    counted: list[int]


class QuotaClient(Protocol):
    """What retrieval asks of the run's quota."""

    async def load(self, key: SeedKey) -> Retrieved | None:
        """What the seed retrieved in an earlier session of the run; None if nothing."""
        ...

    async def try_take(
        self, key: SeedKey, retrieved: Retrieved, rows: Sequence[int], k: int
    ) -> list[bool] | None:
        """In the seed's turn, take references chosen among `rows`; None if all are allowed.

        If not, nothing is taken and the result says which of `rows` are allowed; the caller
        chooses among those and calls `take`.
        """
        ...

    async def take(self, key: SeedKey, retrieved: Retrieved) -> None:
        """In the seed's turn, journal and count what it retrieved; then the next seed is let in."""
        ...

    def leave(self, key: SeedKey) -> None:
        """The seed takes nothing more: let the next one in."""
        ...


class ReferenceQuota:
    """The `QuotaClient` of a run: no reference is used over `quota` times as often as the mean.

    Where nothing else can be chosen, the limit does not hold. What was taken is journaled, so that
    a resumed run takes and counts the same.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        references: int,
        seeds: int,
        quota: float | None,
        again: Mapping[int, Collection[int]] | None = None,
    ) -> None:
        """`seeds` and `again` are those of `SeedOrder`; `quota` None: no limit."""
        self._journal = journal
        self._references = references
        self._number = SeedOrder(seeds, again).number
        self._quota = quota
        self._gate = OrderedGate()
        self._counts: Counter[int] = Counter()
        self._total = 0
        self._resumed = False

    async def begin(self) -> None:
        """Look up whether an earlier session retrieved anything."""
        sql = "SELECT 1 FROM retrieved LIMIT 1"
        self._resumed = bool(await asyncio.to_thread(self._journal.read, sql))

    async def load(self, key: SeedKey) -> Retrieved | None:
        """See `QuotaClient`."""
        if not self._resumed:
            return None
        round_, position = key
        return (await asyncio.to_thread(self.read, round_, position, position)).get(key)

    def read(self, round_: int, first: int, last: int) -> dict[SeedKey, Retrieved]:
        """What seeds at positions from `first` to `last` retrieved in earlier sessions. Blocks."""
        sql = "SELECT position, taken FROM retrieved WHERE round = ? AND position BETWEEN ? AND ?"
        rows = self._journal.read(sql, round_, first, last)
        return {(round_, position): Retrieved(*json.loads(taken)) for position, taken in rows}

    async def try_take(
        self, key: SeedKey, retrieved: Retrieved, rows: Sequence[int], k: int
    ) -> list[bool] | None:
        """See `QuotaClient`."""
        await self._gate.wait(self._number(key))
        if self._quota is not None:
            mean = (self._total + k) / self._references
            limit = max(MIN_QUOTA, self._quota * mean)
            if any(self._counts[row] >= limit for row in retrieved.counted):
                return [self._counts[row] < limit for row in rows]
        await self.take(key, retrieved)
        return None

    async def take(self, key: SeedKey, retrieved: Retrieved) -> None:
        """See `QuotaClient`."""
        await self._gate.wait(self._number(key))
        entry = json.dumps([retrieved.rows, retrieved.scores, retrieved.counted])
        self._journal.put_soon("INSERT OR REPLACE INTO retrieved VALUES (?, ?, ?)", *key, entry)
        self._count(key, retrieved)

    async def replay(self, key: SeedKey, retrieved: Retrieved | None) -> None:
        """Count what a finished seed took."""
        if retrieved is None:
            self.leave(key)
        else:
            await self._gate.wait(self._number(key))
            self._count(key, retrieved)

    def leave(self, key: SeedKey) -> None:
        """See `QuotaClient`."""
        self._gate.leave(self._number(key))

    def _count(self, key: SeedKey, retrieved: Retrieved) -> None:
        self._counts.update(retrieved.counted)
        self._total += len(retrieved.counted)
        self.leave(key)


class EmbeddingPace:
    """Says how far the embedding of references is, how fast it goes, and the time that is left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The last times at which so many references were done.
        self._steps: deque[tuple[float, int]] = deque(maxlen=PACE_STEPS)

    def describe(self, done: int, total: int) -> str:
        """The line of a display once `done` of `total` references are embedded.

        Without a pace as long as there is none to tell.
        """
        self._steps.append((self._clock(), done))
        (since, before), (now, _) = self._steps[0], self._steps[-1]
        text = f"embedding references, {done:,} of {total:,}"
        if now <= since or done <= before:
            return text
        rate = (done - before) / (now - since)
        return f"{text}, {rate:,.0f}/s, {format_seconds((total - done) / rate)} left"


OwnReference = tuple[int, Reference] | None


class RunRetrieval:
    """A `Search` over the index that keeps to the quota.

    A seed that is itself a reference gets it first, and that use is not counted.
    """

    def __init__(self, index: ReferenceIndex, quota: QuotaClient) -> None:
        self._index = index
        self._quota = quota
        self._own_references: dict[SeedKey, OwnReference] = {}

    async def __call__(self, text: str, k: int, turn: SeedKey | None = None) -> list[Reference]:
        """See `memory.index.Search`; waits for the seed's turn if the quota needs it."""
        if turn is None:
            return await self._index.search(text, k)
        retrieved = await self._quota.load(turn)
        if retrieved is None:
            own = await self._find_own(turn, text)
            if own is not None and k == 1:
                self._quota.leave(turn)
                return [with_score(own[1], 1.0)]
            retrieved = await self._choose(text, k, turn, own)
        else:
            await self._quota.take(turn, retrieved)
        return await self._index.read(retrieved.rows, retrieved.scores)

    async def _choose(self, text: str, k: int, turn: SeedKey, own: OwnReference) -> Retrieved:
        """Choose the seed's references. The first choice is mostly allowed, and then is final.

        Choosing among the allowed ones only would give the same.
        """
        candidates = await self._index.candidates(text, k, own_row=own[0] if own else None)
        retrieved = _pick(candidates, k, [True] * len(candidates.rows))
        allowed = await self._quota.try_take(turn, retrieved, candidates.rows, k)
        if allowed is not None:
            retrieved = _pick(candidates, k, allowed)
            await self._quota.take(turn, retrieved)
        return retrieved

    def prefetch(self, seeds: Sequence[Seed]) -> None:
        """Look up together which of the next seeds are references themselves. Blocks."""
        owned = self._index.find_own([seed["instruction"] for seed in seeds])
        for seed, own in zip(seeds, owned, strict=True):
            self._own_references[seed_key(seed)] = own

    async def _find_own(self, turn: SeedKey, text: str) -> OwnReference:
        """The seed's own reference, if it is a reference itself."""
        if turn in self._own_references:
            return self._own_references.pop(turn)
        return (await asyncio.to_thread(self._index.find_own, [text]))[0]

    def forget(self, turn: SeedKey) -> None:
        """Drop what was looked up for a seed that has ended."""
        self._own_references.pop(turn, None)


def _pick(candidates: Candidates, k: int, allowed: Sequence[bool]) -> Retrieved:
    picked = choose_by_mmr(
        candidates, k, dict(zip(candidates.rows, allowed, strict=True)).__getitem__
    )
    rows = [candidates.rows[i] for i in picked]
    return Retrieved(
        rows, [float(candidates.scores[i]) for i in picked], rows[candidates.own_count :]
    )
