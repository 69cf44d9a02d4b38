"""How many calls a second the journal of a run keeps, beside SQLite used in the plainest ways.

    python benchmarks/journal.py [--rows 20000] [--repeats 3] [--out DIR] [--quick] [--json]

Each of 1, 64 and 1000 waiters keeps one reply after another, each waiting until it is on disk, as
calls in flight do. Beside it, on the same replies and the same disk, in the same run: one commit a
row, and all rows in one transaction, which is as fast as SQLite gets and keeps nothing until the
end. All with WAL and full sync. Repeats take turns, and ratios are of medians, since neither disk
nor machine keeps its speed. The last line on stdout is JSON; `--json` prints only that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import median, spread, table

WAITERS = (1, 64, 1000)
# Where every row waits for the disk alone, more would take minutes and say nothing more.
ROWS_ALONE = 1000
TEXT = '{"response": "' + "a reply of the length that models write today " * 50 + '"}'
USAGE = {"calls": 1, "prompt_tokens": 900, "cached_tokens": 0, "completion_tokens": 600}
REPLY = {"text": TEXT, "finish": "stop", "usage": USAGE, "refusal": None, "odds": None}
INSERT = "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)"
TABLE = """
CREATE TABLE calls (
  key BLOB PRIMARY KEY, stage TEXT NOT NULL, model TEXT NOT NULL, reply TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
) WITHOUT ROWID
"""


def key_of(number: int) -> bytes:
    """A key as a call's is: 32 bytes, in no order."""
    from hashlib import sha256

    return sha256(str(number).encode()).digest()


async def by_journal(folder: Path, waiters: int, rows: int) -> float:
    """Rows a second that so many waiters get onto the disk together."""
    from refloom.runs.journal import Journal

    journal = Journal(folder)
    share = -(-rows // waiters)

    async def wait(first: int) -> None:
        for number in range(first, first + share):
            await journal.record(key_of(number), "generate", "m", REPLY)

    begun = time.perf_counter()
    await asyncio.gather(*(wait(i * share) for i in range(waiters)))
    elapsed = time.perf_counter() - begun
    stored = journal.read("SELECT count(*) FROM calls")[0][0]
    journal.close()
    if stored != share * waiters:
        sys.exit(f"the journal holds {stored} rows of {share * waiters}")
    return stored / elapsed


def by_sqlite(folder: Path, rows: int, *, commits: bool) -> float:
    """Rows a second without the journal: one commit a row, or one in all."""
    from nodes.llm.fast_json import dumps

    with closing(sqlite3.connect(folder / "plain.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(TABLE)
        begun = time.perf_counter()
        if not commits:
            connection.execute("BEGIN")
        for number in range(rows):
            reply = dumps(REPLY).decode()
            connection.execute(INSERT, (key_of(number), "generate", "m", reply, 900, 0, 600))
        if not commits:
            connection.execute("COMMIT")
        return rows / (time.perf_counter() - begun)


def measured(rows: int, repeats: int, out: Path) -> dict[str, list[float]]:
    """Rows a second of every way, each repeat a turn of all of them."""
    rates_by_way: dict[str, list[float]] = {}
    alone = min(rows, ROWS_ALONE)

    def once(name: str, way) -> None:
        folder = out / "turn"
        folder.mkdir(parents=True)
        rates_by_way.setdefault(name, []).append(way(folder))
        shutil.rmtree(folder)

    for _ in range(repeats):
        once("commit_a_row", lambda at: by_sqlite(at, alone, commits=True))
        for n in WAITERS:
            of_them = alone if n == 1 else rows
            once(f"waiters_{n}", lambda at, n=n, m=of_them: asyncio.run(by_journal(at, n, m)))
        once("one_transaction", lambda at: by_sqlite(at, rows, commits=False))
    return rates_by_way


def report(rates_by_way: dict[str, list[float]]) -> dict[str, object]:
    """The rates, and each as a ratio to the two plain ways."""
    rates = {name: round(median(each), 1) for name, each in rates_by_way.items()}
    return {
        "rows_per_s": rates,
        "each": {name: [round(x, 1) for x in each] for name, each in rates_by_way.items()},
        "to_commit_a_row": {n: round(r / rates["commit_a_row"], 2) for n, r in rates.items()},
        "to_one_transaction": {n: round(r / rates["one_transaction"], 3) for n, r in rates.items()},
    }


NAMES = {
    "commit_a_row": "SQLite, one commit a row",
    "waiters_1": "journal, 1 waiter",
    "waiters_64": "journal, 64 waiters",
    "waiters_1000": "journal, 1000 waiters",
    "one_transaction": "SQLite, one transaction in all",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--quick", action="store_true", help="2,000 rows, once")
    parser.add_argument("--json", action="store_true", help="only the last line")
    args = parser.parse_args()
    rows, repeats = (2000, 1) if args.quick else (args.rows, args.repeats)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        figures = report(measured(rows, repeats, Path(folder)))
    if not args.json:
        rates = ((NAMES[way], spread(each, 0)) for way, each in figures["each"].items())
        print(table(["way", "rows a second"], rates), end="\n\n")
    print(json.dumps({"rows": rows, "repeats": repeats, **figures}))


if __name__ == "__main__":
    main()
