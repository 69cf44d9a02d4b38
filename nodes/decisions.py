"""Review decisions: which samples a person should see, what is asked, what an answer does.

Without LangGraph, so that commands can read decisions without loading it.
"""

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

# A `must` whose log-odds are this near to its bar is borderline.
BORDERLINE_MARGIN = 0.5
ANSWER_FORMAT = (
    'Answer {"decision": "accept"}, {"decision": "edit", "response": "the better text"} or '
    '{"decision": "reject", "reason": "why, if you like"}.'
)


class ReviewDecision(BaseModel):
    """A person's decision; `response` is the whole edited text."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    decision: Literal["accept", "edit", "reject"]
    response: str | None = Field(None, max_length=MAX_TEXT_LENGTH)
    reason: str | None = Field(None, max_length=2000)


class BadDecision(ValueError):
    """An answer cannot be used as a decision; the message says why."""


def needs_review(
    status: str,
    reason: str | None,
    criteria: Sequence[Criterion],
    attempt: Attempt | None,
    setting: Review,
) -> bool:
    """Whether a person should see a sample with this best attempt, by the setting `review`.

    Never a failed or contaminated one.
    """
    if setting == "never" or status == "failed" or reason == "contaminated" or attempt is None:
        return False
    if setting == "borderline":
        return is_borderline(status, criteria, attempt)
    return setting == "all" or status == "rejected"


def is_borderline(status: str, criteria: Sequence[Criterion], attempt: Attempt) -> bool:
    """Whether a sample was accepted against a verdict of the judge, or rejected for a single must.

    By log-odds also if a `must` came out near its bar.
    """
    verdicts = {v["criterion_id"]: v for v in attempt["verdicts"]}
    musts = [c for c in criteria if c["must"]]
    if any(_is_near_bar(c, verdicts.get(c["id"])) for c in musts):
        return True
    if status == "accepted":
        judged = (verdicts.get(c["id"]) for c in criteria if c["judged_by"] == "judge")
        return any(v is not None and v["score"] is None and not passes(v) for v in judged)
    failed = [c for c in musts if c["id"] not in verdicts or not passes(verdicts[c["id"]])]
    return len(failed) == 1


def _is_near_bar(criterion: Criterion, result: Verdict | None) -> bool:
    if result is None or result["score"] is None or criterion["judged_by"] != "judge":
        return False
    return abs(result["score"] - (criterion.get("bar") or 0.0)) < BORDERLINE_MARGIN


def mark_pending(record: Record) -> Record:
    """The record of a sample that waits for a person; `review` holds how it would have ended."""
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
    """What a person is asked: a question, the sample as the judge left it, and its references.

    `problem` says what was wrong with an earlier answer.
    """
    review = record["review"]
    fields = {name: value for name, value in record.items() if name != "review"}
    text = f"{problem or 'Is this sample good enough to train on?'} {ANSWER_FORMAT}"
    sample = {**fields, "status": review["proposed"], "reason": review["proposed_reason"]}
    return {"question": text, "sample": sample, "references": list(references)}


def read_decision(answer: Any) -> ReviewDecision:
    """An answer as a decision; the word of a decision alone will do. Raises `BadDecision`."""
    if isinstance(answer, str):
        answer = {"decision": answer.strip().lower()}
    try:
        decision = ReviewDecision.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the answer"
        raise BadDecision(f"That could not be read ({field}: {first['msg']}).") from error
    if decision.decision == "edit" and not (decision.response or "").strip("\0 \n\t"):
        raise BadDecision("An edit needs the edited text as its response.")
    return decision


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

    An edited text becomes the last attempt, with the rules' verdicts for information; the judge is
    not asked. What the model thought did not lead to it, and goes. Raises `BadDecision` if the text
    holds a benchmark's prompt, `hit`; `checked` says whether one was searched for.
    """
    proposed: ReviewOutcome = record["review"]
    review: ReviewOutcome = {
        **proposed,
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
    by_rule = {v["criterion_id"]: v for v in rules}
    not_judged = "A person wrote this; the judge was not asked."
    verdicts = [
        by_rule.get(c["id"]) or verdict(c["id"], "unknown", not_judged) for c in record["criteria"]
    ]
    attempts = [*record["attempts"], {"response": text, "verdicts": verdicts}]
    return {**ended, "attempts": attempts, "response": text, "reasoning": None}
