"""What was learned about each reference, kept so that it is paid for once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore

NAMESPACE = ("characteristics",)
Learned = dict[str, Any]
Heard = Callable[[str, Learned | None], None]


class Characteristics:
    """Characteristics and their trials by key, in a LangGraph store.

    The key says what the entry rests on: reference content, prompts, models. Two seeds that want
    the same entry at once wait for one making of it.
    """

    def __init__(self, store: BaseStore | None = None, heard: Heard | None = None) -> None:
        """`store` None: the server's own store if a run brings one, else this process's memory.

        `heard` is told of every entry that is recalled, and of those that cannot be made.
        """
        self._store = store
        self._heard = heard
        self._fallback = InMemoryStore()
        self._making: dict[tuple[int, str], asyncio.Task[Learned]] = {}

    async def recall(
        self,
        key: str,
        reference_id: str,
        make: Callable[[], Awaitable[Learned]],
        store: BaseStore | None = None,
    ) -> Learned:
        """The entry under `key`; made and kept if there is none. What `make` raises is raised."""
        at = (id(asyncio.get_running_loop()), key)
        task = self._making.get(at)
        if task is None:
            chosen = self._store or store or self._fallback
            task = asyncio.ensure_future(self._recall(key, make, chosen))
            self._making[at] = task
            task.add_done_callback(lambda done: self._made(at, done))
        # One waiter's cancellation must not take the making from the others.
        learned = await asyncio.shield(task)
        self.tell(reference_id, learned)
        return learned

    def _made(self, at: tuple[int, str], done: asyncio.Task[Learned]) -> None:
        self._making.pop(at, None)
        if not done.cancelled():
            # Looked at here, so that asyncio does not complain when every waiter was cancelled.
            done.exception()

    async def aclose(self) -> None:
        """Give up what is being made."""
        left = list(self._making.values())
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def tell(self, reference_id: str, learned: Learned | None) -> None:
        """Let be known what was learned of a reference; None: that nothing can be."""
        if self._heard is not None:
            self._heard(reference_id, learned)

    async def _recall(
        self, key: str, make: Callable[[], Awaitable[Learned]], store: BaseStore
    ) -> Learned:
        found = await store.aget(NAMESPACE, key)
        if found is not None:
            return found.value
        learned = await make()
        await store.aput(NAMESPACE, key, learned, index=False)
        return learned


@asynccontextmanager
async def kept_in(directory: Path) -> AsyncIterator[BaseStore]:
    """A store in a file of `directory`, for runs that no server brings one to."""
    from langgraph.store.sqlite.aio import AsyncSqliteStore

    path = str(directory / "characteristics.sqlite")
    async with AsyncSqliteStore.from_conn_string(path) as store:
        await store.setup()
        try:
            yield store
        finally:
            # Left alone, its task is cancelled when the store is collected, and may then itself be
            # collected before it has ended, which asyncio complains of.
            task = store._task
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
