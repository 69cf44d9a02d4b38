"""Some samples of a run to read: draft, verdicts, what the refinement changed, what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nodes.llm.fast_json import loads
from nodes.text_diff import changes
from refloom.measure.report_account import CARDS, Account
from refloom.measure.report_references import Shelf

# How many of each end there are to be, of eight cards.
PARTS = {"refined": 4, "at once": 1, "rejected": 2, "failed": 1}
LONG, SHORT = 3000, 500
MOST_CHANGES = 6000
MOST_ALIKE = 320
MOST_VERDICTS = 40
SIGNS = {"pass": "✓", "fail": "✕", "not_applicable": "–", "unknown": "?"}


class Clipped(NamedTuple):
    """The beginning of a text, and how many characters are left out."""

    text: str
    more: int = 0


def clip(text: object, most: int = LONG) -> Clipped:
    """Cut a long text.

    >>> clip("abcdef", 4)
    Clipped(text='abcd', more=2)
    """
    said = str(text or "")
    return Clipped(said[:most], max(len(said) - most, 0))


def chosen(account: Account, most: int = CARDS) -> list[dict[str, Any]]:
    """The records that are shown: refined ones first, then the others; a fixed, fair choice.

    Where there are few of one kind, others take their place.
    """
    drawn = {end: draw.drawn() for end, draw in account.cards.items()}
    take = {end: min(len(drawn[end]), max(1, most * part // 8)) for end, part in PARTS.items()}
    for end in PARTS:
        free = most - sum(take.values())
        take[end] += min(max(free, 0), len(drawn[end]) - take[end])
    return [loads(line) for end in PARTS for line in drawn[end][: take[end]]]


def card(record: Mapping[str, Any], shelf: Shelf) -> dict[str, Any]:
    """A record as the page shows it, long texts clipped. Blocks."""
    told = {criterion["id"]: criterion for criterion in record["criteria"]}
    attempts = [
        _attempt(number, attempt, told) for number, attempt in enumerate(record["attempts"], 1)
    ]
    responses = [attempt["response"] for attempt in record["attempts"]]
    final = record.get("response") or (responses[-1] if responses else "")
    draft = responses[0] if responses else ""
    refined = len(responses) > 1 and draft != final
    error = record.get("error") or {}
    return {
        "id": record["id"],
        "status": record["status"],
        "reason": record.get("reason") or "",
        "instruction": clip(record.get("instruction"), 1500),
        "attempts": attempts,
        "draft": clip(draft) if refined else None,
        "changes": changed(draft, final) if refined else [],
        "final": clip(final) if final else None,
        "references": [(id_, shelf.start(id_)) for id_ in record["reference_ids"]],
        "error": clip(error.get("message"), SHORT) if error else None,
        "where": f"{error.get('kind')} in {error.get('stage')}" if error else "",
        "review": record.get("review") or {},
    }


def _attempt(
    number: int, attempt: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    order = {"fail": 0, "unknown": 1, "pass": 2}
    found = sorted(attempt["verdicts"], key=lambda v: order.get(v["verdict"], 3))
    judged = [v["verdict"] for v in found if v["verdict"] != "not_applicable"]
    return {
        "number": number,
        "passed": judged.count("pass"),
        "judged": len(judged),
        "verdicts": [_verdict(v, told) for v in found[:MOST_VERDICTS]],
        "more": max(len(found) - MOST_VERDICTS, 0),
    }


def _verdict(verdict: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    criterion = told.get(verdict["criterion_id"], {})
    return {
        "outcome": verdict["verdict"],
        "sign": SIGNS.get(verdict["verdict"], "?"),
        "text": clip(criterion.get("text") or verdict["criterion_id"], SHORT),
        "must": criterion.get("must"),
        "judged_by": criterion.get("judged_by") or "",
        "reference_id": criterion.get("reference_id"),
        "reason": clip(verdict.get("reason"), SHORT),
        "evidence": clip(verdict.get("evidence"), SHORT),
        "score": verdict.get("score"),
    }


def changed(before: str, after: str) -> list[tuple[str, str]]:
    """The differences by words, long passages that stay the same cut short. Blocks."""
    shown: list[tuple[str, str]] = []
    size = 0
    parts = changes(before, after)
    for i, (tag, text) in enumerate(parts):
        if tag == "equal" and len(text) > MOST_ALIKE:
            text = _ends(text, first=i > 0, last=i < len(parts) - 1)
        shown.append((tag, text[: MOST_CHANGES - size]))
        size += len(text)
        if size > MOST_CHANGES:
            left = sum(len(t) for _, t in parts[i + 1 :]) + size - MOST_CHANGES
            return [*shown, ("note", f"[{left:,} more characters]")]
    return shown


def _ends(text: str, first: bool, last: bool) -> str:
    """What stands next to a change, and how much lies between."""
    half = MOST_ALIKE // 2
    head, tail = text[:half] if first else "", text[-half:] if last else ""
    between = len(text) - len(head) - len(tail)
    return f"{head} [… {between:,} characters the same …] {tail}"


def references_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of the references that the cards name."""
    return [id_ for record in records for id_ in record["reference_ids"]]
