"""Kills a run again and again at random moments, and compares what it comes to with a calm one.

    python benchmarks/kill_test.py --kills 100 --signal KILL|TERM --faults 0 --out DIR

The run is the command line's, as a process, against an endpoint in another process that answers
a repeated request alike. Each kill comes after a random number of further answered calls and is
followed by the same command again. What was asked twice is read from the endpoint's own log: with
KILL that may be as many calls as were in flight, with TERM none. The last line on stdout is JSON;
the exit status is 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

from processes import (
    DROPS,
    ENDS,
    FILES,
    answered,
    ended,
    lines_of,
    rows_of,
    start,
    started,
    wait_for,
    write_references,
)

MAY_DIFFER = ("created", "usage", "cost_usd")
PER_SEED = 2


def command(args: argparse.Namespace, url: str, out: Path) -> list[str]:
    """The run's command line; with one reference a seed nothing has to be embedded."""
    return [
        *(sys.executable, "-m", "refloom", "run"),
        *("--references", str(args.out / "references.jsonl"), "--out", str(out)),
        *("--base-url", url, "--model", "m", "--random-seed", "5", "--quiet"),
        *("--per-seed", str(PER_SEED), "--concurrency", str(args.concurrency)),
        *("--references-per-seed", str(args.references_per_seed)),
        *shlex.split(args.flags),
    ]


def kill_again_and_again(
    args: argparse.Namespace, url: str, calls: int, problems: list[str]
) -> list[float]:
    """Start and kill until there were enough kills, then run to the end; gives when they were."""
    line = command(args, url, args.out / "killed")
    number = signal.Signals[f"SIG{args.signal}"]
    expected = -signal.SIGKILL if number == signal.SIGKILL else 130
    kills: list[float] = []
    slowest = 0.0
    while len(kills) < args.kills:
        process, done = start(line), answered(url)
        # Twice the mean that would use the rest up, less what is answered before the kill comes.
        left = max(calls - done, 0)
        most = min(1.7 * left / (args.kills - len(kills)) - args.concurrency, left / 2)
        wanted = random.randint(1, max(int(most), 1))
        if not wait_for(process, url, done + wanted):
            status, output = ended(process)
            why = f"the run ended ({status}) after {len(kills)} kills"
            problems.append(f"{why}; give more --seeds\n{output}")
            return kills
        process.send_signal(number)
        begun = time.monotonic()
        status, output = ended(process)
        slowest = max(slowest, time.monotonic() - begun)
        if status in ENDS:
            continue
        # The endpoint may be behind: what was in flight counts as answered before the kill.
        time.sleep(0.1)
        kills.append(time.time())
        if status != expected or "Traceback" in output:
            problems.append(f"kill {len(kills)}: exit status {status}, not {expected}\n{output}")
        if not args.quiet and len(kills) % 10 == 0:
            print(f"{len(kills)} kills, {done} of {calls} calls", flush=True)
    print(f"a run ended at most {slowest:.1f} s after the signal")
    status, output = ended(start(line))
    if status not in ENDS:
        problems.append(f"the last run's exit status is {status}\n{output}")
    return kills


def run_calmly(args: argparse.Namespace, url: str, problems: list[str]) -> int:
    """The run that nobody disturbs; gives how many calls were answered."""
    status, output = ended(start(command(args, url, args.out / "calm")))
    if status not in ENDS:
        problems.append(f"the calm run's exit status is {status}\n{output}")
    return answered(url)


def alike(path: Path) -> list[dict[str, Any]]:
    """The rows of a file without what may differ."""
    return [{k: v for k, v in row.items() if k not in MAY_DIFFER} for row in rows_of(path)]


def compare(out: Path, problems: list[str]) -> tuple[int, int]:
    """How many rows there are, and how many of them are the same in both runs."""
    total = same = 0
    for name in (*FILES, "dropped"):
        calm, killed = (alike(out / run / f"{name}.jsonl") for run in ("calm", "killed"))
        total += max(len(calm), len(killed))
        for n, (a, b) in enumerate(zip_longest(calm, killed), 1):
            same += a == b
            if a != b and len(problems) < 8:
                keys = sorted({*(a or {}), *(b or {})})
                told = [k for k in keys if (a or {}).get(k) != (b or {}).get(k)]
                problems.append(f"{name}.jsonl, row {n} differs in {', '.join(told)}")
    return total, same


def add_up(directory: Path, log: Path, problems: list[str]) -> None:
    """Whether run.json agrees with the files, and with what the endpoint says it answered."""
    if not (directory / "run.json").is_file():
        problems.append(f"{directory.name}: there is no run.json")
        return
    report = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    counts = report["counts"]
    parts = (*FILES, "pending")
    if counts["candidates"] != sum(counts[k] for k in parts) or counts["pending"]:
        problems.append(f"{directory.name}: counts do not add up: {counts}")
    for name in FILES:
        if counts[name] != (row_count := len(rows_of(directory / f"{name}.jsonl"))):
            problems.append(f"{directory.name}: {counts[name]} {name}, {row_count} rows of them")
    slots = counts["candidates"] + sum(counts[reason] for reason in DROPS)
    least = counts["seeds"] if counts["failed"] else counts["seeds"] * PER_SEED
    if slots < least:
        problems.append(f"{directory.name}: {slots} slots and duplicates of {least} at least")
    paid = len({line["key"] for line in lines_of(log) if line["status"] == 200})
    if report["calls"]["paid"] != paid:
        paid_calls = report["calls"]["paid"]
        problems.append(f"{directory.name}: {paid_calls} calls paid; the endpoint says {paid}")


def repeats(
    log: Path, kills: list[float], args: argparse.Namespace, problems: list[str]
) -> tuple[int, int]:
    """How many answered calls were asked again, in all and at most for one kill."""
    first: dict[str, float] = {}
    lost: dict[int, set[str]] = {}
    oldest = 0.0
    for line in lines_of(log):
        key, at = line["key"], line["t"]
        if line["kind"] == "repeated":
            kill = sum(k < first[key] for k in kills)
            if kill >= len(kills) or at < kills[kill]:
                problems.append(f"a {line['stage']} call was made twice without a kill between")
                continue
            lost.setdefault(kill, set()).add(key)
            oldest = max(oldest, kills[kill] - first[key])
        elif line["status"] == 200:
            first[key] = at
    most = max(map(len, lost.values()), default=0)
    allowed = args.concurrency if args.signal == "KILL" else 0
    over = sum(len(keys) > allowed for keys in lost.values())
    if over:
        problems.append(f"at {over} kills more than {allowed} answered calls were lost")
    if lost:
        sizes = ", ".join(
            f"{n} x {size}" for size, n in sorted(Counter(map(len, lost.values())).items())
        )
        print(
            f"calls lost at a kill: {sizes}; the oldest was answered {oldest * 1000:.0f} ms before"
        )
    return sum(map(len, lost.values())), most


def test(args: argparse.Namespace) -> dict[str, Any]:
    """Both runs, each with an endpoint of its own, and the comparison."""
    begun = time.monotonic()
    problems: list[str] = []
    write_references(args.out / "references.jsonl", args.seeds)
    flags = ["--latency-ms", str(args.latency_ms), "--faults", str(args.faults)]
    flags += ["--deterministic-faults", "--without", args.without]
    calm, killed = args.out / "calm.log", args.out / "killed.log"
    with started(calm, *flags) as url:
        calls = run_calmly(args, url, problems)
    print(f"undisturbed: {calls} calls answered in {time.monotonic() - begun:.0f} s", flush=True)
    with started(killed, *flags) as url:
        kills = kill_again_and_again(args, url, calls, problems)
    rows, same = compare(args.out, problems)
    for directory, log in ((args.out / "calm", calm), (args.out / "killed", killed)):
        add_up(directory, log, problems)
    repeated, most = repeats(killed, kills, args, problems)
    for problem in problems:
        print(f"BROKEN: {problem}")
    return {
        "kills": len(kills),
        "rows": rows,
        "same": same,
        "calls": sum(line["status"] == 200 for line in lines_of(killed)),
        "repeated": repeated,
        "most_repeated_at_a_kill": most,
        "seconds": round(time.monotonic() - begun, 1),
        "broken": len(problems),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--faults", type=float, default=0.0, help="share of calls with a fault")
    parser.add_argument("--without", default="", help="kinds of fault to leave out, with commas")
    parser.add_argument("--seeds", type=int, help="default: 4 a kill, 60 at least")
    parser.add_argument("--references-per-seed", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--out", type=Path, help="emptied first; default: a temporary directory")
    parser.add_argument("--flags", default="", help="more flags of the run, as one text")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    args.seeds = args.seeds or max(4 * args.kills, 60)
    with tempfile.TemporaryDirectory() as folder:
        args.out = (args.out or Path(folder)).resolve()
        args.out.mkdir(parents=True, exist_ok=True)
        for name in ("calm", "killed"):
            shutil.rmtree(args.out / name, ignore_errors=True)
            (args.out / f"{name}.log").unlink(missing_ok=True)
        output = test(args)
    print(json.dumps(output))
    sys.exit(1 if output["broken"] else 0)


if __name__ == "__main__":
    main()
