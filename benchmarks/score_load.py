"""Scores many rows at an endpoint that answers at once: rows a second, memory, and kills.

    python benchmarks/score_load.py --rows 5000 --kills 0 --latency-ms 50 [--out DIR]

The command line's `refloom score` runs as a process against an endpoint in another. With --kills it
is killed (kill -9) so many times, each after some more answered calls, and given again; what was
asked twice is read from the endpoint's log, and may be what was in flight at a kill. Rows are made
up, with a rubric of four items each. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from faulty_answers import words
from kill_test import repeats
from processes import answered, ended, lines_of, start, started, wait_for

ITEMS = ("names the cause", "gives a reason", "is in order", "ends with a summary")


def write_files(out: Path, n: int) -> None:
    """The rows, and a rubric for each."""
    rubric = [{"description": f"The response {item}", "weight": 3} for item in ITEMS]
    with (
        (out / "rows.jsonl").open("w", encoding="utf-8") as rows,
        (out / "rubrics.jsonl").open("w", encoding="utf-8") as rubrics,
    ):
        for i in range(n):
            question = words(f"ask {i}", 13).capitalize() + "?"
            response = words(f"say {i}", 120).capitalize() + "."
            rows.write(json.dumps({"instruction": question, "response": response, "n": i}) + "\n")
            rubrics.write(json.dumps({"question": question, "rubric": rubric}) + "\n")


def command(args: argparse.Namespace, url: str) -> list[str]:
    """The command line."""
    return [
        *(sys.executable, "-m", "refloom", "score", str(args.out / "rows.jsonl")),
        *("--criteria", str(args.out / "rubrics.jsonl"), "--out", str(args.out / "scored.jsonl")),
        *("--judge-model", "m", "--base-url", url, "--concurrency", str(args.concurrency)),
        *("--quiet", "--json"),
    ]


def kill_again_and_again(args: argparse.Namespace, url: str) -> list[float]:
    """Start and kill, each time after an equal part of the calls; gives when it was killed."""
    kills: list[float] = []
    for kill in range(args.kills):
        process = start(command(args, url))
        if not wait_for(process, url, (kill + 1) * args.rows // (args.kills + 1)):
            ended(process)
            break
        process.kill()
        ended(process)
        kills.append(time.time())
    return kills


def test(args: argparse.Namespace) -> dict[str, Any]:
    """Score all rows, and tell how that went."""
    write_files(args.out, args.rows)
    log = args.out / "endpoint.log"
    log.unlink(missing_ok=True)
    with started(log, "--latency-ms", str(args.latency_ms), "--faults", "0") as url:
        kills = kill_again_and_again(args, url)
        before, begun = answered(url), time.monotonic()
        process = start(command(args, url))
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        calls = answered(url) - before
    if status:
        sys.exit(f"it ended with status {os.waitstatus_to_exitcode(status)}")
    summary = json.loads(said)
    asked = {line["key"] for line in lines_of(log) if line["status"] == 200}
    problems: list[str] = []
    again, most = repeats(log, kills, args, problems)
    for problem in problems:
        print(f"BROKEN: {problem}")
    return {
        "rows": len(lines_of(args.out / "scored.jsonl")),
        "mean": summary["score"]["value"],
        "kills": len(kills),
        "distinct_calls": len(asked),
        "lost_at_kills": again,
        "most_lost_at_a_kill": most,
        "broken": len(problems),
        "paid_in_the_last_session": summary["calls"]["paid"],
        "reused_in_it": summary["calls"]["reused"],
        "seconds": round(seconds, 1),
        "rows_per_s": round(calls / seconds, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024, 1),
    }


def main() -> None:
    """Read the command line, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--out", type=Path, help="default: a temporary directory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.signal = "KILL"
        args.out = (args.out or Path(folder)).resolve()
        args.out.mkdir(parents=True, exist_ok=True)
        print(json.dumps(test(args)))


if __name__ == "__main__":
    main()
