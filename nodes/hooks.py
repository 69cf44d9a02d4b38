"""What a run supplies to the graph: the order of its seeds and slots, and where its records go.

The graph does not know whether it works for a run. `RunHooks()`, the default, is for a seed on its
own: it waits for nobody and stores nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from memory.novelty import NoveltyFilter
from memory.references import Reference
from nodes.context import Context
from nodes.record import Record
from nodes.state import Seed, Slot


class Admit(Protocol):
    """Admits the instructions of a seed that are new to the run."""

    async def __call__(
        self, texts: Sequence[str | None], limit: int, *, last: bool = False
    ) -> list[str]:
        """Return the first `limit` texts that are new, and remember them.

        A None stands for a text that was dropped before. `last`: the seed offers no more texts.
        """
        ...


@asynccontextmanager
async def _own_turn(seed: Seed, context: Context) -> AsyncIterator[Admit]:
    """The turn of a seed on its own: a text is new if it differs from its siblings."""
    siblings = NoveltyFilter(context.novelty_threshold)

    async def admit(texts: Sequence[str | None], limit: int, *, last: bool = False) -> list[str]:
        admitted: list[str] = []
        for text in texts:
            if len(admitted) < limit and text is not None and siblings.admit(text, "") is None:
                admitted.append(text)
        return admitted

    yield admit


async def _no_earlier_turn(seed: Seed) -> list[str] | None:
    return None


async def _none_known(seed: Seed, texts: Sequence[str]) -> list[bool]:
    return [False] * len(texts)


async def _start_at_once(slot: Slot) -> bool:
    return True


async def _drop_record(record: Record, references: Sequence[Reference]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class RunHooks:
    """The functions of a run that nodes call, each with a default for a seed on its own."""

    turn: Callable[[Seed, Context], AbstractAsyncContextManager[Admit]] = _own_turn
    """Waits for the seed's turn to admit its instructions; the next seed waits until it is left."""
    repeat_turn: Callable[[Seed], Awaitable[list[str] | None]] = _no_earlier_turn
    """Repeats the turn that the seed had in an earlier session of the run: the instructions it
    admitted. None if it has had none, or none that admitted any; then it takes a turn."""
    are_known: Callable[[Seed, Sequence[str]], Awaitable[list[bool]]] = _none_known
    """Says, before the seed's turn, which texts the run already has something too near to."""
    start: Callable[[Slot], Awaitable[bool]] = _start_at_once
    """Waits until it is known whether a slot may start; False if the run has enough rows."""
    finish: Callable[[Record, Sequence[Reference]], Awaitable[None]] = _drop_record
    """Stores the record of a finished sample, with its references for a person who reviews it."""
    interrupts: bool = True
    """Whether the graph stops for a person to review a sample; a run queues such samples."""
