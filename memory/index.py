"""The index of references: search, filters, drawing another reference, and adding.

A search takes the references nearest to a text by the cosine of their instructions (see
`memory.vectors`), and chooses a diverse few of them by maximal marginal relevance.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from memory.embed import Embed, Vectors
from memory.references import Reference, distinct, instruction_key
from memory.store import (
    Keys,
    ReferenceFile,
    acquire_lock,
    instruction_keys,
    open_reference_file,
    run_to_completion,
    write_references,
)
from memory.vectors import FLAT_INDEX_MAX, LoadedVectors, Rows, VectorStore, search_index

# A search takes this many candidates for each reference that is wanted.
MMR_POOL = 8
MMR_RELEVANCE = 0.7
MAX_DRAWS = 64
# A filter: for each field the accepted values. `tags` matches any of a reference's tags.
Where = Mapping[str, Sequence[str]]
FILTERS = ("source", "license", "tags")


class Search(Protocol):
    """Retrieves the most useful references for a text."""

    async def __call__(
        self, text: str, k: int, turn: tuple[int, int] | None = None
    ) -> list[Reference]:
        """Return at most `k` references; one whose instruction is the text comes first.

        `turn` is the (round, position) of the seed in a run.
        """
        ...


class DrawOther(Protocol):
    """Draws a reference that was not retrieved for the seed; for the arm `swapped`."""

    async def __call__(
        self, reference: Reference, avoid: Collection[str], random_seed: int
    ) -> Reference | None:
        """See `draw_other`."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows that may be chosen for a text, and their cosines and vectors (n, dimensions).

    The first `own_count` rows have the text as instruction (0 or 1); the others are nearest first.
    """

    rows: list[int]
    scores: Vectors
    vectors: Vectors
    own_count: int


class ReferenceIndex:
    """Searches references by the vectors of their instructions.

    The first search that needs vectors makes them and stores them in `directory`. A run whose seeds
    are the references themselves (the paper's setting) embeds nothing.
    """

    def __init__(
        self,
        references: Sequence[Reference],
        embed: Embed,
        directory: Path | None,
        model: str,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        flat_max: int = FLAT_INDEX_MAX,
    ) -> None:
        """Open or build nothing yet.

        Args:
            references: In memory, or a `ReferenceFile`.
            embed: Makes the vectors of instructions and queries.
            directory: Where vectors are stored; None keeps them in memory.
            model: The name of the model behind `embed`.
            on_progress: Called with the number of references embedded so far, and their total.
            flat_max: With more references, the index is an inverted file.
        """
        self.references = references
        self._embed = embed
        self._store = VectorStore(
            references, embed, directory, model, on_progress, flat_max=flat_max
        )
        self._lock = asyncio.Lock()
        self._loaded: LoadedVectors | None = None
        self._rows_by_filter: dict[str, Rows] = {}
        # The keys of the instructions in ascending order, and the row of each.
        self._sorted_keys: tuple[Keys, Rows] | None = None

    async def build(self) -> int:
        """Load the vectors, or make them. Returns the number of references.

        Raises `IndexUnusable` if stored vectors cannot be used.
        """
        if len(self.references):
            await self._ensure_loaded()
        return len(self.references)

    async def open(self) -> int:
        """Load stored vectors and never make any; otherwise as `build`."""
        async with self._lock:
            self._loaded = await self._store.load()
        return len(self.references)

    async def search(
        self, text: str, k: int, turn: tuple[int, int] | None = None, where: Where | None = None
    ) -> list[Reference]:
        """See `Search`. `where` restricts the search to references that pass this filter."""
        match = None if where else (await asyncio.to_thread(self.find_own, [text]))[0]
        if match is not None and k == 1:
            return [with_score(match[1], 1.0)]
        candidates = await self.candidates(text, k, where, match[0] if match else None)
        chosen = choose_by_mmr(candidates, k)
        rows = [candidates.rows[i] for i in chosen]
        return await self.read(rows, [candidates.scores[i] for i in chosen])

    async def draw_other(
        self, reference: Reference, avoid: Collection[str], random_seed: int
    ) -> Reference | None:
        """See `DrawOther`."""
        return await asyncio.to_thread(draw_other, self.references, reference, avoid, random_seed)

    def find_own(self, texts: Sequence[str]) -> list[tuple[int, Reference] | None]:
        """Find for each text the first row whose instruction it is, and its reference. Blocks."""
        result: list[tuple[int, Reference] | None] = [None] * len(texts)
        if not len(self.references):
            return result
        if self._sorted_keys is None:
            keys = instruction_keys(self.references)
            order = np.argsort(keys, kind="stable")
            self._sorted_keys = keys[order], order.astype(np.int64)
        keys, order = self._sorted_keys
        wanted = np.array([instruction_key(text) for text in texts], np.int64)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        known = np.flatnonzero(keys[at] == wanted)
        rows = [int(order[at[i]]) for i in known]
        for i, row, reference in zip(known.tolist(), rows, self._read(rows), strict=True):
            if reference["instruction"].strip() == texts[i].strip():
                result[i] = row, reference
        return result

    async def candidates(
        self, text: str, k: int, where: Where | None = None, own_row: int | None = None
    ) -> Candidates:
        """Return the references nearest to `text`, several times as many as will be chosen.

        `own_row`, the row whose instruction is the text, comes first.
        """
        if len(self.references) and k > 0:
            loaded = await self._ensure_loaded()
            query = await self._embed([text])
            candidates = await asyncio.to_thread(self._search, loaded, query, k, own_row, where)
            if candidates is not None:
                return candidates
        return Candidates([], np.zeros(0, np.float32), np.zeros((0, 1), np.float32), 0)

    def _search(
        self,
        loaded: LoadedVectors,
        query: Vectors,
        k: int,
        own_row: int | None,
        where: Where | None,
    ) -> Candidates | None:
        among = None
        if where is not None:
            key = repr(sorted((name, tuple(values)) for name, values in where.items()))
            if key not in self._rows_by_filter:
                self._rows_by_filter[key] = matching_rows(self.references, where)
            among = self._rows_by_filter[key]
            if not len(among):
                return None
        pool = min(len(self.references), k * MMR_POOL)
        _, hits, vectors = search_index(loaded.index, query, pool, loaded.probes, among)
        valid = hits[0] >= 0
        rows, near = hits[0][valid].tolist(), vectors[0][valid]
        if own_row is not None:
            # The search may have missed this row among many with an equal vector.
            others = [i for i, row in enumerate(rows) if row != own_row][: pool - 1]
            rows = [own_row, *(rows[i] for i in others)]
            near = np.concatenate([query, near[others]])
        return Candidates(rows, near @ query[0], near, int(own_row is not None))

    async def _ensure_loaded(self) -> LoadedVectors:
        async with self._lock:
            if self._loaded is None:
                self._loaded = await self._store.load_or_build()
            return self._loaded

    async def read(self, rows: Sequence[int], scores: Sequence[float]) -> list[Reference]:
        """Return the references of some rows, with their scores."""
        references = await asyncio.to_thread(self._read, rows)
        return [with_score(r, score) for r, score in zip(references, scores, strict=True)]

    def _read(self, rows: Sequence[int]) -> list[Reference]:
        if isinstance(self.references, ReferenceFile):
            return self.references.rows(rows)
        return [self.references[row] for row in rows]


def choose_by_mmr(
    candidates: Candidates, k: int, allowed: Callable[[int], bool] = lambda row: True
) -> list[int]:
    """Choose k candidates by MMR, and return their positions.

    Those not allowed are chosen only if there are too few others. A candidate whose instruction is
    the text comes first, allowed or not.
    """
    usable = [
        i for i, row in enumerate(candidates.rows) if i < candidates.own_count or allowed(row)
    ]
    if len(usable) < k:
        others = sorted(set(range(len(candidates.rows))) - set(usable))
        usable += others[: k - len(usable)]
    first = list(range(min(candidates.own_count, k)))
    picked = mmr(candidates.scores[usable], candidates.vectors[usable], k, first)
    return [usable[i] for i in picked]


def mmr(scores: Vectors, vectors: Vectors, k: int, first: list[int]) -> list[int]:
    """Choose k rows that are relevant and diverse, by maximal marginal relevance.

    Each step takes the row with the greatest `0.7 * score - 0.3 * cosine to the nearest chosen row`
    (Carbonell and Goldstein, SIGIR 1998). The rows `first` are chosen before all others.

    >>> v = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    >>> mmr(np.array([0.9, 0.89, 0.5], dtype=np.float32), v, 2, [])
    [0, 2]
    """
    chosen = list(first)
    alike = vectors @ vectors.T
    while len(chosen) < min(k, len(scores)):
        redundancy = alike[:, chosen].max(axis=1) if chosen else np.zeros(len(scores), np.float32)
        gain = MMR_RELEVANCE * scores - (1 - MMR_RELEVANCE) * redundancy
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
    return chosen


def matching_rows(references: Sequence[Reference], where: Where) -> Rows:
    """Return the rows whose fields have one of the accepted values. Blocks.

    Raises `ValueError` for a field that is not a filter.
    """
    unknown = set(where) - set(FILTERS)
    if unknown:
        raise ValueError(f"unknown filters {sorted(unknown)}; the filters are {FILTERS}")
    passing = np.ones(len(references), bool)
    for name, values in where.items():
        wanted = set(values)
        if isinstance(references, ReferenceFile):
            column = references.column(name).to_pylist()
        else:
            column = [r.get(name) for r in references]
        matches = [bool(wanted & set(v)) if isinstance(v, list) else v in wanted for v in column]
        passing &= np.array(matches, bool)
    return np.flatnonzero(passing).astype(np.int64)


def with_score(reference: Reference, score: float) -> Reference:
    """Return a copy of the reference with its similarity to the query."""
    return {**reference, "score": round(float(score), 4)}


def draw_other(
    references: Sequence[Reference], reference: Reference, avoid: Collection[str], random_seed: int
) -> Reference | None:
    """Draw another reference for `reference`, if possible none whose id is in `avoid`.

    The same arguments draw the same reference. None if there is no other. Blocks if the references
    are in a file.

    >>> pool = [{"id": i, "instruction": i, "response": i} for i in "abc"]
    >>> draw_other(pool, pool[0], ("a", "b"), 0)["id"]
    'c'
    >>> draw_other(pool[:1], pool[0], (), 0) is None
    True
    """
    fallback: Reference | None = None
    for draw in range(MAX_DRAWS if len(references) > 1 else 0):
        text = f"{random_seed}\x1f{reference['id']}\x1f{draw}"
        digest = sha256(text.encode("utf-8", "replace")).digest()
        drawn = references[int.from_bytes(digest[:8], "big") % len(references)]
        if drawn["id"] == reference["id"]:
            continue
        if drawn["id"] not in avoid:
            return drawn
        fallback = fallback or drawn
    return fallback or next((r for r in references if r["id"] != reference["id"]), None)


@dataclass(frozen=True, slots=True)
class AddResult:
    """How many references were added, were already known, and are there now."""

    added: int
    known: int
    total: int


async def add_references(
    directory: Path, new: Sequence[Reference], embed: Embed, model: str
) -> AddResult:
    """Add references to the index in `directory`, which is created if needed.

    Only one process adds at a time. A process that searches keeps the index it has opened, and can
    open the new one once its manifest is written. Raises `IndexUnusable` or `OSError`.
    """
    lock = await acquire_lock(directory, ".adding.lock")
    try:
        old = await asyncio.to_thread(_open_current, directory)
        references = distinct(chain(() if old is None else old, new))
        files = await asyncio.to_thread(_list_reference_files, directory)
        try:
            file = await run_to_completion(write_references, directory, references)
            total = await ReferenceIndex(file, embed, directory, model).build()
        finally:
            await run_to_completion(_remove_unused, directory, files)
    finally:
        await asyncio.to_thread(lock.release)
    added = total - (0 if old is None else len(old))
    return AddResult(added, len(new) - added, total)


def _open_current(directory: Path) -> ReferenceFile | None:
    return open_reference_file(directory) if (directory / "index.json").exists() else None


def _list_reference_files(directory: Path) -> set[Path]:
    return set(directory.glob("references-*.parquet"))


def _remove_unused(directory: Path, keep: set[Path]) -> None:
    """Remove files of references written since, unless the index uses them."""
    manifest = directory / "index.json"
    if manifest.exists():
        used = json.loads(manifest.read_text(encoding="utf-8"))["references"]
        keep = {*keep, directory / f"references-{used}.parquet"}
    for path in _list_reference_files(directory) - keep:
        path.unlink(missing_ok=True)
