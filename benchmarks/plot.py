"""Draws refloom's own cost beside other frameworks', from results.json, for the README.

    python benchmarks/plot.py [--results benchmarks/results.json] [--out docs/own_cost.svg]

Two panels: CPU milliseconds a call, and wall time beside the floor of the same run. Both are of
whole processes, start-up included. The colours can be read on white and on black.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import peers

HERE = Path(__file__).resolve().parent
IN_FLIGHT, LATENCY_MS = 64, 200
# Each has a contrast of at least 3 to white and to GitHub's dark background.
INK, OWN, OTHERS = "#768390", "#3b82d6", "#8b949e"
PANELS = (("cpu_ms", "CPU a call, ms", None), ("wall", "wall time, times the floor's", 1.0))


def bars_of(by_part: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Name and figures of every framework that was measured in the cell, the dearest first."""
    own = by_part.get("own_cost", {}).get("figures", {})
    rows = [
        (peers.NAMES.get(row["name"], row["name"]), peers.figures_of(row))
        for row in peers.best(by_part.get("peers", {}).get("figures", {}).get("rows", []))
        if (row["conc"], row["latency_ms"], row["n"]) == (IN_FLIGHT, LATENCY_MS, own.get("n"))
    ]
    for cell in own.get("cells", []):
        if (cell["in_flight"], cell["latency_ms"]) == (IN_FLIGHT, LATENCY_MS):
            rows.append(("refloom", peers.own_figures(cell, own["n"])))
    if not rows or rows[-1][0] != "refloom":
        sys.exit("results.json: holds no run of own_cost with 64 in flight at 200 ms")
    return sorted(rows, key=lambda row: -(row[1]["cpu_ms"] or 0))


def draw(rows: list[tuple[str, dict[str, float]]], n: int, out: Path) -> None:
    """Write the figure; the same figures give the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    own = {"font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "refloom"}
    colours = dict.fromkeys(("text.color", "xtick.color", "ytick.color", "axes.labelcolor"), INK)
    with plt.rc_context(own | colours):
        figure, axes = plt.subplots(1, 2, sharey=True, figsize=(8, 0.8 + 0.32 * len(rows)))
        for axis, (key, title, floor) in zip(axes, PANELS, strict=True):
            panel(axis, rows, key, title, floor)
        about = f"{n:,} samples of three dependent calls, {IN_FLIGHT} in flight, {LATENCY_MS} ms"
        figure.supxlabel(about, fontsize=8, color=INK)
        figure.tight_layout()
        plain = {"Date": None, "Creator": None}
        figure.savefig(out, format="svg", transparent=True, metadata=plain)
        plt.close(figure)
    # matplotlib ends some lines with a blank.
    lines = out.read_text(encoding="utf-8").splitlines()
    out.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def panel(axis: Any, rows: list, key: str, title: str, floor: float | None) -> None:
    """One measure of every framework, its number at the end of its bar."""
    values = [one[key] or 0 for _, one in rows]
    names = [name for name, _ in rows]
    colours = [OWN if name == "refloom" else OTHERS for name in names]
    drawn = axis.barh(names, values, color=colours, height=0.7)
    labels = axis.bar_label(drawn, fmt="%.1f" if max(values) >= 10 else "%.2f", padding=3)
    for name, label in zip(names, labels, strict=True):
        label.set_weight("bold" if name == "refloom" else "normal")
    if floor is not None:
        axis.axvline(floor, color=INK, linewidth=0.8, linestyle=":")
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlim(0, max(values) * 1.15)
    axis.xaxis.set_visible(False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "own_cost.svg")
    given = parser.parse_args()
    by_part = json.loads(given.results.read_text(encoding="utf-8"))
    draw(bars_of(by_part), by_part["own_cost"]["figures"]["n"], given.out)
    print(given.out)


if __name__ == "__main__":
    main()
