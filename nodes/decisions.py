"""Review decisions: which samples a person should see, what is asked, what an answer does.

Without LangGraph, so that commands can read decisions without loading it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory.contamination import Contamination, Hit
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
# How LangChain's clients call what a person is asked to approve.
ACTION_NAME = "review_sample"
# Agent Inbox has no button that rejects.
HOW_TO_DECIDE = (
    "Accept the response, edit it, or reject it. Where there is no button to reject it, a response "
    "of yours does: it is the reason."
)
# Of one text in a description; the sample beside it has it whole.
MAX_DESCRIBED_CHARS = 20_000
# The form of an answer, for clients that make one of it. It binds nobody: what cannot be read is
# asked again, with what is wrong.
ANSWER_SCHEMA: dict[str, Any] = {
    "title": "ReviewDecision",
    "description": "A person's decision about a sample.",
    "type": "object",
    "properties": {
        "decision": {
            "title": "Decision",
            "description": "What becomes of the sample.",
            "enum": ["accept", "edit", "reject"],
        },
        "response": {
            "title": "Response",
            "description": "The whole edited text, for an edit.",
            "type": "string",
        },
        "reason": {
            "title": "Reason",
            "description": "Why it is rejected, if you like.",
            "type": "string",
        },
    },
    "required": ["decision"],
}


# The texts of a sample that a person may edit.
EDITABLE = ("response", "instruction")


class ReviewDecision(BaseModel):
    """A person's decision; `response` and `instruction` are whole edited texts."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    decision: Literal["accept", "edit", "reject"]
    response: str | None = Field(None, max_length=MAX_TEXT_LENGTH)
    instruction: str | None = Field(None, max_length=MAX_TEXT_LENGTH)
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

    `problem` says what was wrong with an earlier answer. `action_requests` and `review_configs` say
    the same in the form of LangChain's clients.
    """
    review = record["review"]
    fields = {name: value for name, value in record.items() if name != "review"}
    text = f"{problem or 'Is this sample good enough to train on?'} {ANSWER_FORMAT}"
    sample = {**fields, "status": review["proposed"], "reason": review["proposed_reason"]}
    arguments = {key: record[key] for key in EDITABLE}
    request = {
        "name": ACTION_NAME,
        "args": arguments,
        # Agent Inbox reads this name.
        "arguments": arguments,
        "description": _describe(sample, references, problem),
    }
    config = {"action_name": ACTION_NAME, "allowed_decisions": ["approve", "edit", "reject"]}
    return {
        "question": text,
        "sample": sample,
        "references": list(references),
        "action_requests": [request],
        "review_configs": [config],
    }


def _describe(sample: Record, references: Sequence[Reference], problem: str) -> str:
    """A sample as Markdown for a person. Every text of the data stands in a fence."""
    status = sample["status"] + (f" ({sample['reason']})" if sample["reason"] else "")
    # Lists of threads show the beginning as it is.
    beginning = re.sub(r"[^\w\s,;.?']+|\s+", " ", sample["instruction"]).strip()[:100]
    parts = [problem or beginning, HOW_TO_DECIDE]
    parts += ["**Instruction**", _fence(sample["instruction"])]
    parts += ["**Response**", _fence(sample["response"]), f"**The judge's decision: {status}**"]
    texts = {criterion["id"]: criterion["text"] for criterion in sample["criteria"]}
    judged = [*sample["attempts"], *sample.get("answers", ())]
    attempts = [one for one in judged if one["response"] == sample["response"]]
    verdicts = attempts[-1]["verdicts"] if attempts else []
    lines = [
        f"{one['verdict']}: {texts.get(one['criterion_id'], one['criterion_id'])}"
        + (f" ({one['reason']})" if one["reason"] else "")
        for outcome in ("fail", "unknown", "pass")
        for one in verdicts
        if one["verdict"] == outcome
    ]
    parts += [_fence("\n".join(lines))] if lines else []
    for reference in references:
        parts += [f"**Reference** {_fence_inline(reference['id'])}"]
        parts += [_fence(reference["instruction"]), _fence(reference["response"])]
    return "\n\n".join(filter(None, parts))


def _fence(text: str) -> str:
    """A text as a block of code that it cannot end itself; a long one is cut.

    >>> print(_fence("```"))
    ````text
    ```
    ````
    """
    if len(text) > MAX_DESCRIBED_CHARS:
        text = f"{text[:MAX_DESCRIBED_CHARS]} ... ({len(text):,} characters in all)"
    longest = max(map(len, re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{text}\n{marks}"


def _fence_inline(text: str) -> str:
    """A name as code within a line."""
    return "`" + re.sub(r"[`\s]+", " ", text).strip() + "`"


def is_ignored(answer: Any) -> bool:
    """Whether an answer is Agent Inbox's `ignore`, which leaves a sample undecided."""
    one = _only(answer)
    return isinstance(one, Mapping) and "decision" not in one and one.get("type") == "ignore"


def read_decision(answer: Any) -> ReviewDecision:
    """An answer as a decision. Raises `BadDecision`.

    It may be in refloom's own form, the word of a decision alone, Agent Inbox's list
    (`[{"type": "accept", "args": ..}]`), or LangChain's `{"decisions": [{"type": "approve"}]}`.
    """
    try:
        decision = ReviewDecision.model_validate(_own_form(_only(answer)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the answer"
        raise BadDecision(f"That could not be read ({field}: {first['msg']}).") from error
    if decision.decision == "edit" and not (decision.response or "").strip("\0 \n\t"):
        raise BadDecision("An edit needs the edited text as its response.")
    return decision


def _only(answer: Any) -> Any:
    """The one decision in an answer that lists decisions; any other answer as it is."""
    if isinstance(answer, Mapping) and "decision" not in answer and "decisions" in answer:
        answer = answer["decisions"]
    if isinstance(answer, list):
        if len(answer) != 1:
            raise BadDecision(f"One decision is needed, and the answer has {len(answer)}.")
        answer = answer[0]
    return answer


def _own_form(answer: Any) -> Any:
    """A decision of Agent Inbox or LangChain in refloom's own form; any other as it is."""
    if isinstance(answer, str):
        answer = {"type": answer.strip().lower()}
    if not isinstance(answer, Mapping) or "decision" in answer or "type" not in answer:
        return answer
    kind, args = answer["type"], answer.get("args")
    if kind == "edit":
        action = answer.get("edited_action", args)
        # Agent Inbox names the action around its arguments, as LangChain does.
        edited = action.get("args", action) if isinstance(action, Mapping) else action
        texts = edited if isinstance(edited, Mapping) else {"response": edited}
        return {"decision": "edit", **{key: texts.get(key) for key in EDITABLE}}
    if kind in ("reject", "response", "respond"):
        reason = answer.get("message", args)
        return {"decision": "reject", "reason": reason if isinstance(reason, str) else None}
    return {"decision": "accept" if kind == "approve" else kind}


def find_benchmark_prompt(
    decision: ReviewDecision, record: Record, contamination: Contamination | None
) -> Hit | None:
    """The benchmark's prompt that an edited text holds, or None. Blocks."""
    if contamination is None or decision.decision != "edit":
        return None
    hit = None
    if decision.response:
        hit = contamination.find_in_response(decision.response)
    if hit is None and (instruction := edited_instruction(record, decision)) is not None:
        hit = contamination.find_in_instruction(instruction)
    return hit


def edited_instruction(record: Record, decision: ReviewDecision) -> str | None:
    """The instruction that an edit puts in the place of a sample's own; None if it stays."""
    text = decision.instruction
    if decision.decision != "edit" or not text or text == record["instruction"].strip():
        return None
    return text


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
    not asked. Nor is it about an edited instruction: its verdicts are unknown, and the one before
    it stands in `instruction_before`. What the model thought did not lead to either, and goes.
    Raises `BadDecision` if a text holds a benchmark's prompt, `hit`; `checked` says whether one was
    searched for.
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
    instruction = edited_instruction(record, decision)
    text = decision.response
    if decision.decision == "accept" or text is None:
        return ended
    if text == record["response"].strip():
        text = record["response"]
        if instruction is None:
            return ended
    if hit is not None:
        raise BadDecision(f"The text holds the prompt of {hit.benchmark}, row {hit.row}.")
    if instruction is not None:
        not_judged = "A person changed the instruction; nobody judged it."
        ended |= {
            "instruction": instruction,
            "instruction_before": record["instruction"],
            "instruction_verdicts": [
                verdict(one["criterion_id"], "unknown", not_judged)
                for one in record.get("instruction_verdicts") or ()
            ],
        }
    rules = apply_rules(RuleInput(ended["instruction"], text, references, checked=checked))
    by_rule = {v["criterion_id"]: v for v in rules}
    not_judged = "A person wrote this; the judge was not asked."
    if text == record["response"]:
        not_judged = "A person changed the instruction; the judge was not asked again."
    verdicts = [
        by_rule.get(c["id"]) or verdict(c["id"], "unknown", not_judged) for c in record["criteria"]
    ]
    attempts = [*record["attempts"], {"response": text, "verdicts": verdicts}]
    return {**ended, "attempts": attempts, "response": text, "reasoning": None}
