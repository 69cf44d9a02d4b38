"""Instructions that never became candidates: which lines `dropped.jsonl` has, and their counts.

They stand in the journal with the turn of their seed. Turns are taken ahead of what is begun, as
far as time allows, so only those count that the run needed: up to the slot that brought its last
row, or to where its candidates were used up.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

from nodes.llm.fast_json import dumps
from refloom.runs.journal import ADDED_TURN_COLUMNS, columns_of, has_table


class Turn(NamedTuple):
    """A turn in the journal: its place, slots, dropped instructions by reason, and wanted rows."""

    round: int
    position: int
    slots: int
    duplicate: int
    screened: int
    unfit: int
    surplus: int
    wanted: int


def count_dropped(connection: sqlite3.Connection) -> dict[str, int]:
    """How many instructions were dropped, by reason, as run.json names them. Blocks."""
    counts = dict.fromkeys(("duplicates", "screened", "unfit", "surplus"), 0)
    for turn in needed_turns(connection):
        counts["duplicates"] += turn.duplicate
        counts["screened"] += turn.screened
        counts["unfit"] += turn.unfit
        counts["surplus"] += turn.surplus
    return counts


def dropped_lines(connection: sqlite3.Connection) -> Iterator[str]:
    """The lines of `dropped.jsonl`, in the order of slots; streams, blocks."""
    if ADDED_TURN_COLUMNS.keys() - columns_of(connection, "turns"):
        return
    sql = "SELECT seed_id, dropped FROM turns WHERE round = ? AND position = ?"
    for turn in needed_turns(connection):
        if turn.duplicate + turn.screened + turn.unfit + turn.surplus:
            seed_id, dropped = connection.execute(sql, (turn.round, turn.position)).fetchone()
            for proposal in json.loads(dropped):
                yield dumps(_line(seed_id, turn.round, proposal)).decode()


def _line(seed_id: str, round_: int, proposal: dict[str, Any]) -> dict[str, Any]:
    near = proposal["near"]
    if near is not None:
        place = "slot" if near["slot"] is not None else "reference_id"
        near = {name: near[name] for name in ("instruction", place, "score")}
    return {
        "seed_id": seed_id,
        "round": round_,
        "instruction": proposal["instruction"],
        "reason": proposal["reason"],
        "near": near,
        "verdicts": proposal["verdicts"],
        "ask": proposal["ask"],
        "why": proposal["why"],
    }


def needed_turns(connection: sqlite3.Connection) -> Iterator[Turn]:
    """The turns that the run needed, in order, whatever others it took ahead of them."""
    target, limit = _bounds(connection)
    pending = _count_pending_by_seed(connection)
    retried: set[int] = set()
    if has_table(connection, "retries"):
        sql = "SELECT DISTINCT moved_to FROM retries WHERE moved_to IS NOT NULL"
        retried = {round_ for (round_,) in connection.execute(sql)}
    last = connection.execute(
        "SELECT round, position FROM samples ORDER BY round DESC, position DESC LIMIT 1"
    ).fetchone() or (-1, -1)
    last = max([last, *pending])
    wanted = offered = new_in_round = 0
    round_ = 0
    for turn in _turns(connection):
        if turn.round != round_:
            over = new_in_round == 0 and round_ not in retried
            if over and turn.round not in retried and (turn.round, turn.position) > last:
                return
            round_, new_in_round = turn.round, 0
        enough = (target is not None and wanted >= target) or (
            limit is not None and offered >= limit
        )
        if enough and (turn.round, turn.position) > last:
            return
        yield turn
        wanted += turn.wanted + pending.get((turn.round, turn.position), 0)
        offered += turn.slots + turn.screened
        new_in_round += turn.slots + turn.screened


def _turns(connection: sqlite3.Connection) -> Iterator[Turn]:
    absent = ADDED_TURN_COLUMNS.keys() - columns_of(connection, "turns")
    counts = ("screened", "unfit", "surplus")
    columns = ", ".join("0" if name in absent else f"turns.{name}" for name in counts)
    # Counted in one pass over the index: both tables are in the order of places.
    sql = (
        f"SELECT turns.round, turns.position, slots, duplicates, {columns}, "
        "(SELECT count(*) FROM samples WHERE samples.round = turns.round AND "
        "samples.position = turns.position AND status = 'accepted') "
        "FROM turns ORDER BY turns.round, turns.position"
    )
    yield from (Turn(*row) for row in connection.execute(sql))


def _bounds(connection: sqlite3.Connection) -> tuple[int | None, int | None]:
    """The target of a run, and the most candidates and screened instructions it may have."""
    rows = connection.execute("SELECT key, value FROM meta WHERE key IN ('target', 'settings')")
    meta = {key: json.loads(value) for key, value in rows}
    target = meta.get("target")
    limit = (meta.get("settings") or {}).get("max_candidates")
    return target, limit or (10 * target if target else None)


def _count_pending_by_seed(connection: sqlite3.Connection) -> dict[tuple[int, int], int]:
    if not has_table(connection, "reviews"):
        return {}
    rows = connection.execute(
        "SELECT reviews.round, reviews.position, count(*) FROM reviews "
        "LEFT JOIN samples USING (round, position, slot) "
        "WHERE samples.record IS NULL GROUP BY 1, 2"
    )
    return {(round_, position): n for round_, position, n in rows}
