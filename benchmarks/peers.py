"""Other frameworks under the same load: what `bench.py` measured of them, beside refloom.

Their runners are no part of this project. `--peer-results` names the lines that were written of
them, `--peers` the folder with their virtual environments, which shows their versions. refloom is
run in every cell that the lines name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAMES = {
    "refloom": "refloom",
    "langgraph": "LangGraph + ChatOpenAI",
    "distilabel": "distilabel",
    "curator": "Curator",
    "datadesigner": "NeMo Data Designer",
    "sdghub": "SDG Hub",
    "sygra": "SyGra",
    "openai": "asyncio + the OpenAI client",
}
# What is installed for a framework, as its folder of metadata is named.
PACKAGES = {"curator": "bespokelabs_curator", "datadesigner": "data_designer", "sdghub": "sdg_hub"}
KEYS = ("name", "n", "conc", "latency_ms", "rc", "wall_s", "samples_s", "cpu_s", "calls", "lost")
KEYS += ("peak_rss_mb", "peak_tree_pss_mb", "procs", "ratio_wall", "ratio_span", "other_cpus")


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a results.jsonl that have the floor's beside them, with what is shown of them."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                sys.exit(f"{path.name}, line {number}: is no JSON: {error}")
            if "ratio_wall" in row and row["name"] in NAMES:
                rows.append({key: row[key] for key in KEYS if key in row})
    return rows


def versions(folder: Path) -> dict[str, str]:
    """The version of every framework that has an environment in a folder."""
    by_name = {}
    for name in NAMES:
        package = PACKAGES.get(name, name)
        for path in folder.glob(f"venvs/{name}/lib/python*/site-packages/{package}-*.dist-info"):
            by_name[name] = path.name.removesuffix(".dist-info").removeprefix(f"{package}-")
    return by_name


def cells(rows: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """The cells that were measured: samples, calls in flight, latency in ms."""
    return sorted({(row["n"], row["conc"], row["latency_ms"]) for row in rows})


def best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each framework and cell the run that had the machine most to itself; failed ones last."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        cell = (row["name"], row["n"], row["conc"], row["latency_ms"])
        if cell not in chosen or _disturbed(row) < _disturbed(chosen[cell]):
            chosen[cell] = row
    return list(chosen.values())


def _disturbed(row: dict[str, Any]) -> tuple[bool, float]:
    return row["rc"] != 0, row.get("other_cpus", 0.0)


def figures_of(row: dict[str, Any]) -> dict[str, Any]:
    """One framework's run as it is shown: all of the process, start-up and children included."""
    return {
        "wall": row["ratio_wall"],
        "span": row.get("ratio_span"),
        "cpu_ms": row["cpu_s"] / row["calls"] * 1000 if row["calls"] else None,
        "samples_per_s": row["samples_s"],
        "peak_mb": row["peak_tree_pss_mb"] if row.get("procs", 1) > 1 else row["peak_rss_mb"],
        "lost": row["lost"],
    }


def own_figures(cell: Mapping[str, Any]) -> dict[str, Any]:
    """refloom's own run of a cell, measured in the same way; of repeats the one of median wall."""
    runs = sorted(cell["runs"], key=lambda run: run["wall_ratio"])
    run = runs[(len(runs) - 1) // 2]
    own, floor = run["whole"]["refloom"], run["whole"]["floor"]
    return {
        "wall": own["process_wall_s"] / floor["process_wall_s"],
        "span": own["wall_s"] / floor["wall_s"],
        "cpu_ms": own["process_cpu_s"] / own["calls"] * 1000,
        "samples_per_s": own["accepted"] / own["process_wall_s"],
        "peak_mb": own["peak_mb"],
        "lost": cell["n"] - own["accepted"],
    }


def lines(figures: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int, int, int], dict[str, Any]]]:
    """Everyone's figures by name, samples, calls in flight and latency."""
    for row in best(figures["rows"]):
        if row["name"] in NAMES:
            yield (row["name"], row["n"], row["conc"], row["latency_ms"]), figures_of(row)
    for cell in figures.get("own", []):
        where = ("refloom", cell["n"], cell["in_flight"], cell["latency_ms"])
        yield where, own_figures(cell)
