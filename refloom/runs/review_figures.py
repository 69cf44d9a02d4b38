"""What the reviews of a run come to: decisions, pace, and agreement with the machine."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from nodes.record import Record
from refloom.runs.journal import count_pending, has_table, open_read_only

# A longer pause between two decisions of a person is no time spent on a sample.
MAX_PAUSE_S = 300
# Criteria listed, those with the most verdicts first.
MAX_LISTED_CRITERIA = 40

Of = Literal["response", "instruction"]


def seen_verdicts(sample: Record) -> Iterator[tuple[Of, dict[str, Any], dict[str, Any]]]:
    """What a reviewer sees of a waiting sample: each judged criterion with its verdict.

    Those of the response are of the attempt that the sample would end with.
    """
    attempts = [*(sample.get("attempts") or ()), *(sample.get("answers") or ())]
    shown = [one for one in attempts if one["response"] == sample["response"]] or attempts
    groups: tuple[tuple[Of, Any, Any], ...] = (
        ("response", sample["criteria"], shown[-1]["verdicts"] if shown else ()),
        (
            "instruction",
            sample.get("instruction_criteria") or (),
            sample.get("instruction_verdicts") or (),
        ),
    )
    for of, criteria, verdicts in groups:
        known = {criterion["id"]: criterion for criterion in criteria}
        for verdict in verdicts:
            if verdict["criterion_id"] in known:
                yield of, known[verdict["criterion_id"]], verdict


def review_figures(directory: Path) -> dict[str, Any]:
    """The figures of all decisions on the run in `directory`. Blocks.

    `agreement` is over samples that were accepted or rejected as they were: whether the machine had
    proposed the same. Of a criterion, `n` counts its passed and failed verdicts on decided samples,
    `wrong_verdicts` those marked as wrong, and `wrong` how often the criterion itself was.
    `median_seconds` is the time from one decision of a person to their next. Raises `JournalError`.
    """
    with open_read_only(directory / "journal.sqlite") as connection:
        figures = figures_of(connection)
    return figures | {"criteria": figures["criteria"][:MAX_LISTED_CRITERIA]}


def figures_of(connection: sqlite3.Connection) -> dict[str, Any]:
    """`review_figures` of an open journal, with all criteria. Blocks."""
    return {"waiting": count_pending(connection), **_figures(_reviews(connection))}


def flagged_samples(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """The samples that reviewers have flagged, in the order of slots. Blocks.

    `by` are the names of those who did, `status` is what the sample became: `pending` if it waits.
    """
    if not has_table(connection, "review_marks"):
        return []
    sql = (
        "SELECT reviews.id, json_extract(asked, '$.sample.instruction'), review_marks.by, "
        "coalesce(samples.status, 'pending') FROM review_marks JOIN reviews USING (id) "
        "LEFT JOIN samples USING (round, position, slot) WHERE kind = 'flag' "
        "ORDER BY round, position, slot, review_marks.by"
    )
    samples: dict[str, dict[str, Any]] = {}
    for id_, instruction, by, status in connection.execute(sql):
        sample = {"id": id_, "instruction": instruction, "status": status, "by": []}
        samples.setdefault(id_, sample)["by"] += [by] if by else []
    return list(samples.values())


def _reviews(connection: sqlite3.Connection) -> Iterator[tuple[Record, dict[str, Any], bool]]:
    """Each decided sample as it waited, its review, and whether its instruction was edited."""
    sql = (
        "SELECT json_extract(asked, '$.sample'), json_extract(samples.record, '$.review'), "
        "json_extract(samples.record, '$.instruction_before') IS NOT NULL "
        "FROM reviews JOIN samples USING (round, position, slot)"
    )
    for sample, review, edited in connection.execute(sql):
        yield json.loads(sample), json.loads(review), bool(edited)


def _figures(reviews: Iterator[tuple[Record, dict[str, Any], bool]]) -> dict[str, Any]:
    decisions: Counter[str] = Counter()
    outcomes: Counter[tuple[str, str]] = Counter()
    times: dict[str | None, list[str]] = {}
    criteria: dict[tuple[Of, str], Counter[str]] = {}
    instructions_edited = 0
    for sample, review, edited in reviews:
        decisions[review["decision"]] += 1
        outcomes[review["proposed"], review["decision"]] += 1
        times.setdefault(review["by"], []).append(review["at"])
        instructions_edited += edited
        wrong = set(review.get("wrong_criteria") or ())
        wrong_verdicts = set(review.get("wrong_verdicts") or ())
        for of, criterion, verdict in seen_verdicts(sample):
            counts = criteria.setdefault((of, criterion["text"]), Counter())
            if verdict["verdict"] in ("pass", "fail"):
                counts["n"] += 1
                counts["failed"] += verdict["verdict"] == "fail"
                counts["wrong_verdicts"] += criterion["id"] in wrong_verdicts
            counts["wrong"] += criterion["id"] in wrong
    pauses = {by: _pauses(stamps) for by, stamps in times.items()}
    agree = outcomes["accepted", "accept"] + outcomes["rejected", "reject"]
    most_first = sorted(criteria.items(), key=lambda item: (-item[1]["n"], item[0][1]))
    rows = [
        {"of": of, "text": text}
        | {name: counts[name] for name in ("n", "failed", "wrong_verdicts", "wrong")}
        for (of, text), counts in most_first
        if counts["n"] or counts["wrong"]
    ]
    return {
        "decided": decisions.total(),
        "accepted": decisions["accept"],
        "edited": decisions["edit"],
        "rejected": decisions["reject"],
        "instructions_edited": instructions_edited,
        "median_seconds": _median([pause for each in pauses.values() for pause in each]),
        "reviewers": [
            {"by": by, "decided": len(stamps), "median_seconds": _median(pauses[by])}
            for by, stamps in sorted(times.items(), key=lambda pair: pair[0] or "")
        ],
        "agreement": {"n": decisions["accept"] + decisions["reject"], "agree": agree},
        "criteria": rows,
    }


def _pauses(stamps: Sequence[str]) -> list[float]:
    """The seconds between consecutive decisions, without pauses longer than `MAX_PAUSE_S`."""
    moments = sorted(datetime.fromisoformat(stamp) for stamp in stamps)
    gaps = [(after - before).total_seconds() for before, after in pairwise(moments)]
    return [gap for gap in gaps if gap <= MAX_PAUSE_S]


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
