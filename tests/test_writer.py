"""Writing beside the event loop: in order, in groups, and each waiter told what became of it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing

import pytest

from memory.sqlite_writer import SqliteWriter

INSERT = "INSERT INTO kept VALUES (?)"


class Unusable(Exception):
    """What waiters are told."""


def writer(path) -> SqliteWriter:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS kept (value UNIQUE)")
    return SqliteWriter(connection, lambda fault: Unusable(str(fault)))


def kept(path) -> list:
    with closing(sqlite3.connect(path)) as file:
        return [value for (value,) in file.execute("SELECT value FROM kept ORDER BY rowid")]


async def test_writes_of_one_and_of_several_kinds_keep_their_order(tmp_path):
    path = tmp_path / "file"
    writing = writer(path)
    puts = [writing.put(INSERT, n) for n in range(5)]
    puts += [writing.put("DELETE FROM kept WHERE value = ?", 3), writing.put(INSERT, 3)]
    await asyncio.gather(*puts)
    assert kept(path) == [0, 1, 2, 4, 3]
    writing.close()


async def test_many_writes_at_once_wake_the_loop_a_few_times_only(tmp_path):
    loop, told = asyncio.get_running_loop(), []
    real = loop.call_soon_threadsafe
    loop.call_soon_threadsafe = lambda *args: (told.append(args), real(*args))[1]
    writing = writer(tmp_path / "file")
    await asyncio.gather(*(writing.put(INSERT, n) for n in range(300)))
    assert 1 <= len(told) < 30
    assert len(kept(tmp_path / "file")) == 300
    writing.close()


async def test_what_nobody_waits_for_is_written_by_itself(tmp_path):
    writing = writer(tmp_path / "file")
    writing.put_soon(INSERT, 1)
    async with asyncio.timeout(20):
        while kept(tmp_path / "file") != [1]:
            await asyncio.sleep(0.05)
    writing.close()


async def test_a_write_of_a_wrong_value_costs_only_itself(tmp_path):
    writing = writer(tmp_path / "file")
    puts = [writing.put(INSERT, value) for value in (1, 2**70, 2, "\ud83d", 3)]
    ended = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(e) for e in ended] == [type(None), Unusable, type(None), Unusable, type(None)]
    assert kept(tmp_path / "file") == [1, 2, 3]
    await writing.put(INSERT, 4)
    writing.close()


async def test_after_a_fault_of_the_database_nothing_is_written_and_everybody_is_told(tmp_path):
    writing = writer(tmp_path / "file")
    with pytest.raises(Unusable, match="no such table"):
        await writing.put("INSERT INTO nowhere VALUES (1)")
    with pytest.raises(Unusable, match="no such table"):
        await writing.put(INSERT, 1)
    writing.close()
    assert kept(tmp_path / "file") == []


async def test_waiters_of_two_loops_are_each_woken_in_their_own(tmp_path):
    writing = writer(tmp_path / "file")
    other = threading.Thread(target=lambda: asyncio.run(writing.put(INSERT, "other")))
    other.start()
    await writing.put(INSERT, "own")
    await asyncio.to_thread(other.join)
    assert sorted(kept(tmp_path / "file")) == ["other", "own"]
    writing.close()


def test_a_loop_that_is_gone_disturbs_nobody(tmp_path):
    writing = writer(tmp_path / "file")

    async def give_up() -> None:
        put = asyncio.ensure_future(writing.put(INSERT, 1))
        await asyncio.sleep(0)
        put.cancel()

    asyncio.run(give_up())
    asyncio.run(writing.put(INSERT, 2))
    writing.close()
    assert 2 in kept(tmp_path / "file")
