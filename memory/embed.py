"""Embeddings: texts to vectors of unit length by sentence-transformers, off the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memory.weights import DEFAULT_MODEL, WeightsUnavailable, minilm_path

# Shape (n, dimensions).
Vectors = NDArray[np.float32]

# Texts whose vectors are cached (about 10 MB). Larger batches bypass the cache.
EMBED_CACHE_SIZE = 4096
MAX_CACHED_BATCH = 64
# Texts that are embedded without a break; a few texts wait for no more than that.
SLICE = 128


class Embed(Protocol):
    """Turns texts into vectors."""

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return a vector of unit length for each text, shape (n, dimensions)."""
        ...


class Embedder:
    """An `Embed` by a sentence-transformers model, given by name or path.

    The default model needs no hub: see `memory.weights.minilm_path`. torch takes seconds to import;
    it is imported in the worker thread, on first use.
    """

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        self.model = model
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")
        self._lock = threading.Lock()
        self._encoder: Any = None
        # Whether the model is being loaded, for a display.
        self.loading = False
        # The criteria of a reference are embedded for every seed that uses it.
        self._cache: OrderedDict[str, Vectors] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed in the calling thread. Blocks. See `Embed`."""
        with self._lock:
            if len(texts) > MAX_CACHED_BATCH:
                return self._encode(texts)
            new = list(dict.fromkeys(text for text in texts if text not in self._cache))
            if new:
                self._cache.update(zip(new, self._encode(new), strict=True))
            vectors = np.stack([self._cache[text] for text in texts]) if texts else self._encode([])
            for text in texts:
                self._cache.move_to_end(text)
            while len(self._cache) > EMBED_CACHE_SIZE:
                self._cache.popitem(last=False)
        return vectors

    def _encode(self, texts: Sequence[str]) -> Vectors:
        if self._encoder is None:
            self.loading = True
            try:
                self._encoder = _load(self.model)
            finally:
                self.loading = False
        vectors = self._encoder.encode(
            list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        """Embed in the worker thread. See `Embed`.

        Many texts are embedded in slices, so that the criteria of a seed do not wait until all
        references are embedded, and a cancelled call soon ends.
        """
        loop = asyncio.get_running_loop()
        if len(texts) <= SLICE:
            return await loop.run_in_executor(self._thread, self.encode, texts)
        # A batch is padded to its longest text, so texts of like length go together.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        parts = []
        for start in range(0, len(texts), SLICE):
            part = [texts[i] for i in order[start : start + SLICE]]
            parts.append(await loop.run_in_executor(self._thread, self.encode, part))
        vectors: Vectors = np.concatenate(parts)
        vectors[np.array(order)] = vectors.copy()
        return vectors


def _load(model: str) -> Any:
    path = str(minilm_path()) if model == DEFAULT_MODEL else model
    # torch reads this when it is imported: its threads sleep while they wait for each other. Those
    # that spin took two thirds of the processor time on a machine that has other work too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return SentenceTransformer(path, device="cpu")
    except (OSError, ValueError) as error:
        raise WeightsUnavailable(
            f"the embedding model {model!r} cannot be loaded: {error}"
        ) from error


async def cosine(embed: Embed, left: str, right: str) -> float:
    """Return the cosine of the vectors of two texts, from -1 to 1."""
    vectors = await embed([left, right])
    return float(vectors[0] @ vectors[1])
