"""Vectors in faiss: which kind of index for how many, on disk, memory-mapped, searched.

Up to 50,000 vectors every one is compared. More are put into an inverted file of about 4 * sqrt(n)
lists, eight bits a number (`IVFn,SQ8`), and as many lists are searched as it takes on this very
data to find 97 of the 100 nearest (measured while it is built). A graph (HNSW) of 100,000 answered
sooner, but lists take two milliseconds among a million, and it wants 1.6 times the bytes: figures
in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory.embed import Embed, Vectors
from memory.references import IndexUnusable, Reference
from memory.store import (
    Keys,
    ReferenceFile,
    acquire_lock,
    instruction_keys,
    references_digest,
    run_to_completion,
    write_references,
)

Rows = NDArray[np.int64]

FLAT_INDEX_MAX = 50_000
TRAINING_POINTS_PER_LIST = 48
ADD_BATCH = 20_000
PROBES = (4, 8, 16, 32, 64, 128, 256)
TARGET_RECALL = 0.97
RECALL_QUERIES = 200
NEIGHBOURS = 10
_mapping = threading.Lock()


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """An index as it was built: of what kind, how many lists a search reads, what it finds."""

    index: Any
    kind: str
    probes: int
    recall: float


# What it says while it looks for the fastest of its builds reads like errors in a server's log.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)


def build_index(vectors: Vectors) -> BuiltIndex:
    """Build the index that so many vectors call for; `vectors` may be a memory map. Blocks."""
    import faiss

    n, dimensions = vectors.shape
    if n <= FLAT_INDEX_MAX:
        flat = faiss.IndexFlatIP(dimensions)
        _add(flat, vectors)
        return BuiltIndex(flat, "flat", 0, 1.0)
    lists = round(4 * math.sqrt(n))
    index: Any = faiss.index_factory(dimensions, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 8
    draw = np.random.default_rng(0)
    sample = np.sort(draw.choice(n, min(n, TRAINING_POINTS_PER_LIST * lists), replace=False))
    index.train(np.ascontiguousarray(vectors[sample]))
    _add(index, vectors)
    probes, recall = _choose_probes(index, vectors, draw)
    return BuiltIndex(index, f"IVF{lists},SQ8", probes, recall)


def _add(index: Any, vectors: Vectors) -> None:
    for start in range(0, len(vectors), ADD_BATCH):
        index.add(np.ascontiguousarray(vectors[start : start + ADD_BATCH], dtype=np.float32))


def _choose_probes(index: Any, vectors: Vectors, draw: np.random.Generator) -> tuple[int, float]:
    """The least number of lists that finds the nearest often enough, and how often it does.

    Asked are texts between the ones that are there: each query is a vector moved toward another.
    """
    pick = draw.choice(len(vectors), (2, RECALL_QUERIES))
    between = np.asarray(vectors[np.sort(pick[0])]) + 0.5 * np.asarray(vectors[np.sort(pick[1])])
    queries: Vectors = between / np.linalg.norm(between, axis=1, keepdims=True).astype(np.float32)
    truth = exact_search(vectors, queries, NEIGHBOURS)
    recall = 0.0
    for probes in PROBES:
        found = search_index(index, queries, NEIGHBOURS, probes)[1]
        hits = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), truth, strict=True))
        recall = hits / truth.size
        if recall >= TARGET_RECALL:
            break
    return probes, round(recall, 4)


def exact_search(vectors: Vectors, queries: Vectors, k: int) -> Rows:
    """The rows of the k nearest vectors of each query, by comparing all; reads in blocks."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.zeros((len(queries), k), np.int64)
    for start in range(0, len(vectors), ADD_BATCH):
        block = np.asarray(vectors[start : start + ADD_BATCH])
        scores = np.concatenate([best, queries @ block.T], axis=1)
        known = np.concatenate(
            [
                rows,
                np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block))),
            ],
            axis=1,
        )
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k] if scores.shape[1] > k else None
        if top is None:
            best, rows = scores, known
            continue
        best, rows = np.take_along_axis(scores, top, 1), np.take_along_axis(known, top, 1)
    order = np.argsort(-best, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1)


def search_index(
    index: Any, queries: Vectors, k: int, probes: int, among: Rows | None = None
) -> tuple[Vectors, Rows, Vectors]:
    """Scores (n, k), rows (n, k; -1 where there are fewer) and vectors (n, k, dimensions). Blocks.

    `among` restricts the search to some rows; then all lists are looked at.
    """
    import faiss

    # One thread a search: many searches run at once.
    faiss.omp_set_num_threads(1)
    selector = None if among is None else faiss.IDSelectorBatch(among)
    if not hasattr(index, "nprobe"):
        given: Any = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
    else:
        every = probes if among is None else index.nlist
        given = faiss.SearchParametersIVF(nprobe=every, sel=selector)  # type: ignore[call-arg]
    if among is None or not hasattr(index, "nprobe"):
        found: tuple[Vectors, Rows, Vectors] = index.search_and_reconstruct(
            queries, k, params=given
        )
        return found
    # Lists cannot do both at once for some of their rows.
    scores, rows = index.search(queries, k, params=given)
    return scores, rows, vectors_of(index, rows)


def vectors_of(index: Any, rows: Rows) -> Vectors:
    """The vectors of rows (n, k) as they are kept; of row -1 zeros. Blocks."""
    with _mapping:
        if hasattr(index, "direct_map") and index.direct_map.no():
            index.make_direct_map()
    out = np.zeros((*rows.shape, index.d), np.float32)
    there = rows >= 0
    if there.any():
        out[there] = index.reconstruct_batch(rows[there])
    return out


def save_index(index: Any, path: Path) -> None:
    """Write an index. Blocks; raises `RuntimeError` (faiss's) when it cannot be written."""
    import faiss

    faiss.write_index(index, str(path))


def open_mapped(path: Path) -> Any:
    """An index as it lies on disk, read-only and shared with other processes. Blocks."""
    import faiss

    with path.open("rb") as file:
        flat = file.read(4) in (b"IxFI", b"IxF2")
    # Lists and plain vectors are mapped by different ways of faiss.
    flags = faiss.IO_FLAG_MMAP_IFC if flat else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    return faiss.read_index(str(path), flags)


def open_for_adding(path: Path) -> Any:
    """An index in memory, which can be added to. Blocks."""
    import faiss

    return faiss.read_index(str(path))


class KeyedVectors:
    """The vectors of an index by the keys of their texts."""

    def __init__(self, index: Any, keys: NDArray[np.int64]) -> None:
        self._index = index
        self._order: Rows = np.argsort(keys, kind="stable").astype(np.int64)
        self._keys = np.asarray(keys)[self._order]

    def rows(self, keys: NDArray[np.int64]) -> Rows:
        """The row of each key; -1 for one that is not there."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._order[at], -1)

    def fill(self, out: Vectors, rows: Rows, new: Rows, vectors: Vectors | None) -> None:
        """Put old and new vectors in their places."""
        if vectors is not None:
            out[new] = vectors
        old = np.flatnonzero(rows >= 0)
        if len(old):
            out[old] = vectors_of(self._index, rows[old])


# MERGED memory~building
# Making the vectors of references, and keeping them: only what is new is embedded.
INDEX_FORMAT = 2
EMBED_BATCH = 1024
HOW_TO_REBUILD = "Remove index.json there to build it anew."


@dataclass(frozen=True, slots=True)
class LoadedVectors:
    """An index that can be searched, and how many of its lists a search reads."""

    index: Any
    probes: int


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """What a directory held: the manifest, and the row of every key."""

    manifest: dict[str, Any]
    keys: Keys
    path: Path


class VectorStore:
    """Opens the vectors of references in a directory, or makes them."""

    def __init__(
        self,
        references: Sequence[Reference],
        embed: Embed,
        directory: Path | None,
        model: str,
        told: Callable[[int, int], None] | None,
    ) -> None:
        self._references = references
        self._embed = embed
        self._directory = directory
        self._model = model
        self._told = told or (lambda done, total: None)

    async def load_or_build(self) -> LoadedVectors:
        """The index. Raises `IndexUnusable` when what is kept there is of another making."""
        digest = await asyncio.to_thread(references_digest, self._references)
        found = await asyncio.to_thread(self._load_current, digest)
        if found is not None or self._directory is None:
            return found or await self._build_anew(digest)
        # One process builds; the others wait, and find what it has built.
        lock = await acquire_lock(self._directory, ".building.lock")
        try:
            return await asyncio.to_thread(self._load_current, digest) or await self._build_anew(
                digest
            )
        finally:
            await asyncio.to_thread(lock.release)

    async def load(self) -> LoadedVectors:
        """The index that is kept, as it is. Raises `IndexUnusable` when it is of other references.

        For who only searches: whoever builds instead would undo what another is adding.
        """
        digest = await asyncio.to_thread(references_digest, self._references)
        found = await asyncio.to_thread(self._load_current, digest)
        if found is None:
            raise IndexUnusable(
                f"{self._directory}: the index is of other references. {HOW_TO_REBUILD}"
            )
        return found

    def _load_current(self, digest: str) -> LoadedVectors | None:
        before = self._read_stored()
        if before is None or before.manifest["references"] != digest:
            return None
        return LoadedVectors(self._open_index(before), before.manifest["probes"])

    async def _build_anew(self, digest: str) -> LoadedVectors:
        before = await asyncio.to_thread(self._read_stored)
        keys = await asyncio.to_thread(instruction_keys, self._references)
        grown = before is not None and before.manifest["kind"] != "flat"
        if before is not None and grown and _is_prefix(before, keys):
            return await self._grow(before, keys, digest)
        return await self._build(before, keys, digest)

    async def _build(self, before: StoredVectors | None, keys: Keys, digest: str) -> LoadedVectors:
        """Vectors kept or new, into a file that is mapped; from them the index."""
        file = await asyncio.to_thread(_scratch, self._directory)
        try:
            matrix = await self._embed_all(file, before, keys)
            made = await asyncio.to_thread(build_index, matrix)
            if self._directory is None:
                return LoadedVectors(made.index, made.probes)
            said = {"kind": made.kind, "probes": made.probes, "recall": made.recall}
            return await run_to_completion(self._save, made.index, keys, said, digest, before)
        finally:
            await asyncio.to_thread(file.close)

    async def _embed_all(self, file: Any, before: StoredVectors | None, keys: Keys) -> Vectors:
        old: Any = await asyncio.to_thread(self._open_index, before) if before else None
        have = KeyedVectors(old, before.keys if before else np.zeros(0, np.int64))
        matrix: Vectors | None = None
        for start in range(0, len(keys), EMBED_BATCH):
            rows = have.rows(keys[start : start + EMBED_BATCH])
            new = np.flatnonzero(rows < 0)
            texts = await asyncio.to_thread(self._instructions, (new + start).tolist())
            vectors = await self._embed(texts) if texts else None
            if matrix is None:
                dimensions = old.d if vectors is None else vectors.shape[1]
                shape = (len(keys), dimensions)
                made = await asyncio.to_thread(np.memmap, file, np.float32, "w+", shape=shape)
                matrix = made
            await asyncio.to_thread(
                have.fill, matrix[start : start + EMBED_BATCH], rows, new, vectors
            )
            self._told(min(start + EMBED_BATCH, len(keys)), len(keys))
        assert matrix is not None
        return matrix

    async def _grow(self, before: StoredVectors, keys: Keys, digest: str) -> LoadedVectors:
        """Add to lists what came behind; they were trained on what is like it."""
        index = await asyncio.to_thread(open_for_adding, before.path)
        for start in range(len(before.keys), len(keys), EMBED_BATCH):
            rows = range(start, min(start + EMBED_BATCH, len(keys)))
            texts = await asyncio.to_thread(self._instructions, rows)
            await asyncio.to_thread(index.add, await self._embed(texts))
            self._told(rows.stop, len(keys))
        said = {name: before.manifest[name] for name in ("kind", "probes", "recall")}
        return await run_to_completion(self._save, index, keys, said, digest, before)

    def _instructions(self, rows: Sequence[int]) -> list[str]:
        return [self._references[row]["instruction"] for row in rows]

    def _read_stored(self) -> StoredVectors | None:
        """What is kept in the directory; None if there is no index yet."""
        directory = self._directory
        if directory is None or not (directory / "index.json").is_file():
            return None
        try:
            manifest = json.loads((directory / "index.json").read_text(encoding="utf-8"))
            if manifest["format"] != INDEX_FORMAT or manifest["embedding_model"] != self._model:
                raise IndexUnusable(
                    f"{directory}: index of format {manifest['format']}, embedded by "
                    f"{manifest['embedding_model']!r}; wanted format {INDEX_FORMAT} and "
                    f"{self._model!r}. {HOW_TO_REBUILD}"
                )
            path = directory / manifest["vectors"]
            if path.stat().st_size != manifest["bytes"]:
                raise ValueError(f"{path.name} is not as long as it was")
            keys = np.load(directory / manifest["keys"], mmap_mode="r", allow_pickle=False)
            if len(keys) != manifest["count"]:
                raise ValueError(f"{len(keys)} keys for {manifest['count']} vectors")
            for name, kind in {"references": str, "kind": str, "probes": int}.items():
                if not isinstance(manifest[name], kind):
                    raise ValueError(f"{name} is {manifest[name]!r}")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise self._unusable(error) from error
        return StoredVectors(manifest, keys, path)

    def _open_index(self, before: StoredVectors) -> Any:
        try:
            index = open_mapped(before.path)
            if index.ntotal != before.manifest["count"]:
                raise ValueError(f"{index.ntotal} vectors of {before.manifest['count']}")
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unusable(error) from error
        return index

    def _unusable(self, error: Exception) -> IndexUnusable:
        said = " ".join(str(error).split())[:200]
        return IndexUnusable(
            f"{self._directory}: the index cannot be read ({said}). {HOW_TO_REBUILD}"
        )

    def _save(
        self,
        index: Any,
        keys: Keys,
        said: dict[str, Any],
        digest: str,
        before: StoredVectors | None,
    ) -> LoadedVectors:
        """Write vectors and keys, then the manifest that makes them count; each whole or not.

        What was in memory is let go of for what is mapped.
        """
        directory = self._directory
        assert directory is not None
        if isinstance(self._references, ReferenceFile) and not self._references.path.exists():
            # Another build swept them away; they are still open here.
            write_references(directory, self._references)
        # Named by what they hold, so that a manifest never meets another's vectors.
        name = f"{digest}-{index.ntotal}"
        vectors, kept = directory / f"vectors-{name}.faiss", directory / f"vectors-{name}.npy"
        staged = directory / "vectors.new"
        save_index(index, staged)
        os.replace(staged, vectors)
        with staged.open("wb") as file:
            np.save(file, keys, allow_pickle=False)
        os.replace(staged, kept)
        manifest = {
            "format": INDEX_FORMAT,
            "embedding_model": self._model,
            "dimensions": index.d,
            "count": index.ntotal,
            "references": digest,
            "vectors": vectors.name,
            "keys": kept.name,
            "bytes": vectors.stat().st_size,
            **said,
        }
        staged = directory / "index.json.new"
        staged.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        os.replace(staged, directory / "index.json")
        if before is not None:
            self._sweep(directory, before.manifest, manifest)
        return LoadedVectors(open_mapped(vectors), said["probes"])

    def _sweep(self, directory: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Remove what only the manifest before named; anything else may be another build's."""
        for key in ("vectors", "keys"):
            if old[key] != new[key]:
                (directory / Path(old[key]).name).unlink(missing_ok=True)
        if old["references"] != new["references"]:
            name = f"references-{old['references']}.parquet"
            (directory / Path(name).name).unlink(missing_ok=True)


def _scratch(directory: Path | None) -> Any:
    """An unnamed file for vectors that are being made, where there is room for them. Blocks."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=directory)


def _is_prefix(before: StoredVectors, keys: Keys) -> bool:
    """Whether references were only appended, and not so many that lists grow out of measure."""
    m = len(before.keys)
    return m < len(keys) <= 2 * m and bool(np.array_equal(before.keys, keys[:m]))
