"""What the attempts at a sample teach: which ones a better one stands against, and why."""

from __future__ import annotations

from typing import Any

from nodes.context import Context
from nodes.record import Record
from nodes.verdicts import better

Row = dict[str, Any]
# Over this likeness of words two responses teach no difference.
MOST_ALIKE = 0.95


def plain(verdict: Row) -> Row:
    """A verdict without its score."""
    return {key: verdict[key] for key in ("criterion_id", "verdict", "reason", "evidence")}


def failed_attempts(record: Record) -> list[tuple[Row, list[Row]]]:
    """Attempts before the accepted one that failed a `must` it passed, with these verdicts."""
    attempts = record["attempts"]
    places = [i for i, a in enumerate(attempts) if a["response"] == record["response"]]
    if not places:
        return []
    texts = {c["id"]: c["text"] for c in record["criteria"] if c["must"]}
    edited = _edited(record)
    passed = {
        v["criterion_id"] for v in attempts[places[-1]]["verdicts"] if v["verdict"] == "pass"
    } & set(texts)
    found = []
    for attempt in attempts[: places[-1]]:
        decided = [
            {**plain(v), "criterion": f"The response {texts[v['criterion_id']]}."}
            for v in attempt["verdicts"]
            if v["verdict"] == "fail" and v["criterion_id"] in passed
        ]
        if edited and attempt is attempts[places[-1] - 1]:
            decided.append(edited)
        if decided and attempt["response"].strip() and _differ(attempt["response"], record):
            found.append((attempt, decided))
    return found


def _edited(record: Record) -> Row | None:
    """A reviewer's word against the text they edited, in the shape of a verdict."""
    review = record.get("review") or {}
    if review.get("decision") != "edit":
        return None
    return {
        "criterion_id": "reviewer",
        "verdict": "fail",
        "reason": review.get("reason") or "A reviewer edited it.",
        "evidence": "",
        "criterion": "The response is as a reviewer wants it.",
    }


def _differ(text: str, record: Record) -> bool:
    from rapidfuzz.distance import Indel

    one, other = text.split(), record["response"].split()
    return Indel.normalized_similarity(one, other) <= MOST_ALIKE


def base(record: Record, place: int) -> int:
    """Which attempt the one at `place` refines: the best of those before it."""
    attempts, criteria = record["attempts"], record["criteria"]
    judged = {c["id"] for c in criteria if c["judged_by"] == "judge"}
    scored = any(
        v["score"] is not None and v["criterion_id"] in judged
        for attempt in attempts
        for v in attempt["verdicts"]
    )
    context = Context(judge_method="logodds" if scored else "verdict")
    best = 0
    for i in range(1, place):
        if better(attempts[i], attempts[best], criteria, context):
            best = i
    return best
