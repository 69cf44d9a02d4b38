"""What the verdicts on a response add up to: one number from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nodes.state import Criterion, Verdict
from refloom.data.rubrics import weight_of

# With more than this share of the weight unknown, nothing is known.
MAX_UNKNOWN_SHARE = 0.5


class Score(NamedTuple):
    """A response's score from 0 to 1, None if too little is known; and how many are unknown."""

    value: float | None
    unknown: int


def score_verdicts(criteria: Sequence[Criterion], verdicts: Sequence[Verdict]) -> Score:
    """Add up verdicts by the weights of their criteria: HealthBench's sum, clipped to 0 and 1.

    Criteria that do not apply, and those whose verdict is unknown or missing, count in neither sum.
    A pitfall fails if the fault is there, and then adds its negative weight. The score is None if
    the unknown ones have more than half of the weight, or if no positive weight is known.
    """
    outcomes = {verdict["criterion_id"]: verdict["verdict"] for verdict in verdicts}
    passed = positive = weight = unknown_weight = 0.0
    unknown = 0
    for criterion in criteria:
        outcome, own = outcomes.get(criterion["id"], "unknown"), weight_of(criterion)
        if outcome == "not_applicable":
            continue
        weight += abs(own)
        if outcome == "unknown":
            unknown += 1
            unknown_weight += abs(own)
        elif own < 0:
            passed += own if outcome == "fail" else 0.0
        else:
            positive += own
            passed += own if outcome == "pass" else 0.0
    if positive <= 0 or unknown_weight > MAX_UNKNOWN_SHARE * weight:
        return Score(None, unknown)
    return Score(min(max(passed / positive, 0.0), 1.0), unknown)
