"""The reference index: search by MMR, filters, drawing of other references, and adding."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory import vectors as faiss_vectors
from memory.embed import Embed, Vectors
from memory.references import Reference, distinct, instruction_key
from memory.store import (
    ReferenceFile,
    acquire_lock,
    instruction_keys,
    open_references,
    run_to_completion,
    write_references,
)
from memory.vectors import LoadedVectors, Rows, VectorStore

MAX_DRAWS = 64


class DrawOther(Protocol):
    """Draws a reference that was not retrieved for the seed, for the arm `swapped`."""

    async def __call__(
        self, reference: Reference, avoid: Collection[str], random_seed: int
    ) -> Reference | None:
        """See `draw_other`."""
        ...


def draw_other(
    references: Sequence[Reference], reference: Reference, avoid: Collection[str], random_seed: int
) -> Reference | None:
    """Draw another reference for `reference`, if possible none whose id is in `avoid`.

    Deterministic; None if there is no other. Blocks on a file of references.

    >>> pool = [{"id": i, "instruction": i, "response": i} for i in "abc"]
    >>> draw_other(pool, pool[0], ("a", "b"), 0)["id"]
    'c'
    >>> draw_other(pool[:1], pool[0], (), 0) is None
    True
    """
    second: Reference | None = None
    for draw in range(MAX_DRAWS if len(references) > 1 else 0):
        text = f"{random_seed}\x1f{reference['id']}\x1f{draw}"
        digest = sha256(text.encode("utf-8", "replace")).digest()
        drawn = references[int.from_bytes(digest[:8], "big") % len(references)]
        if drawn["id"] == reference["id"]:
            continue
        if drawn["id"] not in avoid:
            return drawn
        second = second or drawn
    return second or next((r for r in references if r["id"] != reference["id"]), None)


MMR_POOL = 8
MMR_RELEVANCE = 0.7
# A filter: for each field the accepted values. `tags` matches any of a reference's tags.
Where = Mapping[str, Sequence[str]]
FILTERS = ("source", "license", "tags")


class Search(Protocol):
    """Retrieval: the most useful references for a text."""

    async def __call__(
        self, text: str, k: int, turn: tuple[int, int] | None = None
    ) -> list[Reference]:
        """At most `k` references; one whose instruction is the text comes first.

        `turn` is the (round, position) of the seed in a run.
        """
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidate rows for a text, nearest first; the first `own` have the text as instruction."""

    rows: list[int]
    scores: Vectors
    vectors: Vectors
    own: int


class ReferenceIndex:
    """References with the vectors of their instructions, searched by inner product.

    Vectors are made by the first search that needs them and stored in `directory`, so a run whose
    seeds are the references themselves (the paper's setting) embeds nothing.
    """

    def __init__(
        self,
        references: Sequence[Reference],
        embed: Embed,
        directory: Path | None,
        model: str,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`directory` None keeps the vectors in memory; `model` names the embedding model.

        `on_progress` is called with the references embedded so far and their total.
        """
        self.references = references
        self._embed = embed
        self._store = VectorStore(references, embed, directory, model, on_progress)
        self._lock = asyncio.Lock()
        self._built: LoadedVectors | None = None
        self._filtered: dict[str, Rows] = {}
        self._sorted: tuple[NDArray[np.int64], Rows] | None = None

    async def build(self) -> int:
        """Build or load the vectors now. Returns the number of references."""
        if len(self.references):
            await self._ready()
        return len(self.references)

    async def open(self) -> int:
        """Load stored vectors without building any; see `build`. Raises `IndexUnusable`."""
        async with self._lock:
            self._built = await self._store.load()
        return len(self.references)

    async def search(
        self, text: str, k: int, turn: tuple[int, int] | None = None, where: Where | None = None
    ) -> list[Reference]:
        """At most `k` references for `text` by MMR; one whose instruction is `text` comes first."""
        own = await self.find_own_row(text)
        if own is not None and k == 1 and where is None:
            return await self.read([own], [1.0])
        candidates = await self.candidates(text, k, where, None if where else own)
        chosen = choose_by_mmr(candidates, k)
        rows = [candidates.rows[i] for i in chosen]
        return await self.read(rows, [candidates.scores[i] for i in chosen])

    async def draw_other(
        self, reference: Reference, avoid: Collection[str], random_seed: int
    ) -> Reference | None:
        """See `memory.index.Another`."""
        return await asyncio.to_thread(draw_other, self.references, reference, avoid, random_seed)

    async def find_own_row(self, text: str) -> int | None:
        """The first row whose instruction is `text`; None if there is none."""
        if not len(self.references):
            return None
        (match,) = await asyncio.to_thread(self.find_own, [text])
        return match[0] if match else None

    def find_own(self, texts: Sequence[str]) -> list[tuple[int, Reference] | None]:
        """For each text the first row with it as instruction, and its reference. Blocks."""
        if not len(self.references):
            return [None] * len(texts)
        if self._sorted is None:
            keys = instruction_keys(self.references)
            order = np.argsort(keys, kind="stable")
            self._sorted = keys[order], order.astype(np.int64)
        keys, order = self._sorted
        wanted = np.array([instruction_key(text) for text in texts], np.int64)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        there = np.flatnonzero(keys[at] == wanted)
        rows = [int(order[at[i]]) for i in there]
        found: list[tuple[int, Reference] | None] = [None] * len(texts)
        for i, row, reference in zip(there.tolist(), rows, self._read(rows), strict=True):
            if reference["instruction"].strip() == texts[i].strip():
                found[i] = row, reference
        return found

    async def candidates(
        self, text: str, k: int, where: Where | None = None, own: int | None = None
    ) -> Candidates:
        """The nearest references, several times as many as will be chosen; `own` comes first."""
        none = Candidates([], np.zeros(0, np.float32), np.zeros((0, 1), np.float32), 0)
        if not len(self.references) or k < 1:
            return none
        built = await self._ready()
        query = await self._embed([text])
        return await asyncio.to_thread(self._near, built, query, k, own, where) or none

    def _near(
        self, built: LoadedVectors, query: Vectors, k: int, own: int | None, where: Where | None
    ) -> Candidates | None:
        among = None if where is None else self._among(where)
        if among is not None and not len(among):
            return None
        pool = min(len(self.references), k * MMR_POOL)
        _, hits, vectors = faiss_vectors.search_index(built.index, query, pool, built.probes, among)
        valid = hits[0] >= 0
        rows, near = hits[0][valid].tolist(), vectors[0][valid]
        if own is not None:
            # The search may have missed this row among many with an equal vector.
            others = [i for i, row in enumerate(rows) if row != own][: pool - 1]
            rows = [own, *(rows[i] for i in others)]
            near = np.concatenate([query, near[others]])
        return Candidates(rows, near @ query[0], near, int(own is not None))

    def _among(self, where: Where) -> Rows:
        """The rows that pass a filter, computed once for each filter."""
        key = repr(sorted((name, tuple(values)) for name, values in where.items()))
        if key not in self._filtered:
            self._filtered[key] = matching_rows(self.references, where)
        return self._filtered[key]

    async def _ready(self) -> LoadedVectors:
        async with self._lock:
            if self._built is None:
                self._built = await self._store.load_or_build()
            return self._built

    async def read(self, rows: Sequence[int], scores: Sequence[float]) -> list[Reference]:
        """The references of some rows, with their scores."""
        references = await asyncio.to_thread(self._read, rows)
        return [with_score(r, score) for r, score in zip(references, scores, strict=True)]

    def _read(self, rows: Sequence[int]) -> list[Reference]:
        if isinstance(self.references, ReferenceFile):
            return self.references.rows(rows)
        return [self.references[row] for row in rows]


def with_score(reference: Reference, score: float) -> Reference:
    """A reference with its similarity to the query."""
    return {**reference, "score": round(float(score), 4)}


def matching_rows(references: Sequence[Reference], where: Where) -> Rows:
    """The rows whose fields have one of the accepted values. Blocks."""
    unknown = set(where) - set(FILTERS)
    if unknown:
        raise ValueError(f"unknown filters {sorted(unknown)}; the filters are {FILTERS}")
    fits = np.ones(len(references), bool)
    for name, values in where.items():
        wanted = set(values)
        if isinstance(references, ReferenceFile):
            column = references.column(name).to_pylist()
        else:
            column = [r.get(name) for r in references]
        matches = [bool(wanted & set(v)) if isinstance(v, list) else v in wanted for v in column]
        fits &= np.array(matches, bool)
    return np.flatnonzero(fits).astype(np.int64)


def choose_by_mmr(
    candidates: Candidates, k: int, allowed: Callable[[int], bool] = lambda row: True
) -> list[int]:
    """The positions of k candidates by MMR; those not allowed only if there are too few others.

    Candidates whose instruction is the text are chosen first, allowed or not.
    """
    fit = [i for i, row in enumerate(candidates.rows) if i < candidates.own or allowed(row)]
    if len(fit) < k:
        fit += [i for i in range(len(candidates.rows)) if i not in set(fit)][: k - len(fit)]
    own = list(range(min(candidates.own, k)))
    picked = mmr(candidates.scores[fit], candidates.vectors[fit], k, own)
    return [fit[i] for i in picked]


def mmr(scores: Vectors, vectors: Vectors, k: int, first: list[int]) -> list[int]:
    """Choose k rows that are relevant and diverse (maximal marginal relevance).

    Each step takes the row with the greatest `0.7 * relevance - 0.3 * nearest chosen`
    (Carbonell and Goldstein, SIGIR 1998). `first` is chosen before anything else.

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


@dataclass(frozen=True, slots=True)
class AddResult:
    """The numbers of references added, already known, and in total."""

    added: int
    known: int
    total: int


async def add_references(
    directory: Path, new: Sequence[Reference], embed: Embed, model: str
) -> AddResult:
    """Add references to the index in `directory`, which is made if there is none.

    One adds at a time, whatever the process. Who searches keeps what it has open, and sees the
    new index once its manifest is there, whole. Raises `IndexUnusable` or `OSError`.
    """
    lock = await acquire_lock(directory, ".adding.lock")
    try:
        before = await asyncio.to_thread(_open_current, directory)
        known: Iterable[Reference] = before if before is not None else ()
        rows = distinct(chain(known, new))
        there = await asyncio.to_thread(_references_files, directory)
        try:
            references = await run_to_completion(write_references, directory, rows)
            total = await ReferenceIndex(references, embed, directory, model).build()
        finally:
            await run_to_completion(_drop_unused, directory, there)
    finally:
        await asyncio.to_thread(lock.release)
    added = total - (0 if before is None else len(before))
    return AddResult(added, len(new) - added, total)


def _open_current(directory: Path) -> ReferenceFile | None:
    return open_references(directory) if (directory / "index.json").exists() else None


def _references_files(directory: Path) -> set[Path]:
    return set(directory.glob("references-*.parquet"))


def _drop_unused(directory: Path, there: set[Path]) -> None:
    """Remove the references that have come since, where no index came to be built of them."""
    manifest = directory / "index.json"
    if manifest.exists():
        used = json.loads(manifest.read_text(encoding="utf-8"))["references"]
        there = {*there, directory / f"references-{used}.parquet"}
    for path in _references_files(directory) - there:
        path.unlink(missing_ok=True)
