"""Who makes a run's seeds: the graph in this process, or a team of workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from graph.builder import Graph, build_graph
from memory.characteristics import Characteristics, FileStore
from memory.embed import Embed, Embedder
from memory.index import ReferenceIndex
from memory.store import ReferenceFile
from nodes.context import Context
from nodes.state import Seed
from refloom.runs.given import Given
from refloom.runs.quota import Quota
from refloom.runs.retrieval import Retrieval
from refloom.runs.seams import Kept
from refloom.runs.team import Hiring, Team
from refloom.settings import Settings

KEYS = ("OPENAI_API_KEY", "JUDGE_API_KEY")


class Alone:
    """A `Maker` that is the graph in this process."""

    def __init__(self, graph: Graph, context: Context, retrieval: Retrieval) -> None:
        self._graph, self._context = graph, context
        self.look_ahead, self.forget = retrieval.look_ahead, retrieval.forget

    async def make(self, seed: Seed) -> None:
        """See `Maker`. What comes of it is kept by the graph's seams; no state is streamed."""
        given: Any = {"seed": seed}
        async for _ in self._graph.astream(given, context=self._context, stream_mode=[]):
            continue


@dataclass(frozen=True)
class Ground:
    """What makers stand on: what the run was given, and what it keeps."""

    settings: Settings
    given: Given
    references: ReferenceFile
    kept: Kept
    uses: Quota
    store: FileStore
    learned: Characteristics


def alone(ground: Ground, embed: Embed | None) -> Alone:
    """The graph, held by the run's own order, journal and limits."""
    settings, kept = ground.settings, ground.kept
    embed = embed or Embedder(settings.embedding_model)
    memory = ground.references.path.parent
    index = ReferenceIndex(ground.references, embed, memory, settings.embedding_model)
    retrieval = Retrieval(index, ground.uses)
    graph = build_graph(
        complete=kept.calls,
        search=retrieval,
        another=index.another,
        embed=embed,
        characteristics=ground.learned,
        turn=kept.order.turn,
        taken=kept.order.taken,
        start=kept.start,
        finish=kept.finish,
        ask=None,
        contamination=ground.given.contamination,
    )
    return Alone(graph, kept.context, retrieval)


@asynccontextmanager
async def together(ground: Ground, team: Team, hiring: Hiring | None) -> AsyncIterator[Team]:
    """A team of workers; `hiring` None: Ray's, connected to while this is open."""
    from refloom.runs import ray

    settings, undo = ground.settings, AsyncExitStack()
    async with undo:
        if hiring is None:
            await asyncio.to_thread(ray.connect, settings.ray_address, settings.at_work)
            undo.push_async_callback(asyncio.to_thread, ray.disconnect)
            hiring = ray.hiring
        hire = hiring(orders(ground), ground.given.contamination)
        undo.push_async_callback(team.aclose)
        await team.begin(hire, ground.kept, ground.uses, ground.store, ground.learned)
        yield team


def orders(ground: Ground) -> dict[str, Any]:
    """What a worker has to know to make this run's seeds, keys among it."""
    return {
        "settings": ground.settings.model_dump(mode="json"),
        "keys": {name: os.environ.get(name, "") for name in KEYS},
        "references": str(ground.references.path.absolute()),
        "resumed": ground.kept.resumed,
    }
