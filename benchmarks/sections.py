"""The sections of RESULTS.md as data: each part's figures as rows beside bars, or as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import peers
from benchmarks.journal import NAMES
from benchmarks.tables import Bar, Row, figure, table

Figures = Mapping[str, Any]
# What a real run's samples and the memory of a long one are judged at, and the index's references.
SAMPLES, LONG, REFERENCES = 1000, 100_000, 1_000_000
SLOW_MS = 200
WALL = {64: Bar(1.12), 256: Bar(1.8)}
CPU, REAL_CPU, START, OVER_START_MB = Bar(5), Bar(8), Bar(12), Bar(300)
NONE, BRUTE_FORCE, GROWTH, PACE = Bar(0), Bar(0.2), Bar(1.5), Bar(0.8, most=False)
SEARCH_MS, RECALL, OPEN_S = Bar(10), Bar(0.95, most=False), Bar(1)

# What a figure is, its key, its unit, digits after the point, and its bar.
Spec = Sequence[tuple[str, str, str, int, Bar | None]]
COSTS: Spec = (
    ("CPU a call", "cpu_ms_per_call", " ms", 2, None),
    ("CPU a call of the floor", "floor_cpu_ms_per_call", " ms", 2, None),
    ("samples a second", "samples_per_s", "", 0, None),
    ("peak memory", "peak_mb", " MB", 0, None),
)
MEMORY: Spec = (
    ("above the start", "over_start_mb", " MB", 0, OVER_START_MB),
    ("pace, last tenth to first", "pace", "x", 2, PACE),
    ("samples a second, last tenth", "last_tenth_per_s", "", 0, None),
    ("peak memory", "peak_mb", " MB", 0, None),
    ("CPU a call", "cpu_ms_per_call", " ms", 2, None),
    ("in all", "seconds", " s", 0, None),
    ("the finished run, resumed", "resume_s", " s", 1, None),
)
NOVELTY: Spec = (
    ("CPU", "cpu_s", " s", 2, None),
    ("new ones", "kept", "", 0, None),
    ("memory", "added_mb", " MB", 0, None),
)
RETRIEVAL: Spec = (
    ("search, p50", "p50_ms", " ms", 1, None),
    ("search, p99", "p99_ms", " ms", 1, SEARCH_MS),
    ("recall@10 against exact search", "recall", "", 3, RECALL),
    ("opening it", "open_s", " s", 2, OPEN_S),
    ("building it, embedding apart", "build_s", " s", 0, None),
    ("own memory of each of four processes", "own_mb", " MB", 0, None),
)


def rows_of(runs: Sequence[Figures], spec: Spec, where: str = "", enough: bool = True) -> list[Row]:
    """A row for each figure that the repeats have."""
    return [
        Row(where + what, [run[key] for run in runs if key in run], unit, digits, bar, enough)
        for what, key, unit, digits, bar in spec
        if any(key in run for run in runs)
    ]


def by_part(figures: Figures) -> list[Row]:
    """CPU a call by part of the program, from a profile."""
    spent = figures.get("parts_ms", {})
    return [Row(f"CPU a call: {name}", [ms], " ms", 3) for name, ms in spent.items()]


def own_cost(figures: Figures) -> list[Row]:
    """Wall and CPU beside the floor of the same run."""
    rows = []
    for cell in figures["cells"]:
        whole = [run["whole"] for run in cell["runs"]]
        to_floor = [{"cpu": w["refloom"]["cpu_s"] / w["floor"]["cpu_s"]} for w in whole]
        runs = [run | more for run, more in zip(cell["runs"], to_floor, strict=True)]
        slow = cell["latency_ms"] == SLOW_MS
        wall = WALL[cell["in_flight"]] if slow else None
        spec = (
            ("wall to floor", "wall_ratio", "x", 2, wall),
            ("CPU to floor", "cpu", "x", 1, CPU if slow else None),
            *COSTS,
        )
        where = f"{cell['in_flight']} in flight, {cell['latency_ms']} ms: "
        rows += rows_of(runs, spec, where, figures["n"] >= SAMPLES)
    return rows + by_part(figures)


def real_run(figures: Figures) -> list[Row]:
    """A run like a real one beside as many calls alone."""
    spec = (
        ("CPU to floor", "cpu_ratio", "x", 1, REAL_CPU),
        ("wall to floor", "wall_ratio", "x", 2, None),
        *COSTS,
        *((key, key, "", 0, None) for key in ("accepted", "rejected", "failed", "calls")),
    )
    where = f"{figures['in_flight']} in flight, {figures['latency_ms']} ms: "
    stages = figures["runs"][0]["by_stage"].items()
    return [
        *rows_of(figures["runs"], spec, where, figures["n"] >= SAMPLES),
        *(Row(f"calls: {stage}", [n], "", 0) for stage, n in stages),
        *by_part(figures),
    ]


def start(figures: Figures) -> list[Row]:
    """Start-up, beside a Python that does nothing."""
    pairs = zip(figures["help_s"], figures["bare_s"], strict=False)
    heavy = [name for name in figures["loaded"] if name in ("torch", "faiss")]
    return [
        Row("`refloom --help` to `python -c pass`", [a / b for a, b in pairs], "x", 1, START),
        Row("`refloom --help`", figures["help_s"], " s"),
        Row("torch and faiss loaded by `import refloom`", [len(heavy)], "", 0, NONE),
    ]


def memory(figures: Figures) -> list[Row]:
    """Memory and pace as a run grows."""
    rows = []
    for run in figures["runs"]:
        n, pace = run["samples"], run["last_tenth_per_s"] / run["first_tenth_per_s"]
        rows += rows_of([run | {"pace": pace}], MEMORY, f"{n:,} samples: ", n >= LONG)
    return rows


def journal(figures: Figures) -> list[Row]:
    """The journal's rate beside plain SQLite's."""
    return [Row(NAMES[way], each, "", 0) for way, each in figures["each"].items()]


def novelty(figures: Figures) -> list[Row]:
    """The exact greedy ROUGE-L filter beside brute force, and as texts become more."""
    few, many = figures["filter"], figures.get("big")
    enough, grown = few["n"] >= 10_000, []
    if many:
        grown = [math.log(many["cpu_s"] / few["cpu_s"]) / math.log(many["n"] / few["n"])]
    ratio = few["cpu_s"] / figures["every_pair_cpu_s"]
    rows = [
        Row("CPU to brute force", [ratio], "x", 2, BRUTE_FORCE, enough),
        Row("growth: CPU is as n to the power of", grown, "", 2, GROWTH, enough),
        Row("kept otherwise than by brute force", [int(not figures["exact"])], "", 0, NONE),
    ]
    for run in (few, *([many] if many else [])):
        rows += rows_of([run], NOVELTY, f"{run['n']:,} texts: ")
    return rows


def retrieval(figures: Figures) -> list[Row]:
    """The index of many references."""
    own = max(part["anonymous"] for part in figures["four_processes_mb"])
    n = figures["n"]
    where = f"{n:,} references: "
    return rows_of([{**figures, "own_mb": own}], RETRIEVAL, where, n >= REFERENCES)


PIPELINES = {
    "authors": "the authors' (arithmetic)",
    "authors_judged": "the same, then a judge once",
    "no_loop": "refloom, `feedback = none`",
    "refloom": "refloom",
}
STAGES = ("feedback", "extract", "trial", "propose", "generate", "critique", "refine")
CALLS_HEAD = ["drafts good", "pipeline", "rows of candidates", "truly good", "calls a row"]
CALLS_HEAD += ["calls a good row", "tokens read a row", "written a row", *STAGES]


def calls(figures: Figures, *_: Figures) -> str:
    """What a row costs and is worth by pipeline, and its calls by stage."""
    lines = []
    for one in figures["qualities"]:
        for name, run in one["pipelines"].items():
            by, stages = run["per_row"], run["stages"]
            paid = [stages.get(stage, {}).get("calls") for stage in STAGES]
            lines.append(
                [
                    *(f"{one['world']['passes']:.0%}", PIPELINES[name]),
                    f"{run['rows']:,.0f} of {run['candidates']:,}",
                    *(f"{by['good_share']:.1%}", figure(by["calls"]), figure(by["calls_a_good"])),
                    *(figure(by["read"], 0), figure(by["written"], 0)),
                    *(figure(n / run["rows"] if n else None) for n in paid),
                ]
            )
    return table(CALLS_HEAD, lines)


PEER_HEAD = ["what", "wall to floor", "calls' span to floor", "CPU a call", "CPU a call before"]
PEER_HEAD += ["samples/s", "peak MB", "rows lost"]


def beside_peers(figures: Figures, before: Figures) -> str:
    """Other frameworks and refloom, a table a cell."""
    parts, earlier = [], {key: one for key, one in peers.lines(before)} if before else {}
    by_cell: dict[tuple[int, int, int], list[tuple[str, Figures]]] = {}
    for (name, *cell), one in peers.lines(figures):
        by_cell.setdefault((*cell,), []).append((name, one))
    for cell, rows in sorted(by_cell.items(), key=lambda one: (-one[0][2], one[0])):
        parts.append("**{:,} samples, {} in flight, {} ms**".format(*cell))
        lines = []
        for name, one in sorted(rows, key=lambda row: row[1]["wall"]):
            version = figures.get("versions", {}).get(name)
            shown = peers.NAMES[name] + (f" ({version})" if version else "")
            was = earlier.get((name, *cell), {}).get("cpu_ms")
            lines.append(
                [
                    f"**{shown}**" if name == "refloom" else shown,
                    *(figure(one["wall"]), figure(one["span"]), figure(one["cpu_ms"]), figure(was)),
                    *(figure(one["samples_per_s"], 1), figure(one["peak_mb"], 0), one["lost"]),
                ]
            )
        parts.append(table(PEER_HEAD, lines))
    return "\n\n".join(parts)


@dataclass(frozen=True)
class Section:
    """A heading, what its figures are of, and the figures: rows beside bars, or tables."""

    title: str
    about: str
    rows: Callable[[Figures], Sequence[Row]] | None = None
    tables: Callable[[Figures, Figures], str] | None = None


SECTIONS = {
    "own_cost": Section(
        "Own cost",
        "Samples of three dependent calls, journal on, and right before each run the same calls by "
        "asyncio and aiohttp alone (the floor). CPU by part is of a run of its own under a "
        "sampling profiler, at 64 in flight and 0 ms.",
        own_cost,
    ),
    "real_run": Section(
        "A run like a real one",
        "Texts of natural lengths, ten instructions a seed, three references a seed, trials, "
        "screening, near-duplicates, drafts that fail their first critique, journal on; the floor "
        "makes as many calls with bodies of the same sizes. CPU by part is of a run of its own "
        "under a sampling profiler, at 0 ms.",
        real_run,
    ),
    "peers": Section(
        "Beside other frameworks",
        "Three dependent calls a sample. Each was run as a whole process, start-up included, right "
        "after the floor of its own; where it was run more than once, the run with the least "
        "beside it, of refloom the one of median wall time. Ratios are times the floor's, CPU is "
        "in ms. The span is from first call to last, without start-up.",
        tables=beside_peers,
    ),
    "start": Section("Start-up", "Seconds of a whole process.", start),
    "memory": Section(
        "Memory of a run that grows",
        "One run each, 64 in flight, an endpoint that answers at once. The start is when 1,000 "
        "samples are done; the bars are for 100,000.",
        memory,
    ),
    "journal": Section(
        "The journal",
        "Replies of 2 kB kept a second, each waited for until it is on disk, one writer, beside "
        "SQLite used plainly in the same run.",
        journal,
    ),
    "calls": Section(
        "Calls and tokens a row",
        "refloom's own runs over a scripted model of which everything is known: how often a draft "
        "is good, a refinement mends a bad one, the judge errs (`calls.py --help`). The authors' "
        "pipeline is arithmetic on the same texts: it refines every draft and exports every row. "
        "Lengths of texts are assumed, so tokens say less than calls. The last columns are calls a "
        "row by stage.",
        tables=calls,
    ),
    "novelty": Section(
        "Novelty",
        "Edited copies of instructions, CPU time; brute force is every pair's LCS by rapidfuzz in "
        "the same run.",
        novelty,
    ),
    "retrieval": Section("Retrieval", "Vectors of 384 numbers.", retrieval),
}
