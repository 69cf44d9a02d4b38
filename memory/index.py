"""The references and the FAISS index over their instructions: build, keep, search."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from hashlib import sha256
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NotRequired, Protocol, cast

import numpy as np
from typing_extensions import TypedDict

from memory.embed import Embed, Vectors

FORMAT = 1
MMR_POOL = 8
MMR_RELEVANCE = 0.7


class Reference(TypedDict):
    """A curated instruction and response pair that a person vouches for."""

    id: str
    instruction: str
    response: str
    source: NotRequired[str]
    license: NotRequired[str]
    tags: NotRequired[list[str]]
    score: NotRequired[float]


class IndexUnusable(Exception):
    """An index that is missing, damaged, or made otherwise. The message says how to rebuild."""


class Search(Protocol):
    """The seam for retrieval: the references most useful for a text."""

    async def __call__(self, text: str, k: int) -> list[Reference]:
        """At most `k` references; one with this very instruction comes first."""
        ...


def content_id(*parts: str) -> str:
    """A short, stable name for a content: 12 hex digits of its sha256."""
    return sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


class ReferenceIndex:
    """References in memory with their vectors, searched exactly by inner product.

    Vectors are made on the first search that needs them and kept in `directory`, so that a run
    whose seeds are the references themselves (the paper's way) embeds nothing.
    """

    def __init__(
        self, references: Iterable[Reference], embed: Embed, directory: Path | None, model: str
    ) -> None:
        """`directory` None keeps the vectors in memory only; `model` names what embedded them."""
        self.references = list(references)
        self._embed = embed
        self._directory = directory
        self._model = model
        self._lock = asyncio.Lock()
        self._faiss: Any = None
        self._at = {r["instruction"].strip(): i for i, r in reversed([*enumerate(self.references)])}

    async def search(self, text: str, k: int) -> list[Reference]:
        """At most `k` references for `text` by MMR; the one with this very instruction first."""
        own = self._at.get(text.strip())
        if own is not None and k == 1:
            return [_scored(self.references[own], 1.0)]
        if not self.references or k < 1:
            return []
        index = await self._ready()
        query = await self._embed([text])
        return await asyncio.to_thread(self._pick, index, query, k, own)

    def _pick(self, index: Any, query: Vectors, k: int, own: int | None) -> list[Reference]:
        pool = min(len(self.references), max(k * MMR_POOL, k))
        rows = [int(row) for row in index.search(query, pool)[1][0]]
        if own is not None:
            # Among many of an equal vector the search may have missed this very one.
            rows = [own, *(row for row in rows if row != own)][:pool]
        vectors = np.stack([index.reconstruct(row) for row in rows])
        scores = vectors @ query[0]
        chosen = mmr(scores, vectors, k, [] if own is None else [0])
        return [_scored(self.references[rows[i]], float(scores[i])) for i in chosen]

    async def _ready(self) -> Any:
        async with self._lock:
            if self._faiss is None:
                self._faiss = await self._build()
            return self._faiss

    async def _build(self) -> Any:
        import faiss

        # A vector belongs to a text, whatever the id of the reference.
        ids = [content_id(r["instruction"]) for r in self.references]
        kept, vectors = await asyncio.to_thread(_load, self._directory, self._model)
        have = {id_: i for i, id_ in enumerate(kept)}
        pairs = zip(self.references, ids, strict=True)
        missing = [r["instruction"] for r, id_ in pairs if id_ not in have]
        new = iter(await self._embed(missing) if missing else ())
        rows = [vectors[have[id_]] if id_ in have else next(new) for id_ in ids]
        matrix = np.ascontiguousarray(np.stack(rows), dtype=np.float32)
        index = faiss.IndexFlatIP(matrix.shape[1])
        await asyncio.to_thread(index.add, matrix)
        if self._directory is not None and (missing or ids != kept):
            await asyncio.to_thread(_save, self._directory, self._model, ids, index)
        return index

    async def build(self) -> int:
        """Make the vectors now; return how many references there are."""
        if self.references:
            await self._ready()
        return len(self.references)


def _scored(reference: Reference, score: float) -> Reference:
    return {**reference, "score": round(score, 4)}


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


def _load(directory: Path | None, model: str) -> tuple[list[str], Vectors]:
    """The ids and vectors kept in `directory`; none if there is no index yet."""
    nothing: Vectors = np.zeros((0, 0), np.float32)
    if directory is None or not (directory / "index.json").is_file():
        return [], nothing
    try:
        manifest = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["embedding_model"] != model:
            raise IndexUnusable(
                f"{directory}: index of format {manifest['format']}, embedded by "
                f"{manifest['embedding_model']!r}; wanted format {FORMAT} and {model!r}. "
                "Remove index.json there to build it anew."
            )
        import faiss

        index = faiss.read_index(str(directory / manifest["vectors"]))
        if index.ntotal != len(manifest["ids"]):
            raise ValueError(f"{index.ntotal} vectors for {len(manifest['ids'])} ids")
        return list(manifest["ids"]), cast(Vectors, index.reconstruct_n(0, index.ntotal))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise IndexUnusable(
            f"{directory}: the index cannot be read ({error}). "
            "Remove index.json there to build it anew."
        ) from error


def _save(directory: Path, model: str, ids: list[str], index: Any) -> None:
    """Write vectors, then the manifest that makes them count; each appears whole or not at all."""
    import faiss

    directory.mkdir(parents=True, exist_ok=True)
    # Named by what it holds, so that a manifest never meets another's vectors.
    vectors = directory / f"references-{content_id(model, *ids)}.faiss"
    staged = directory / f"{vectors.name}.new"
    faiss.write_index(index, str(staged))
    os.replace(staged, vectors)
    manifest = {
        "format": FORMAT,
        "embedding_model": model,
        "dimensions": index.d,
        "vectors": vectors.name,
        "ids": ids,
    }
    staged = directory / "index.json.new"
    staged.write_text(json.dumps(manifest), encoding="utf-8")
    os.replace(staged, directory / "index.json")
    for old in directory.glob("references-*.faiss*"):
        if old != vectors:
            old.unlink(missing_ok=True)


def write_references(directory: Path, references: Iterable[Reference]) -> None:
    """Keep the references themselves beside their vectors, as `references.jsonl`."""
    directory.mkdir(parents=True, exist_ok=True)
    staged = directory / "references.jsonl.new"
    with staged.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in references)
    os.replace(staged, directory / "references.jsonl")


def read_references(path: Path) -> list[Reference]:
    """The references that `write_references` kept, or the project's own demo references."""
    try:
        with path.open(encoding="utf-8") as file:
            return [cast(Reference, json.loads(line)) for line in file]
    except (OSError, ValueError) as error:
        raise IndexUnusable(
            f"{path}: the references cannot be read ({error}). "
            "Build the index with `refloom index build FILE --out DIR`."
        ) from error


def default_references() -> tuple[list[Reference], Path | None]:
    """The references of `$REFLOOM_INDEX`, else the bundled demo ones, and where vectors are kept.

    Blocks on files; call it off the event loop.
    """
    named = os.environ.get("REFLOOM_INDEX")
    if named:
        return read_references(Path(named) / "references.jsonl"), Path(named)
    with as_file(files("refloom.demo").joinpath("references.jsonl")) as path:
        return read_references(path), None
