"""The journal: what it has said to be written is there, and it is one process's at a time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fakes import ScriptedModel
from runs import build_run

from nodes.llm import Call
from refloom.errors import JournalError
from refloom.runs.journal import (
    Journal,
    connect_read_only,
    lock_directory,
    lock_holder,
    read_records,
)

ROOT = Path(__file__).parent.parent
CALL = (
    "INSERT INTO calls (key, stage, model, reply, prompt_tokens, cached_tokens, completion_tokens) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
SAMPLE = "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)"


def call(n: int, reply: str = "{}") -> tuple:
    return (f"{n:032}".encode(), "generate", "m", reply, n, 0, 1)


def sample(n: int, status: str = "accepted", record: str = "{}") -> tuple:
    return (0, n, 0, status, record)


def content(directory: Path) -> dict[str, list]:
    with closing(sqlite3.connect(directory / "journal.sqlite")) as connection:
        names = ("meta", "calls", "turns", "samples", "learned")
        return {n: connection.execute(f"SELECT * FROM {n}").fetchall() for n in names}


async def test_what_was_put_is_there_when_it_is_opened_again(tmp_path):
    journal = Journal(tmp_path)
    text = "L'été\x00 潮汐 😀 \u2028"
    await journal.put(CALL, *call(1, json.dumps(text)))
    await journal.put(SAMPLE, *sample(4, "rejected", text))
    await journal.put_meta("settings", {"a": [1, None, text]})
    journal.close()
    again = Journal(tmp_path)
    assert again.read("SELECT reply FROM calls WHERE key = ?", call(1)[0]) == [(json.dumps(text),)]
    assert again.read("SELECT status, record FROM samples") == [("rejected", text)]
    assert again.meta("settings") == {"a": [1, None, text]}
    assert again.meta("nothing") is None
    assert await again.reply(call(1)[0]) == json.dumps(text)
    assert await again.reply(call(2)[0][::-1]) is None
    again.close()


async def test_what_a_put_has_returned_for_is_read_by_others_at_once(tmp_path):
    journal = Journal(tmp_path)
    with closing(connect_read_only(journal.path)) as other:
        for n in range(5):
            await journal.put(SAMPLE, *sample(n))
            assert other.execute("SELECT count(*) FROM samples").fetchone() == (n + 1,)
    journal.close()


async def test_writes_take_effect_in_the_order_they_were_put(tmp_path):
    journal = Journal(tmp_path)
    puts = []
    for n in range(300):
        puts.append(asyncio.create_task(journal.put_meta("last", n)))
        await asyncio.sleep(0)
        journal.put_soon(SAMPLE, *sample(n, "accepted", str(n)))
    await asyncio.gather(*puts)
    assert journal.meta("last") == 299
    journal.close()
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        found = connection.execute("SELECT record FROM samples ORDER BY rowid").fetchall()
    assert [int(r) for (r,) in found] == list(range(300))


async def test_a_write_that_is_waited_for_brings_all_earlier_ones_to_disk(tmp_path):
    journal = Journal(tmp_path)
    for n in range(50):
        journal.put_soon(SAMPLE, *sample(n))
    await journal.put_meta("last", 0)
    with closing(connect_read_only(journal.path)) as other:
        assert other.execute("SELECT count(*) FROM samples").fetchone() == (50,)
    journal.close()


async def test_a_flush_returns_when_all_that_was_put_is_on_disk(tmp_path):
    journal = Journal(tmp_path)
    with closing(connect_read_only(journal.path)) as other:
        for n in range(1, 20):
            journal.put_soon(SAMPLE, *sample(n))
            await journal.flush()
            assert other.execute("SELECT count(*) FROM samples").fetchone() == (n,)
    journal.close()


async def test_closing_writes_what_nobody_waited_for(tmp_path):
    journal = Journal(tmp_path)
    for n in range(50):
        journal.put_soon(SAMPLE, *sample(n))
    journal.close()
    assert len(content(tmp_path)["samples"]) == 50


async def test_puts_at_once_are_committed_in_groups(tmp_path):
    journal = Journal(tmp_path)
    groups = []
    journal._writer.set_trace_callback(lambda sql: groups.append(sql) if sql == "COMMIT" else None)
    await asyncio.gather(*(journal.put(SAMPLE, *sample(n)) for n in range(200)))
    assert 1 <= len(groups) < 100
    journal.close()
    assert len(content(tmp_path)["samples"]) == 200


async def test_records_come_by_status_in_slot_order(tmp_path):
    journal = Journal(tmp_path)
    for slot in [(1, 0, 0), (0, 10, 0), (0, 9, 1), (0, 9, 0), (0, 2, 0)]:
        status = "failed" if slot == (0, 2, 0) else "accepted"
        await journal.put(SAMPLE, *slot, status, json.dumps(slot))
    journal.close()
    found = [json.loads(r) for r in read_records(tmp_path / "journal.sqlite", "accepted")]
    assert found == [[0, 9, 0], [0, 9, 1], [0, 10, 0], [1, 0, 0]]
    assert len(list(read_records(tmp_path / "journal.sqlite", "failed"))) == 1
    assert list(read_records(tmp_path / "journal.sqlite", "rejected")) == []


HOLD = """
import asyncio, sys
from pathlib import Path
from refloom.runs.journal import Journal
journal = Journal(Path(sys.argv[1]))

async def work():
    for n in range(100_000):
        await journal.put("INSERT INTO samples VALUES (0, ?, 0, 'accepted', '{}')", n)
        print(n, flush=True)
        if n == 0 and sys.argv[2] == "wait":
            sys.stdin.read()
            break

asyncio.run(work())
journal.close()
"""


class Another:
    """Another process that holds the journal of a directory and writes to it."""

    def __init__(self, directory: Path, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(directory), how],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Another:
        assert self.process.stdout.readline() == "0\n"
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate(timeout=20)


async def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path):
    with Another(tmp_path, "wait") as first:
        with pytest.raises(JournalError) as refusal:
            Journal(tmp_path)
        assert f"pid {first.process.pid}" in str(refusal.value)
        assert str(tmp_path) in str(refusal.value)
        assert lock_holder(tmp_path) == first.process.pid
        assert list(read_records(tmp_path / "journal.sqlite", "accepted")) == ["{}"]
        first.process.communicate("", timeout=20)
        assert first.process.returncode == 0
    assert lock_holder(tmp_path) is None
    journal = Journal(tmp_path)
    assert journal.read("SELECT count(*) FROM samples") == [(1,)]
    journal.close()


@pytest.mark.parametrize("lines", [3, 40])
async def test_a_process_that_is_killed_loses_nothing_it_was_told_is_written(tmp_path, lines):
    with Another(tmp_path, "go on") as other:
        told = [int(other.process.stdout.readline()) for _ in range(lines)]
        other.process.send_signal(signal.SIGKILL)
        # `communicate` would lose the lines that `readline` has buffered.
        told += [int(line) for line in other.process.stdout.read().splitlines()]
    assert lock_holder(tmp_path) is None
    journal = Journal(tmp_path)
    kept = [n for (n,) in journal.read("SELECT position FROM samples ORDER BY position")]
    assert told == list(range(1, len(told) + 1))
    assert kept[: len(told) + 1] == list(range(len(told) + 1))
    assert len(kept) <= len(told) + 2
    await journal.put(SAMPLE, *sample(10**6))
    journal.close()


async def test_a_second_journal_in_this_process_is_refused_until_the_first_is_closed(tmp_path):
    first = Journal(tmp_path)
    with pytest.raises(JournalError, match=f"pid {os.getpid()}"):
        Journal(tmp_path)
    await first.put(SAMPLE, *sample(1))
    first.close()
    Journal(tmp_path).close()


def test_a_journal_that_was_opened_in_one_thread_can_be_closed_in_another(tmp_path):
    with ThreadPoolExecutor(1) as worker:
        journal = worker.submit(Journal, tmp_path).result()
        journal.close()
        assert lock_holder(tmp_path) is None
        Journal(tmp_path).close()


def test_a_directory_nobody_works_in_has_no_holder(tmp_path):
    assert lock_holder(tmp_path) is None
    lock = lock_directory(tmp_path)
    assert lock_holder(tmp_path) == os.getpid()
    lock.release()
    assert lock_holder(tmp_path) is None


def test_asking_for_the_holder_of_a_directory_that_is_not_there_says_none(tmp_path):
    assert lock_holder(tmp_path / "gone") is None


def test_asking_for_the_holder_of_a_directory_that_is_not_there_makes_none(tmp_path):
    lock_holder(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


async def filled(directory: Path) -> bytes:
    journal = Journal(directory)
    for n in range(60):
        await journal.put(CALL, *call(n, "x" * 800))
        await journal.put(SAMPLE, *sample(n, "accepted", "y" * 900))
    journal.close()
    return journal.path.read_bytes()


def refused(directory: Path) -> str:
    try:
        journal = Journal(directory)
    except JournalError as refusal:
        return str(refusal)
    journal.close()
    pytest.fail("it was opened")


@pytest.mark.parametrize("size", [50, 100, 4000, 4096, 20_000, -4096])
async def test_a_truncated_journal_is_refused_and_left_as_it_is(tmp_path, size):
    whole = await filled(tmp_path)
    path = tmp_path / "journal.sqlite"
    path.write_bytes(whole[:size])
    assert str(path) in refused(tmp_path)
    assert path.read_bytes() == whole[:size]
    assert lock_holder(tmp_path) is None


async def test_a_journal_with_a_page_of_rubbish_is_refused_or_read_but_never_halfway(tmp_path):
    whole = await filled(tmp_path)
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"\xff" * 4096 + whole[4096:])
    assert str(path) in refused(tmp_path)
    assert path.read_bytes()[:4096] == b"\xff" * 4096
    assert lock_holder(tmp_path) is None


async def test_a_journal_whose_calls_are_damaged_is_refused(tmp_path):
    await filled(tmp_path)
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'calls'"
        ).fetchone()
    damaged = bytearray(path.read_bytes())
    damaged[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(damaged)
    refused(tmp_path)


def foreign(path: Path, script: str, journal_mode: str = "DELETE") -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.executescript(script)
    return path.read_bytes()


OTHERS = "CREATE TABLE bookmarks (url TEXT); INSERT INTO bookmarks VALUES ('x');"


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        (OTHERS, "WAL"),
        ("CREATE TABLE meta (name TEXT, content TEXT);", "WAL"),
        pytest.param(
            OTHERS,
            "DELETE",
        ),
        pytest.param(
            "CREATE TABLE meta (key TEXT, value TEXT); INSERT INTO meta VALUES ('version', '3');",
            "WAL",
        ),
        pytest.param(
            "CREATE TABLE meta (key TEXT, value TEXT); INSERT INTO meta VALUES ('format', 'x');",
            "WAL",
        ),
    ],
)
def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path, script, mode):
    path = tmp_path / "journal.sqlite"
    before = foreign(path, script, mode)
    assert str(path) in refused(tmp_path)
    assert path.read_bytes() == before
    assert lock_holder(tmp_path) is None


@pytest.mark.parametrize("before", [b"id,text\n1,x\n", b"\x00" * 5000, b"SQLite format 3\x00" * 9])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path, before):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(before)
    assert str(path) in refused(tmp_path)
    assert path.read_bytes() == before


async def test_a_journal_of_a_newer_format_is_refused_and_left_as_it_is(tmp_path):
    await filled(tmp_path)
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = '2' WHERE key = 'format'")
        connection.execute("CREATE TABLE invented_later (x)")
    before = path.read_bytes()
    said = refused(tmp_path)
    assert "newer refloom" in said
    assert "2" in said
    assert path.read_bytes() == before
    assert lock_holder(tmp_path) is None


def test_a_directory_in_place_of_the_journal_is_refused(tmp_path):
    (tmp_path / "journal.sqlite").mkdir()
    refused(tmp_path)
    assert lock_holder(tmp_path) is None


@pytest.mark.parametrize("inside", [".", "run", "deep/run"])
def test_a_file_in_place_of_the_directory_is_refused(tmp_path, inside):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(file / inside)
    assert file.read_text() == "mine"


def test_a_directory_that_may_not_be_written_is_refused(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o500)
    if os.access(directory, os.W_OK):
        pytest.skip("this user may write everywhere")
    refused(directory)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_bytes(b"no database" * 100)])
def test_only_a_journal_is_opened_to_read(tmp_path, make):
    path = tmp_path / "journal.sqlite"
    make(path)
    with pytest.raises(JournalError, match=r"journal\.sqlite"):
        connect_read_only(path)
    with pytest.raises(JournalError):
        list(read_records(path, "accepted"))


def fill_the_disk(journal: Journal) -> None:
    (pages,) = journal._writer.execute("PRAGMA page_count").fetchone()
    journal._writer.execute(f"PRAGMA max_page_count = {pages + 2}")


async def test_a_full_disk_is_told_to_every_waiter_and_to_later_ones(tmp_path):
    journal = Journal(tmp_path)
    await journal.put(SAMPLE, *sample(0))
    fill_the_disk(journal)
    puts = [journal.put(SAMPLE, *sample(n, "accepted", "x" * 50_000)) for n in range(1, 6)]
    ended = await asyncio.wait_for(asyncio.gather(*puts, return_exceptions=True), 10)
    assert [type(e) for e in ended] == [JournalError] * 5
    assert all("full" in str(e) and str(journal.path) in str(e) for e in ended)
    with pytest.raises(JournalError, match="full"):
        await asyncio.wait_for(journal.put(SAMPLE, *sample(9)), 10)
    journal.put_soon(SAMPLE, *sample(10))
    journal.close()
    kept = {row[1] for row in content(tmp_path)["samples"]}
    assert 0 in kept
    assert not kept & {1, 2, 3, 4, 5}


async def test_a_run_that_fills_the_disk_tells_what_was_paid(tmp_path):
    def fill(call: Call) -> dict[str, str]:
        fill_the_disk(run._calls._journal)
        return {"response": "A tide rises and falls. " * 4000}

    run = build_run(tmp_path, ScriptedModel(generate=fill))
    with pytest.raises(JournalError, match="full"):
        await asyncio.wait_for(run.run(), 20)
    paid = len(content(tmp_path)["calls"])
    assert run.summary.counts and run.summary.totals["calls"]["paid"] == paid > 0
    assert run.summary.status == "stopped"


async def test_after_a_full_disk_the_journal_opens_and_goes_on(tmp_path):
    journal = Journal(tmp_path)
    await journal.put(SAMPLE, *sample(0))
    fill_the_disk(journal)
    with pytest.raises(JournalError):
        await journal.put(SAMPLE, *sample(1, "accepted", "x" * 50_000))
    journal.close()
    again = Journal(tmp_path)
    await again.put(SAMPLE, *sample(1))
    again.close()
    assert [row[1] for row in content(tmp_path)["samples"]] == [0, 1]


async def test_a_write_that_is_wrong_is_told_to_who_waits(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(JournalError):
        await asyncio.wait_for(journal.put("INSERT INTO nowhere VALUES (1)"), 10)
    journal.close()


@pytest.mark.parametrize("record", ["half an emoji: \ud83d", 2**70])
async def test_a_value_that_cannot_be_written_is_told_to_who_waits(tmp_path, record):
    journal = Journal(tmp_path)
    try:
        with pytest.raises(JournalError):
            await asyncio.wait_for(journal.put(SAMPLE, *sample(1, "accepted", record)), 10)
    finally:
        journal.close()


async def test_a_waiter_that_gives_up_does_not_take_the_journal_from_the_others(tmp_path):
    journal = Journal(tmp_path)
    try:
        for n in range(0, 40, 2):
            given_up = asyncio.create_task(journal.put(SAMPLE, *sample(n)))
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.wait_for(journal.put(SAMPLE, *sample(n + 1)), 10)
    finally:
        journal.close()
    assert {row[1] for row in content(tmp_path)["samples"]} >= set(range(1, 40, 2))


def test_nothing_is_closed_under_a_thread_that_reads(tmp_path):
    """SQLite crashes the process where a connection is closed in the middle of a query."""
    from memory.characteristics import FileStore
    from refloom.runs.journal import ReusedCalls

    Journal(tmp_path).close()
    counting = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    slow = f"{counting} SELECT sum(i) FROM n"
    journal, kept = Journal(tmp_path), ReusedCalls(tmp_path)
    store = FileStore(tmp_path / "characteristics.sqlite")

    def read_kept():
        with kept._lock:
            return kept._connection.execute(slow, (300_000,)).fetchall()

    def read_store():
        with store._reader_lock:
            return store._reader.execute(slow, (300_000,)).fetchall()

    reads = {journal: lambda: journal.read(slow, 300_000), kept: read_kept, store: read_store}
    for one, read in reads.items():
        found = []

        def several(read=read, found=found):
            with suppress(sqlite3.ProgrammingError):
                while True:
                    found.append(read()[0][0])

        threads = [threading.Thread(target=several) for _ in range(3)]
        for thread in threads:
            thread.start()
        while not found:
            time.sleep(0.001)
        one.close()
        for thread in threads:
            thread.join(20)
        assert set(found) == {300_000 * 300_001 // 2}
