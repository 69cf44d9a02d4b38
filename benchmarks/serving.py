"""What a LangGraph server over refloom's graphs does under load, and when it is killed.

    python benchmarks/serving.py --seeds 200 --out DIR

First: how long `/ok` takes while seeds are embedded and searched for, against an idle server; a
server whose loop is blocked by that would take seconds. Then: all seeds at once through
`examples/client.py`, the server killed with -9 when half of its calls are answered and started
again; every seed has to end with its samples. The last line on stdout is JSON; the exit status is
1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

from faulty_answers import ROOT, words
from processes import answered, rows_of, started
from served import Server, free_port
from served import start as begin

MOST_P99_MS = 100.0
EMBEDDED = 60


def start(folder: Path, port: int, endpoint: str, index: Path) -> Server:
    """A server as `make dev` starts one; waits until index and model are loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"OPENAI_BASE_URL": endpoint, "OPENAI_API_KEY": "k", "REFLOOM_INDEX": str(index)}
    server = begin(folder, port, **own)
    for _ in range(600):
        if _timed(port, "/readyz") is not None:
            return server
        time.sleep(0.1)
    server.stop()
    sys.exit(server.log.read_text()[-2000:])


def _timed(port: int, path: str) -> float | None:
    """Milliseconds until an answer; None for one that is not 200."""
    begun = time.perf_counter()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        return None
    return 1000 * (time.perf_counter() - begun)


@contextlib.contextmanager
def timing(port: int, seconds: list[float]) -> Iterator[None]:
    """Ask `/ok` every 10 ms meanwhile."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.01):
            seconds.append(_timed(port, "/ok") or 0.0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def client(port: int, seeds: Path, out: Path, at_once: int) -> subprocess.Popen[str]:
    """The example client over a file of seeds."""
    # Each seed is one sample: nothing is proposed that could be no news.
    context = json.dumps({"model": "m", "try_criteria": False, "answer_seeds": True})
    flags = ["--url", f"http://127.0.0.1:{port}", "--context", context, "--at-once", str(at_once)]
    line = [sys.executable, str(ROOT / "examples" / "client.py"), str(seeds), str(out), *flags]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_seeds(path: Path, n: int, kind: str) -> Path:
    """Made-up seeds, no two alike."""
    path.write_text("".join(words(f"{kind} {i}", 12).capitalize() + "?\n" for i in range(n)))
    return path


def responsive(port: int, folder: Path) -> dict[str, float]:
    """How long `/ok` takes on an idle server and on one that embeds and searches."""
    idle: list[float] = []
    with timing(port, idle):
        time.sleep(3)
    busy: list[float] = []
    seeds = write_seeds(folder / "embedded.txt", EMBEDDED, "embedded")
    with timing(port, busy):
        client(port, seeds, folder / "embedded.jsonl", EMBEDDED).communicate()
    return {
        "idle_p99_ms": round(quantiles(idle, n=100)[98], 1),
        "busy_p50_ms": round(quantiles(busy, n=100)[49], 1),
        "busy_p99_ms": round(quantiles(busy, n=100)[98], 1),
        "busy_max_ms": round(max(busy), 1),
        "asked": len(busy),
    }


def killed(args: argparse.Namespace, port: int, url: str, again: Any, server: Any) -> Any:
    """All seeds at once, the server killed on the way and started again; gives the last server."""
    folder = args.out
    seeds = write_seeds(folder / "seeds.txt", args.seeds, "served")
    before, begun = answered(url), time.monotonic()
    asking = client(port, seeds, folder / "samples.jsonl", args.seeds)
    # Three calls a seed and the references' own.
    while answered(url) - before < args.seeds * 3 / 2 and asking.poll() is None:
        time.sleep(0.01)
    server.process.kill()
    server.process.wait()
    server = again()
    output, complaints = asking.communicate(timeout=900)
    rows = rows_of(folder / "samples.jsonl")
    return server, {
        "seeds": args.seeds,
        "accounted": len({row["seed_id"] for row in rows}),
        "samples": len(rows),
        "accepted": sum(row["status"] == "accepted" for row in rows),
        "calls": answered(url) - before,
        "seconds": round(time.monotonic() - begun, 1),
        "said": output.strip() or complaints.strip()[-300:],
    }


def main() -> int:
    """Measure both, print them, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("bench-run/serving"))
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    index = args.out / "index"
    references = ROOT / "refloom" / "resources" / "demo" / "references.jsonl"
    build = [sys.executable, "-m", "refloom", "index", "build", str(references)]
    subprocess.run([*build, "--out", str(index)], check=True, stdout=subprocess.DEVNULL)
    port = free_port()
    with started(args.out / "calls.jsonl", "--faults", "0") as url:

        def again() -> Server:
            return start((args.out / "server").absolute(), port, url, index.absolute())

        server = again()
        try:
            results: dict[str, Any] = {"ok": responsive(port, args.out)}
            server, results["killed"] = killed(args, port, url, again, server)
        finally:
            server.stop()
    print(json.dumps(results))
    complete = results["killed"]["accounted"] == args.seeds
    return 0 if complete and results["ok"]["busy_p99_ms"] <= MOST_P99_MS else 1


if __name__ == "__main__":
    sys.exit(main())
