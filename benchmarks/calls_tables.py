"""The tables of calls.py: what a row costs and is worth, by pipeline, by stage, and early ends."""

from __future__ import annotations

from typing import Any

from benchmarks.tabled import figure, table

STAGES = ("feedback", "extract", "trial", "propose", "generate", "critique", "refine")
HEAD = ["drafts good", "pipeline", "rows of candidates", "truly good"]
HEAD += ["calls a row", "calls a good row", "tokens read, written a row", "written a good row"]
NAMES = {
    "authors": "the authors' (arithmetic)",
    "authors_judged": "the same, then a judge once",
    "no_loop": "refloom, `feedback = none`",
    "refloom": "refloom",
}


def row_lines(qualities: list[dict[str, Any]]) -> list[list[str]]:
    """What each pipeline pays for a row and for a good row."""
    lines = []
    for one in qualities:
        for name, pipeline in one["pipelines"].items():
            by = pipeline["per_row"]
            line = [f"{one['world']['passes']:.0%}", NAMES[name]]
            line += [f"{pipeline['rows']:,.0f} of {pipeline['candidates']:,}"]
            line += [f"{by['good_share']:.1%}", figure(by["calls"]), figure(by["calls_a_good"])]
            line += [f"{figure(by['read'], 0)}, {figure(by['written'], 0)}"]
            lines.append([*line, figure(by["written_a_good"], 0)])
    return lines


def stage_lines(qualities: list[dict[str, Any]]) -> list[list[str]]:
    """Calls of each stage for one row of the authors' pipeline and of refloom's."""
    lines = []
    for one in qualities:
        for name in ("authors", "refloom"):
            pipeline = one["pipelines"][name]
            calls = (pipeline["stages"].get(stage, {}).get("calls") for stage in STAGES)
            by_stage = [figure(n / pipeline["rows"] if n else None) for n in calls]
            lines.append([f"{one['world']['passes']:.0%}", NAMES[name], *by_stage])
    return lines


def exit_lines(qualities: list[dict[str, Any]]) -> list[list[str]]:
    """How many drafts ended early, and what they were spared."""
    keys = ("drafts", "failed_a_rule", "judge_calls_on_them", "passed_at_once")
    keys += ("refinements_of_them", "attempts", "judge_calls", "refinements")
    early = [(one["world"]["passes"], one["pipelines"]["refloom"]["early"]) for one in qualities]
    return [[f"{passes:.0%}", *(figure(one[key], 0) for key in keys)] for passes, one in early]


EXITS = ["drafts good", "drafts", "failed a rule", "judge calls on those", "passed at once"]
EXITS += ["refinements of those", "attempts in all", "judge calls", "refinements"]


LOOP = ["drafts good", "refloom beside", "calls a row", "tokens read a row"]
LOOP += ["tokens written a row", "truly good, there and here"]


def loop_lines(qualities: list[dict[str, Any]]) -> list[list[str]]:
    """What the critique loop adds to each row, and what it buys."""
    lines = []
    for one in qualities:
        own = one["pipelines"]["refloom"]["per_row"]
        for name in ("authors", "no_loop"):
            other = one["pipelines"][name]["per_row"]
            added = [f"{own[key] - other[key]:+,.0f}" for key in ("read", "written")]
            line = [f"{one['world']['passes']:.0%}", NAMES[name]]
            line += [f"{own['calls'] - other['calls']:+.2f}", *added]
            lines.append([*line, f"{other['good_share']:.1%}, {own['good_share']:.1%}"])
    return lines


def tables(qualities: list[dict[str, Any]]) -> str:
    """The four tables: what the loop adds and buys, rows, stages, early ends."""
    stages = ["drafts good", "calls a row of", *STAGES]
    parts = [table(LOOP, loop_lines(qualities)), table(HEAD, row_lines(qualities))]
    parts += [table(stages, stage_lines(qualities)), table(EXITS, exit_lines(qualities))]
    return "\n\n".join(parts)
