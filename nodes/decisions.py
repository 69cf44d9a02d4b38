"""A person's decisions: which samples one should see, what is asked, what an answer does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory.contamination import Hit
from memory.references import Reference
from nodes.context import Review
from nodes.criteria import RuleInput, apply_rules, verdict
from nodes.inputs import MAX_TEXT_LENGTH
from nodes.record import Record
from nodes.state import Attempt, Criterion, ReviewOutcome, Verdict
from nodes.verdicts import passes

# Log-odds: how near to its bar a `must` is borderline.
BORDERLINE_MARGIN = 0.5
HOW = (
    'Answer {"decision": "accept"}, {"decision": "edit", "response": "the better text"} or '
    '{"decision": "reject", "reason": "why, if you like"}.'
)


class ReviewDecision(BaseModel):
    """What a person decided; `response` is the whole edited text."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    decision: Literal["accept", "edit", "reject"]
    response: str | None = Field(None, max_length=MAX_TEXT_LENGTH)
    reason: str | None = Field(None, max_length=2000)


class BadDecision(ValueError):
    """An answer that decides nothing; the message says what is wrong with it."""


def needs_review(
    status: str,
    reason: str | None,
    criteria: Sequence[Criterion],
    attempt: Attempt | None,
    when: Review,
) -> bool:
    """Whether a person should see a sample. A failed or contaminated one is nothing to look at."""
    if when == "never" or status == "failed" or reason == "contaminated" or attempt is None:
        return False
    if when == "borderline":
        return is_borderline(status, criteria, attempt)
    return when == "all" or status == "rejected"


def is_borderline(status: str, criteria: Sequence[Criterion], attempt: Attempt) -> bool:
    """Whether a sample was accepted without the judge's full consent, or rejected for one verdict.

    By log-odds also when a `must` came out near its bar.
    """
    found = {v["criterion_id"]: v for v in attempt["verdicts"]}
    musts = [c for c in criteria if c["must"]]
    if any(_near(c, found.get(c["id"])) for c in musts):
        return True
    if status == "accepted":
        judged = (found.get(c["id"]) for c in criteria if c["judged_by"] == "judge")
        return any(v is not None and v["score"] is None and not passes(v) for v in judged)
    missed = [c for c in musts if c["id"] not in found or not passes(found[c["id"]])]
    return len(missed) == 1


def _near(criterion: Criterion, found: Verdict | None) -> bool:
    if found is None or found["score"] is None or criterion["judged_by"] != "judge":
        return False
    return abs(found["score"] - (criterion.get("bar") or 0.0)) < BORDERLINE_MARGIN


def mark_pending(record: Record) -> Record:
    """The record of a sample that waits for a person; how it would have ended stays in `review`."""
    review: ReviewOutcome = {
        "proposed": record["status"],
        "proposed_reason": record["reason"],
        "decision": None,
        "reason": None,
        "by": None,
        "at": None,
    }
    return {**record, "status": "pending", "reason": None, "review": review}


def review_question(
    record: Record, references: Sequence[Reference], problem: str = ""
) -> dict[str, Any]:
    """What a person is asked: the sample as the judge left it, and its references."""
    review = record["review"]
    kept = {k: v for k, v in record.items() if k != "review"}
    said = f"{problem} {HOW}" if problem else f"Is this sample good enough to train on? {HOW}"
    sample = {**kept, "status": review["proposed"], "reason": review["proposed_reason"]}
    return {"question": said, "sample": sample, "references": list(references)}


def read_decision(answer: Any) -> ReviewDecision:
    """An answer as a decision; a bare word will do. Raises `BadDecision`."""
    if isinstance(answer, str):
        answer = {"decision": answer.strip().lower()}
    try:
        read = ReviewDecision.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise BadDecision(f"That could not be read ({where}: {first['msg']}).") from error
    if read.decision == "edit" and not (read.response or "").strip("\0 \n\t"):
        raise BadDecision("An edit needs the edited text as its response.")
    return read


def apply_decision(
    record: Record,
    references: Sequence[Reference],
    decision: ReviewDecision,
    *,
    by: str | None = None,
    hit: Hit | None = None,
    checked: bool = False,
) -> Record:
    """The record of a pending sample after a person's decision.

    An edited text becomes the last attempt: rules look at it, the judge does not, and what they
    find stops nobody. Only a benchmark's prompt, `hit`, is let in by no one: `BadDecision`.
    """
    before: ReviewOutcome = record["review"]
    review: ReviewOutcome = {
        **before,
        "decision": decision.decision,
        "reason": decision.reason or None,
        "by": by,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    ended = {**record, "review": review, "status": "accepted", "reason": None}
    if decision.decision == "reject":
        return {**ended, "status": "rejected", "reason": "reviewer"}
    text = decision.response
    if decision.decision == "accept" or text is None or text == record["response"]:
        return ended
    if hit is not None:
        raise BadDecision(f"The text holds the prompt of {hit.benchmark}, row {hit.row}.")
    rules = apply_rules(RuleInput(record["instruction"], text, references, checked=checked))
    unasked = "A person wrote this; the judge was not asked."
    found = {v["criterion_id"]: v for v in rules}
    verdicts = [
        found.get(c["id"]) or verdict(c["id"], "unknown", unasked) for c in record["criteria"]
    ]
    attempts = [*record["attempts"], {"response": text, "verdicts": verdicts}]
    return {**ended, "attempts": attempts, "response": text}
