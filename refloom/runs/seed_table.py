"""The table of seeds: what became of each, since a seed may leave no row."""

from __future__ import annotations

import sqlite3
from array import array
from pathlib import Path
from typing import Any

from refloom.runs.dropped import needed_turns
from refloom.runs.journal import ADDED_TURN_COLUMNS, columns_of, has_table, read_snapshot

MAX_SEEDS_LISTED = 200
SAMPLE_COUNTS = ("accepted", "rejected", "failed")
DROPPED_COUNTS = ("screened", "duplicate", "unfit", "surplus")


def read_seed_table(out: Path) -> dict[str, Any]:
    """The seeds of a run: `seeds`, and in `seeds_without_rows` how many left no row. Blocks.

    A seed left no row if all that was begun of it has ended, and nothing was accepted. `seeds` has
    at most `MAX_SEEDS_LISTED`, those without a row first; `rows` are the accepted ones. Raises
    `JournalError` if there is no run.
    """
    with read_snapshot(out / "journal.sqlite") as connection:
        return seed_table(connection)


def seed_table(connection: sqlite3.Connection) -> dict[str, Any]:
    """`read_seed_table` of an open journal. Streams it: memory is some bytes a seed. Blocks."""
    n = _count_seeds(connection)
    # By the seed's position, the same one in every round.
    counts = {name: array("q", bytes(8 * n)) for name in (*SAMPLE_COUNTS, *DROPPED_COUNTS)}
    slots, first_round = array("q", bytes(8 * n)), array("q", [-1]) * n
    for turn in needed_turns(connection):
        at = turn.position
        slots[at] += turn.slots
        if first_round[at] < 0:
            first_round[at] = turn.round
        for name in DROPPED_COUNTS:
            counts[name][at] += getattr(turn, name)
    if has_table(connection, "retries"):
        # A seed that was proposed for again has its slots in another round.
        sql = "SELECT position FROM retries WHERE done AND moved_to IS NOT NULL"
        for (at,) in connection.execute(sql):
            slots[at] -= 1
    for at, status in connection.execute("SELECT position, status FROM samples"):
        counts[status][at] += 1
    begun = [at for at in range(n) if first_round[at] >= 0]
    without = {
        at
        for at in begun
        if not counts["accepted"][at] and counts["rejected"][at] + counts["failed"][at] >= slots[at]
    }
    listed = sorted(begun, key=lambda at: at not in without)[:MAX_SEEDS_LISTED]
    return {
        "seeds": [
            {
                "seed_id": _seed_id(connection, first_round[at], at),
                "rows": counts["accepted"][at],
                **{name: counts[name][at] for name in ("rejected", "failed", *DROPPED_COUNTS)},
            }
            for at in listed
        ],
        "seeds_without_rows": len(without),
    }


def _count_seeds(connection: sqlite3.Connection) -> int:
    """One more than the last position of a seed that has had a turn."""
    sql = "SELECT position FROM turns UNION ALL SELECT position FROM samples"
    (last,) = connection.execute(f"SELECT max(position) FROM ({sql})").fetchone()
    return 0 if last is None else int(last) + 1


def _seed_id(connection: sqlite3.Connection, round_: int, position: int) -> str | None:
    """A seed's id; None if a journal of an earlier version does not have it."""
    sources = ["SELECT json_extract(record, '$.seed_id') FROM samples"]
    if not ADDED_TURN_COLUMNS.keys() - columns_of(connection, "turns"):
        sources.insert(0, "SELECT seed_id FROM turns")
    for source in sources:
        row = connection.execute(
            f"{source} WHERE round = ? AND position = ? LIMIT 1", (round_, position)
        ).fetchone()
        if row is not None and row[0]:
            return str(row[0])
    return None
