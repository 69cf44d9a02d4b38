"""Where a process spends its CPU time, by part of refloom and of its libraries, from samples.

Every few milliseconds of CPU time, what each thread has used since then goes to the part that the
innermost known module on its stack belongs to. So a pydantic model that is read for a judge is
the judge's, a lock that the limiter takes is the limiter's. Reads /proc, so: Linux.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures.thread import _WorkItem
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any

EVERY_S = 0.005
ROOT = Path(__file__).resolve().parent.parent
# The first that a file's path, from the project or from site-packages, begins with.
PARTS = {
    "graph": ("graph/", "langgraph/", "langchain_core/", "langsmith/"),
    "render": ("prompts/", "jinja2/", "markupsafe/"),
    "novelty": ("memory/novelty", "nodes/compare", "refloom/runs/known_instructions", "rapidfuzz/"),
    "rules, checks": (
        *("nodes/critique", "nodes/criteria", "nodes/check", "nodes/chatter", "nodes/language"),
        *("memory/contamination", "nodes/text_diff", "refloom/runs/checks", "nodes/final_answer"),
    ),
    "embedding": (
        *("memory/embed", "sentence_transformers/", "transformers/", "torch/", "tokenizers/"),
        "memory/weights",
    ),
    "retrieval": (
        *("memory/index", "memory/references", "memory/store", "memory/vectors", "faiss/"),
        *("memory/characteristics", "nodes/retrieve", "refloom/runs/retrieval"),
    ),
    "journal": ("refloom/runs/journal", "memory/sqlite_writer", "refloom/runs/single_flight"),
    "limiter": ("refloom/runs/rate_limit",),
    "http": (
        *("nodes/llm/endpoint", "nodes/llm/provider", "aiohttp/", "yarl/", "multidict/"),
        "propcache/",
    ),
    "client": ("refloom/runs/client", "refloom/runs/cost", "nodes/llm/"),
    "scheduler": ("refloom/runs/scheduler", "refloom/runs/seed_table"),
    "log": ("refloom/runs/event_log", "refloom/runs/progress", "nodes/events"),
    "files": ("refloom/runs/outputs", "refloom/data/"),
    "nodes": ("nodes/",),
    "run": ("refloom/",),
    "event loop": ("asyncio/", "selectors", "concurrent/"),
}


@cache
def part_of(file: str) -> str | None:
    """The part that a module's file belongs to; None where its caller has to say."""
    for root in (str(ROOT) + "/", "site-packages/", f"python{sys.version_info[0]}."):
        _, found, path = file.rpartition(root)
        if found:
            break
    else:
        return None
    if root.startswith("python"):
        path = path.partition("/")[2]
    for name, prefixes in PARTS.items():
        if path.startswith(prefixes):
            return name
    return None


def _part_of_stack(frame: FrameType | None) -> tuple[str, str]:
    """The part of the innermost known module, and the line of work: module and function."""
    while frame is not None:
        name = part_of(frame.f_code.co_filename)
        if name is not None:
            return name, f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "other", "other"


def _work_of(call: Any) -> tuple[str, str]:
    """The part that a call made on a pool's thread belongs to."""
    while isinstance(call, partial):
        # asyncio.to_thread calls the context's `run` with the function.
        call = call.args[0] if call.args and callable(call.args[0]) else call.func
    code = getattr(getattr(call, "__func__", call), "__code__", None)
    file = code.co_filename if code else ""
    return part_of(file) or "other", f"{Path(file).stem}.{getattr(call, '__name__', 'call')}"


class Profile:
    """CPU seconds by part and by function, of all threads."""

    def __init__(self) -> None:
        self.by_part: Counter[str] = Counter()
        self.by_function: Counter[tuple[str, str]] = Counter()
        self._used: dict[int, int] = {}
        self._own = 0
        # What each pool's thread was last called for: it may be idle again when it is looked at.
        self._work: dict[int, tuple[str, str]] = {}

    def _thread_times(self) -> dict[int, int]:
        """Nanoseconds of CPU time by thread."""
        times = {}
        for task in Path("/proc/self/task").iterdir():
            try:
                times[int(task.name)] = int((task / "schedstat").read_text().split()[0])
            except (OSError, ValueError):
                # A thread that ended meanwhile.
                continue
        return times

    def sample(self, _signal: int, frame: FrameType | None) -> None:
        """Give what each thread has used since the last sample to where it stands now."""
        begun = time.thread_time_ns()
        main = threading.main_thread().native_id
        frames = sys._current_frames()
        threads = {thread.native_id: thread for thread in threading.enumerate()}
        times = self._thread_times()
        for task, used in times.items():
            spent = used - self._used.get(task, 0) - (self._own if task == main else 0)
            if spent <= 0:
                continue
            # A thread without Python frames is one of torch's.
            where = ("embedding", "native")
            if task == main:
                where = _part_of_stack(frame)
            elif task in threads:
                where = _part_of_stack(frames.get(threads[task].ident or 0))
                if where[0] == "event loop":
                    where = self._work.get(task, where)
            self.by_part[where[0]] += spent
            self.by_function[where] += spent
        # They hold this one, which holds them: what they work on would live on until a collection.
        frames.clear()
        self._used = times
        self._own = time.thread_time_ns() - begun

    def table_ms(self, calls: int) -> dict[str, float]:
        """Milliseconds a call by part, the dearest first."""
        return {name: round(ns / 1e6 / calls, 4) for name, ns in self.by_part.most_common()}

    def dearest(self, calls: int) -> list[tuple[str, str, float]]:
        """The functions that most went to: part, module and function, milliseconds a call."""
        functions = self.by_function.most_common(40)
        return [(part, name, round(ns / 1e6 / calls, 4)) for (part, name), ns in functions]


@contextmanager
def profiled() -> Iterator[Profile]:
    """Sample this process while the block runs. Only in the main thread."""
    profile = Profile()
    profile._used = profile._thread_times()
    before = signal.signal(signal.SIGPROF, profile.sample)
    run = _WorkItem.run

    def noted(item: Any) -> None:
        profile._work[threading.get_native_id()] = _work_of(item.fn)
        run(item)

    _WorkItem.run = noted
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    try:
        yield profile
    finally:
        _WorkItem.run = run
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
