"""Collecting seldom: only while a run is on, and what a run leaves is freed after it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import ScriptedModel
from runs import SEEDS, finish_run

from refloom.runs.garbage_collection import YOUNG_OBJECTS, relaxed_gc


class Ring:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def unfreeze() -> Iterator[None]:
    """As in a process of its own; the tests begin with everything frozen, and collect seldom."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    gc.unfreeze()
    yield
    gc.freeze()
    gc.set_threshold(*before)


def test_thresholds_are_raised_and_put_back_whatever_happens(unfreeze):
    before = gc.get_threshold()
    with pytest.raises(KeyError), relaxed_gc():
        assert gc.get_threshold()[0] == YOUNG_OBJECTS
        # To thaw it afterwards, one would have to ask whether anything was frozen before.
        assert gc.get_freeze_count() == 0
        raise KeyError
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


async def test_a_run_takes_no_pass_over_all_that_was_imported(unfreeze, tmp_path):
    passes: list[int] = []

    def count(phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            passes.append(info["generation"])

    gc.callbacks.append(count)
    try:
        await finish_run(tmp_path, ScriptedModel(), SEEDS, per_seed=3, references_per_seed=1)
    finally:
        gc.callbacks.remove(count)
    assert 2 not in passes


def test_what_is_made_meanwhile_is_freed(unfreeze):
    with relaxed_gc():
        gone = [weakref.ref(Ring()) for _ in range(10)]
        assert any(ring() is not None for ring in gone)
        gc.collect()
        assert all(ring() is None for ring in gone)


def test_what_a_caller_has_frozen_stays_frozen(unfreeze):
    gc.freeze()
    threshold = gc.get_threshold()
    with relaxed_gc():
        assert gc.get_threshold()[0] == YOUNG_OBJECTS
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == threshold
