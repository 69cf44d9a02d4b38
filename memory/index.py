"""Finding the references that bear on a text: relevant, unlike each other, not always the same."""

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
from memory.references import Reference, distinct, key_of
from memory.store import ReferenceFile, hold, keys_of, references_in, to_end, write_references
from memory.vectors import Building, Built, Rows

# MERGED memory~another
# Another reference than those that bear on a seed, fixed by a random seed.
DRAWS = 64


class Another(Protocol):
    """The seam for references that have nothing to do with a seed."""

    async def __call__(
        self, reference: Reference, avoid: Collection[str], random_seed: int
    ) -> Reference | None:
        """See `another_of`."""
        ...


def another_of(
    references: Sequence[Reference], reference: Reference, avoid: Collection[str], random_seed: int
) -> Reference | None:
    """A reference drawn for `reference`, none whose id is in `avoid` as far as there is one.

    The same for the same arguments; None where there is no other. Blocks on a file of references.

    >>> pool = [{"id": i, "instruction": i, "response": i} for i in "abc"]
    >>> another_of(pool, pool[0], ("a", "b"), 0)["id"]
    'c'
    >>> another_of(pool[:1], pool[0], (), 0) is None
    True
    """
    second: Reference | None = None
    for draw in range(DRAWS if len(references) > 1 else 0):
        text = f"{random_seed}\x1f{reference['id']}\x1f{draw}"
        digest = sha256(text.encode("utf-8", "replace")).digest()
        found = references[int.from_bytes(digest[:8], "big") % len(references)]
        if found["id"] == reference["id"]:
            continue
        if found["id"] not in avoid:
            return found
        second = second or found
    return second or next((r for r in references if r["id"] != reference["id"]), None)


MMR_POOL = 8
MMR_RELEVANCE = 0.7
# Which references to look among, by field: any of the values. `tags` matches any tag.
Where = Mapping[str, Sequence[str]]
FILTERS = ("source", "license", "tags")


class Search(Protocol):
    """The seam for retrieval: the references most useful for a text."""

    async def __call__(
        self, text: str, k: int, turn: tuple[int, int] | None = None
    ) -> list[Reference]:
        """At most `k` references; one with this very instruction comes first.

        `turn` is the place (round, position) in a run of the seed that asks.
        """
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows that may be chosen for a text, nearest first; `own` of them have its instruction."""

    rows: list[int]
    scores: Vectors
    vectors: Vectors
    own: int


class ReferenceIndex:
    """References with the vectors of their instructions, searched by inner product.

    Vectors are made on the first search that needs them and kept in `directory`, so that a run
    whose seeds are the references themselves (the paper's way) embeds nothing.
    """

    def __init__(
        self,
        references: Sequence[Reference],
        embed: Embed,
        directory: Path | None,
        model: str,
        told: Callable[[int, int], None] | None = None,
    ) -> None:
        """`directory` None keeps the vectors in memory only; `model` names what embedded them.

        `told` hears how many of how many references are embedded while vectors are made.
        """
        self.references = references
        self._embed = embed
        self._building = Building(references, embed, directory, model, told)
        self._lock = asyncio.Lock()
        self._built: Built | None = None
        self._filtered: dict[str, Rows] = {}
        self._sorted: tuple[NDArray[np.int64], Rows] | None = None

    async def build(self) -> int:
        """Make or open the vectors now; return how many references there are."""
        if len(self.references):
            await self._ready()
        return len(self.references)

    async def open(self) -> int:
        """Open vectors that are kept, and make none; see `build`. Raises `IndexUnusable`."""
        async with self._lock:
            self._built = await self._building.opened()
        return len(self.references)

    async def search(
        self, text: str, k: int, turn: tuple[int, int] | None = None, where: Where | None = None
    ) -> list[Reference]:
        """At most `k` references for `text` by MMR; the one with this very instruction first."""
        own = await self.own(text)
        if own is not None and k == 1 and where is None:
            return await self.read([own], [1.0])
        found = await self.candidates(text, k, where, None if where else own)
        chosen = choose(found, k)
        return await self.read([found.rows[i] for i in chosen], [found.scores[i] for i in chosen])

    async def another(
        self, reference: Reference, avoid: Collection[str], random_seed: int
    ) -> Reference | None:
        """See `memory.index.Another`."""
        return await asyncio.to_thread(another_of, self.references, reference, avoid, random_seed)

    async def own(self, text: str) -> int | None:
        """The first row with this very instruction."""
        if not len(self.references):
            return None
        (found,) = await asyncio.to_thread(self.owns, [text])
        return found[0] if found else None

    def owns(self, texts: Sequence[str]) -> list[tuple[int, Reference] | None]:
        """For each text the first row with this very instruction, and its reference. Blocks."""
        if not len(self.references):
            return [None] * len(texts)
        if self._sorted is None:
            keys = keys_of(self.references)
            order = np.argsort(keys, kind="stable")
            self._sorted = keys[order], order.astype(np.int64)
        keys, order = self._sorted
        wanted = np.array([key_of(text) for text in texts], np.int64)
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
        self, built: Built, query: Vectors, k: int, own: int | None, where: Where | None
    ) -> Candidates | None:
        among = None if where is None else self._among(where)
        if among is not None and not len(among):
            return None
        pool = min(len(self.references), k * MMR_POOL)
        found = faiss_vectors.search(built.index, query, pool, built.probes, among)
        kept = found[1][0] >= 0
        rows, near = found[1][0][kept].tolist(), found[2][0][kept]
        if own is not None:
            # Among many of an equal vector the search may have missed this very one.
            others = [i for i, row in enumerate(rows) if row != own][: pool - 1]
            rows = [own, *(rows[i] for i in others)]
            near = np.concatenate([query, near[others]])
        return Candidates(rows, near @ query[0], near, int(own is not None))

    def _among(self, where: Where) -> Rows:
        """The rows that a filter lets through, found once a filter."""
        said = repr(sorted((name, tuple(values)) for name, values in where.items()))
        if said not in self._filtered:
            self._filtered[said] = matching(self.references, where)
        return self._filtered[said]

    async def _ready(self) -> Built:
        async with self._lock:
            if self._built is None:
                self._built = await self._building.built()
            return self._built

    async def read(self, rows: Sequence[int], scores: Sequence[float]) -> list[Reference]:
        """The references of some rows, with their scores."""
        found = await asyncio.to_thread(self._read, rows)
        return [scored(r, score) for r, score in zip(found, scores, strict=True)]

    def _read(self, rows: Sequence[int]) -> list[Reference]:
        if isinstance(self.references, ReferenceFile):
            return self.references.rows(rows)
        return [self.references[row] for row in rows]


def scored(reference: Reference, score: float) -> Reference:
    """A reference with how near it is to what was asked for."""
    return {**reference, "score": round(float(score), 4)}


def matching(references: Sequence[Reference], where: Where) -> Rows:
    """The rows whose fields have one of the values asked for. Blocks."""
    unknown = set(where) - set(FILTERS)
    if unknown:
        raise ValueError(f"there is no filter {sorted(unknown)}; there are {FILTERS}")
    fits = np.ones(len(references), bool)
    for name, values in where.items():
        wanted = set(values)
        if isinstance(references, ReferenceFile):
            column = references.column(name).to_pylist()
        else:
            column = [r.get(name) for r in references]
        of = [bool(wanted & set(v)) if isinstance(v, list) else v in wanted for v in column]
        fits &= np.array(of, bool)
    return np.flatnonzero(fits).astype(np.int64)


def choose(
    found: Candidates, k: int, allowed: Callable[[int], bool] = lambda row: True
) -> list[int]:
    """The places of k candidates by MMR, of those that are allowed as long as there are any.

    What has the text's own instruction is chosen first, allowed or not.
    """
    fit = [i for i, row in enumerate(found.rows) if i < found.own or allowed(row)]
    if len(fit) < k:
        fit += [i for i in range(len(found.rows)) if i not in set(fit)][: k - len(fit)]
    picked = mmr(found.scores[fit], found.vectors[fit], k, list(range(min(found.own, k))))
    return [fit[i] for i in picked]


def mmr(scores: Vectors, vectors: Vectors, k: int, first: list[int]) -> list[int]:
    """Choose k rows that are relevant and unlike each other (maximal marginal relevance).

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


# MERGED memory~adding
# Adding references to an index that others search meanwhile.
@dataclass(frozen=True, slots=True)
class Added:
    """How many references are new, how many were known, how many there are now."""

    added: int
    known: int
    total: int


async def add(directory: Path, new: Sequence[Reference], embed: Embed, model: str) -> Added:
    """Add references to the index in `directory`, which is made if there is none.

    One adds at a time, whatever the process. Who searches keeps what it has open, and sees the
    new index once its manifest is there, whole. Raises `IndexUnusable` or `OSError`.
    """
    lock = await hold(directory, ".adding.lock")
    try:
        before = await asyncio.to_thread(_kept, directory)
        known: Iterable[Reference] = before if before is not None else ()
        rows = distinct(chain(known, new))
        there = await asyncio.to_thread(_references_files, directory)
        try:
            references = await to_end(write_references, directory, rows)
            total = await ReferenceIndex(references, embed, directory, model).build()
        finally:
            await to_end(_drop_unused, directory, there)
    finally:
        await asyncio.to_thread(lock.release)
    added = total - (0 if before is None else len(before))
    return Added(added, len(new) - added, total)


def _kept(directory: Path) -> ReferenceFile | None:
    return references_in(directory) if (directory / "index.json").exists() else None


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
