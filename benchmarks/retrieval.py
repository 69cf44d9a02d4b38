"""The index of many references: how long it takes to build, what it needs, what it finds.

    python benchmarks/retrieval.py [--texts FILE ..] [--n 1000000] --out DIR [--hnsw N]

Vectors are those of the instructions in FILE (of the demo's references without it), each many times
over with noise, so that they lie as real ones do and not evenly. `--hnsw N` builds a graph index
(HNSW) of N of them beside it. The last line on stdout is JSON. Reads /proc, so: Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "refloom" / "resources" / "demo" / "references.jsonl"
NOISE = 0.6
QUERIES = 500
PROCESSES = 4


def real_vectors(files: Sequence[str]) -> np.ndarray:
    """The vectors of the instructions in the files."""
    from memory.embed import Embedder
    from refloom.data.read import Source

    texts = [seed["instruction"][:1000] for f in files for seed in Source(f, as_reference=False)]
    return Embedder().encode(texts)


def spread(base: np.ndarray, n: int, seed: int) -> Iterator[np.ndarray]:
    """n vectors around the given ones, in blocks."""
    draw = np.random.default_rng(seed)
    for start in range(0, n, 20_000):
        rows = base[draw.integers(len(base), size=min(20_000, n - start))]
        noise = draw.normal(size=rows.shape).astype(np.float32) / np.sqrt(rows.shape[1])
        made = rows + NOISE * noise
        yield (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def memory_mb() -> dict[str, float]:
    """What this process holds, in MB; `pss` divides what is shared among the sharers."""
    sizes = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        sizes[name.lower()] = int(value.split()[0]) / 1024
    return {name: round(sizes[name], 1) for name in ("rss", "pss", "anonymous")}


async def build(base: np.ndarray, n: int, out: Path) -> dict[str, float]:
    """Build the product's own index over n references, embedding left out of the clock's way."""
    from memory.index import ReferenceIndex
    from memory.store import write_references

    began = time.perf_counter()
    references = write_references(
        out,
        ({"id": f"r{i}", "instruction": f"question {i}", "response": "so " * 60} for i in range(n)),
    )
    written = time.perf_counter() - began
    blocks = spread(base, n, 1)
    left = next(blocks)

    async def embed(texts: Sequence[str]) -> np.ndarray:
        nonlocal left
        while len(left) < len(texts):
            left = np.concatenate([left, next(blocks)])
        found, left = left[: len(texts)], left[len(texts) :]
        return found

    began = time.perf_counter()
    await ReferenceIndex(references, embed, out, "made").build()
    return {"write_s": round(written, 1), "build_s": round(time.perf_counter() - began, 1)}


async def asked(out: Path, queries: np.ndarray) -> dict[str, object]:
    """Open the index as a new process does, and search it."""
    from memory.index import ReferenceIndex
    from memory.store import open_reference_file

    before = memory_mb()
    texts = {f"query {i}": query for i, query in enumerate(queries)}

    async def embed(given: Sequence[str]) -> np.ndarray:
        return np.stack([texts[text] for text in given])

    import faiss  # noqa: F401 - its import is no part of opening
    import pyarrow.parquet  # noqa: F401

    began = time.perf_counter()
    index = ReferenceIndex(open_reference_file(out), embed, out, "made")
    await index.build()
    opened = time.perf_counter() - began
    seconds, rows = [], []
    for text in texts:
        began = time.perf_counter()
        candidates = await index.candidates(text, 2)
        seconds.append(time.perf_counter() - began)
        rows.append(candidates.rows[:10])
    await index.search("query 0", 3)
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    return {
        "open_s": round(opened, 3),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "memory_mb": memory_mb(),
        "before_mb": before,
        "found": rows,
    }


def hnsw(base: np.ndarray, n: int, queries: np.ndarray) -> dict[str, float]:
    """A graph index of n vectors: time to build, bytes a vector, what it finds, how fast."""
    import faiss

    from memory.vectors import exact_search

    vectors = np.concatenate(list(spread(base, n, 1)))
    index = faiss.index_factory(vectors.shape[1], "HNSW32,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    began = time.perf_counter()
    index.train(vectors[:50_000])
    index.add(vectors)
    built = time.perf_counter() - began
    faiss.omp_set_num_threads(1)
    index.hnsw.efSearch = 128
    began = time.perf_counter()
    rows = np.concatenate([index.search(query[None], 10)[1] for query in queries])
    query_ms = (time.perf_counter() - began) / len(queries) * 1000
    truth = exact_search(vectors, queries, 10)
    hits = sum(len(set(a) & set(b)) for a, b in zip(rows.tolist(), truth.tolist(), strict=True))
    size = faiss.serialize_index(index).nbytes
    return {
        "n": n,
        "build_s": round(built, 1),
        "bytes_a_vector": round(size / n),
        "recall": round(hits / truth.size, 4),
        "ms": round(query_ms, 2),
    }


def asked_by_processes(given: argparse.Namespace) -> tuple[dict, list[dict]]:
    """What one process finds and takes, and what several hold that have the index open at once."""
    command = [sys.executable, __file__, "--part", "ask", "--texts", "-", "--out", str(given.out)]
    pipe = subprocess.PIPE

    def ask() -> subprocess.Popen:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    askers = [ask()]
    first = json.loads(askers[0].stdout.readline())
    askers += [ask() for _ in range(PROCESSES - 1)]
    for asker in askers[1:]:
        asker.stdout.readline()
    return first, [json.loads(a.communicate("\n")[0].splitlines()[-1]) for a in askers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", nargs="+", default=[str(DEMO)])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--hnsw", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("ask",), help=argparse.SUPPRESS)
    args = parser.parse_args()
    queries_file, index = args.out / "queries.npy", args.out / "index"
    if args.part == "ask":
        print(json.dumps(asyncio.run(asked(index, np.load(queries_file)))), flush=True)
        sys.stdin.readline()
        print(json.dumps(memory_mb()))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    base = real_vectors(args.texts)
    queries = next(spread(base, QUERIES, 2))
    np.save(queries_file, queries)
    figures: dict = {"n": args.n, **asyncio.run(build(base, args.n, index))}
    rows = exact_over(base, args.n, queries)
    first, shared = asked_by_processes(args)
    hits = sum(len(set(a) & set(b)) for a, b in zip(first.pop("found"), rows, strict=True))
    manifest = json.loads((index / "index.json").read_text())
    figures |= {name: manifest[name] for name in ("kind", "probes")}
    figures |= {"recall_at_build": manifest["recall"], "recall": round(hits / len(queries) / 10, 4)}
    figures |= {**first, "four_processes_mb": shared}
    figures["disk_mb"] = {p.name: round(p.stat().st_size / 1e6, 1) for p in index.iterdir()}
    figures["hnsw"] = hnsw(base, args.hnsw, queries) if args.hnsw else None
    print(json.dumps(figures))


def exact_over(base: np.ndarray, n: int, queries: np.ndarray) -> list[list[int]]:
    """The ten nearest of each query among all vectors, made anew block by block."""
    from memory.vectors import exact_search

    best = np.full((len(queries), 10), -np.inf, np.float32)
    rows = np.zeros((len(queries), 10), np.int64)
    start = 0
    for block in spread(base, n, 1):
        near = exact_search(block, queries, 10)
        scores = np.take_along_axis(queries @ block.T, near, 1)
        every = np.concatenate([best, scores], 1)
        known = np.concatenate([rows, near + start], 1)
        top = np.argsort(-every, 1)[:, :10]
        best, rows = np.take_along_axis(every, top, 1), np.take_along_axis(known, top, 1)
        start += len(block)
    return rows.tolist()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
