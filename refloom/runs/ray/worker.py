"""A worker of a run: graph, client and index of its own; order, journal and limits are elsewhere.

Every seam of the graph that the order of work, the journal or a budget stands behind is a question
to the run's process, so what a worker makes is what the run would have made itself.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from graph.builder import Graph, build_graph
from memory.characteristics import Characteristics, Kept, Learned
from memory.contamination import Contamination
from memory.embed import Embed, Embedder
from memory.index import ReferenceIndex
from memory.references import Reference
from memory.store import ReferenceFile
from nodes.context import Context
from nodes.llm import Call, Complete, Reply
from nodes.llm.endpoint import Connection
from nodes.propose import Admit
from nodes.record import Record
from nodes.state import Seed
from refloom.runs.client import Addresses, kept_form
from refloom.runs.rate_limit import TOLD_IN
from refloom.runs.ray.rpc import Line, call_of, plain_call
from refloom.runs.retrieval import Place, Retrieval, Taken
from refloom.settings import Settings

KEYS = ("OPENAI_API_KEY", "JUDGE_API_KEY")


class Worker:
    """Makes the seeds it is given. `complete` and `embed` stand in for its own in tests."""

    def __init__(
        self,
        orders: Mapping[str, Any],
        contamination: Contamination | None = None,
        *,
        complete: Complete | None = None,
        embed: Embed | None = None,
    ) -> None:
        """`orders`: the run's settings, keys, references and whether it was taken up again."""
        self.line = Line(self._answer)
        settings = Settings(**orders["settings"])
        os.environ.update({name: key for name, key in orders["keys"].items() if key})
        self._context = settings.context()
        self._resumed = bool(orders["resumed"])
        self._connection = Connection(Addresses(settings).resolve, max_retries=0, heed=self._heed)
        self._send = complete or self._connection
        self._calls: dict[int, Call] = {}
        self._numbers = itertools.count()
        path = Path(orders["references"])
        embed = embed or Embedder(settings.embedding_model)
        index = ReferenceIndex(ReferenceFile(path), embed, path.parent, settings.embedding_model)
        self._graph = self._built(index, embed, contamination)

    def _built(
        self, index: ReferenceIndex, embed: Embed, contamination: Contamination | None
    ) -> Graph:
        return build_graph(
            complete=self._complete,
            search=Retrieval(index, _Uses(self.line, self._resumed)),
            another=index.another,
            embed=embed,
            characteristics=Characteristics(_Store(self.line), self._heard),
            turn=self._turn,
            taken=self._taken,
            start=self._start,
            finish=self._finish,
            ask=None,
            contamination=contamination,
        )

    async def _answer(self, what: str, values: list[Any]) -> Any:
        """What the run asks of a worker: make a seed, send a call."""
        if what == "make":
            return await self._make(values[0])
        if what == "send":
            number, said = values
            # The parameters may be other than were asked for; the rest is here already.
            call = call_of(plain_call(self._calls[number]) | said if number is not None else said)
            return kept_form(await self._send(call))
        raise ValueError(f"a worker is not asked {what!r}")

    async def _make(self, seed: Seed) -> None:
        given: Any = {"seed": seed}
        async for _ in self._graph.astream(given, context=self._context, stream_mode=[]):
            continue

    async def _complete(self, call: Call) -> Reply:
        number = next(self._numbers)
        self._calls[number] = call
        try:
            return Reply(**await self.line.ask("call", number, plain_call(call)))
        finally:
            del self._calls[number]

    def _heed(self, call: Call, headers: Mapping[str, str]) -> None:
        told = {name: headers[name] for name in TOLD_IN if name in headers}
        if told:
            self.line.tell("heed", call.judge, call.model, told)

    @asynccontextmanager
    async def _turn(self, seed: Seed, context: Context) -> AsyncIterator[Admit]:
        """A turn is over with the last that is offered, or when enough is admitted.

        So that the next seed does not wait until this worker has heard of it.
        """
        over = False

        async def admit(texts: Sequence[str | None], most: int, *, last: bool = False) -> list[str]:
            nonlocal over
            admitted: list[str] = await self.line.ask(
                "admit", _place(seed), list(texts), most, last
            )
            over = last or len(admitted) == most
            return admitted

        yield admit
        if not over:
            await self.line.ask("close", _place(seed))

    async def _taken(self, seed: Seed, texts: Sequence[str]) -> list[bool]:
        taken: list[bool] = await self.line.ask("taken", _place(seed), list(texts))
        return taken

    async def _start(self, slot: tuple[int, int, int]) -> bool:
        return bool(await self.line.ask("start", slot))

    async def _finish(self, record: Record, references: Sequence[Reference] = ()) -> None:
        await self.line.ask("finish", record, list(references))

    def _heard(self, reference_id: str, learned: Learned | None) -> None:
        self.line.tell("heard", reference_id, learned and {"counts": learned["counts"]})

    async def close(self) -> None:
        """Give up what is under way, and let go of the connections."""
        await self.line.close()
        await self._connection.aclose()


class _Uses:
    """The run's count of how often references are used: see `refloom.runs.retrieval.Uses`."""

    def __init__(self, line: Line, resumed: bool) -> None:
        self._line, self._resumed = line, resumed

    async def written(self, place: Place) -> Taken | None:
        said = await self._line.ask("written", place) if self._resumed else None
        return Taken(*said) if said else None

    async def offer(
        self, place: Place, taken: Taken, rows: Sequence[int], k: int
    ) -> list[bool] | None:
        allowed: list[bool] | None = await self._line.ask("offer", place, _said(taken), rows, k)
        return allowed

    async def take(self, place: Place, taken: Taken) -> None:
        await self._line.ask("take", place, _said(taken))

    def passed(self, place: Place) -> None:
        self._line.tell("passed", place)


class _Store:
    """The run's store of characteristics: see `memory.characteristics.Store`."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def aget(self, namespace: tuple[str, ...], key: str) -> Kept | None:
        found = await self._line.ask("recall", key)
        return Kept(found) if found is not None else None

    async def aput(
        self, namespace: tuple[str, ...], key: str, value: dict[str, Any], index: Literal[False]
    ) -> None:
        self._line.tell("keep", key, value)


def _said(taken: Taken) -> list[Any]:
    return [taken.rows, taken.scores, taken.counted]


def _place(seed: Seed) -> Place:
    return seed["round"], seed["position"]
