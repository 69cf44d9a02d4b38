"""Texts to unit-length vectors, by sentence-transformers, off the event loop and loaded once."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memory import weights
from memory.weights import DEFAULT_MODEL

Vectors = NDArray[np.float32]


# How many texts are remembered with their vectors (some 10 MB), and up to how many at once.
EMBED_CACHE_SIZE = 4096
SMALL_BATCH = 64


class Embed(Protocol):
    """The seam for embeddings: n texts in, an (n, dimensions) float32 array of unit rows out."""

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        """Embed the texts; row i belongs to text i."""
        ...


class Embedder:
    """An `Embed` over one sentence-transformers model, given by name or path.

    The default model needs no hub: see `memory.weights.minilm`. torch is imported in the worker
    thread on first use (it takes seconds), so a run that never embeds never pays for it.
    """

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        self.model = model
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")
        self._lock = threading.Lock()
        self._encoder: Any = None
        # The criteria of one reference come again with every seed that it bears on.
        self._recent: OrderedDict[str, Vectors] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed in the calling thread; blocks. Shape (n, dimensions), unit length."""
        with self._lock:
            if len(texts) > SMALL_BATCH:
                return self._encode(texts)
            new = list(dict.fromkeys(text for text in texts if text not in self._recent))
            if new:
                self._recent.update(zip(new, self._encode(new), strict=True))
            found = np.stack([self._recent[text] for text in texts]) if texts else self._encode([])
            for text in texts:
                self._recent.move_to_end(text)
            while len(self._recent) > EMBED_CACHE_SIZE:
                self._recent.popitem(last=False)
        return found

    def _encode(self, texts: Sequence[str]) -> Vectors:
        if self._encoder is None:
            self._encoder = _load(self.model)
        found = self._encoder.encode(
            list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(found, dtype=np.float32)

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        """Embed in the one worker thread, so that the event loop goes on."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.encode, texts)


def _load(model: str) -> Any:
    path = str(weights.minilm_path()) if model == DEFAULT_MODEL else model
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return SentenceTransformer(path, device="cpu")
    except (OSError, ValueError) as error:
        raise weights.WeightsUnavailable(
            f"the embedding model {model!r} could not be loaded: {error}"
        ) from error


async def cosine(embed: Embed, left: str, right: str) -> float:
    """The cosine of two texts' vectors, -1 to 1."""
    pair = await embed([left, right])
    return float(pair[0] @ pair[1])
