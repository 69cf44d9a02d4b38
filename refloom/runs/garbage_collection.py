"""Fewer passes of Python's cyclic garbage collector while a run is on."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Objects that hold others, made and not yet freed, until a pass over the youngest; ten thousand of
# them are a few megabytes. Python's own is 700, and a pass over all is then due every few samples.
YOUNG_OBJECTS = 50_000


def relax_gc_for_process() -> None:
    """Collect seldom from now on, and not once more as the process ends.

    Of a command of a few seconds, passes over what its imports made are a third (measured).
    """
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
    atexit.register(gc.freeze)


@contextmanager
def relaxed_gc() -> Iterator[None]:
    """Collect seldom, and leave alone what is there already: modules, mostly, by the half million.

    A sample leaves thousands of objects in cycles (LangGraph's tasks and callbacks). With Python's
    own thresholds the passes over them are a fifth of a run's processor time (measured).

    A caller that has frozen its objects already has them left as they are.
    """
    before = gc.get_threshold()
    frozen = gc.get_freeze_count() > 0
    if not frozen:
        gc.collect()
        gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not frozen:
            gc.unfreeze()
