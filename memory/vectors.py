"""The faiss index of reference vectors: built, stored on disk, memory-mapped, searched.

Up to 50,000 vectors the index is flat: a search compares all. Beyond that it is an inverted file
of about 4 * sqrt(n) lists with eight bits a number (`IVFn,SQ8`). The number of lists a search reads
is measured on the data when the index is built, so that it finds 97 % of the nearest. HNSW was
faster at 100,000 vectors, but takes 1.6 times the bytes, and lists take 2 ms among a million
(benchmarks/RESULTS.md).
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
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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

# faiss's messages about which CPU build it loads look like errors in a server's log.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)

# Row numbers of references; -1 where a search has no result.
Rows = NDArray[np.int64]

FLAT_INDEX_MAX = 50_000
TRAINING_POINTS_PER_LIST = 48
BLOCK_ROWS = 20_000
# The numbers of lists read by a search that are tried, and the recall of the 10 nearest that is
# enough.
PROBES = (4, 8, 16, 32, 64, 128, 256)
TARGET_RECALL = 0.97
RECALL_QUERIES = 200
NEIGHBOURS = 10
INDEX_FORMAT = 2
TEXTS_PER_BATCH = 1024
# A file of vectors that are in no index, and the longest first line of it.
SPARE_FILE = "vectors.spare"
MAX_SPARE_HEADER = 10_000
HOW_TO_REBUILD = "Remove index.json there to rebuild it."
_direct_map_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A new index: its kind, how many lists a search reads, and the recall measured with them."""

    index: Any
    kind: str
    probes: int
    recall: float


def build_index(vectors: Vectors, flat_max: int = FLAT_INDEX_MAX) -> BuiltIndex:
    """Build a flat index for up to `flat_max` vectors, else an inverted file. Blocks.

    `vectors`: shape (n, dimensions), unit length; may be a memory map.
    """
    import faiss

    n, dimensions = vectors.shape
    if n <= flat_max:
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
    for start in range(0, len(vectors), BLOCK_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK_ROWS], dtype=np.float32))


def _choose_probes(index: Any, vectors: Vectors, draw: np.random.Generator) -> tuple[int, float]:
    """Return the smallest of `PROBES` that reaches `TARGET_RECALL`, and its recall.

    Each query is a vector moved halfway toward another, so that it is near the data but not in it.
    """
    pick = draw.choice(len(vectors), (2, RECALL_QUERIES))
    between = np.asarray(vectors[np.sort(pick[0])]) + 0.5 * np.asarray(vectors[np.sort(pick[1])])
    queries: Vectors = between / np.linalg.norm(between, axis=1, keepdims=True).astype(np.float32)
    truth = exact_search(vectors, queries, NEIGHBOURS)
    recall = 0.0
    for probes in PROBES:
        rows = search_index(index, queries, NEIGHBOURS, probes)[1]
        hits = sum(len(set(a) & set(b)) for a, b in zip(rows.tolist(), truth, strict=True))
        recall = hits / truth.size
        if recall >= TARGET_RECALL:
            break
    return probes, round(recall, 4)


def exact_search(vectors: Vectors, queries: Vectors, k: int) -> Rows:
    """Return the rows of the k nearest vectors of each query. Compares all, block by block."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.zeros((len(queries), k), np.int64)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = np.asarray(vectors[start : start + BLOCK_ROWS])
        scores = np.concatenate([best, queries @ block.T], axis=1)
        numbers = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        known = np.concatenate([rows, numbers], axis=1)
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best, rows = np.take_along_axis(scores, top, 1), np.take_along_axis(known, top, 1)
    order = np.argsort(-best, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1)


def search_index(
    index: Any, queries: Vectors, k: int, probes: int, among: Rows | None = None
) -> tuple[Vectors, Rows, Vectors]:
    """Return scores (n, k), rows (n, k; -1 for none) and vectors (n, k, dimensions). Blocks.

    `among` restricts the search to some rows; then all lists are read.
    """
    import faiss

    # One thread a search, since many searches run at once.
    faiss.omp_set_num_threads(1)
    selector = None if among is None else faiss.IDSelectorBatch(among)
    if not hasattr(index, "nprobe"):
        parameters: Any = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
    else:
        every = probes if among is None else index.nlist
        parameters = faiss.SearchParametersIVF(nprobe=every, sel=selector)  # type: ignore[call-arg]
    if among is None or not hasattr(index, "nprobe"):
        result: tuple[Vectors, Rows, Vectors] = index.search_and_reconstruct(
            queries, k, params=parameters
        )
        return result
    # An inverted file cannot search a subset and reconstruct in one call.
    scores, rows = index.search(queries, k, params=parameters)
    return scores, rows, vectors_of(index, rows)


def vectors_of(index: Any, rows: Rows) -> Vectors:
    """Return the stored vectors of rows (n, k); zeros for row -1. Blocks."""
    with _direct_map_lock:
        if hasattr(index, "direct_map") and index.direct_map.no():
            index.make_direct_map()
    out = np.zeros((*rows.shape, index.d), np.float32)
    valid = rows >= 0
    if valid.any():
        out[valid] = index.reconstruct_batch(rows[valid])
    return out


def save_index(index: Any, path: Path) -> None:
    """Write an index. Blocks. faiss raises `RuntimeError` if it cannot be written."""
    import faiss

    faiss.write_index(index, str(path))


def open_mapped(path: Path) -> Any:
    """Memory-map an index on disk, read-only and shared with other processes. Blocks."""
    import faiss

    with path.open("rb") as file:
        flat = file.read(4) in (b"IxFI", b"IxF2")
    # faiss maps flat indexes and inverted files with different flags.
    flags = faiss.IO_FLAG_MMAP_IFC if flat else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    return faiss.read_index(str(path), flags)


def open_for_adding(path: Path) -> Any:
    """Read an index into memory, so that vectors can be added. Blocks."""
    import faiss

    return faiss.read_index(str(path))


class KeyedVectors:
    """Looks up vectors, stored row by row, by the keys of their texts."""

    def __init__(self, keys: Keys, read: Callable[[Rows], Vectors]) -> None:
        """`read` returns the vectors of rows, shape (n, dimensions)."""
        self._order: Rows = np.argsort(keys, kind="stable").astype(np.int64)
        self._keys = np.asarray(keys)[self._order]
        self.read = read

    def rows(self, keys: Keys) -> Rows:
        """Return the row of each key; -1 for an unknown one."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._order[at], -1)


class SpareVectors:
    """Vectors in a file that no index holds: of a build that was cut off, or of other references.

    A text is embedded once for a directory, whatever becomes of the index. The file is a line that
    names model and dimensions, and records of a key and a vector; it is only appended to, and a
    record that was cut off is written over. All methods block; one process at a time may write.
    """

    def __init__(self, path: Path, model: str) -> None:
        """Open the file. A missing or damaged one, or one of another model, counts as empty."""
        self.path = path
        self._model = model
        self._start = 0
        self._dtype = np.dtype(np.int64)
        self.known: KeyedVectors | None = None
        self.keys: Keys = np.zeros(0, np.int64)
        with suppress(OSError, ValueError, KeyError, TypeError):
            self._open()

    def _open(self) -> None:
        with self.path.open("rb") as file:
            line = file.readline(MAX_SPARE_HEADER)
        header = json.loads(line)
        if header["embedding_model"] != self._model or not line.endswith(b"\n"):
            return
        self._start, self._dtype = len(line), _spare_record(int(header["dimensions"]))
        n = (self.path.stat().st_size - self._start) // self._dtype.itemsize
        if n:
            records: Any = np.memmap(self.path, self._dtype, "r", offset=self._start, shape=(n,))
            self.keys = np.array(records["key"])
            self.known = KeyedVectors(self.keys, lambda rows: np.array(records["vector"][rows]))

    def append(self, keys: Keys, vectors: Vectors) -> None:
        """Add vectors of texts. Those that were known when the file was opened stay."""
        dtype = _spare_record(vectors.shape[1])
        if dtype != self._dtype:
            header = {"embedding_model": self._model, "dimensions": vectors.shape[1]}
            line = json.dumps(header).encode() + b"\n"
            self.path.write_bytes(line)
            self._start, self._dtype = len(line), dtype
        records = np.zeros(len(keys), dtype)
        records["key"], records["vector"] = keys, vectors
        with self.path.open("r+b") as file:
            n = (file.seek(0, os.SEEK_END) - self._start) // dtype.itemsize
            file.seek(self._start + n * dtype.itemsize)
            file.truncate()
            file.write(records.tobytes())

    def remove(self, keys: Keys) -> None:
        """Drop the vectors of some texts; without any left there is no file."""
        spare = SpareVectors(self.path, self._model)
        left = np.flatnonzero(~np.isin(spare.keys, keys))
        if spare.known is None or not len(left):
            self.path.unlink(missing_ok=True)
        elif len(left) < len(spare.keys):
            staged = SpareVectors(self.path.with_name(f"{self.path.name}.new"), self._model)
            staged.path.unlink(missing_ok=True)
            for start in range(0, len(left), BLOCK_ROWS):
                rows = left[start : start + BLOCK_ROWS]
                staged.append(spare.keys[rows], spare.known.read(rows))
            os.replace(staged.path, self.path)


def _spare_record(dimensions: int) -> np.dtype[Any]:
    return np.dtype([("key", np.int64), ("vector", np.float32, (dimensions,))])


@dataclass(frozen=True, slots=True)
class LoadedVectors:
    """A searchable index and how many of its lists a search reads."""

    index: Any
    probes: int


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """The vectors stored in a directory: the manifest, and the key of every row."""

    manifest: dict[str, Any]
    keys: Keys
    path: Path


class VectorStore:
    """Opens the index of references in a directory, or builds it. Embeds only new texts."""

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
        """See `memory.index.ReferenceIndex`."""
        self._references = references
        self._embed = embed
        self._directory = directory
        self._model = model
        self._on_progress = on_progress or (lambda done, total: None)
        self._flat_max = flat_max

    async def load_or_build(self) -> LoadedVectors:
        """Load the stored index, or build one if there is none of these references.

        Raises `IndexUnusable` if the stored one is damaged, or of another model or format.
        """
        digest = await asyncio.to_thread(references_digest, self._references)
        loaded = await asyncio.to_thread(self._load_current, digest)
        if loaded is not None or self._directory is None:
            return loaded or await self._update(digest)
        # One process builds; the others wait and load its index.
        lock = await acquire_lock(self._directory, ".building.lock")
        try:
            loaded = await asyncio.to_thread(self._load_current, digest)
            return loaded or await self._update(digest)
        finally:
            await asyncio.to_thread(lock.release)

    async def load(self) -> LoadedVectors:
        """Load the stored index. Raises `IndexUnusable` also if it is of other references.

        Processes that only search use this: building here would undo what another one adds.
        """
        digest = await asyncio.to_thread(references_digest, self._references)
        loaded = await asyncio.to_thread(self._load_current, digest)
        if loaded is None:
            raise IndexUnusable(
                f"{self._directory}: the index belongs to other references. {HOW_TO_REBUILD}"
            )
        return loaded

    def _load_current(self, digest: str) -> LoadedVectors | None:
        stored = self._read_stored()
        if stored is None or stored.manifest["references"] != digest:
            return None
        return LoadedVectors(self._open_index(stored), stored.manifest["probes"])

    async def _update(self, digest: str) -> LoadedVectors:
        """Add to the stored index if references were only appended; else build a new one."""
        stored = await asyncio.to_thread(self._read_stored)
        keys = await asyncio.to_thread(instruction_keys, self._references)
        if stored is not None and stored.manifest["kind"] != "flat":
            # The lists were trained on the stored vectors, so no more than those are added.
            n = len(stored.keys)
            if n < len(keys) <= 2 * n and np.array_equal(stored.keys, keys[:n]):
                return await self._extend(stored, keys, digest)
        return await self._build(stored, keys, digest)

    async def _build(self, stored: StoredVectors | None, keys: Keys, digest: str) -> LoadedVectors:
        """Collect stored and new vectors in a memory-mapped file, and build the index from them."""
        file = await asyncio.to_thread(_open_scratch, self._directory)
        try:
            vectors = await self._collect_vectors(file, stored, keys)
            built = await asyncio.to_thread(build_index, vectors, self._flat_max)
            if self._directory is None:
                return LoadedVectors(built.index, built.probes)
            search = {"kind": built.kind, "probes": built.probes, "recall": built.recall}
            return await run_to_completion(self._save, built.index, keys, search, digest, stored)
        finally:
            await asyncio.to_thread(file.close)

    async def _collect_vectors(
        self, file: Any, stored: StoredVectors | None, keys: Keys
    ) -> Vectors:
        """Return the vectors of all references, mapped to `file`; embeds those not stored."""
        sources = []
        if stored is not None:
            old = await asyncio.to_thread(self._open_index, stored)
            sources.append(KeyedVectors(stored.keys, partial(vectors_of, old)))
        spare = await self._open_spare(sources)
        out: Any = None
        self._on_progress(0, len(keys))
        for start in range(0, len(keys), TEXTS_PER_BATCH):
            vectors = await self._vectors_at(start, keys, sources, spare)
            if out is None:
                shape = (len(keys), vectors.shape[1])
                out = await asyncio.to_thread(np.memmap, file, np.float32, "w+", shape=shape)
            await asyncio.to_thread(_write_rows, out, start, vectors)
            self._on_progress(start + len(vectors), len(keys))
        if spare is not None and stored is not None:
            # Other references had these; nobody pays for them again.
            left = np.setdiff1d(stored.keys, np.concatenate([keys, spare.keys]))
            await run_to_completion(_copy_vectors, sources[0], left, spare)
        result: Vectors = out
        return result

    async def _vectors_at(
        self, start: int, keys: Keys, sources: Sequence[KeyedVectors], spare: SpareVectors | None
    ) -> Vectors:
        """Return the vectors of a batch of references; embeds, and puts by, those in no source."""
        keys = keys[start : start + TEXTS_PER_BATCH]
        new = np.arange(len(keys))
        parts: list[tuple[Rows, Vectors]] = []
        for source in sources:
            rows = source.rows(keys[new])
            known = rows >= 0
            if known.any():
                vectors = await asyncio.to_thread(source.read, rows[known])
                parts.append((new[known], vectors))
            new = new[~known]
        if len(new):
            texts = await asyncio.to_thread(self._instructions, (new + start).tolist())
            vectors = await self._embed(texts)
            if spare is not None:
                await run_to_completion(spare.append, keys[new], vectors)
            parts.append((new, vectors))
        out: Vectors = np.zeros((len(keys), parts[0][1].shape[1]), np.float32)
        for at, vectors in parts:
            out[at] = vectors
        return out

    async def _open_spare(self, sources: list[KeyedVectors]) -> SpareVectors | None:
        """Open the directory's spare vectors, if there is a directory; adds them to `sources`."""
        if self._directory is None:
            return None
        spare = await asyncio.to_thread(SpareVectors, self._directory / SPARE_FILE, self._model)
        if spare.known is not None:
            sources.append(spare.known)
        return spare

    async def _extend(self, stored: StoredVectors, keys: Keys, digest: str) -> LoadedVectors:
        """Add the appended references to the stored index."""
        index = await asyncio.to_thread(open_for_adding, stored.path)
        sources: list[KeyedVectors] = []
        spare = await self._open_spare(sources)
        for start in range(len(stored.keys), len(keys), TEXTS_PER_BATCH):
            vectors = await self._vectors_at(start, keys, sources, spare)
            await asyncio.to_thread(index.add, vectors)
            self._on_progress(start + len(vectors), len(keys))
        search = {name: stored.manifest[name] for name in ("kind", "probes", "recall")}
        return await run_to_completion(self._save, index, keys, search, digest, stored)

    def _instructions(self, rows: Sequence[int]) -> list[str]:
        return [self._references[row]["instruction"] for row in rows]

    def _read_stored(self) -> StoredVectors | None:
        """Read what the directory holds; None if there is no index yet."""
        directory = self._directory
        if directory is None or not (directory / "index.json").is_file():
            return None
        try:
            manifest = json.loads((directory / "index.json").read_text(encoding="utf-8"))
            if manifest["format"] != INDEX_FORMAT or manifest["embedding_model"] != self._model:
                model, index_format = manifest["embedding_model"], manifest["format"]
                raise IndexUnusable(
                    f"{directory}: the index is of embedding model {model!r} (format "
                    f"{index_format}), not of {self._model!r} (format {INDEX_FORMAT}). "
                    f"{HOW_TO_REBUILD}"
                )
            path = directory / manifest["vectors"]
            if path.stat().st_size != manifest["bytes"]:
                raise ValueError(f"{path.name} has changed in size")
            keys = np.load(directory / manifest["keys"], mmap_mode="r", allow_pickle=False)
            if len(keys) != manifest["count"]:
                raise ValueError(f"{len(keys)} keys for {manifest['count']} vectors")
            for name, kind in {"references": str, "kind": str, "probes": int}.items():
                if not isinstance(manifest[name], kind):
                    raise ValueError(f"{name} is {manifest[name]!r}")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise self._unusable(error) from error
        return StoredVectors(manifest, keys, path)

    def _open_index(self, stored: StoredVectors) -> Any:
        try:
            index = open_mapped(stored.path)
            if index.ntotal != stored.manifest["count"]:
                raise ValueError(f"{index.ntotal} vectors instead of {stored.manifest['count']}")
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unusable(error) from error
        return index

    def _unusable(self, error: Exception) -> IndexUnusable:
        cause = " ".join(str(error).split())[:200]
        return IndexUnusable(
            f"{self._directory}: the index cannot be read ({cause}). {HOW_TO_REBUILD}"
        )

    def _save(
        self,
        index: Any,
        keys: Keys,
        search: dict[str, Any],
        digest: str,
        stored: StoredVectors | None,
    ) -> LoadedVectors:
        """Write vectors and keys, then the manifest that names them. Each write is atomic.

        Returns the index memory-mapped from disk.
        """
        directory = self._directory
        assert directory is not None
        if isinstance(self._references, ReferenceFile) and not self._references.path.exists():
            # Another build removed the file, which is still open here.
            write_references(directory, self._references)
        # Named by content, so that a manifest never points at another build's vectors.
        name = f"{digest}-{index.ntotal}"
        vectors, key_file = directory / f"vectors-{name}.faiss", directory / f"vectors-{name}.npy"
        staged = directory / "vectors.new"
        save_index(index, staged)
        os.replace(staged, vectors)
        with staged.open("wb") as file:
            np.save(file, keys, allow_pickle=False)
        os.replace(staged, key_file)
        manifest = {
            "format": INDEX_FORMAT,
            "embedding_model": self._model,
            "dimensions": index.d,
            "count": index.ntotal,
            "references": digest,
            "vectors": vectors.name,
            "keys": key_file.name,
            "bytes": vectors.stat().st_size,
            **search,
        }
        staged = directory / "index.json.new"
        staged.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        os.replace(staged, directory / "index.json")
        if stored is not None:
            self._remove_replaced(directory, stored.manifest, manifest)
        SpareVectors(directory / SPARE_FILE, self._model).remove(keys)
        return LoadedVectors(open_mapped(vectors), search["probes"])

    def _remove_replaced(self, directory: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Remove the files that only the old manifest names; others may be another build's."""
        for key in ("vectors", "keys"):
            if old[key] != new[key]:
                (directory / Path(old[key]).name).unlink(missing_ok=True)
        if old["references"] != new["references"]:
            name = f"references-{old['references']}.parquet"
            (directory / Path(name).name).unlink(missing_ok=True)


def _write_rows(out: Vectors, start: int, vectors: Vectors) -> None:
    out[start : start + len(vectors)] = vectors


def _copy_vectors(source: KeyedVectors, keys: Keys, spare: SpareVectors) -> None:
    for start in range(0, len(keys), BLOCK_ROWS):
        block = keys[start : start + BLOCK_ROWS]
        spare.append(block, source.read(source.rows(block)))


def _open_scratch(directory: Path | None) -> Any:
    """Open an unnamed file for vectors, in the index directory if there is one. Blocks."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=directory)
