"""The results of a judge check as tables, for a page and for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nodes.criteria import ANSWERS_ID
from refloom.runs.text_table import text_table

# In a terminal a criterion gets a line of its own from this many references on.
MIN_LISTED_REFERENCES = 5
MAX_TEXT = 60

Row = Mapping[str, Any]


class CheckTable(NamedTuple):
    """A table: its name, the keys of its columns, and its rows, which may lack some of them."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Row]


def check_tables(results: Row) -> list[CheckTable]:
    """The tables of the contents of a judge-check.json; those without rows are left out."""
    same = results["consistency"]
    figures = {f"verdict, {method}": figure for method, figure in same["verdicts"].items()}
    figures |= {
        "winner in both orders": same["duels"],
        "picks that stood first": same["first_place"],
    }
    by = ("by_judge", "by_rule")
    drawn = ("method", "of", "text", "references", "auc", "own_passes", "bad_passes", "against")
    originals = [{"method": method, **row} for method, row in results["originals"].items()]
    tables = [
        CheckTable("criteria", drawn, results["criteria"]),
        CheckTable("canaries", ("method", "kind", "n", "caught", *by), results["canaries"]),
        CheckTable(
            "originals",
            ("method", "n", "passes", *by, "canaries_pass", "over_canaries"),
            originals,
        ),
        CheckTable(
            "duels", ("kind", "n", "original_wins", "canary_wins", "share"), results["duels"]
        ),
        CheckTable(
            "consistency", ("of", "same"), [{"of": k, "same": v} for k, v in figures.items()]
        ),
    ]
    if (jury := results.get("jury")) is not None:  # Earlier versions did not write it.
        rows = [{"of": "all", **jury}, *jury["kinds"], *jury["pairs"]]
        columns = ("model", "overruled", "passes", "unknown")
        tables += [
            CheckTable("jurors, Krippendorff's alpha", ("of", "alpha", "verdicts"), rows),
            CheckTable("jurors", columns, jury["jurors"]),
        ]
    if (human := results["human"]) is not None:
        rows = [{"of": "all", **human["all"]}, {"of": "whole samples", **human["samples"]}]
        rows += human["criteria"]
        rows += [{**row, "of": f"juror {row['of']}"} for row in human.get("jurors", ())]
        if (alpha := human.get("alpha")) is not None:
            rows.append({"of": "alpha of the person and the jurors", "kappa": alpha})
        anew = human["verdicts"] != "the run"
        name = f"a person, {human['method']}, {'asked anew' if anew else 'verdicts of the run'}"
        tables.append(CheckTable(name, ("of", "n", "kappa", "agreement", "confusion"), rows))
    return [table for table in tables if table.rows]


def format_judge_check(results: Row) -> str:
    """The results as text for a terminal: the flags, then tables of the figures they rest on.

    A figure is shown as its value, its 95 % interval, and n, the number of cases.
    """
    lines = [
        f"judge {results['judge']}, {' and '.join(results['method'])}, "
        f"prompts {results['prompt']}, random seed {results['random_seed']}: "
        f"{results['samples']} accepted rows, {results['references']} references, "
        f"{results['calls']} calls ({results['paid']} paid now)"
    ]
    for method, reason in results["unavailable"].items():
        lines.append(f"{method}: not available ({reason})")
    lines += [f"note: {note}" for note in results["notes"]]
    lines += ["", *(f"FLAG {flag}" for flag in results["flags"] or ["none"])]
    criteria: list[Row] = []
    for row in results["criteria"]:
        if row["id"] in (None, ANSWERS_ID) or row["references"] >= MIN_LISTED_REFERENCES:
            criteria.append(row)
        if row["of"] in ("built in", "drawn"):
            against = row["against"].items()
            criteria += [{"of": f"  against {kind}", "auc": auc} for kind, auc in against]
    for table in check_tables({**results, "criteria": criteria}):
        columns = [column for column in table.columns if column != "against"]
        cells = [
            [_short(column, format_figure(row.get(column, ""))) for column in columns]
            for row in table.rows
        ]
        head = [column.replace("_", " ") for column in columns]
        lines += ["", table.name, text_table(head, cells)]
    human = results["human"]
    if human is not None and human["without"]:
        lines.append(f"{human['without']} of {human['rows']} verdicts are on what was not judged")
    return "\n".join(lines)


def _short(column: str, cell: str) -> str:
    """A cell for a terminal: texts of criteria are cut, figures are not."""
    long = column == "text" and len(cell) > MAX_TEXT
    return f"{cell[: MAX_TEXT - 1]}…" if long else cell


def format_figure(value: object) -> str:
    """A figure, several of them by name, or a text."""
    if value is None:
        return "–"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
    if isinstance(value, Mapping) and "low" in value:
        if value["value"] is None:
            return "–"
        between = "" if value["low"] is None else f" ({value['low']:.2f} to {value['high']:.2f})"
        return f"{value['value']:.2f}{between}, n = {value['n']:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {format_figure(v)}".replace("_", "/") for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
