"""What people decided and marked in a run's reviews: a report's section."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from refloom.evaluation.stats import proportion
from refloom.runs.journal import has_table
from refloom.runs.review_figures import figures_of, flagged_samples

MAX_CRITERIA_SHOWN = 30
MAX_FLAGGED_SHOWN = 30


def read_reviews(connection: sqlite3.Connection) -> dict[str, Any] | None:
    """The figures and flags of an open journal's reviews; None if nobody did anything. Blocks."""
    if not has_table(connection, "reviews"):
        return None
    figures, flagged = figures_of(connection), flagged_samples(connection)
    return {**figures, "flagged": flagged} if figures["decided"] or flagged else None


def review_section(reviews: Mapping[str, Any]) -> dict[str, Any]:
    """The section on what `read_reviews` found."""
    marked = [
        {**line, "share": proportion(line["wrong_verdicts"], line["n"])}
        for line in reviews["criteria"]
        if line["wrong_verdicts"] or line["wrong"]
    ]
    marked.sort(key=lambda line: (-line["wrong_verdicts"], -line["wrong"]))
    agreement, flagged = reviews["agreement"], reviews["flagged"]
    names = ("decided", "accepted", "edited", "instructions_edited", "rejected", "waiting")
    return {
        **{name: reviews[name] for name in (*names, "median_seconds", "reviewers")},
        "agreement": proportion(agreement["agree"], agreement["n"]),
        "criteria": marked[:MAX_CRITERIA_SHOWN],
        "more_criteria": max(len(marked) - MAX_CRITERIA_SHOWN, 0),
        "unmarked": len(reviews["criteria"]) - len(marked),
        "flagged": flagged[:MAX_FLAGGED_SHOWN],
        "more_flagged": max(len(flagged) - MAX_FLAGGED_SHOWN, 0),
    }
