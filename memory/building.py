"""Making the vectors of references, and keeping them: only what is new is embedded."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memory import vectors as faiss_vectors
from memory.embed import Embed, Vectors
from memory.references import IndexUnusable, Reference
from memory.store import Keys, ReferenceFile, digest_of, keys_of, write_references
from memory.threads import hold, to_end

FORMAT = 2
BATCH = 1024
REMOVE = "Remove index.json there to build it anew."


@dataclass(frozen=True, slots=True)
class Built:
    """An index that can be searched, and how many of its lists a search reads."""

    index: Any
    probes: int


@dataclass(frozen=True, slots=True)
class Before:
    """What a directory held: the manifest, and the row of every key."""

    manifest: dict[str, Any]
    keys: Keys
    path: Path


class Building:
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

    async def built(self) -> Built:
        """The index. Raises `IndexUnusable` when what is kept there is of another making."""
        digest = await asyncio.to_thread(digest_of, self._references)
        found = await asyncio.to_thread(self._kept, digest)
        if found is not None or self._directory is None:
            return found or await self._made(digest)
        # One process builds; the others wait, and find what it has built.
        lock = await hold(self._directory, ".building.lock")
        try:
            return await asyncio.to_thread(self._kept, digest) or await self._made(digest)
        finally:
            await asyncio.to_thread(lock.release)

    async def opened(self) -> Built:
        """The index that is kept, as it is. Raises `IndexUnusable` when it is of other references.

        For who only searches: whoever builds instead would undo what another is adding.
        """
        digest = await asyncio.to_thread(digest_of, self._references)
        found = await asyncio.to_thread(self._kept, digest)
        if found is None:
            raise IndexUnusable(f"{self._directory}: the index is of other references. {REMOVE}")
        return found

    def _kept(self, digest: str) -> Built | None:
        before = self._before()
        if before is None or before.manifest["references"] != digest:
            return None
        return Built(self._opened(before), before.manifest["probes"])

    async def _made(self, digest: str) -> Built:
        before = await asyncio.to_thread(self._before)
        keys = await asyncio.to_thread(keys_of, self._references)
        grown = before is not None and before.manifest["kind"] != "flat"
        if before is not None and grown and _is_prefix(before, keys):
            return await self._grow(before, keys, digest)
        return await self._make(before, keys, digest)

    async def _make(self, before: Before | None, keys: Keys, digest: str) -> Built:
        """Vectors kept or new, into a file that is mapped; from them the index."""
        file = await asyncio.to_thread(_scratch, self._directory)
        try:
            matrix = await self._embedded(file, before, keys)
            made = await asyncio.to_thread(faiss_vectors.make, matrix)
            if self._directory is None:
                return Built(made.index, made.probes)
            said = {"kind": made.kind, "probes": made.probes, "recall": made.recall}
            return await to_end(self._save, made.index, keys, said, digest, before)
        finally:
            await asyncio.to_thread(file.close)

    async def _embedded(self, file: Any, before: Before | None, keys: Keys) -> Vectors:
        old: Any = await asyncio.to_thread(self._opened, before) if before else None
        have = faiss_vectors.Have(old, before.keys if before else np.zeros(0, np.int64))
        matrix: Vectors | None = None
        for start in range(0, len(keys), BATCH):
            rows = have.rows(keys[start : start + BATCH])
            new = np.flatnonzero(rows < 0)
            texts = await asyncio.to_thread(self._instructions, (new + start).tolist())
            vectors = await self._embed(texts) if texts else None
            if matrix is None:
                dimensions = old.d if vectors is None else vectors.shape[1]
                shape = (len(keys), dimensions)
                made = await asyncio.to_thread(np.memmap, file, np.float32, "w+", shape=shape)
                matrix = made
            await asyncio.to_thread(have.fill, matrix[start : start + BATCH], rows, new, vectors)
            self._told(min(start + BATCH, len(keys)), len(keys))
        assert matrix is not None
        return matrix

    async def _grow(self, before: Before, keys: Keys, digest: str) -> Built:
        """Add to lists what came behind; they were trained on what is like it."""
        index = await asyncio.to_thread(faiss_vectors.open_to_add, before.path)
        for start in range(len(before.keys), len(keys), BATCH):
            rows = range(start, min(start + BATCH, len(keys)))
            texts = await asyncio.to_thread(self._instructions, rows)
            await asyncio.to_thread(index.add, await self._embed(texts))
            self._told(rows.stop, len(keys))
        said = {name: before.manifest[name] for name in ("kind", "probes", "recall")}
        return await to_end(self._save, index, keys, said, digest, before)

    def _instructions(self, rows: Sequence[int]) -> list[str]:
        return [self._references[row]["instruction"] for row in rows]

    def _before(self) -> Before | None:
        """What is kept in the directory; None if there is no index yet."""
        directory = self._directory
        if directory is None or not (directory / "index.json").is_file():
            return None
        try:
            manifest = json.loads((directory / "index.json").read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT or manifest["embedding_model"] != self._model:
                raise IndexUnusable(
                    f"{directory}: index of format {manifest['format']}, embedded by "
                    f"{manifest['embedding_model']!r}; wanted format {FORMAT} and "
                    f"{self._model!r}. {REMOVE}"
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
            raise self._unreadable(error) from error
        return Before(manifest, keys, path)

    def _opened(self, before: Before) -> Any:
        try:
            index = faiss_vectors.open_mapped(before.path)
            if index.ntotal != before.manifest["count"]:
                raise ValueError(f"{index.ntotal} vectors of {before.manifest['count']}")
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unreadable(error) from error
        return index

    def _unreadable(self, error: Exception) -> IndexUnusable:
        said = " ".join(str(error).split())[:200]
        return IndexUnusable(f"{self._directory}: the index cannot be read ({said}). {REMOVE}")

    def _save(
        self, index: Any, keys: Keys, said: dict[str, Any], digest: str, before: Before | None
    ) -> Built:
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
        faiss_vectors.save(index, staged)
        os.replace(staged, vectors)
        with staged.open("wb") as file:
            np.save(file, keys, allow_pickle=False)
        os.replace(staged, kept)
        manifest = {
            "format": FORMAT,
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
        return Built(faiss_vectors.open_mapped(vectors), said["probes"])

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


def _is_prefix(before: Before, keys: Keys) -> bool:
    """Whether references were only appended, and not so many that lists grow out of measure."""
    m = len(before.keys)
    return m < len(keys) <= 2 * m and bool(np.array_equal(before.keys, keys[:m]))
