"""Runs against an endpoint of which 30 % of the calls go wrong, and accounts for every seed.

    python benchmarks/fault_test.py --seeds 500 --faults 0.3 --way both --out DIR

Two ways: `answer` answers the seeds themselves, each its own reference, so that every seed is one
candidate; `propose` has one new instruction a seed proposed, with three references each, so that a
seed is one candidate or one duplicate. The last line on stdout is JSON; the exit status is 1 if a
promise is broken.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from faulty_answers import MARK, hashed, words
from processes import DROPS, ENDS, FILES, ended, lines_of, rows_of, start, started, write_references

WAYS = ("answer", "propose")
REFERENCES = 60
_BAD = re.compile(rf"{MARK}|<think|```|^\s*\{{")


def write_seeds(path: Path, n: int) -> None:
    """Made-up seeds, none of them a reference."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            seed = {"id": f"r{i}", "instruction": words(f"seed {i}", 12).capitalize() + "?"}
            file.write(json.dumps(seed) + "\n")


def command(way: str, args: argparse.Namespace, url: str, out: Path) -> list[str]:
    """The run's command line; its input is written beside its directory."""
    references = out.with_name(f"{way}-references.jsonl")
    line = [
        *(sys.executable, "-m", "refloom", "run", "--quiet", "--random-seed", "5"),
        *("--references", str(references), "--out", str(out), "--base-url", url, "--model", "m"),
        *("--concurrency", str(args.concurrency)),
    ]
    if way == "answer":
        write_references(references, args.seeds)
        return [*line, "--answer-seeds", "--references-per-seed", "1"]
    write_references(references, REFERENCES)
    seeds = out.with_name("propose-seeds.jsonl")
    write_seeds(seeds, args.seeds)
    return [*line, "--seeds", str(seeds), "--references-per-seed", "3"]


def account(way: str, out: Path, args: argparse.Namespace, problems: list[str]) -> dict[str, int]:
    """Whether every candidate and every seed came to something; gives the counts."""
    report = json.loads((out / "run.json").read_text(encoding="utf-8"))
    counts: dict[str, int] = report["counts"]
    if counts["candidates"] != sum(counts[k] for k in (*FILES, "pending")):
        problems.append(f"{way}: counts do not add up: {counts}")
    if counts["pending"]:
        problems.append(f"{way}: {counts['pending']} candidates are left pending")
    if counts["seeds"] != args.seeds:
        problems.append(f"{way}: {counts['seeds']} seeds were read of {args.seeds}")
    rows = {name: rows_of(out / f"{name}.jsonl") for name in FILES}
    for name in FILES:
        if len(rows[name]) != counts[name]:
            problems.append(f"{way}: {counts[name]} {name}, {len(rows[name])} rows of them")
    rows_by_seed = Counter(row["seed_id"] for name in FILES for row in rows[name])
    missing = [f"r{i}" for i in range(args.seeds) if f"r{i}" not in rows_by_seed]
    # Without a row is only a seed whose one instruction was dropped.
    if len(missing) > sum(counts[reason] for reason in DROPS) or (way == "answer" and missing):
        problems.append(f"{way}: {len(missing)} seeds are in no row: {missing[:10]}")
    if rows_by_seed.total() != len(rows_by_seed):
        problems.append(
            f"{way}: {rows_by_seed.total() - len(rows_by_seed)} seeds have more than one row"
        )
    return counts


def look_at_rows(way: str, out: Path, log: Path, problems: list[str]) -> Counter[str]:
    """Whether accepted rows are what the endpoint meant, and failed ones say what was wrong."""
    meant = {(line["about"], line["made"]) for line in lines_of(log) if "made" in line}
    for row in rows_of(out / "accepted.jsonl"):
        response = row["response"] or ""
        if not response.strip() or _BAD.search(response) or _BAD.search(row["instruction"]):
            problems.append(f"{way}: bad row {row['id']}: {response[:80]!r}")
        elif (hashed(row["instruction"]), hashed(response)) not in meant:
            problems.append(f"{way}: row {row['id']} is nothing the endpoint gave")
        if any(v["verdict"] == "fail" for v in row["attempts"][-1]["verdicts"][:1]):
            problems.append(f"{way}: row {row['id']} is accepted though its first criterion fails")
    kinds: Counter[str] = Counter()
    for row in rows_of(out / "failed.jsonl"):
        error = row.get("error") or {}
        if not all(error.get(key) for key in ("stage", "kind", "message")):
            problems.append(f"{way}: failed row {row['id']} does not say why: {error}")
        kinds[f"{error.get('stage')} {error.get('kind')}"] += 1
    return kinds


def test(way: str, args: argparse.Namespace, problems: list[str]) -> dict[str, Any]:
    """One run to its end, as a process, and the account of it."""
    begun = time.monotonic()
    out, log = args.out / way, args.out / f"{way}.log"
    shutil.rmtree(out, ignore_errors=True)
    log.unlink(missing_ok=True)
    flags = ("--latency-ms", str(args.latency_ms), "--faults", str(args.faults))
    with started(log, *flags, "--without", args.without) as url:
        status, output = ended(start(command(way, args, url, out)), args.minutes * 60)
    if status not in ENDS or "Traceback" in output:
        problems.append(f"{way}: exit status {status}\n{output}")
    lines = [line for line in lines_of(log) if line["kind"] != "repeated"]
    result: dict[str, Any] = {"status": status, "calls": len(lines)}
    result["kinds"] = dict(Counter(line["kind"] for line in lines).most_common())
    paid_twice = len(lines_of(log)) - len(lines)
    if paid_twice:
        problems.append(f"{way}: {paid_twice} calls were made again though they were answered")
    if (out / "run.json").is_file():
        result["counts"] = account(way, out, args, problems)
        result["failed_by"] = dict(look_at_rows(way, out, log, problems).most_common())
    return result | {"seconds": round(time.monotonic() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--faults", type=float, default=0.3, help="share of calls with a fault")
    parser.add_argument("--without", default="", help="kinds of fault to leave out, with commas")
    parser.add_argument("--way", choices=(*WAYS, "both"), default="both")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--minutes", type=float, default=20, help="how long a run may take")
    parser.add_argument("--out", type=Path, help="default: a temporary directory")
    args = parser.parse_args()
    problems: list[str] = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        args.out = (args.out or Path(folder)).resolve()
        args.out.mkdir(parents=True, exist_ok=True)
        for way in WAYS if args.way == "both" else (args.way,):
            one = results[way] = test(way, args, problems)
            print(f"{way}: {one['calls']} calls, {one['seconds']} s", flush=True)
    for problem in problems[:20]:
        print(f"BROKEN: {problem}")
    print(json.dumps({**results, "broken": len(problems)}))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
