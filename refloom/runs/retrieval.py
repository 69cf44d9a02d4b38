"""Retrieval within a run: in the order of seeds, and so that popular references leave room."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from memory.index import Candidates, ReferenceIndex, choose, scored
from memory.references import Reference
from nodes.state import Seed
from refloom.runs.quota import Place, Taken, Uses

Own = tuple[int, Reference] | None


class Retrieval:
    """A `Search` over the index that takes only what its `uses` let it.

    A seed's own reference is always its first, and is not counted as used.
    """

    def __init__(self, index: ReferenceIndex, uses: Uses) -> None:
        self._index = index
        self._uses = uses
        self._own: dict[Place, Own] = {}

    async def __call__(self, text: str, k: int, turn: Place | None = None) -> list[Reference]:
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

    async def _chosen(self, text: str, k: int, turn: Place, own: Own) -> Taken:
        """What the seed takes. Mostly its first choice will do, which saves another asking.

        When all of that is allowed, choosing among the allowed ones only would choose the same.
        """
        found = await self._index.candidates(text, k, own=own[0] if own else None)
        taken = _picked(found, k, [True] * len(found.rows))
        allowed = await self._uses.offer(turn, taken, found.rows, k)
        if allowed is not None:
            taken = _picked(found, k, allowed)
            await self._uses.take(turn, taken)
        return taken

    def look_ahead(self, seeds: Sequence[Seed]) -> None:
        """Find the seeds' own references together, some time before they are asked for. Blocks."""
        found = self._index.owns([seed["instruction"] for seed in seeds])
        for seed, own in zip(seeds, found, strict=True):
            self._own[seed["round"], seed["position"]] = own

    async def _owned(self, turn: Place, text: str) -> Own:
        """The seed's own reference, if it is one itself."""
        if turn in self._own:
            return self._own.pop(turn)
        return (await asyncio.to_thread(self._index.owns, [text]))[0]

    def forget(self, turn: Place) -> None:
        """A seed has ended; what was found for it and not asked for is not needed."""
        self._own.pop(turn, None)


def _picked(found: Candidates, k: int, allowed: Sequence[bool]) -> Taken:
    picked = choose(found, k, dict(zip(found.rows, allowed, strict=True)).__getitem__)
    rows = [found.rows[i] for i in picked]
    return Taken(rows, [float(found.scores[i]) for i in picked], rows[found.own :])
