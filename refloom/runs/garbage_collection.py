"""Fewer passes of Python's cyclic garbage collector during a run."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# New container objects before a pass over the youngest generation; ten thousand are a few MB.
# Python's default is 700, which makes a full pass due every few samples.
YOUNG_OBJECTS = 50_000


def relax_gc_for_process() -> None:
    """Relax the collector for the rest of the process, and skip its last pass at exit.

    Passes over imported modules take a third of a short command's time (measured).
    """
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
    atexit.register(gc.freeze)


@contextmanager
def relaxed_gc() -> Iterator[None]:
    """Relax the collector, and exclude existing objects (mostly modules, half a million) from it.

    A sample leaves objects in cycles, where LangGraph runs it thousands. With Python's
    default thresholds the passes over them take a fifth of a run's processor time (measured).
    Objects that the caller has frozen stay frozen.
    """
    before = gc.get_threshold()
    frozen = gc.get_freeze_count() > 0
    if not frozen:
        # Without a pass before it, which takes a third of a second: what is garbage now is little.
        gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not frozen:
            gc.unfreeze()
