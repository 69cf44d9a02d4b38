"""What became of the proposed instructions, before a response was paid for: a report's section."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nodes.context import Context
from nodes.llm.fast_json import loads
from nodes.screening import built_in_criteria
from refloom.data.record_stats import MAX_CRITERIA_COUNTED, criterion_key, marked_as_wrong
from refloom.evaluation.stats import Interval, proportion
from refloom.runs.dropped import dropped_lines
from refloom.runs.journal import ADDED_TURN_COLUMNS, columns_of
from refloom.runs.seed_table import seed_table

MAX_EXAMPLES = 2
MAX_CRITERIA_SHOWN = 20
MAX_SEEDS_SHOWN = 40
MAX_EXAMPLE, MAX_WHY = 300, 300
# Why instructions were dropped, in the order of the page.
DROP_REASONS = {
    "screened": "failed its criteria",
    "duplicate": "too near to another instruction",
    "unfit": "cannot be an instruction",
    "surplus": "not needed: the seed had enough",
}


@dataclass(slots=True)
class InstructionCriterionStats:
    """Counts of the verdicts on a criterion of instructions, and instructions that it dropped."""

    text: str
    must: bool | None
    judged_by: str
    verdicts: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def failed(self) -> Interval:
        """The share of the instructions judged by it that failed."""
        return proportion(self.verdicts["fail"], self.verdicts["fail"] + self.verdicts["pass"])


@dataclass
class ScreeningStats:
    """What the page says of a run's instructions; `add_record` takes the records first.

    `seeds` are those that left no row, `seeds_without_rows` how many there are.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    candidates: int = 0
    criteria: dict[str, InstructionCriterionStats] = field(default_factory=dict)
    seeds: list[dict[str, Any]] = field(default_factory=list)
    seeds_without_rows: int = 0
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Count the verdicts on a sample's instruction."""
        self.candidates += record["instruction"] is not None
        for criterion in record.get("instruction_criteria") or ():
            if len(self._known) < MAX_CRITERIA_COUNTED:
                self._known.setdefault(criterion["id"], criterion)
        self._count(record.get("instruction_verdicts") or ())
        for id_ in marked_as_wrong(dict(record)):
            if id_ in self._known and (stats := self._stats_of(id_)) is not None:
                stats.wrong += 1

    def add_dropped(self, connection: sqlite3.Connection) -> None:
        """Count the dropped instructions of an open journal, and its seeds without a row. Blocks.

        There is nothing to count in the journal of a version that did not keep them.
        """
        if ADDED_TURN_COLUMNS.keys() - columns_of(connection, "turns"):
            return
        for criterion in built_in_criteria(Context(judge_method="verdict"), {}):
            self._known.setdefault(criterion["id"], dict(criterion))
        for line in dropped_lines(connection):
            dropped = loads(line)
            self.reasons[dropped["reason"]] += 1
            self._count(dropped["verdicts"])
            if dropped["reason"] == "screened":
                self._add_examples(dropped)
        table = seed_table(connection)
        self.seeds_without_rows = table["seeds_without_rows"]
        self.seeds = table["seeds"][: min(self.seeds_without_rows, MAX_SEEDS_SHOWN)]

    def _count(self, verdicts: Any) -> None:
        for verdict in verdicts:
            stats = self._stats_of(verdict["criterion_id"])
            if stats is not None:
                stats.verdicts[verdict["verdict"]] += 1

    def _add_examples(self, dropped: Mapping[str, Any]) -> None:
        for verdict in dropped["verdicts"]:
            if verdict["verdict"] != "fail":
                continue
            stats = self._stats_of(verdict["criterion_id"])
            if stats is not None and len(stats.examples) < MAX_EXAMPLES:
                instruction = dropped["instruction"][:MAX_EXAMPLE]
                stats.examples.append((instruction, verdict["reason"][:MAX_WHY]))

    def _stats_of(self, id_: str) -> InstructionCriterionStats | None:
        # A reference's criterion whose seeds left no row stands in no record: its id has to do.
        criterion = self._known.get(id_) or {"text": id_, "must": None, "judged_by": "judge"}
        text, must = criterion["text"], criterion["must"]
        key = criterion_key(text, bool(must))
        if key not in self.criteria:
            if len(self.criteria) >= MAX_CRITERIA_COUNTED:
                return None
            by = (
                "judge, from references"
                if criterion.get("reference_id")
                else criterion["judged_by"]
            )
            self.criteria[key] = InstructionCriterionStats(text, must, by)
        return self.criteria[key]


def screening_section(stats: ScreeningStats, run_json: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section on a run's instructions; None if nothing is known of them."""
    if not stats.reasons and not stats.criteria and not stats.seeds_without_rows:
        return None
    proposed = stats.candidates + stats.reasons.total()
    lines = sorted(stats.criteria.values(), key=lambda one: (not one.must, -one.verdicts["fail"]))
    outcomes = run_json.get("instruction_criteria") or {}
    return {
        "proposed": proposed,
        "candidates": stats.candidates,
        "reasons": [
            (name, stats.reasons[reason], proportion(stats.reasons[reason], proposed))
            for reason, name in DROP_REASONS.items()
            if stats.reasons[reason]
        ],
        "criteria": lines[:MAX_CRITERIA_SHOWN],
        "more_criteria": max(len(lines) - MAX_CRITERIA_SHOWN, 0),
        "outcomes": {name: int(n or 0) for name, n in outcomes.items()},
        "seeds": stats.seeds,
        "seeds_without_rows": stats.seeds_without_rows,
    }
