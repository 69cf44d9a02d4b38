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
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        sys.exit(f"{path.name}: is no JSON: {error}")
    if not isinstance(found, dict):
        sys.exit(f"{path.name}: does not hold figures by part")
    return found


def entry(figures: Mapping[str, Any], quick: bool, kind: str | None) -> dict[str, Any]:
    """A part's figures with what has to be known of them."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    about = {"date": day, "machine": machine(), "quick": quick, "endpoint": kind}
    return {**about, "figures": dict(figures)}


def section(name: str, kept: Mapping[str, Any]) -> str:
    """A part's section: heading, when and on what, figures."""
    title, write = SECTIONS[name]
    one = kept[name]
    on = one["machine"]
    said = f"{one['date']}, {on['cpu']}, {on['cores']} cores, {on['memory_gb']} GB, "
    said += f"Python {on['python']}"
    if one["endpoint"]:
        said += f"; {KINDS[one['endpoint']]}"
    quick = f"\n\n{QUICK}" if one["quick"] else ""
    measured = f"*{said}. `python benchmarks/results.py --only {name}`*"
    try:
        body = write(one["figures"], kept)
    except (KeyError, IndexError):
        body = OLDER
    return f"## {title}\n\n{measured}{quick}\n\n{body}"


def written(text: str, kept: Mapping[str, Any]) -> str:
    """A RESULTS.md with its measured part made anew; what a person wrote around it stays."""
    body = "\n\n".join(section(name, kept) for name in SECTIONS if name in kept)
    block = f"{BEGIN}\n{body}\n{END}"
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        return f"{before}{block}{rest.partition(END)[2]}"
    return f"{text.rstrip() or HEADING.rstrip()}\n\n{block}\n"


def measured(name: str, given: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """The figures of a part, with what it took said on stderr."""
    begun = time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    found = (PARTS | {"peers": peers.figures})[name](given, endpoint)
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return found


def suite(names: list[str], given: argparse.Namespace) -> list[str]:
    """Run the parts one after another, keep each at once, and name those that failed."""
    failed = []
    with ExitStack() as stack:
        endpoint = None
        for name in names:
            needs = name in NEED_ENDPOINT and not (name == "peers" and given.peer_results)
            if needs and endpoint is None:
                endpoint = stack.enter_context(started(given.mock, given.endpoint))
            try:
                figures = measured(name, given, endpoint)
            except PartFailed as error:
                print(f"{name} FAILED: {error}", file=sys.stderr)
                failed.append(name)
                continue
            keep(name, entry(figures, given.quick, endpoint.kind if needs else None), given)
    return failed


def keep(name: str, one: dict[str, Any], given: argparse.Namespace) -> None:
    """Put a part's figures among the others, and write both files."""
    kept = load(given.results) | {name: one}
    given.results.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = given.table.read_text(encoding="utf-8") if given.table.is_file() else ""
    given.table.write_text(written(text, kept), encoding="utf-8")


def parts_of(given: argparse.Namespace) -> list[str]:
    """The parts that were asked for, in the suite's order."""
    named = bool(given.peers or given.peer_results)
    known = [*PARTS, "peers"]
    asked = given.only.split(",") if given.only else [*PARTS, *(["peers"] if named else [])]
    unknown = sorted(set(asked) - set(known))
    if unknown:
        sys.exit(f"--only: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    if "peers" in asked and not named:
        sys.exit("peers: name them by --peer-results, or by --peers and --peer-bench")
    if given.peers and not given.peer_results and not given.peer_bench:
        sys.exit("--peers: --peer-bench has to name the bench.py that runs them")
    return [name for name in known if name in asked]


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
    given = parser.parse_args()
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    # Small numbers must not take the place of those that are published.
    folder = given.out if given.quick else HERE
    given.results = given.results or folder / "results.json"
    given.table = given.table or folder / "RESULTS.md"
    for name in ("mock", "peers", "peer_bench", "peer_results"):
        path = getattr(given, name)
        if path is not None and not path.exists():
            sys.exit(f"--{name.replace('_', '-')}: {path} does not exist")
        setattr(given, name, path.resolve() if path else None)
    given.texts = [path.resolve() for path in given.texts]
    return given


def main() -> int:
    given = arguments()
    failed = suite(parts_of(given), given)
    print(given.table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
