"""How often references are used, counted in the order of seeds and written down."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from memory.index import Candidates, ReferenceIndex, choose, scored
from memory.references import Reference
from nodes.state import Seed
from refloom.runs.journal import Journal

# However few references there are, one may be used so often.
MIN_QUOTA = 3
SeedKey = tuple[int, int]


class OrderedGate:
    """Lets seeds through one after another, in their order; each has to leave, whatever happens."""

    def __init__(self) -> None:
        self._next = 0
        self._left: set[int] = set()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def reach(self, number: int) -> None:
        """Wait until all earlier ones have left."""
        if number > self._next:
            turn = self._waiting[number] = asyncio.get_running_loop().create_future()
            await turn

    def leave(self, number: int) -> None:
        """Let the next in; leaving twice, or before one's turn, does no harm."""
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
    """The rows of references a seed was given, with their scores; which of them count as used."""

    rows: list[int]
    scores: list[float]
    counted: list[int]


class QuotaClient(Protocol):
    """The seam for usage: what a seed may take, and what it took. Places are (round, position)."""

    async def written(self, place: SeedKey) -> Retrieved | None:
        """What an earlier session of the run gave the seed."""
        ...

    async def offer(
        self, place: SeedKey, taken: Retrieved, rows: Sequence[int], k: int
    ) -> list[bool] | None:
        """Take what was chosen among `rows`, in the seed's turn: None if all of it may be taken.

        Otherwise whether each row may be; then something else is to be chosen, and `take`n.
        """
        ...

    async def take(self, place: SeedKey, taken: Retrieved) -> None:
        """Write down and count what the seed takes, and let the next seed in."""
        ...

    def passed(self, place: SeedKey) -> None:
        """A seed takes nothing, or nothing more."""
        ...


class ReferenceQuota:
    """The `QuotaClient` of a run: no reference is used more than `quota` times as often as the mean.

    That is as far as there are others to choose from. What was taken is written down: a run that
    is taken up again takes the same, and counts the same.
    """

    def __init__(
        self, journal: Journal, *, references: int, seeds: int, quota: float | None
    ) -> None:
        """`seeds` is the number of seeds in a round; `quota` None: no bound."""
        self._journal = journal
        self._references = references
        self._seeds = seeds
        self._quota = quota
        self._gate = OrderedGate()
        self._uses: Counter[int] = Counter()
        self._total = 0
        self._resumed = False

    async def begin(self) -> None:
        """Look whether an earlier session has retrieved anything."""
        sql = "SELECT 1 FROM retrieved LIMIT 1"
        self._resumed = bool(await asyncio.to_thread(self._journal.read, sql))

    async def written(self, place: SeedKey) -> Retrieved | None:
        """See `QuotaClient`."""
        if not self._resumed:
            return None
        sql = "SELECT taken FROM retrieved WHERE round = ? AND position = ?"
        found = await asyncio.to_thread(self._journal.read, sql, *place)
        return Retrieved(*json.loads(found[0][0])) if found else None

    async def offer(
        self, place: SeedKey, taken: Retrieved, rows: Sequence[int], k: int
    ) -> list[bool] | None:
        """See `QuotaClient`."""
        await self._gate.reach(self._number(place))
        if self._quota is not None:
            mean = (self._total + k) / self._references
            most = max(MIN_QUOTA, self._quota * mean)
            if any(self._uses[row] >= most for row in taken.counted):
                return [self._uses[row] < most for row in rows]
        await self.take(place, taken)
        return None

    async def take(self, place: SeedKey, taken: Retrieved) -> None:
        """See `QuotaClient`."""
        await self._gate.reach(self._number(place))
        said = json.dumps([taken.rows, taken.scores, taken.counted])
        self._journal.put_soon("INSERT OR REPLACE INTO retrieved VALUES (?, ?, ?)", *place, said)
        self._count(place, taken)

    async def replay(self, place: SeedKey) -> None:
        """Count what a seed took that is finished."""
        taken = await self.written(place)
        if taken is None:
            self.passed(place)
        else:
            await self._gate.reach(self._number(place))
            self._count(place, taken)

    def passed(self, place: SeedKey) -> None:
        """See `QuotaClient`."""
        self._gate.leave(self._number(place))

    def _number(self, place: SeedKey) -> int:
        return place[0] * self._seeds + place[1]

    def _count(self, place: SeedKey, taken: Retrieved) -> None:
        self._uses.update(taken.counted)
        self._total += len(taken.counted)
        self.passed(place)


# MERGED refloom~runs~retrieval
# Retrieval within a run: in the order of seeds, and so that popular references leave room.
OwnReference = tuple[int, Reference] | None


class RunRetrieval:
    """A `Search` over the index that takes only what its `uses` let it.

    A seed's own reference is always its first, and is not counted as used.
    """

    def __init__(self, index: ReferenceIndex, uses: QuotaClient) -> None:
        self._index = index
        self._uses = uses
        self._own: dict[SeedKey, OwnReference] = {}

    async def __call__(self, text: str, k: int, turn: SeedKey | None = None) -> list[Reference]:
        """See `memory.index.Search`; waits for the seed's turn where quotas need it."""
        if turn is None:
            return await self._index.search(text, k)
        taken = await self._uses.written(turn)
        if taken is None:
            own = await self._owned(turn, text)
            if own is not None and k == 1:
                self._uses.passed(turn)
                return [scored(own[1], 1.0)]
            taken = await self._chosen(text, k, turn, own)
        else:
            await self._uses.take(turn, taken)
        return await self._index.read(taken.rows, taken.scores)

    async def _chosen(self, text: str, k: int, turn: SeedKey, own: OwnReference) -> Retrieved:
        """What the seed takes. Mostly its first choice will do, which saves another asking.

        When all of that is allowed, choosing among the allowed ones only would choose the same.
        """
        found = await self._index.candidates(text, k, own=own[0] if own else None)
        taken = _pick(found, k, [True] * len(found.rows))
        allowed = await self._uses.offer(turn, taken, found.rows, k)
        if allowed is not None:
            taken = _pick(found, k, allowed)
            await self._uses.take(turn, taken)
        return taken

    def look_ahead(self, seeds: Sequence[Seed]) -> None:
        """Find the seeds' own references together, some time before they are asked for. Blocks."""
        found = self._index.owns([seed["instruction"] for seed in seeds])
        for seed, own in zip(seeds, found, strict=True):
            self._own[seed["round"], seed["position"]] = own

    async def _owned(self, turn: SeedKey, text: str) -> OwnReference:
        """The seed's own reference, if it is one itself."""
        if turn in self._own:
            return self._own.pop(turn)
        return (await asyncio.to_thread(self._index.owns, [text]))[0]

    def forget(self, turn: SeedKey) -> None:
        """A seed has ended; what was found for it and not asked for is not needed."""
        self._own.pop(turn, None)


def _pick(found: Candidates, k: int, allowed: Sequence[bool]) -> Retrieved:
    picked = choose(found, k, dict(zip(found.rows, allowed, strict=True)).__getitem__)
    rows = [found.rows[i] for i in picked]
    return Retrieved(rows, [float(found.scores[i]) for i in picked], rows[found.own :])
