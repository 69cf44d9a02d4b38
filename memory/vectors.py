"""Vectors in faiss: which kind of index for how many, on disk, memory-mapped, searched.

Up to 50,000 vectors every one is compared. More are put into an inverted file of about 4 * sqrt(n)
lists, eight bits a number (`IVFn,SQ8`), and as many lists are searched as it takes on this very
data to find 97 of the 100 nearest (measured while it is built). A graph (HNSW) of 100,000 answered
sooner, but lists take two milliseconds among a million, and it wants 1.6 times the bytes: figures
in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

EXACT_UP_TO = 50_000
TRAINED_ON = 48
ADDED = 20_000
PROBES = (4, 8, 16, 32, 64, 128, 256)
WANTED_RECALL = 0.97
TRIED = 200
NEIGHBOURS = 10
_mapping = threading.Lock()


@dataclass(frozen=True, slots=True)
class Made:
    """An index as it was built: of what kind, how many lists a search reads, what it finds."""

    index: Any
    kind: str
    probes: int
    recall: float


# What it says while it looks for the fastest of its builds reads like errors in a server's log.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)


def make(vectors: Vectors) -> Made:
    """Build the index that so many vectors call for; `vectors` may be a memory map. Blocks."""
    import faiss

    n, dimensions = vectors.shape
    if n <= EXACT_UP_TO:
        flat = faiss.IndexFlatIP(dimensions)
        _add(flat, vectors)
        return Made(flat, "flat", 0, 1.0)
    lists = round(4 * math.sqrt(n))
    index: Any = faiss.index_factory(dimensions, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 8
    draw = np.random.default_rng(0)
    sample = np.sort(draw.choice(n, min(n, TRAINED_ON * lists), replace=False))
    index.train(np.ascontiguousarray(vectors[sample]))
    _add(index, vectors)
    probes, recall = _probes(index, vectors, draw)
    return Made(index, f"IVF{lists},SQ8", probes, recall)


def _add(index: Any, vectors: Vectors) -> None:
    for start in range(0, len(vectors), ADDED):
        index.add(np.ascontiguousarray(vectors[start : start + ADDED], dtype=np.float32))


def _probes(index: Any, vectors: Vectors, draw: np.random.Generator) -> tuple[int, float]:
    """The least number of lists that finds the nearest often enough, and how often it does.

    Asked are texts between the ones that are there: each query is a vector moved toward another.
    """
    pick = draw.choice(len(vectors), (2, TRIED))
    between = np.asarray(vectors[np.sort(pick[0])]) + 0.5 * np.asarray(vectors[np.sort(pick[1])])
    queries: Vectors = between / np.linalg.norm(between, axis=1, keepdims=True).astype(np.float32)
    truth = exact(vectors, queries, NEIGHBOURS)
    recall = 0.0
    for probes in PROBES:
        found = search(index, queries, NEIGHBOURS, probes)[1]
        hits = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), truth, strict=True))
        recall = hits / truth.size
        if recall >= WANTED_RECALL:
            break
    return probes, round(recall, 4)


def exact(vectors: Vectors, queries: Vectors, k: int) -> Rows:
    """The rows of the k nearest vectors of each query, by comparing all; reads in blocks."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.zeros((len(queries), k), np.int64)
    for start in range(0, len(vectors), ADDED):
        block = np.asarray(vectors[start : start + ADDED])
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


def search(
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


def save(index: Any, path: Path) -> None:
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


def open_to_add(path: Path) -> Any:
    """An index in memory, which can be added to. Blocks."""
    import faiss

    return faiss.read_index(str(path))


class Have:
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
