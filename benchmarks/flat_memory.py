"""Watches the memory and the pace of one long run from outside.

    python benchmarks/flat_memory.py --mock PATH | --endpoint URL [--n 100000] --out DIR

Each sample is three dependent calls (extract, generate, critique) and has a reference not seen
before, as in own_cost.py, but in words spread as in real text. The run is a process of its own; its
memory is read from /proc (so: Linux) and its finished samples from its journal. "Start" is when
1000 samples are done. `--mock` starts an endpoint that takes PORT and LATENCY_MS from the
environment. At the end the finished run is resumed, which must cost no call: how long that takes
is measured, too. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.endpoints import started

START = 1000
EVERY_S = 1.0
VOCABULARY = 30_000
SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Moment:
    """What was seen at one moment: seconds, samples finished, and memory in MB."""

    at: float
    samples: int
    resident_mb: float
    peak_mb: float


def write_references(path: Path, n: int) -> None:
    """Pairs whose words are as unequally common as those of a language (Zipf)."""
    draw = random.Random(7)
    count = len(SYLLABLES)
    words = [
        SYLLABLES[i % count] + SYLLABLES[i // count % count] + SYLLABLES[i // count**2 % count]
        for i in range(count**3)
    ]
    words = [a + b for a in words[:200] for b in words[: VOCABULARY // 200]]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            row = {
                "id": f"r{i}",
                "instruction": " ".join(draw.choices(words, cum_weights=weights, k=30)) + "?",
                "response": " ".join(draw.choices(words, cum_weights=weights, k=80)) + ".",
            }
            file.write(json.dumps(row) + "\n")


async def run(args: argparse.Namespace) -> dict[str, float]:
    """The run that is watched; gives what it used."""
    from benchmarks.own_cost import measured_run

    used = time.process_time()
    summary = await measured_run(args).run()
    calls = summary.totals["calls"]["paid"]
    return {
        "cpu_ms_per_call": (time.process_time() - used) / max(calls, 1) * 1000,
        "calls": calls,
        "finished": sum(summary.counts[k] for k in ("accepted", "rejected", "failed")),
        "accepted": summary.counts["accepted"],
    }


def memory_of(pid: int) -> tuple[float, float] | None:
    """Resident memory of a process and its peak, in MB; None once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kb = {
        name: int(value.split()[0])
        for name, _, value in (x.partition(":") for x in lines)
        if name in ("VmRSS", "VmHWM")
    }
    return (kb["VmRSS"] / 1024, kb["VmHWM"] / 1024) if len(kb) == 2 else None


def finished(journal: Path) -> int:
    """How many samples a journal holds; they are only ever added, so the last one's number."""
    if not journal.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT max(rowid) FROM samples").fetchone()[0] or 0)
    except sqlite3.OperationalError:
        # The file is there before its tables are.
        return 0


def watch(process: subprocess.Popen[str], args: argparse.Namespace) -> list[Moment]:
    """Look at a run every second until it ends; what was seen is kept in watched.jsonl, too."""
    moments: list[Moment] = []
    begun = printed_at = time.monotonic()
    with (args.out / "watched.jsonl").open("w", encoding="utf-8") as file:
        while process.poll() is None:
            memory, now = memory_of(process.pid), time.monotonic()
            if memory is not None:
                done = finished(args.out / "run" / "journal.sqlite")
                one = Moment(now - begun, done, *memory)
                moments.append(one)
                file.write(json.dumps([round(x, 2) for x in (one.at, done, *memory)]) + "\n")
                if now - printed_at > 60:
                    printed_at = now
                    print(f"{one.at:5.0f} s  {done} samples  {memory[0]:.0f} MB", flush=True)
            time.sleep(EVERY_S)
    return moments


def pace(moments: list[Moment], first: float, last: float) -> float:
    """Samples a second between two numbers of finished samples."""

    def reached(samples: float) -> float:
        before = moments[0]
        for one in moments:
            if one.samples >= samples:
                step = max(one.samples - before.samples, 1)
                return before.at + (one.at - before.at) * (samples - before.samples) / step
            before = one
        return moments[-1].at

    return (last - first) / max(reached(last) - reached(first), 1e-9)


def report(moments: list[Moment], used: dict[str, float], n: int) -> dict[str, float]:
    """The figures of a run from what was seen of it."""
    start = next((m for m in moments if m.samples >= START), moments[-1])
    peak = max(m.peak_mb for m in moments)
    # The first samples share their second with the reading of the input; the last with the files.
    most = max(m.samples for m in moments)
    return {
        "samples": int(used["finished"]),
        "accepted": int(used["accepted"]),
        "calls": int(used["calls"]),
        "before_mb": round(
            next((m for m in reversed(moments) if not m.samples), moments[0]).resident_mb, 1
        ),
        "start_mb": round(start.resident_mb, 1),
        "peak_mb": round(peak, 1),
        "over_start_mb": round(peak - start.resident_mb, 1),
        "first_tenth_per_s": round(pace(moments, 1, n / 10), 1),
        "last_tenth_per_s": round(pace(moments, n * 0.9, most), 1),
        "cpu_ms_per_call": round(used["cpu_ms_per_call"], 3),
        "seconds": round(moments[-1].at, 1),
    }


def resume(command: list[str], counted: dict[str, float]) -> float:
    """Seconds in which a process resumes a finished run; it must pay nothing and say the same."""
    begun = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - begun
    again = json.loads(done.stdout.splitlines()[-1])
    if any(again[key] != counted[key] for key in ("calls", "finished", "accepted")):
        sys.exit(f"the resumed run counts otherwise: {again}, {counted}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", default="http://127.0.0.1:8900/v1")
    parser.add_argument("--mock", type=Path, help="a mock endpoint's program, to be started")
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("run",), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.part == "run":
        print(json.dumps(asyncio.run(run(args))))
        return
    shutil.rmtree(args.out / "run", ignore_errors=True)
    shutil.rmtree(args.out / "memory", ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write_references(args.out / "references.jsonl", args.n)
    with started(args.mock, args.endpoint) as mock:
        command = [sys.executable, __file__, "--part", "run", "--endpoint", mock.url]
        command += ["--in-flight", str(args.in_flight), "--out", str(args.out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        moments = watch(process, args)
        out = process.communicate()[0]
        if process.returncode:
            sys.exit(f"the run failed with status {process.returncode}")
        used = json.loads(out.splitlines()[-1])
        seconds = resume(command, used)
    print(json.dumps({**report(moments, used, args.n), "resume_s": round(seconds, 2)}))


if __name__ == "__main__":
    main()
