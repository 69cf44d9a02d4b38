"""A run's references, as far as its report looks at them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from memory.embed import Embed, Vectors
from memory.references import IndexUnusable, Reference
from memory.store import ReferenceFile
from memory.vectors import Building, vectors_of
from refloom.measure.report_account import Account

# So many are compared with the rows, and have their words counted.
SAMPLE = 2000
MOST_ASKED = 200


@dataclass
class Shelf:
    """The references of a run: how many, a fair sample of them, and those that were asked for."""

    count: int = 0
    sample: list[Reference] = field(default_factory=list)
    known: dict[str, Reference] = field(default_factory=dict)
    file: ReferenceFile | None = None
    rows: list[int] = field(default_factory=list)

    def start(self, id_: str) -> str:
        """How the instruction of a reference begins; nothing where it is not known."""
        found = self.known.get(id_)
        return " ".join(found["instruction"].split())[:160] if found else ""


def shelf_of(account: Account, wanted: Iterable[str]) -> Shelf:
    """The references of a run; none where their file is gone or damaged. Blocks.

    `wanted` are the ids of those that are named on the page.
    """
    file = _file_of(account)
    if file is None:
        return Shelf()
    many, some = len(file), min(len(file), SAMPLE)
    # Sorted for quick reading; mixed again, so that the first n of them are a fair draw too.
    rows = np.sort(np.random.default_rng(0).choice(many, some, replace=False))
    try:
        read = file.rows(rows.tolist())
        order = np.random.default_rng(1).permutation(some).tolist()
        known = _by_id(file, list(dict.fromkeys(wanted)))
        return Shelf(many, [read[i] for i in order], known, file, rows[order].tolist())
    except (OSError, ValueError):
        return Shelf()


def _file_of(account: Account) -> ReferenceFile | None:
    """The file that holds the references this run has used; a memory may be that of several."""
    asked = list(islice(account.taught, MOST_ASKED))
    found: list[tuple[int, float, ReferenceFile]] = []
    for path in _files(account):
        try:
            file = ReferenceFile(path)
            hits = len(_rows_of(file, asked))
            found.append((hits, path.stat().st_mtime, file))
        except (IndexUnusable, OSError, ValueError):
            continue
    best = max(found, key=lambda one: one[:2], default=None)
    return best[2] if best and (best[0] or not asked) else None


def _files(account: Account) -> list[Path]:
    settings: Mapping[str, Any] = account.said.get("settings") or {}
    given = settings.get("memory")
    for memory in (Path(str(given)) if given else None, account.directory / "memory"):
        if memory is not None and (paths := sorted(memory.glob("references-*.parquet"))):
            return paths
    return []


def _rows_of(file: ReferenceFile, ids: Sequence[str]) -> list[int]:
    """The rows of those of the ids that the file holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not ids:
        return []
    said = [id_.encode("utf-8", "replace").decode() for id_ in ids]
    column = file.column("id").combine_chunks()
    found = pc.index_in(pa.array(said, column.type), value_set=column)
    return [row for row in found.to_pylist() if row is not None]


def _by_id(file: ReferenceFile, ids: Sequence[str]) -> dict[str, Reference]:
    return {reference["id"]: reference for reference in file.rows(_rows_of(file, ids))}


async def kept_vectors(shelf: Shelf, embed: Embed, model: str, most: int) -> dict[str, Vectors]:
    """The vectors that the run's index has of the sampled instructions, by instruction.

    Nothing where the index is of another model or of other references: then they are embedded.
    """
    if shelf.file is None:
        return {}
    building = Building(shelf.file, embed, shelf.file.path.parent, model, None)
    try:
        built = await building.opened()
        rows = np.array(shelf.rows[:most], np.int64).reshape(1, -1)
        found = await asyncio.to_thread(vectors_of, built.index, rows)
    except (IndexUnusable, RuntimeError):
        return {}
    return {r["instruction"]: v for r, v in zip(shelf.sample, found[0], strict=False)}
