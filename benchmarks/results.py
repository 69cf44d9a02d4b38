"""Runs the benchmarks and writes their figures, beside their bars, into RESULTS.md.

    python benchmarks/results.py [--mock PROGRAM | --endpoint URL] [--only own_cost,calls] [--quick]

Each part keeps its raw figures in results.json, so that a part that is run alone changes its own
section only; "before" is what the last commit's results.json has. `--mock` is a mock endpoint's
program (PORT and LATENCY_MS from the environment), `--endpoint` one that runs; both have to know
/reset?latency_ms=. Without either a Python one is started, which the sections say. `--quick` takes
small numbers and keeps its files in --out. `peers` runs where --peer-results is there. Reads /proc,
so: Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.endpoints import KINDS, started
from benchmarks.parts import HERE, NEED_ENDPOINT, PARTS, TAKE_TEXTS, PartFailed
from benchmarks.sections import SECTIONS, Section
from benchmarks.tables import beside_bars

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
HEADING = "# Results\n\nWhat was measured, on what, and with which command."
OLDER = "Kept by another version of this benchmark, which has to be run again."
QUICK = "Small numbers (`--quick`): they show that it runs, not how well."


def machine() -> dict[str, Any]:
    """What the figures were measured on, without its name."""
    cpuinfo = Path("/proc/cpuinfo")
    # Only Linux has it.
    text = cpuinfo.read_text("utf-8") if cpuinfo.is_file() else ""
    named = re.search(r"model name\s*: (.+)", text)
    model = named.group(1).strip() if named else platform.processor() or platform.machine()
    gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    python = platform.python_version()
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": round(gb), "python": python}


def load(text: str) -> dict[str, Any]:
    """What was measured, by part, from the text of a results.json; nothing from none."""
    try:
        by_part = json.loads(text or "{}")
    except ValueError as error:
        sys.exit(f"results.json: is no JSON: {error}")
    if not isinstance(by_part, dict):
        sys.exit("results.json: does not hold figures by part")
    return by_part


def load_before() -> dict[str, Any]:
    """What the last commit's results.json has; nothing outside of a repository."""
    command = ["git", "show", "HEAD:./results.json"]
    return load(subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout)


def entry(
    figures: Mapping[str, Any], quick: bool, kind: str | None, texts: Sequence[Path] = ()
) -> dict[str, Any]:
    """A part's figures with what has to be known of them."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    about = {"date": day, "machine": machine(), "quick": quick, "endpoint": kind}
    return {**about, "texts": [path.name for path in texts], "figures": dict(figures)}


def body(section: Section, figures: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """A section's figures, and those before where they are in a form that can still be read."""
    if section.tables:
        return section.tables(figures, before)
    assert section.rows
    try:
        earlier = {row.what: row for row in section.rows(before)} if before else {}
    except (KeyError, IndexError):
        earlier = {}
    return beside_bars(section.rows(figures), earlier)


def written(text: str, by_part: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """A RESULTS.md with its measured part made anew; what a person wrote around it stays."""
    parts = []
    for name, section in SECTIONS.items():
        if name not in by_part:
            continue
        one = by_part[name]
        on, lines = one["machine"], [section.about, *([QUICK] if one["quick"] else [])]
        facts = f"{one['date']}, {on['cpu']}, {on['cores']} cores, {on['memory_gb']} GB, "
        facts += f"Python {on['python']}"
        facts += f"; {KINDS[one['endpoint']]}" if one["endpoint"] else ""
        command = ["python benchmarks/results.py --only", name]
        if texts := one.get("texts"):
            command += ["--texts", *texts]
        lines.append(f"*{facts}. `{' '.join(command)}`*")
        try:
            lines.append(body(section, one["figures"], before.get(name, {}).get("figures", {})))
        except (KeyError, IndexError):
            lines.append(OLDER)
        parts.append("\n\n".join([f"## {section.title}", *lines]))
    if BEGIN not in text:
        text = f"{text.rstrip() or HEADING}\n\n{BEGIN}{END}\n"
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}{rest.partition(END)[2]}"


def keep(name: str, one: dict[str, Any], args: argparse.Namespace) -> None:
    """Put a part's figures among the others, and write both files."""
    stored, text = (p.read_text("utf-8") if p.is_file() else "" for p in (args.results, args.table))
    by_part = load(stored) | {name: one}
    args.results.write_text(json.dumps(by_part, indent=1) + "\n", encoding="utf-8")
    before = {} if args.quick else load_before()
    args.table.write_text(written(text, by_part, before), encoding="utf-8")


def parts_of(args: argparse.Namespace) -> list[str]:
    """The parts that were asked for, in the suite's order."""
    names = args.only.split(",") if args.only else list(PARTS)
    if unknown := sorted(set(names) - set(PARTS)):
        sys.exit(f"--only: there is no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if args.only and "peers" in names and not args.peer_results:
        sys.exit("peers: name the file of what was measured of them by --peer-results")
    return [name for name in PARTS if name in names and (name != "peers" or args.peer_results)]


def arguments() -> argparse.Namespace:
    """What was asked for; paths whole, since parts run elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="PART,..", help="which parts to run")
    parser.add_argument("--quick", action="store_true", help="small numbers")
    parser.add_argument("--repeats", type=int, default=3, help="of what has a floor (default: 3)")
    parser.add_argument("--largest", action="store_true", help="memory: 100,000 samples, too")
    parser.add_argument("--mock", type=Path, metavar="PROGRAM")
    parser.add_argument("--endpoint", metavar="URL")
    parser.add_argument("--texts", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="a folder with their venvs/")
    parser.add_argument("--peer-results", type=Path, metavar="FILE", help="what bench.py wrote")
    parser.add_argument("--out", type=Path, default=Path("bench-run"), help="for what is passing")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    # Small numbers must not take the place of those that are published.
    folder = args.out if args.quick else HERE
    args.results, args.table = folder / "results.json", folder / "RESULTS.md"
    for name in ("mock", "peers", "peer_results"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            sys.exit(f"--{name.replace('_', '-')}: {path} does not exist")
        setattr(args, name, path.resolve() if path else None)
    args.texts = [path.resolve() for path in args.texts]
    return args


def main() -> int:
    """Run the parts one after another, keep each at once; 1 if one of them failed."""
    args, endpoint, status = arguments(), None, 0
    with ExitStack() as stack:
        for name in parts_of(args):
            if name in NEED_ENDPOINT and endpoint is None:
                endpoint = stack.enter_context(started(args.mock, args.endpoint))
            begun = time.monotonic()
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                figures = PARTS[name](args, endpoint)
            except PartFailed as error:
                print(f"{name} FAILED: {error}", file=sys.stderr)
                status = 1
                continue
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            kind = endpoint.kind if endpoint and name in NEED_ENDPOINT else None
            texts = args.texts if name in TAKE_TEXTS else ()
            keep(name, entry(figures, args.quick, kind, texts), args)
    print(args.table)
    return status


if __name__ == "__main__":
    sys.exit(main())
