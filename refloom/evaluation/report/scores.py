"""The section of a report on scored rows: scores, criteria, worst rows, two files compared."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refloom.errors import InputError
from refloom.evaluation.report import charts
from refloom.evaluation.report.samples import MAX_REASON, MAX_RESPONSE, SIGNS, clip
from refloom.evaluation.report.tables import format_count
from refloom.evaluation.scored import ScoredFigures, ScoredFile, ScoredRow, describe_file
from refloom.evaluation.stats import Interval

# The page of a file stands beside it.
PAGE_SUFFIX = ".html"


async def report_scores(files: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page on files of scored rows, and return its path.

    `out` is by default the name of the first file with .html. Raises `InputError` for a file that
    cannot be read, or an `out` that cannot be written.
    """
    return await write_scores_page([ScoredFile(path) for path in files], None, out)


async def write_scores_page(
    files: Sequence[ScoredFile], comparison: Mapping[str, Any] | None, out: Path | None = None
) -> Path:
    """The page on files, and on the comparison of two of them, if there is one."""
    # Imported here: the package imports its sections.
    from refloom.evaluation.report import check_output, render_page, write_page

    path = out or files[0].path.with_suffix(PAGE_SUFFIX)
    check_output(path)
    if any(path.resolve() == file.path.resolve() for file in files):
        raise InputError(f"{path}: is a file of scored rows; give another --out")

    def write() -> None:
        figures = [describe_file(file) for file in files]
        scores = [_section(file, one) for file, one in zip(files, figures, strict=True)]
        section = {
            "files": scores,
            "compared": None if comparison is None else _comparison(comparison),
        }
        write_page(path, render_page({"runs": [], "compared": None, "scores": section}))

    await asyncio.to_thread(write)
    return path


def _section(file: ScoredFile, figures: ScoredFigures) -> dict[str, Any]:
    values = np.asarray(figures.scores, np.float64)
    known = figures.mean.n
    note = "no row has a score"
    if known:
        value, low, high, _ = figures.mean
        note = f"n = {known:,}; mean {value:.3f} (95 % interval {low:.3f} to {high:.3f})"
    chart = charts.unit_chart("Scores", note, values)
    return {
        "name": figures.name,
        "judge": ", ".join(figures.judge_models),
        "chart": charts.scale_charts([{"scores": chart}])[0]["scores"],
        "mean": figures.mean,
        "facts": [
            (format_count(figures.rows), "rows"),
            (format_count(figures.without_score), "without a score"),
            (format_count(figures.without_criteria), "without criteria"),
            (f"{figures.unknown:,} of {figures.verdicts:,}", "verdicts unknown"),
        ],
        "criteria": figures.criteria,
        "more_criteria": figures.more_criteria,
        "worst": [_card(file, row) for row in figures.worst],
    }


def _card(file: ScoredFile, row: ScoredRow) -> dict[str, Any]:
    against = [one for one in row.verdicts if one["verdict"] in ("fail", "unknown")]
    return {
        "score": f"{row.score:.2f}",
        "line": row.line,
        "instruction": clip(row.instruction, MAX_RESPONSE),
        "response": clip(row.response, MAX_RESPONSE),
        "verdicts": [
            (
                SIGNS[one["verdict"]],
                file.text_of(one["criterion_id"]),
                clip(one["reason"], MAX_REASON),
            )
            for one in against
        ],
    }


def _comparison(compared: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison as the page shows it; the difference is drawn on a track from -1 to 1."""
    difference = Interval(**compared["difference"])
    halved = [None if part is None else (part + 1) / 2 for part in difference[:3]]
    return {
        **compared,
        "difference": difference,
        "drawn": Interval(halved[0], halved[1], halved[2], difference.n),
        "mean_a": Interval(**compared["mean_a"]),
        "mean_b": Interval(**compared["mean_b"]),
        "criteria": [
            {**row, "a": Interval(**row["a"]), "b": Interval(**row["b"])}
            for row in compared["criteria"]
        ],
        "cards": [
            {
                **card,
                **{
                    key: clip(card[key], MAX_RESPONSE)
                    for key in ("instruction", "a_response", "b_response")
                },
            }
            for card in compared["cards"]
        ],
    }
