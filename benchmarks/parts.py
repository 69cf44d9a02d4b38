"""The parts of the suite: each runs one benchmark as a process and gives its raw figures."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.endpoints import Endpoint

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SETTINGS = ("REFLOOM_", "OPENAI_", "JUDGE_")
HEAVY = ("torch", "faiss", "langgraph")
CELLS = ((64, 200), (256, 200), (64, 0), (256, 0))
Figures = dict[str, Any]
Part = Callable[[argparse.Namespace, Endpoint | None], Figures]


class PartFailed(Exception):
    """A benchmark ended with an error; what it said is the message."""


def last_line(script: str, *flags: object) -> Figures:
    """Run a benchmark and read the JSON on its last line."""
    process = run([sys.executable, str(HERE / script), *map(str, flags)])
    try:
        figures: Figures = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise PartFailed(f"{script}: the last line is no JSON: {process.stdout[-300:]}") from error
    return figures


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; the settings of whoever measures are not its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, check=False)
    if done.returncode:
        raise PartFailed(f"{command[1]} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    return done


def empty(folder: Path) -> Path:
    """The folder, with nothing of an earlier run in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def start(args: argparse.Namespace, endpoint: Endpoint | None) -> Figures:
    """How long `refloom --help` takes beside a Python that does nothing, and what is imported."""
    seconds: dict[str, list[float]] = {"bare_s": [], "help_s": []}
    for _ in range(3 if args.quick else 9):
        for name, flags in (("bare_s", ["-c", "pass"]), ("help_s", ["-m", "refloom", "--help"])):
            begun = time.perf_counter()
            run([sys.executable, *flags])
            seconds[name].append(round(time.perf_counter() - begun, 4))
    code = f"import sys, refloom; print(*[m for m in {HEAVY} if m in sys.modules])"
    return {**seconds, "loaded": run([sys.executable, "-c", code]).stdout.split()}


def own_cost_cells(
    args: argparse.Namespace, endpoint: Endpoint, wanted: Iterable[tuple[int, int, int]]
) -> list[Figures]:
    """The pipeline beside the floor: every cell once, and all of them again, as often as said.

    A cell is samples, calls in flight, latency in ms. A machine that changes its speed meanwhile so
    strikes every cell, and not one of them.
    """
    cells: list[Figures] = [
        {"n": n, "in_flight": k, "latency_ms": ms, "runs": []} for n, k, ms in wanted
    ]
    for _ in range(1 if args.quick else args.repeats):
        for cell in cells:
            endpoint.reset(cell["latency_ms"])
            out = empty(args.out / "own_cost")
            flags = ("--n", cell["n"], "--in-flight", cell["in_flight"], "--out", out, "--json")
            run_figures = last_line("own_cost.py", "--endpoint", endpoint.url, *flags)
            whole = json.loads((out / "own_cost.json").read_text(encoding="utf-8"))
            cell["runs"].append(run_figures | {"whole": whole})
    return cells


def own_cost(args: argparse.Namespace, endpoint: Endpoint | None) -> Figures:
    """The pipeline beside the floor, and its cost by part."""
    assert endpoint is not None
    n = 60 if args.quick else 1000
    cells = own_cost_cells(args, endpoint, ((n, k, ms) for k, ms in CELLS))
    endpoint.reset(0)
    out = empty(args.out / "own_cost")
    flags = ("--endpoint", endpoint.url, "--n", n, "--out", out, "--json", "--profile")
    return {"n": n, "cells": cells, "parts_ms": last_line("own_cost.py", *flags)["parts_ms"]}


def real_run(args: argparse.Namespace, endpoint: Endpoint | None) -> Figures:
    """A run like a real one, see real_run.py; on texts that were given, as references."""
    n, in_flight, latency_ms = (60 if args.quick else 1000), 64, 200
    flags = ["--n", n, "--in-flight", in_flight, "--latency-ms", latency_ms, "--json"]
    if args.texts:
        flags += ["--references", args.texts[0]]
    runs = [
        last_line("real_run.py", *flags, "--out", empty(args.out / "real_run"))
        for _ in range(1 if args.quick else args.repeats)
    ]
    about = {"n": n, "in_flight": in_flight, "latency_ms": latency_ms}
    return {**about, "runs": runs, "parts_ms": runs[-1]["parts_ms"]}


def beside_peers(args: argparse.Namespace, endpoint: Endpoint | None) -> Figures:
    """What was measured of other frameworks, and refloom in the same cells."""
    assert endpoint is not None
    rows = peers.read(args.peer_results)
    return {
        "rows": rows,
        "versions": peers.versions(args.peers) if args.peers else {},
        "own": own_cost_cells(args, endpoint, peers.cells(rows)),
    }


def memory(args: argparse.Namespace, endpoint: Endpoint | None) -> Figures:
    """How memory and pace change as a run grows, see flat_memory.py."""
    assert endpoint is not None
    runs = []
    for n in [200] if args.quick else [1000, 10_000, *([100_000] if args.largest else [])]:
        endpoint.reset(0)
        out = empty(args.out / "memory")
        runs.append(last_line("flat_memory.py", "--endpoint", endpoint.url, "--n", n, "--out", out))
        shutil.rmtree(out)
    return {"runs": runs}


def script(name: str, quick: str, full: str, texts: str = "") -> Part:
    """A benchmark that is a process alone: its flags, in small and in full, and that for texts."""

    def measure(args: argparse.Namespace, endpoint: Endpoint | None) -> Figures:
        out = empty(args.out / Path(name).stem)
        files = (texts, *args.texts) if texts and args.texts else ()
        flags = (quick if args.quick else full).split()
        return last_line(name, *(out if flag == "OUT" else flag for flag in flags), *files)

    return measure


PARTS: dict[str, Part] = {
    "start": start,
    "own_cost": own_cost,
    "real_run": real_run,
    "journal": script("journal.py", "--out OUT --quick", "--out OUT"),
    "calls": script("calls.py", "--json --quick --drafts 0.6", "--json"),
    "memory": memory,
    "novelty": script(
        "novelty.py", "--n 1000 --big 0 --rouge 0", "--n 10000 --big 100000 --rouge 0", "--real"
    ),
    "retrieval": script("retrieval.py", "--n 3000 --out OUT", "--n 1000000 --out OUT", "--texts"),
    "peers": beside_peers,
}
NEED_ENDPOINT = frozenset({"own_cost", "memory", "peers"})
TAKE_TEXTS = frozenset({"real_run", "novelty", "retrieval"})
