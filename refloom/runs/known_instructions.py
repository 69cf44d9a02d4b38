"""The instructions of a run that a person's edit must differ from, as its own must.

What the run admitted and where its references are stands in the journal; what people have edited
since stands in their records.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

from memory.novelty import NoveltyFilter
from memory.references import IndexUnusable, exact_instruction_key
from memory.store import ReferenceFile
from nodes.decisions import BadDecision
from nodes.hooks import near_to
from nodes.state import Near, Slot
from refloom.runs.journal import open_read_only

# The edited instructions with the slots of their samples. Only reviewed samples are looked at.
SELECT_EDITED = (
    "SELECT reviews.round, reviews.position, reviews.slot, "
    "json_extract(samples.record, '$.instruction') "
    "FROM reviews JOIN samples USING (round, position, slot) "
    "WHERE json_extract(samples.record, '$.instruction_before') IS NOT NULL "
    "ORDER BY reviews.round, reviews.position, reviews.slot"
)


class KnownInstructions:
    """The references, admitted instructions and edited ones of the run in `directory`.

    They are read when first asked for, and again once the run has admitted more.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._turns: int | None = None
        self._lock = threading.Lock()

    def find_near(self, text: str, slot: Slot) -> Near | None:
        """What an instruction for the sample of `slot` is too near to; None if it is new. Blocks.

        The sample's own texts do not count. With `answer_seeds` only an equal text is too near.
        Raises `BadDecision` if the run's references cannot be read.
        """
        with self._lock, open_read_only(self._directory / "journal.sqlite") as connection:
            (turns,) = connection.execute("SELECT count(*) FROM turns").fetchone()
            if turns != self._turns:
                self._read(connection)
                self._turns = turns
            edited = {(r, p, s): other for r, p, s, other in connection.execute(SELECT_EDITED)}
        if self._exact:
            return _find_equal(text, slot, (*self._admitted.items(), *edited.items()))
        own = _name(slot)
        name = self._novelty.collision(text, ignore=own)
        if name is None:
            others = NoveltyFilter(self._threshold)
            for place, other in edited.items():
                others.add(other, _name(place))
            name = others.collision(text, ignore=own)
            if name is None:
                return None
            return near_to(text, edited[_slot(name)], slot=_slot(name))
        if name.startswith("#"):
            reference = self._references[int(name[1:])]
            return near_to(text, reference["instruction"], reference_id=reference["id"])
        return near_to(text, self._admitted[_slot(name)], slot=_slot(name))

    def _read(self, connection: sqlite3.Connection) -> None:
        (line,) = connection.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
        settings = json.loads(line)
        self._exact = bool(settings["answer_seeds"])
        self._threshold = settings["novelty_threshold"]
        self._novelty = NoveltyFilter(self._threshold)
        self._admitted: dict[Slot, str] = {}
        sql = "SELECT round, position, admitted FROM turns ORDER BY round, position"
        for round_, position, texts in connection.execute(sql):
            for number, text in enumerate(json.loads(texts)):
                self._admitted[round_, position, number] = text
        if self._exact:
            return
        self._references = _open_references(connection, self._directory)
        for row, reference in enumerate(self._references):
            self._novelty.add(reference["instruction"], f"#{row}")
        for slot, text in self._admitted.items():
            self._novelty.add(text, _name(slot))


def _find_equal(text: str, slot: Slot, known: Iterable[tuple[Slot, str]]) -> Near | None:
    key = exact_instruction_key(text)
    for place, other in known:
        if place != slot and exact_instruction_key(other) == key:
            return near_to(text, other, slot=place)
    return None


def _open_references(connection: sqlite3.Connection, directory: Path) -> ReferenceFile:
    """The references of a run; those of older versions name no file, and have one in the memory."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'reference_file'").fetchone()
    paths = [directory / json.loads(row[0])] if row else []
    paths = paths or sorted((directory / "memory").glob("references-*.parquet"))
    problem = "its file is not known"
    if len(paths) == 1:
        try:
            return ReferenceFile(paths[0])
        except IndexUnusable as error:
            problem = str(error)
    raise BadDecision(
        f"The run's references cannot be read ({problem}), so an edited instruction "
        "cannot be compared with them; run the same command once more, or leave the instruction"
    )


def _name(slot: Slot) -> str:
    return "/".join(map(str, slot))


def _slot(name: str) -> Slot:
    round_, position, number = map(int, name.split("/"))
    return round_, position, number
