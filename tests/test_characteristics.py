"""What was learned about references: made once, kept, told, and made anew after a failure."""

from __future__ import annotations

import asyncio
import threading

import pytest
from langgraph.store.memory import InMemoryStore

from memory.characteristics import CACHE_SIZE, NAMESPACE, Characteristics, open_store
from memory.references import IndexUnusable


class Making:
    """A making that waits until it is let go, then gives what it was told to give, or raises."""

    def __init__(self, *outcomes) -> None:
        self.outcomes = list(outcomes)
        self.begun = 0
        self.go = asyncio.Event()

    async def __call__(self):
        self.begun += 1
        outcome = self.outcomes.pop(0)
        await self.go.wait()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def at_once(*outcomes) -> Making:
    making = Making(*outcomes)
    making.go.set()
    return making


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Lost(Exception):
    """A making that failed."""


async def test_two_that_want_the_same_at_once_wait_for_one_making():
    making = Making({"a": 1})
    memory = Characteristics()
    waiters = [asyncio.create_task(memory.recall("k", "r", making)) for _ in range(2)]
    await settle()
    assert not any(w.done() for w in waiters)
    making.go.set()
    assert await asyncio.gather(*waiters) == [{"a": 1}, {"a": 1}]
    assert making.begun == 1


async def test_different_keys_are_made_apart_and_at_once():
    making = Making({"n": 1}, {"n": 2})
    memory = Characteristics()
    waiters = [asyncio.create_task(memory.recall(key, "r", making)) for key in "ab"]
    await settle()
    assert making.begun == 2
    making.go.set()
    assert await asyncio.gather(*waiters) == [{"n": 1}, {"n": 2}]


async def test_what_was_made_is_recalled_and_not_made_again():
    memory = Characteristics()
    making = at_once({"n": 1})
    assert await memory.recall("k", "r", making) == {"n": 1}
    assert await memory.recall("k", "r", making) == {"n": 1}
    assert making.begun == 1


async def test_entries_are_kept_over_two_instances_that_share_a_store():
    store = InMemoryStore()
    first, second = at_once({"n": 1}), at_once({"n": 2})
    assert await Characteristics(store).recall("k", "r", first) == {"n": 1}
    assert await Characteristics(store).recall("k", "r", second) == {"n": 1}
    assert await Characteristics(store).recall("other", "r", second) == {"n": 2}


async def test_instances_without_a_store_share_nothing():
    first, second = at_once({"n": 1}), at_once({"n": 2})
    assert await Characteristics().recall("k", "r", first) == {"n": 1}
    assert await Characteristics().recall("k", "r", second) == {"n": 2}


async def test_the_store_of_a_run_is_used_by_an_instance_that_has_none():
    own, of_run = InMemoryStore(), InMemoryStore()
    await Characteristics().recall("k", "r", at_once({"n": 1}), of_run)
    assert await Characteristics(of_run).recall("k", "r", at_once()) == {"n": 1}
    await Characteristics(own).recall("j", "r", at_once({"n": 2}), of_run)
    assert await Characteristics(own).recall("j", "r", at_once()) == {"n": 2}
    assert await Characteristics(of_run).recall("j", "r", at_once({"n": 3})) == {"n": 3}


async def test_a_failure_is_told_to_every_waiter_and_made_anew_next_time():
    making = Making(Lost("no"), {"n": 2})
    memory = Characteristics()
    waiters = [asyncio.create_task(memory.recall("k", "r", making)) for _ in range(3)]
    await settle()
    making.go.set()
    ended = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(e) for e in ended] == [Lost] * 3
    assert making.begun == 1
    assert await memory.recall("k", "r", making) == {"n": 2}
    assert making.begun == 2


async def test_a_failure_is_made_anew_by_a_waiter_that_asks_as_soon_as_it_hears():
    making = at_once(Lost("no"), {"n": 2})
    memory = Characteristics()

    async def insistent():
        with pytest.raises(Lost):
            await memory.recall("k", "r", making)
        return await memory.recall("k", "r", making)

    found = await asyncio.gather(insistent(), insistent())
    assert found == [{"n": 2}, {"n": 2}]
    assert making.begun == 2


async def test_the_cancellation_of_one_waiter_does_not_cancel_the_other():
    for given_up in (0, 1):
        making = Making({"n": 1})
        memory = Characteristics()
        waiters = [asyncio.create_task(memory.recall("k", "r", making)) for _ in range(2)]
        await settle()
        waiters[given_up].cancel()
        await settle()
        making.go.set()
        assert await waiters[1 - given_up] == {"n": 1}
        with pytest.raises(asyncio.CancelledError):
            await waiters[given_up]
        assert making.begun == 1


async def test_what_every_waiter_gave_up_is_still_kept():
    making = Making({"n": 1})
    memory = Characteristics()
    waiter = asyncio.create_task(memory.recall("k", "r", making))
    await settle()
    waiter.cancel()
    await settle()
    making.go.set()
    await settle()
    assert await memory.recall("k", "r", making) == {"n": 1}
    assert making.begun == 1


async def test_a_failure_that_nobody_waits_for_disturbs_nobody():
    faults = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, told: faults.append(told))
    making = Making(Lost("no"), {"n": 2})
    memory = Characteristics()
    waiter = asyncio.create_task(memory.recall("k", "r", making))
    await settle()
    waiter.cancel()
    await settle()
    making.go.set()
    await settle()
    assert await memory.recall("k", "r", making) == {"n": 2}
    assert faults == []


async def test_who_listens_hears_every_recall_and_of_a_failure_when_it_is_told():
    heard = []
    memory = Characteristics(InMemoryStore(), lambda *told: heard.append(told))
    making = at_once({"n": 1}, Lost("no"))
    await memory.recall("k", "first", making)
    await memory.recall("k", "first", making)
    with pytest.raises(Lost):
        await memory.recall("j", "second", making)
    # Who asked knows whether that was a failure of the reference or the end of the run.
    memory.notify("second", None)
    assert heard == [("first", {"n": 1}), ("first", {"n": 1}), ("second", None)]


async def test_closing_gives_up_what_is_being_made_and_leaves_what_was():
    making = Making({"n": 1}, {"n": 2})
    memory = Characteristics()
    waiter = asyncio.create_task(memory.recall("k", "r", making))
    await settle()
    await memory.aclose()
    await asyncio.wait([waiter])
    assert waiter.cancelled()
    making.go.set()
    assert await memory.recall("k", "r", making) == {"n": 2}
    await memory.aclose()
    assert await memory.recall("k", "r", making) == {"n": 2}


async def test_who_listens_hears_nothing_of_a_waiter_that_gave_up():
    heard = []
    making = Making({"n": 1})
    memory = Characteristics(on_recall=lambda *told: heard.append(told))
    waiters = [asyncio.create_task(memory.recall("k", name, making)) for name in "ab"]
    await settle()
    waiters[0].cancel()
    making.go.set()
    await waiters[1]
    assert heard == [("b", {"n": 1})]


def test_one_instance_serves_one_event_loop_after_another():
    memory = Characteristics()

    async def once(key, n):
        return await memory.recall(key, "r", at_once({"n": n}))

    assert asyncio.run(once("k", 1)) == {"n": 1}
    assert asyncio.run(once("k", 2)) == {"n": 1}
    assert asyncio.run(once("j", 3)) == {"n": 3}


ENTRY = {
    "criteria": [{"id": "c1", "text": "L'été 潮汐 😀\x00", "must": True, "bar": -1.5}],
    "answers_bar": None,
    "counts": {"proposed": 2},
}


async def test_an_entry_comes_back_whole():
    store = InMemoryStore()
    await Characteristics(store).recall("k", "r", at_once(ENTRY))
    assert await Characteristics(store).recall("k", "r", at_once()) == ENTRY


async def test_a_store_leaves_neither_task_nor_thread_behind(tmp_path):
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    async with open_store(tmp_path) as store:
        assert {t.name for t in set(threading.enumerate()) - threads} >= {"writer"}
        await store.aget(("a",), "b")
    assert asyncio.all_tasks() == tasks
    assert not any(t.name == "writer" for t in set(threading.enumerate()) - threads)


async def test_an_entry_is_there_at_once_and_after_its_file_was_closed(tmp_path):
    async with open_store(tmp_path) as store:
        memory = Characteristics(store)
        assert await memory.recall("k", "r", at_once(ENTRY)) == ENTRY
        assert await memory.recall("k", "r", at_once()) == ENTRY
    async with open_store(tmp_path) as store:
        assert await Characteristics(store).recall("k", "r", at_once()) == ENTRY


async def test_an_entry_that_is_no_longer_in_memory_is_read_from_the_file(tmp_path):
    async with open_store(tmp_path) as store:
        for n in range(CACHE_SIZE + 5):
            await store.aput(NAMESPACE, f"k{n}", {"n": n}, index=False)
    async with open_store(tmp_path) as store:
        for n in (*range(CACHE_SIZE + 5), 0, 1):
            assert (await store.aget(NAMESPACE, f"k{n}")).value == {"n": n}
        assert len(store._cache) == CACHE_SIZE


async def test_what_another_run_adds_to_a_shared_file_is_found(tmp_path):
    async with open_store(tmp_path, rescan_s=0) as one:
        async with open_store(tmp_path) as other:
            await other.aput(NAMESPACE, "k", {"n": 1}, index=False)
        assert (await one.aget(NAMESPACE, "k")).value == {"n": 1}


async def test_a_damaged_file_says_what_to_do(tmp_path):
    (tmp_path / "characteristics.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(IndexUnusable, match=r"characteristics\.sqlite.*learned from again"):
        async with open_store(tmp_path):
            pytest.fail("it was opened")
