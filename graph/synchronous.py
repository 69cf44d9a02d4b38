"""Graphs that plain code can call too: `invoke` and `stream`, for scripts and notebooks.

Nodes are coroutines, which LangGraph runs in `ainvoke` only. One event loop in a thread of its own
serves all synchronous callers of a process, so that connections are kept between calls and a caller
may have a running loop itself, as a notebook does.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Coroutine, Iterator
from functools import cache
from threading import Lock, Thread
from typing import Any, TypeVar

from langgraph.graph.state import CompiledStateGraph

from graph.walk import Steps

T = TypeVar("T")
_lock = Lock()


class SynchronousGraph(CompiledStateGraph[Any, Any, Any, Any]):
    """A compiled graph whose `invoke` and `stream` run its coroutines and wait.

    A checkpointer must have asynchronous methods, as `InMemorySaver` does.
    """

    # What it was compiled from, for a caller that walks it.
    steps: Steps | None = None

    @classmethod
    def of(
        cls, graph: CompiledStateGraph[Any, Any, Any, Any], steps: Steps | None = None
    ) -> SynchronousGraph:
        """A compiled graph as one of this class."""
        fields = {name: v for name, v in vars(graph).items() if name != "__orig_class__"}
        synchronous = cls(**fields)
        synchronous.steps = steps
        return synchronous

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph and wait for its output: `ainvoke` for callers without `await`.

        It blocks its thread: inside a coroutine use `ainvoke`.
        """
        return _wait_for(self.ainvoke(*args, **kwargs))

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Yield what `astream` yields. The graph runs on while nobody takes a part."""
        parts: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        async def pump() -> None:
            async for part in self.astream(*args, **kwargs):
                parts.put((False, part))

        running = asyncio.run_coroutine_threadsafe(pump(), _loop())
        running.add_done_callback(lambda done: parts.put((True, None)))
        try:
            while True:
                ended, part = parts.get()
                if ended:
                    running.result()
                    return
                yield part
        finally:
            running.cancel()


def _wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the shared loop; interrupted with Ctrl-C it is cancelled."""
    running = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return running.result()
    finally:
        running.cancel()


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all synchronous callers. Raises `RuntimeError` inside itself."""
    with _lock:
        loop = _start_loop()
    try:
        inside = asyncio.get_running_loop() is loop
    except RuntimeError:
        inside = False
    if inside:
        raise RuntimeError("invoke() would wait for itself here: use ainvoke()")
    return loop


@cache
def _start_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="synchronous-graph", daemon=True).start()
    return loop
