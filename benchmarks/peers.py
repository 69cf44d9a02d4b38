"""Other frameworks under the same load: reading what `bench.py` measured of them, or running it.

The runners are no part of this project: `bench.py` with its folder of runners is named by
`--peer-bench`, a folder of virtual environments made for it by `--peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.endpoints import Endpoint

FLOOR = "floor_aiohttp"
NAMES = {
    "langgraph": "LangGraph + ChatOpenAI",
    "distilabel": "distilabel",
    "distilabel_task": "distilabel, with a task",
    "curator": "Curator",
    "datadesigner": "NeMo Data Designer",
    "sdghub": "SDG Hub",
    "sygra": "SyGra",
    "deepfabric": "DeepFabric",
    "openai": "asyncio + the OpenAI client",
}
# What is installed for a framework, as its folder of metadata is named.
PACKAGES = {"curator": "bespokelabs_curator", "datadesigner": "data_designer", "sdghub": "sdg_hub"}
KEYS = ("name", "n", "conc", "latency_ms", "rc", "wall_s", "samples_s", "cpu_s", "calls", "lost")
KEYS += ("peak_rss_mb", "peak_tree_pss_mb", "procs", "ratio_wall", "ratio_span", "other_cpus")
CELLS = ((64, 200), (256, 200), (64, 0))
LONGEST_S = 900


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
            if "ratio_wall" in row and row["name"] != FLOOR:
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


def figures_of(row: dict[str, Any]) -> dict[str, float]:
    """One framework's run as it is shown: all of the process, start-up and children included."""
    peak = row["peak_tree_pss_mb"] if row.get("procs", 1) > 1 else row["peak_rss_mb"]
    return {
        "wall": row["ratio_wall"],
        "span": row.get("ratio_span"),
        "cpu_ms": row["cpu_s"] / row["calls"] * 1000 if row["calls"] else None,
        "samples_per_s": row["samples_s"],
        "peak_mb": peak,
        "lost": row["lost"],
    }


def own_figures(cell: dict[str, Any], n: int) -> dict[str, float]:
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
        "lost": n - own["accepted"],
    }


def measure(args: argparse.Namespace, endpoint: Endpoint) -> dict[str, Any]:
    """Run every framework that has an environment, each right after the floor."""
    venvs = {path.name for path in (args.peers / "venvs").iterdir() if path.is_dir()}
    n = 60 if args.quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        for conc, latency in CELLS[:1] if args.quick else CELLS:
            for name in (name for name in NAMES if name in venvs):
                flags = ["--pair", FLOOR, "--n", n, "--conc", conc, "--latency", latency]
                flags += ["--results", results, "--timeout", LONGEST_S]
                command = [sys.executable, args.peer_bench, name, *flags]
                own = os.environ | {"PB": str(args.peers.resolve()), "MOCK": endpoint.root}
                line = [*map(str, command)]
                done = subprocess.run(line, env=own, stdout=sys.stderr, check=False)
                if done.returncode:
                    print(f"{name}: bench.py ended with {done.returncode}", file=sys.stderr)
        return {"rows": read(results) if results.is_file() else []}


def figures(args: argparse.Namespace, endpoint: Endpoint | None) -> dict[str, Any]:
    """What was measured of them, now or before, and of which versions where that can be seen."""
    if args.peer_results:
        measured = {"rows": read(args.peer_results)}
    else:
        assert endpoint is not None
        measured = measure(args, endpoint)
    return measured | {"versions": versions(args.peers) if args.peers else {}}
