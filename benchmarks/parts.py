"""The parts of the suite: each runs one benchmark as a process and gives its raw figures."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.endpoints import Endpoint
from benchmarks.tabled import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SETTINGS = ("REFLOOM_", "OPENAI_", "JUDGE_")
HEAVY = ("torch", "faiss", "langgraph")
CELLS = ((64, 200), (256, 200), (64, 0), (256, 0))
Part = Callable[[argparse.Namespace, Endpoint | None], dict[str, Any]]


class PartFailed(Exception):
    """A benchmark ended with an error; what it said is the message."""


def last_line(script: str, *flags: object) -> dict[str, Any]:
    """Run a benchmark and read the JSON on its last line."""
    command = [sys.executable, str(HERE / script), *map(str, flags)]
    done = run(command)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise PartFailed(f"{script}: the last line is no JSON: {done.stdout[-300:]}") from error
    return found


def run(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; the settings of whoever measures are not its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
    done = subprocess.run(command, cwd=ROOT, env=kept, text=True, capture_output=True, **more)
    if done.returncode:
        name = Path(command[1] if len(command) > 1 else command[0]).name
        raise PartFailed(f"{name} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    return done


def empty(folder: Path) -> Path:
    """The folder, with nothing of an earlier run in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def start(args: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """How long `refloom --help` takes beside a Python that does nothing, and what is imported."""
    bare, help_ = [], []
    for _ in range(3 if args.quick else 9):
        bare.append(_seconds([sys.executable, "-c", "pass"]))
        help_.append(_seconds([sys.executable, "-m", "refloom", "--help"]))
    code = f"import sys, refloom; print(*[m for m in {HEAVY} if m in sys.modules])"
    loaded = run([sys.executable, "-c", code]).stdout.split()
    return {"help_s": help_, "bare_s": bare, "loaded": loaded}


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    run(command)
    return round(time.perf_counter() - begun, 4)


def own_cost(args: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """The pipeline beside the floor: every cell once, and all of them again, as often as said.

    A machine that changes its speed meanwhile so strikes every cell, and not one of them.
    """
    assert endpoint is not None
    n, repeats = (60, 1) if args.quick else (1000, args.repeats)
    cells: list[dict[str, Any]] = [
        {"in_flight": k, "latency_ms": ms, "runs": []} for k, ms in CELLS
    ]
    for _ in range(repeats):
        for cell in cells:
            endpoint.reset(cell["latency_ms"])
            out = empty(args.out / "own_cost")
            flags = ("--endpoint", endpoint.url, "--n", n, "--in-flight", cell["in_flight"])
            said = last_line("own_cost.py", *flags, "--out", out, "--json")
            whole = json.loads((out / "own_cost.json").read_text(encoding="utf-8"))
            cell["runs"].append(said | {"whole": whole})
    shutil.rmtree(args.out / "own_cost")
    return {"n": n, "cells": cells}


def journal(args: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """The journal's own rate, see journal.py."""
    quick = ("--quick",) if args.quick else ()
    return last_line("journal.py", "--out", args.out / "journal", *quick)


def calls(args: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """Calls and tokens a row, see calls.py."""
    quick = ("--quick", "--drafts", "0.6") if args.quick else ()
    return last_line("calls.py", "--json", *quick)


def novelty(args: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """The novelty filter, on edited copies of the texts that were given, see novelty.py."""
    numbers = ("--n", 1000, "--big", 0) if args.quick else ("--n", 10_000, "--big", 100_000)
    real = ("--real", *args.texts) if args.texts else ()
    return last_line("novelty.py", *numbers, "--rouge", 0, *real) | {"real": bool(args.texts)}


def retrieval(args: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """The index of a million references, see retrieval.py; without texts, around the demo's."""
    texts = args.texts or [ROOT / "refloom" / "resources" / "demo" / "references.jsonl"]
    out = empty(args.out / "retrieval")
    n = 3000 if args.quick else 1_000_000
    said = last_line("retrieval.py", "--texts", *texts, "--n", n, "--out", out)
    shutil.rmtree(out)
    return said


def memory(args: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """How memory and pace change as a run grows, see flat_memory.py."""
    assert endpoint is not None
    sizes = [200] if args.quick else [1000, 10_000, *([100_000] if args.largest else [])]
    runs = []
    for n in sizes:
        endpoint.reset(0)
        out = empty(args.out / "memory")
        runs.append(last_line("flat_memory.py", "--endpoint", endpoint.url, "--n", n, "--out", out))
        shutil.rmtree(out)
    return {"runs": runs}


PARTS: dict[str, Part] = {
    "start": start,
    "own_cost": own_cost,
    "journal": journal,
    "calls": calls,
    "memory": memory,
    "novelty": novelty,
    "retrieval": retrieval,
}
NEED_ENDPOINT = frozenset({"own_cost", "memory", "peers"})


def middle(runs: list[dict[str, Any]], key: str) -> float:
    """The median of a figure over repeats."""
    return median(run[key] for run in runs)
