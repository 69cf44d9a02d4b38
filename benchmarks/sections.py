"""The sections of RESULTS.md: one a part, its figures beside their bars, from the raw figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import bars, peers
from benchmarks.bars import beside
from benchmarks.calls_tables import tables as call_tables
from benchmarks.journal import rate_table
from benchmarks.parts import middle
from benchmarks.tabled import figure, median, spread, table

Figures = dict[str, Any]
BESIDE = ["bar", "reached"]


def own_cost(figures: Figures, everything: Figures) -> str:
    """Wall and CPU beside the floor of the same run."""
    head = ["in flight", "endpoint", "wall to floor", *BESIDE, "CPU a call", *BESIDE]
    head += ["CPU to floor", "samples/s", "peak MB"]
    enough = figures["n"] >= 1000
    lines = []
    for cell in figures["cells"]:
        runs, slow = cell["runs"], cell["latency_ms"] == bars.LATENCY_MS
        wall, cpu = middle(runs, "wall_ratio"), middle(runs, "cpu_ms_per_call")
        wall_bar = bars.WALL.get(cell["in_flight"]) if slow else None
        to_floor = [r["whole"]["refloom"]["cpu_s"] / r["whole"]["floor"]["cpu_s"] for r in runs]
        lines.append(
            [
                *(cell["in_flight"], f"{cell['latency_ms']} ms"),
                *(spread([r["wall_ratio"] for r in runs]), *beside(wall, wall_bar, enough)),
                f"{spread([r['cpu_ms_per_call'] for r in runs])} ms",
                *beside(cpu, bars.CPU_MS_A_CALL if slow else None, enough),
                *(figure(median(to_floor), 1), figure(middle(runs, "samples_per_s"), 0)),
                figure(middle(runs, "peak_mb"), 0),
            ]
        )
    repeats = len(figures["cells"][0]["runs"])
    about = (
        f"{figures['n']:,} samples of three dependent calls, journal on, and right before each run "
        "the same calls by asyncio and aiohttp alone (the floor). "
        + ("One run each." if repeats == 1 else f"Median of {repeats}, the least and the most.")
    )
    return f"{about}\n\n{table(head, lines)}"


def start(figures: Figures, everything: Figures) -> str:
    """Start-up, beside a Python that does nothing."""
    seconds, bare = median(figures["help_s"]), median(figures["bare_s"])
    heavy = [name for name in ("torch", "faiss") if name in figures["loaded"]]
    lines = [
        ["`refloom --help`", f"{spread(figures['help_s'])} s", *beside(seconds, bars.HELP_S)],
        ["the same to a Python that does nothing", f"{figure(seconds / bare, 1)}x", "–", "no bar"],
        [
            "`import refloom` loads",
            " and ".join(heavy) or "neither",
            "neither torch nor faiss",
            "**no**" if heavy else "yes",
        ],
    ]
    return table(["what", "measured", *BESIDE], lines)


def journal(figures: Figures, everything: Figures) -> str:
    """The journal's rate beside plain SQLite's."""
    about = (
        f"Calls kept a second ({figures['rows']:,} replies of 2 kB, each waited for until it is on "
        "disk), one writer, beside SQLite used plainly in the same run. No bar."
    )
    return f"{about}\n\n{rate_table(figures)}"


def calls(figures: Figures, everything: Figures) -> str:
    """What the loop adds and what it buys."""
    world = figures["qualities"][0]["world"]
    about = (
        "refloom's own runs over a scripted model of which everything is known: a draft is good as "
        f"often as the table says, a refinement mends a bad one with {world['mends']:.0%} and "
        f"spoils a good one with {world['spoils']:.0%}, the judge errs in {world['errs']:.0%} of "
        f"the responses, {world['plain']:.0%} of the bad ones break a rule. "
        f"{figures['per_reference']} instructions a reference. The authors' pipeline is arithmetic "
        "on the same texts: it refines every draft and exports every row. Lengths of texts are "
        "assumed, so tokens say less than calls. First what the loop adds and buys. No bar."
    )
    return f"{about}\n\n{call_tables(figures['qualities'])}"


def memory(figures: Figures, everything: Figures) -> str:
    """Memory and pace as a run grows."""
    head = ["samples", "seconds", "samples/s, first and last tenth", "CPU a call"]
    head += ["MB before, at 1,000, peak", "MB above the start", *BESIDE, "kB a sample"]
    lines = []
    for run in figures["runs"]:
        n, over = run["samples"], run["over_start_mb"]
        later = n - 1000
        lines.append(
            [
                *(figure(n, 0), figure(run["seconds"], 0)),
                f"{figure(run['first_tenth_per_s'], 0)}, {figure(run['last_tenth_per_s'], 0)}",
                f"{figure(run['cpu_ms_per_call'])} ms",
                ", ".join(figure(run[key], 0) for key in ("before_mb", "start_mb", "peak_mb")),
                *(figure(over, 0), *beside(over, bars.OVER_START_MB, n >= bars.OVER_START_AT)),
                figure(over * 1024 / later if later > 0 else None, 1),
            ]
        )
    about = (
        "One run, 64 in flight, an endpoint that answers at once; the bar is for 100,000 samples. "
        "The start is when 1,000 samples are done."
    )
    return f"{about}\n\n{table(head, lines)}"


def novelty(figures: Figures, everything: Figures) -> str:
    """The exact greedy ROUGE-L filter."""
    lines = []
    for run in (figures["filter"], *([figures["big"]] if "big" in figures else [])):
        bar = bars.NOVELTY_S.get(run["n"])
        kept = f"{run['kept']:,}"
        spent = [f"{figure(run['cpu_s'])} s", *beside(run["cpu_s"], bar)]
        lines.append([f"{run['n']:,}", kept, *spent, figure(run["added_mb"], 0)])
    texts = "edited copies of real instructions" if figures["real"] else "made-up texts"
    exact = "the same as" if figures["exact"] else "**not** the same as"
    ratio = figures["every_pair_cpu_s"] / figures["filter"]["cpu_s"]
    about = (
        f"On {texts}, CPU time. What is kept of the first line's is {exact} what comparing every "
        f"pair keeps, which took {figure(ratio, 1)} times as much in the same run."
    )
    return f"{about}\n\n{table(['texts', 'kept', 'CPU', *BESIDE, 'MB added'], lines)}"


def retrieval(figures: Figures, everything: Figures) -> str:
    """The index of many references."""
    enough = figures["n"] >= bars.RETRIEVAL_AT
    p99, opened = figures["p99_ms"], figures["open_s"]
    own = max(part["anonymous"] for part in figures["four_processes_mb"])
    lines = [
        ["search, p50", f"{figure(figures['p50_ms'], 1)} ms", "–", "no bar"],
        ["search, p99", f"{figure(p99, 1)} ms", *beside(p99, bars.SEARCH_MS, enough)],
        [
            "recall@10 against exact search",
            figure(figures["recall"], 3),
            *beside(figures["recall"], bars.RECALL, enough),
        ],
        ["opening it", f"{figure(opened)} s", *beside(opened, bars.OPEN_S, enough)],
        ["building it, embedding apart", f"{figure(figures['build_s'], 0)} s", "–", "no bar"],
        ["own memory of each of four processes", f"{figure(own, 0)} MB", "–", "no bar"],
    ]
    about = f"{figures['n']:,} references of 384 numbers, an index of kind `{figures['kind']}`."
    return f"{about}\n\n{table(['what', 'measured', *BESIDE], lines)}"


PEER_HEAD = ["what", "wall to floor", "calls' span to floor", "CPU a call", "samples/s"]
PEER_HEAD += ["peak MB", "rows lost"]


def beside_peers(figures: Figures, everything: Figures) -> str:
    """Other frameworks and refloom, a table a cell."""
    own = everything.get("own_cost", {}).get("figures", {})
    mine = {(c["in_flight"], c["latency_ms"]): c for c in own.get("cells", [])}
    cells: dict[tuple[int, int, int], list[tuple[str, Figures]]] = {}
    for row in peers.best(figures["rows"]):
        name = peers.NAMES.get(row["name"], row["name"])
        version = figures.get("versions", {}).get(row["name"])
        named = f"{name} ({version})" if version else name
        cell = (row["n"], row["conc"], row["latency_ms"])
        cells.setdefault(cell, []).append((named, peers.figures_of(row)))
    parts = [
        "Three dependent calls a sample. Each was run as a whole process, start-up included, right "
        "after the floor of its own (asyncio and aiohttp); where it was run more than once, the "
        "run with the least beside it. The span is from first call to last, without start-up."
    ]
    for (n, conc, latency), rows in sorted(cells.items(), key=lambda cell: (-cell[0][2], cell[0])):
        if (conc, latency) in mine and own["n"] == n:
            rows.append(("refloom", peers.own_figures(mine[conc, latency], n)))
        parts.append(f"**{n:,} samples, {conc} in flight, {latency} ms**")
        ordered = sorted(rows, key=lambda row: row[1]["wall"])
        parts.append(table(PEER_HEAD, [_peer_line(name, one) for name, one in ordered]))
    return "\n\n".join(parts)


def _peer_line(name: str, one: Figures) -> list[str]:
    cpu = one["cpu_ms"]
    return [
        f"**{name}**" if name == "refloom" else name,
        *(f"{figure(one['wall'])}x", "–" if one["span"] is None else f"{figure(one['span'])}x"),
        "–" if cpu is None else f"{figure(cpu)} ms",
        *(figure(one["samples_per_s"], 1), figure(one["peak_mb"], 0), str(one["lost"])),
    ]


SECTIONS: dict[str, tuple[str, Callable[[Figures, Figures], str]]] = {
    "own_cost": ("Own cost", own_cost),
    "peers": ("Beside other frameworks", beside_peers),
    "start": ("Start-up", start),
    "memory": ("Memory of a run that grows", memory),
    "journal": ("The journal", journal),
    "calls": ("Calls and tokens a row", calls),
    "novelty": ("Novelty", novelty),
    "retrieval": ("Retrieval", retrieval),
}
