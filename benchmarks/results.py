"""Runs the benchmarks and writes their figures, beside their bars, into RESULTS.md.

    python benchmarks/results.py [--mock PROGRAM | --endpoint URL] [--only own_cost,calls] [--quick]

The parts, in their order: start, own_cost, journal, calls, memory, novelty, retrieval, and peers
where they are named. Each keeps its raw figures in results.json, so that a part that is run alone
changes its own section only. `--mock` is a mock endpoint's program (PORT and LATENCY_MS from the
environment), `--endpoint` one that runs; both have to know /reset?latency_ms=. Without either a
Python one is started, which the sections say. `--quick` takes small numbers, judges no bar that is
for greater ones, and keeps its files in --out. Reads /proc, so: Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import peers
from benchmarks.endpoints import KINDS, Endpoint, started
from benchmarks.parts import HERE, NEED_ENDPOINT, PARTS, PartFailed
from benchmarks.sections import SECTIONS

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
HEADING = "# Results\n\nWhat was measured, on what, and with which command.\n"
OLDER = "Kept by another version of this benchmark, which has to be run again."
QUICK = "Small numbers (`--quick`): they show that it runs, not how well."


def machine() -> dict[str, Any]:
    """What the figures were measured on, without its name."""
    model = platform.processor() or platform.machine()
    told = Path("/proc/cpuinfo")
    # Only Linux has it.
    found = re.search(r"model name\s*: (.+)", told.read_text("utf-8") if told.is_file() else "")
    model = found.group(1).strip() if found else model
    gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    python = platform.python_version()
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": round(gb), "python": python}


def load(path: Path) -> dict[str, Any]:
    """What was measured before, by part; nothing where there is no file."""
    if not path.is_file():
        return {}
    try:
        by_part = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        sys.exit(f"{path.name}: is no JSON: {error}")
    if not isinstance(by_part, dict):
        sys.exit(f"{path.name}: does not hold figures by part")
    return by_part


def entry(figures: Mapping[str, Any], quick: bool, kind: str | None) -> dict[str, Any]:
    """A part's figures with what has to be known of them."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    about = {"date": day, "machine": machine(), "quick": quick, "endpoint": kind}
    return {**about, "figures": dict(figures)}


def section(name: str, by_part: Mapping[str, Any]) -> str:
    """A part's section: heading, when and on what, figures."""
    title, write = SECTIONS[name]
    one = by_part[name]
    on = one["machine"]
    facts = f"{one['date']}, {on['cpu']}, {on['cores']} cores, {on['memory_gb']} GB, "
    facts += f"Python {on['python']}"
    if one["endpoint"]:
        facts += f"; {KINDS[one['endpoint']]}"
    quick = f"\n\n{QUICK}" if one["quick"] else ""
    measured = f"*{facts}. `python benchmarks/results.py --only {name}`*"
    try:
        body = write(one["figures"], by_part)
    except (KeyError, IndexError):
        body = OLDER
    return f"## {title}\n\n{measured}{quick}\n\n{body}"


def written(text: str, by_part: Mapping[str, Any]) -> str:
    """A RESULTS.md with its measured part made anew; what a person wrote around it stays."""
    body = "\n\n".join(section(name, by_part) for name in SECTIONS if name in by_part)
    block = f"{BEGIN}\n{body}\n{END}"
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        return f"{before}{block}{rest.partition(END)[2]}"
    return f"{text.rstrip() or HEADING.rstrip()}\n\n{block}\n"


def measured(name: str, args: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """The figures of a part, with what it took said on stderr."""
    begun = time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    figures = (PARTS | {"peers": peers.figures})[name](args, endpoint)
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return figures


def suite(names: list[str], args: argparse.Namespace) -> list[str]:
    """Run the parts one after another, keep each at once, and name those that failed."""
    failed = []
    with ExitStack() as stack:
        endpoint = None
        for name in names:
            needs = name in NEED_ENDPOINT and not (name == "peers" and args.peer_results)
            if needs and endpoint is None:
                endpoint = stack.enter_context(started(args.mock, args.endpoint))
            try:
                figures = measured(name, args, endpoint)
            except PartFailed as error:
                print(f"{name} FAILED: {error}", file=sys.stderr)
                failed.append(name)
                continue
            keep(name, entry(figures, args.quick, endpoint.kind if needs else None), args)
    return failed


def keep(name: str, one: dict[str, Any], args: argparse.Namespace) -> None:
    """Put a part's figures among the others, and write both files."""
    by_part = load(args.results) | {name: one}
    args.results.write_text(json.dumps(by_part, indent=1) + "\n", encoding="utf-8")
    text = args.table.read_text(encoding="utf-8") if args.table.is_file() else ""
    args.table.write_text(written(text, by_part), encoding="utf-8")


def parts_of(args: argparse.Namespace) -> list[str]:
    """The parts that were asked for, in the suite's order."""
    named = bool(args.peers or args.peer_results)
    known = [*PARTS, "peers"]
    names = args.only.split(",") if args.only else [*PARTS, *(["peers"] if named else [])]
    unknown = sorted(set(names) - set(known))
    if unknown:
        sys.exit(f"--only: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    if "peers" in names and not named:
        sys.exit("peers: name them by --peer-results, or by --peers and --peer-bench")
    if args.peers and not args.peer_results and not args.peer_bench:
        sys.exit("--peers: --peer-bench has to name the bench.py that runs them")
    return [name for name in known if name in names]


def arguments() -> argparse.Namespace:
    """What was asked for; paths whole, since parts run elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="PART,..", help="which parts to run")
    parser.add_argument("--quick", action="store_true", help="small numbers")
    parser.add_argument("--repeats", type=int, default=3, help="of own_cost (default: 3)")
    parser.add_argument("--largest", action="store_true", help="memory: 100,000 samples, too")
    parser.add_argument("--mock", type=Path, metavar="PROGRAM")
    parser.add_argument("--endpoint", metavar="URL")
    parser.add_argument("--texts", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="a folder with their venvs/")
    parser.add_argument("--peer-bench", type=Path, metavar="FILE", help="the bench.py to run")
    parser.add_argument("--peer-results", type=Path, metavar="FILE", help="what it has written")
    parser.add_argument("--out", type=Path, default=Path("bench-run"), help="for what is passing")
    parser.add_argument("--results", type=Path, metavar="FILE", help="default: results.json here")
    parser.add_argument("--table", type=Path, metavar="FILE", help="default: RESULTS.md here")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    # Small numbers must not take the place of those that are published.
    folder = args.out if args.quick else HERE
    args.results = args.results or folder / "results.json"
    args.table = args.table or folder / "RESULTS.md"
    for name in ("mock", "peers", "peer_bench", "peer_results"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            sys.exit(f"--{name.replace('_', '-')}: {path} does not exist")
        setattr(args, name, path.resolve() if path else None)
    args.texts = [path.resolve() for path in args.texts]
    return args


def main() -> int:
    args = arguments()
    failed = suite(parts_of(args), args)
    print(args.table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
