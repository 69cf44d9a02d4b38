"""Failed samples that are tried again: which, how, and what is written down of it.

The same command goes on with a run that has ended, and tries its failed samples again. Which ones
is decided once, as that session begins, and stands in the journal, so that a session that is killed
goes on with the same ones. To take up a killed or interrupted run decides nothing: it ends with the
rows it would have had.

A sample that has an instruction is tried again in its own slot. A seed that failed before it had
instructions is proposed for in a round of its own, behind all others.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from memory.sqlite_writer import Statement
from nodes.llm import MAX_ASKS, Call, CallFailed, Reply
from nodes.state import Failure, Seed, Slot
from refloom.runs.journal import Journal, count_pending, open_read_only
from refloom.runs.retrieval import SeedKey
from refloom.settings import Settings

# How a run ends by itself; one that was killed or interrupted is resumed instead.
ENDED = ("done", "short", "stopped")
# How a failed sample is tried again, by the kind of its failure. A kind that is not here was not
# about the content: the call is made again as it was.
RETRY_BY_KIND: dict[str, Literal["as it was", "next draw", "never"]] = {
    # No answer came. Trouble of an endpoint passes.
    "connection": "as it was",
    "timeout": "as it was",
    "server": "as it was",
    "overloaded": "as it was",
    "loading": "as it was",
    "rate_limit": "as it was",
    # The endpoint would not take the call: its limits and modes can be set, a key and an account
    # mended.
    "bad_request": "as it was",
    "unsupported": "as it was",
    "too_long": "as it was",
    "answer_too_large": "as it was",
    "key": "as it was",
    "model": "as it was",
    "credit": "as it was",
    # The graph did not take the seed: references can be added, a defect mended.
    "bad_input": "as it was",
    # Answers came, and none could be used. The journal would give the same ones again.
    "malformed": "next draw",
    "empty": "next draw",
    "cut": "next draw",
    "bad_generation": "next draw",
    # Somebody decided against the content; asking again would be to try one's luck.
    "filtered": "never",
    "refused": "never",
}
NEVER = tuple(kind for kind, way in RETRY_BY_KIND.items() if way == "never")
_FAILED = (
    "SELECT round, position, slot FROM samples WHERE status = 'failed' "
    f"AND coalesce(json_extract(record, '$.error.kind'), '') NOT IN ({', '.join('?' * len(NEVER))})"
)


def has_ended(journal: Journal) -> bool:
    """Whether the last session of a run brought it to an end. Blocks.

    A journal of an older version does not say so; there run.json does.
    """
    status = journal.meta("status")
    if status is None:
        try:
            run_json = json.loads((journal.path.parent / "run.json").read_text(encoding="utf-8"))
            status = run_json["status"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
    return status in ENDED


_LAST_ROUND = (
    "(SELECT coalesce(max(round), 0) FROM "
    "(SELECT round FROM samples UNION ALL SELECT round FROM reviews))"
)
# What was to be tried again and was not begun is decided anew. What is moved to a round of which
# there are samples keeps its place.
_NOT_BEGUN = f"NOT done AND (moved_to IS NULL OR moved_to > {_LAST_ROUND})"
_MOVED = f"SELECT moved_to, position FROM retries WHERE {_NOT_BEGUN} AND moved_to IS NOT NULL"
_DROP_NOT_BEGUN = [
    Statement(f"DELETE FROM retrieved WHERE (round, position) IN ({_MOVED})"),
    Statement(f"DELETE FROM turns WHERE (round, position) IN ({_MOVED})"),
    Statement(f"DELETE FROM retries WHERE {_NOT_BEGUN}"),
]


async def begin_session(journal: Journal, settings: Settings, *, ended: bool) -> None:
    """Write down that the run is running, and what is tried again if it had `ended` before."""
    put_status = Statement("INSERT OR REPLACE INTO meta VALUES ('status', '\"running\"')")
    planned: list[Statement] = []
    if not settings.retry_failed:
        planned = _DROP_NOT_BEGUN
    elif ended:
        planned = await asyncio.to_thread(plan_retries, journal, settings.target)
    await journal.put_all([*planned, put_status])
    await asyncio.to_thread(journal.load_unusable)


def count_retriable(connection: sqlite3.Connection, target: int | None) -> int:
    """How many failed samples of an ended run the same command tries again. Blocks.

    None once the target is met.
    """
    if target is not None and _count_wanted(connection) >= target:
        return 0
    (count,) = connection.execute(f"SELECT count(*) FROM ({_FAILED})", NEVER).fetchone()
    return int(count)


def _count_wanted(connection: sqlite3.Connection) -> int:
    """How many samples are accepted or wait for a person's review."""
    sql = "SELECT count(*) FROM samples WHERE status = 'accepted'"
    return int(connection.execute(sql).fetchone()[0]) + count_pending(connection)


def plan_retries(journal: Journal, target: int | None) -> list[Statement]:
    """The statements that write down which samples of an ended run are tried again. Blocks.

    Nothing is, if the target is met. What an earlier session was to try and did not is decided
    anew.
    """
    with open_read_only(journal.path) as connection:
        return _plan(connection, target)


def _plan(connection: sqlite3.Connection, target: int | None) -> list[Statement]:
    if target is not None and _count_wanted(connection) >= target:
        return _DROP_NOT_BEGUN
    draw_rounds: dict[SeedKey, int] = {}
    under_way: set[Slot] = set()
    (number,) = connection.execute("SELECT coalesce(max(number), 0) FROM unusable").fetchone()
    (last_round,) = connection.execute(f"SELECT {_LAST_ROUND}").fetchone()
    for tried, round_, position, slot, moved_to, draws, done in connection.execute(
        "SELECT number, round, position, slot, moved_to, draw_round, done FROM retries"
    ):
        number = max(number, tried)
        if moved_to is not None and (done or moved_to <= last_round):
            draw_rounds[moved_to, position] = draws
            if not done:
                under_way.add((round_, position, slot))
    rounds = {round_ for round_, _ in draw_rounds}
    behind = max({last_round} | rounds) + 1
    statements = [*_DROP_NOT_BEGUN]
    # Turns were taken ahead of what was begun. They are taken anew, at no cost, behind the seeds
    # that are proposed for again, whose place must not depend on how far ahead they were.
    ahead = [
        Statement(f"DELETE FROM {t} WHERE round >= ?", (behind,)) for t in ("turns", "retrieved")
    ]
    moves = False
    last = -1
    for round_, position, slot in connection.execute(
        f"{_FAILED} ORDER BY round, position, slot", NEVER
    ):
        if (round_, position, slot) in under_way:
            continue
        moved_to = None
        draws = draw_rounds.get((round_, position))
        if draws is None:
            draws = round_ - sum(other < round_ for other in rounds)
        if not _has_instructions(connection, (round_, position)):
            if not moves:
                moves = True
                statements += ahead
            # In the order of slots: a seed that failed in two rounds is proposed for in two.
            behind, last = behind + (position <= last), position
            moved_to = behind
            sql = "INSERT OR REPLACE INTO retrieved SELECT ?, position, taken FROM retrieved "
            sql += "WHERE round = ? AND position = ?"
            statements.append(Statement(sql, (moved_to, round_, position)))
        values = (number + 1, round_, position, slot, moved_to, draws, 0)
        statements.append(Statement("INSERT INTO retries VALUES (?, ?, ?, ?, ?, ?, ?)", values))
    return statements


def _has_instructions(connection: sqlite3.Connection, key: SeedKey) -> bool:
    """Whether a seed's turn admitted any instruction."""
    sql = "SELECT admitted FROM turns WHERE round = ? AND position = ?"
    row = connection.execute(sql, key).fetchone()
    return row is not None and bool(json.loads(row[0]))


def describe_failure(error: Failure) -> str:
    """Why a sample failed, in one line."""
    message = " ".join(error["message"].split())[:300]
    return f"{error['stage']} {error['kind']}: {message}"


def common_failures(connection: sqlite3.Connection) -> list[tuple[int, str]]:
    """The three commonest reasons of failed samples, with how many have each. Blocks."""
    rows = connection.execute(
        "SELECT json_extract(record, '$.error') FROM samples WHERE status = 'failed'"
    )
    reasons = Counter(describe_failure(json.loads(error)) for (error,) in rows if error)
    return [(number, reason) for reason, number in reasons.most_common(3)]


@dataclass
class Retries:
    """The samples that a session tries again, as the journal has them.

    `in_place` holds the slots that are tried again where they are, `rounds` the rounds of seeds
    that are proposed for again: by position, the round whose draws their proposals take. `moved`
    is, by the place of such a seed, the failed sample that it is to take the place of.
    """

    in_place: set[Slot] = field(default_factory=set)
    rounds: dict[int, dict[int, int]] = field(default_factory=dict)
    moved: dict[SeedKey, Slot] = field(default_factory=dict)

    @classmethod
    def load(cls, journal: Journal, *, wanted: bool = True) -> Retries:
        """Read them. With `wanted` false nothing is left to be tried again. Blocks."""
        retries = cls()
        for round_, position, slot, moved_to, draws, done in journal.read(
            "SELECT round, position, slot, moved_to, draw_round, done FROM retries "
            "ORDER BY number, round, position, slot"
        ):
            positions = {} if moved_to is None else retries.rounds.setdefault(moved_to, {})
            if done or not wanted:
                positions |= {position: draws} if done else {}
            elif moved_to is None:
                retries.in_place.add((round_, position, slot))
            else:
                positions[position] = draws
                retries.moved[moved_to, position] = (round_, position, slot)
        return retries

    @property
    def waiting(self) -> int:
        """How many failed samples have not been tried again yet."""
        return len(self.in_place) + len(self.moved)

    def seeds(self) -> set[SeedKey]:
        """The places of the seeds that have a sample to try again."""
        return {(slot[0], slot[1]) for slot in self.in_place} | set(self.moved)

    def with_draws(self, seed: Seed) -> Seed:
        """A seed with the round whose draws it takes.

        Of seeds that are proposed for again those of their first round; the rounds of all seeds
        count on as if there were no others.
        """
        round_ = seed["round"]
        draws = self.rounds.get(round_, {}).get(seed["position"])
        if draws is None:
            draws = round_ - sum(other < round_ for other in self.rounds)
        return seed if draws == round_ else {**seed, "draw_round": draws}

    def replace(self, slot: Slot) -> list[Statement]:
        """The statements that go with a finished sample that takes the place of a failed one."""
        old = slot if slot in self.in_place else self.moved.get(slot[:2])
        if old is None:
            return []
        self.in_place.discard(slot)
        self.moved.pop(slot[:2], None)
        place = "round = ? AND position = ? AND slot = ?"
        return [
            Statement(f"DELETE FROM samples WHERE {place}", old),
            Statement(f"UPDATE retries SET done = 1 WHERE NOT done AND {place}", old),
        ]


@dataclass
class _Draws:
    """The keys of the draws of one question, and whether the last one left nothing to use."""

    keys: list[bytes] = field(default_factory=list)
    spent: bool = False


class DrawLog:
    """The keys of the draws that questions in progress have taken, by who asks.

    From it is known which replies ended a sample that failed, so that it takes other draws when it
    is tried again.
    """

    def __init__(self) -> None:
        self._by_source: dict[str, dict[tuple[str, str, int], _Draws]] = {}

    def add(self, call: Call, key: bytes, outcome: Reply | CallFailed) -> None:
        """Note a draw and what it brought. `call` has the seed it was asked for with."""
        question = (call.stage, call.model, (call.seed - call.draw) & 0x7FFFFFFF)
        draws = self._by_source.setdefault(call.source, {}).setdefault(question, _Draws())
        draws.keys.append(key)
        last = call.draw == MAX_ASKS - 1
        if isinstance(outcome, CallFailed):
            draws.spent = last and outcome.kind == "bad_generation"
        elif outcome.refusal or outcome.finish == "content_filter":
            draws.spent = False
        elif call.kind == "question":
            draws.spent = outcome.odds is None
        else:
            draws.spent = last or outcome.finish == "length"

    def take_unusable(self, source: str, stage: str | None = None) -> list[bytes]:
        """Forget who asked, and give the keys of what was asked in vain, at one stage or all."""
        questions = self._by_source.pop(source, {})
        return [
            key
            for (asked, *_), draws in questions.items()
            if draws.spent and stage in (None, asked)
            for key in draws.keys
        ]

    def forget(self, source: str) -> None:
        """Forget who asked."""
        self._by_source.pop(source, None)
