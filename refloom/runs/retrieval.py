"""Retrieval within a run: in the order of seeds, and so that popular references leave room."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory.index import ReferenceIndex, choose, scored
from memory.references import Reference
from nodes.state import Seed
from refloom.runs.journal import Journal

# However few references there are, one may be used so often.
LEAST_QUOTA = 3


class Gate:
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
class Taken:
    """The rows of references a seed was given, with their scores; which of them count as used."""

    rows: list[int]
    scores: list[float]
    counted: list[int]


class Retrieval:
    """A `Search` over the index with a usage quota, counted in the order of seeds.

    No reference is used more than `quota` times as often as the mean of all, as far as there are
    others to choose from. What was retrieved is written down: a run that is taken up again takes
    the same, and counts the same. A seed's own reference is always its first, and is not counted.
    """

    def __init__(
        self, index: ReferenceIndex, journal: Journal, *, seeds: int, quota: float | None
    ) -> None:
        """`seeds` is the number of seeds in a round; `quota` None: no bound."""
        self._index = index
        self._journal = journal
        self._seeds = seeds
        self._quota = quota
        self._gate = Gate()
        self._uses: Counter[int] = Counter()
        self._total = 0
        self._resumed = False
        self._own: dict[tuple[int, int], tuple[int, Reference] | None] = {}

    async def begin(self) -> None:
        """Look whether an earlier session has retrieved anything."""
        sql = "SELECT 1 FROM retrieved LIMIT 1"
        self._resumed = bool(await asyncio.to_thread(self._journal.read, sql))

    async def __call__(
        self, text: str, k: int, turn: tuple[int, int] | None = None
    ) -> list[Reference]:
        """See `memory.index.Search`; waits for the seed's turn where quotas need it."""
        if turn is None:
            return await self._index.search(text, k)
        taken = await self._written(turn)
        if taken is None:
            own = await self._owned(turn, text)
            if own is not None and k == 1:
                self.passed(turn)
                return [scored(own[1], 1.0)]
            found = await self._index.candidates(text, k, own=own[0] if own else None)
            await self._gate.reach(self._number(turn))
            picked = choose(found, k, self._allowed(k))
            rows = [found.rows[i] for i in picked]
            taken = Taken(rows, [float(found.scores[i]) for i in picked], rows[found.own :])
            self._write(turn, taken)
        else:
            await self._gate.reach(self._number(turn))
        self._count(turn, taken)
        return await self._index.read(taken.rows, taken.scores)

    def look_ahead(self, seeds: Sequence[Seed]) -> None:
        """Find the seeds' own references together, some time before they are asked for. Blocks."""
        found = self._index.owns([seed["instruction"] for seed in seeds])
        for seed, own in zip(seeds, found, strict=True):
            self._own[seed["round"], seed["position"]] = own

    async def _owned(self, turn: tuple[int, int], text: str) -> tuple[int, Reference] | None:
        """The seed's own reference, if it is one itself."""
        if turn in self._own:
            return self._own.pop(turn)
        return (await asyncio.to_thread(self._index.owns, [text]))[0]

    async def replay(self, turn: tuple[int, int]) -> None:
        """Count what a seed retrieved that is finished."""
        taken = await self._written(turn)
        if taken is not None:
            await self._gate.reach(self._number(turn))
            self._count(turn, taken)
        self.passed(turn)

    def passed(self, turn: tuple[int, int]) -> None:
        """A seed retrieves nothing, or nothing more."""
        self._own.pop(turn, None)
        self._gate.leave(self._number(turn))

    def _number(self, turn: tuple[int, int]) -> int:
        return turn[0] * self._seeds + turn[1]

    def _allowed(self, k: int) -> Callable[[int], bool]:
        if self._quota is None:
            return lambda row: True
        mean = (self._total + k) / len(self._index.references)
        most = max(LEAST_QUOTA, self._quota * mean)
        return lambda row: self._uses[row] < most

    def _count(self, turn: tuple[int, int], taken: Taken) -> None:
        for row in taken.counted:
            self._uses[row] += 1
        self._total += len(taken.counted)
        self.passed(turn)

    def _write(self, turn: tuple[int, int], taken: Taken) -> None:
        said = json.dumps([taken.rows, taken.scores, taken.counted])
        self._journal.put_soon("INSERT OR REPLACE INTO retrieved VALUES (?, ?, ?)", *turn, said)

    async def _written(self, turn: tuple[int, int]) -> Taken | None:
        if not self._resumed:
            return None
        sql = "SELECT taken FROM retrieved WHERE round = ? AND position = ?"
        found = await asyncio.to_thread(self._journal.read, sql, *turn)
        return Taken(*json.loads(found[0][0])) if found else None
