"""Fewer passes of Python's cyclic garbage collector during a run."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# New container objects before a pass over the youngest generation; ten thousand are a few MB.
# Python's default is 700, which makes a full pass due every few samples.
YOUNG_OBJECTS = 50_000
# Passes over a generation before one that takes in the next. So a pass over all objects (mostly
# modules, half a million) is due after fifty million new ones: a thousand samples leave 350,000.
YOUNGER_PASSES = (20, 50)


def relax_gc_for_process() -> None:
    """Relax the collector for the rest of the process, and skip its last pass at exit.

    Passes over imported modules take a third of a short command's time (measured).
    """
    gc.set_threshold(YOUNG_OBJECTS, *YOUNGER_PASSES)
    atexit.register(gc.freeze)


@contextmanager
def relaxed_gc() -> Iterator[None]:
    """Relax the collector.

    A sample leaves objects in cycles, where LangGraph runs it thousands. With Python's
    default thresholds the passes over them take a fifth of a run's processor time (measured).
    What is frozen stays frozen, and nothing else is frozen: Python walks all frozen objects to say
    whether there are any, and a full pass is too seldom to be worth it.
    """
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *YOUNGER_PASSES)
    try:
        yield
    finally:
        gc.set_threshold(*before)
