"""The novelty filter's speed, memory and exactness, beside other ways to find near-duplicates.

    python benchmarks/novelty.py [--n 10000] [--big 100000] [--rouge 2000] [--real FILE ...]
        [--rivals PATH/dedup_bench.py]

The texts are 30 +- 6 words of a Zipf-like vocabulary, a quarter of them edited copies of earlier
ones; with --real, instructions of these files (any that refloom reads) with words exchanged. Time
is CPU time in a process of its own, best of 3 (--big: of 1); memory is what the filter adds to the
process's peak. The kept set is compared with that of every pair's LCS in integers, and, on --rouge
texts, with that of the package `rouge_score` if it is installed. `--rivals` names a program with a
dict METHODS of name -> function(texts) -> (kept, extra), and `make(n)`, whose texts are then taken.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import runpy
import string
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.tables import table
from memory.novelty import NoveltyFilter, novel, tokens

TWICE_LCS, TOTAL = 20, 7  # A duplicate is 20 * LCS > 7 * (m + n), which is F1 > 0.7.
BESIDE = ["rf_cdist", "prefix", "datasketch", "rensa", "faiss_verify", "faiss_only"]
# Has modules loaded that the filter loads at first use; every pair's comparison finds them loaded.
WARM_UP = ["what is loaded at first use", "what is loaded at first use"]
HEAD = ["method", "texts", "CPU s", "added MB", "duplicates missed", "wrongly dropped"]
# Texts that brute force compares with all before them at once.
BLOCK = 500
Texts = Callable[[int], list[str]]


def edited(words: list[str], share: float, new: Callable[[], str], draw: random.Random) -> str:
    """The words with up to this share of them dropped, exchanged or followed by another."""
    result = []
    for word in words:
        kind = draw.random() / share if share else 1.0
        if kind >= 1 / 3:
            result.append(new() if kind < 2 / 3 else word)
            result += [new()] if 2 / 3 <= kind < 1 else []
    return " ".join(result) or "empty"


def with_copies(n: int, fresh: Callable[[], str], new: Callable[[], str]) -> list[str]:
    draw = random.Random(3)
    texts: list[str] = []
    for i in range(n):
        if i > 20 and draw.random() < 0.25:
            texts.append(edited(texts[draw.randrange(i)].split(), draw.random() * 0.6, new, draw))
        else:
            texts.append(fresh())
    return texts


def invented(n: int) -> list[str]:
    draw = random.Random(5)
    words = [
        "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 9))) for _ in range(4000)
    ]
    weights = [1 / (rank + 5) for rank in range(len(words))]

    def fresh() -> str:
        return " ".join(draw.choices(words, weights, k=draw.randint(24, 36)))

    return with_copies(n, fresh, lambda: draw.choices(words, weights)[0])


def real(files: list[Path], n: int) -> list[str]:
    """Real instructions, later ones with most words exchanged for others of them."""
    from refloom.data.read import Source

    instructions = [
        seed["instruction"] for file in files for seed in Source(file, as_reference=False)
    ]
    words = [word for text in instructions for word in text.split()]
    draw = random.Random(5)
    unused = list(reversed(instructions))

    def fresh() -> str:
        if unused:
            return unused.pop()
        text = draw.choice(instructions).split()
        return " ".join(draw.choice(words) if draw.random() < 0.7 else word for word in text)

    return with_copies(n, fresh, lambda: draw.choice(words))


def measured(texts: list[str], times: int) -> dict[str, float]:
    """Time and memory of the filter, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts"
        path.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            seconds = min(pool.apply(_seconds, (path,)) for _ in range(times))
            new, before, peak = pool.apply(_memory, (path,))
    return {
        "n": len(texts),
        "tokens_a_text": round(sum(map(len, map(tokens, texts))) / len(texts), 1),
        "kept": new,
        "cpu_s": round(seconds, 3),
        "peak_mb": round(peak, 1),
        "added_mb": round(peak - before, 1),
        "bytes_a_kept_text": round((peak - before) * 2**20 / new),
    }


def _seconds(path: Path) -> float:
    with path.open(encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    list(novel(WARM_UP))
    start = time.process_time()
    list(novel(texts))
    return time.process_time() - start


def _memory(path: Path) -> tuple[int, float, float]:
    list(novel(WARM_UP))
    before = _peak_mb()
    with path.open(encoding="utf-8") as file:
        new = sum(1 for _ in novel(map(json.loads, file)))
    return new, before, _peak_mb()


def _peak_mb() -> float:
    # Not by getrusage, whose peak a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def brute_force(texts: list[str]) -> tuple[list[int], set[tuple[int, int]]]:
    """What every pair's LCS in integers keeps, and the pairs that are exact ties."""
    import numpy as np
    from rapidfuzz import process
    from rapidfuzz.distance import LCSseq

    ids: dict[str, int] = {}
    codes = ["".join(chr(ids.setdefault(t, len(ids)) + 1) for t in tokens(x)) for x in texts]
    sizes = np.array([len(code) for code in codes], np.int64)
    new = np.zeros(len(codes), np.bool_)
    ties: set[tuple[int, int]] = set()
    for low in range(0, len(codes), BLOCK):
        rows = codes[low : low + BLOCK]
        high = low + len(rows)
        ways = {"scorer": LCSseq.similarity, "dtype": np.int64, "workers": -1}
        lcs = process.cdist(rows, codes[:high], **ways)
        over = TWICE_LCS * lcs - TOTAL * (sizes[low:high, None] + sizes[None, :high])
        ties |= {(low + int(i), int(j)) for i, j in np.argwhere(over == 0) if j < low + i}
        for i in range(len(rows)):
            new[low + i] = not (over[i, : low + i] > 0)[new[: low + i]].any()
    return [int(i) for i in np.flatnonzero(new)], ties


def by_rouge_score(texts: list[str], ties: set[tuple[int, int]]) -> list[int]:
    """What the real package keeps, every pair scored; an exact tie does not count as over."""
    new: list[int] = []
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for i, text in enumerate(texts):
            scores = pool.map(partial(_rouge, text), [texts[j] for j in new], chunksize=200)
            near = (s > 0.7 and (i, j) not in ties for s, j in zip(scores, new, strict=True))
            if not any(near):
                new.append(i)
    return new


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def _rouge(new: str, old: str) -> float:
    return float(_scorer().score(new, old)["rougeL"].fmeasure)


def latency(texts: list[str]) -> dict[str, float]:
    """What one more question costs, in microseconds, with all these texts known."""
    known = NoveltyFilter()
    for text in texts:
        known.add(text, "")

    def once(text: str) -> float:
        start = time.process_time()
        known.collision(text + " and more of it")
        return (time.process_time() - start) * 1e6

    times = sorted(map(once, texts[:: max(len(texts) // 1000, 1)]))
    return {"p50_us": round(times[len(times) // 2]), "p99_us": round(times[len(times) * 99 // 100])}


def rival_line(name: str, method: Any, texts: list[str], truth: list[int]) -> list[str]:
    start = os.times()
    try:
        new, _ = method(texts)
    except ImportError as error:
        return [name, f"{len(texts):,}", f"left out: {error}", "", "", ""]
    spent = sum(os.times()[:4]) - sum(start[:4])
    return [name, f"{len(texts):,}", f"{spent:.2f}", "", *differing(new, truth)]


def differing(new: list[int], truth: list[int]) -> list[str]:
    return [str(len(set(new) - set(truth))), str(len(set(truth) - set(new)))]


def own_line(figures: dict[str, float], *checked: str) -> list[str]:
    texts, seconds = f"{figures['n']:,}", f"{figures['cpu_s']:.2f}"
    return ["refloom", texts, seconds, f"{figures['added_mb']}", *checked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10000)
    parser.add_argument("--big", type=int, default=100000, help="0: leave it out")
    parser.add_argument("--rouge", type=int, default=2000, help="0: leave it out")
    parser.add_argument("--real", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--rivals", type=Path, metavar="PATH")
    parser.add_argument("--beside", nargs="*", default=BESIDE, help="which of its methods")
    args = parser.parse_args()
    rivals = runpy.run_path(str(args.rivals)) if args.rivals else {}
    texts: Texts = partial(real, args.real) if args.real else rivals.get("make", invented)
    some = texts(args.n)
    first, new = measured(some, 3), list(novel(some))
    began = time.process_time()
    truth, ties = brute_force(some)
    figures: dict[str, object] = {"filter": first, "exact": new == truth}
    figures["every_pair_cpu_s"] = round(time.process_time() - began, 3)
    lines = [own_line(first, *differing(new, truth))]
    if args.big:
        figures["big"] = big = measured(many := texts(args.big), 1)
        lines.append(own_line(big, "", ""))
        figures["question"] = latency(many)
    methods = rivals.get("METHODS", {})
    lines += [rival_line(k, methods[k], some, truth) for k in args.beside if k in methods]
    if args.rouge and find_spec("rouge_score"):
        few = some[: args.rouge]
        figures["as_rouge_score"] = by_rouge_score(few, ties) == list(novel(few))
        figures["rouge_texts"] = len(few)
    print(table(HEAD, lines))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
