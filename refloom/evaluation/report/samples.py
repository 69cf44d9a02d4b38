"""The sections of a report that show texts: sample cards, a judge check, a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nodes.llm.fast_json import loads
from nodes.text_diff import diff
from refloom.data.card import short_name
from refloom.evaluation.judge_check.tables import check_tables, format_figure
from refloom.evaluation.report.collect import MAX_CARDS, ReferenceSample, RunData
from refloom.evaluation.stats import EMPTY, Interval

# How many of eight cards show each kind of sample.
CARDS_OF_EIGHT = {"refined": 4, "at once": 1, "rejected": 2, "failed": 1}
MAX_RESPONSE, MAX_REASON = 3000, 500
MAX_CHANGES = 6000
MAX_EQUAL = 320
MAX_VERDICTS = 40
SIGNS = {"pass": "✓", "fail": "✕", "not_applicable": "–", "unknown": "?"}


class Clipped(NamedTuple):
    """The beginning of a text, and how many characters are cut off."""

    text: str
    more: int = 0


def clip(text: object, limit: int = MAX_RESPONSE) -> Clipped:
    """Cut a long text.

    >>> clip("abcdef", 4)
    Clipped(text='abcd', more=2)
    """
    whole = str(text or "")
    return Clipped(whole[:limit], max(len(whole) - limit, 0))


def select_records(run: RunData, limit: int = MAX_CARDS) -> list[dict[str, Any]]:
    """The records of the sample cards, refined ones first: a random choice that stays the same.

    If there are few of one kind, others take their place.
    """
    drawn = {end: sample.items() for end, sample in run.cards.items()}
    take = {
        end: min(len(drawn[end]), max(1, limit * part // 8)) for end, part in CARDS_OF_EIGHT.items()
    }
    for end in CARDS_OF_EIGHT:
        free = limit - sum(take.values())
        take[end] += min(max(free, 0), len(drawn[end]) - take[end])
    return [loads(line) for end in CARDS_OF_EIGHT for line in drawn[end][: take[end]]]


def sample_card(record: Mapping[str, Any], sample: ReferenceSample) -> dict[str, Any]:
    """A record as the page shows it, with long texts clipped. Blocks."""
    criteria = {criterion["id"]: criterion for criterion in record["criteria"]}
    attempts = [
        _attempt(number, attempt, criteria) for number, attempt in enumerate(record["attempts"], 1)
    ]
    responses = [attempt["response"] for attempt in record["attempts"]]
    reasoning, answers = record.get("reasoning"), record.get("answers") or []
    final = record.get("response") or (responses[-1] if responses else "")
    if reasoning is not None:
        # The loop's, which a bare answer took the place of.
        final = responses[-1]
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
        "changes": text_changes(draft, final) if refined else [],
        "final": clip(final) if final else None,
        "tried": len(answers),
        "bare": None
        if reasoning is None
        else {
            "response": clip(record["response"]),
            "reasoning": clip(reasoning),
            "attempt": _attempt(len(answers), answers[-1], criteria),
        },
        "references": [(id_, sample.start(id_)) for id_ in record["reference_ids"]],
        "error": clip(error.get("message"), MAX_REASON) if error else None,
        "where": f"{error.get('kind')} in {error.get('stage')}" if error else "",
        "review": record.get("review") or {},
    }


def _attempt(
    number: int, attempt: Mapping[str, Any], criteria: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    order = {"fail": 0, "unknown": 1, "pass": 2}
    verdicts = sorted(attempt["verdicts"], key=lambda v: order.get(v["verdict"], 3))
    judged = [v["verdict"] for v in verdicts if v["verdict"] != "not_applicable"]
    return {
        "number": number,
        "passed": judged.count("pass"),
        "judged": len(judged),
        "verdicts": [_verdict(v, criteria) for v in verdicts[:MAX_VERDICTS]],
        "more": max(len(verdicts) - MAX_VERDICTS, 0),
    }


def _verdict(
    verdict: Mapping[str, Any], criteria: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    criterion = criteria.get(verdict["criterion_id"], {})
    return {
        "outcome": verdict["verdict"],
        "sign": SIGNS.get(verdict["verdict"], "?"),
        "text": clip(criterion.get("text") or verdict["criterion_id"], MAX_REASON),
        "must": criterion.get("must"),
        "judged_by": criterion.get("judged_by") or "",
        "reference_id": criterion.get("reference_id"),
        "reason": clip(verdict.get("reason"), MAX_REASON),
        "evidence": clip(verdict.get("evidence"), MAX_REASON),
        "score": verdict.get("score"),
        "jurors": ", ".join(
            f"{short_name(juror['model'])} {juror['verdict'].replace('_', ' ')}"
            for juror in verdict.get("jurors") or ()
        ),
    }


def text_changes(before: str, after: str) -> list[tuple[str, str]]:
    """The differences by words, with long unchanged passages shortened. Blocks."""
    pieces: list[tuple[str, str]] = []
    size = 0
    parts = diff(before, after)
    for i, (tag, text) in enumerate(parts):
        if tag == "equal" and len(text) > MAX_EQUAL:
            text = _shorten_equal(text, first=i > 0, last=i < len(parts) - 1)
        pieces.append((tag, text[: MAX_CHANGES - size]))
        size += len(text)
        if size > MAX_CHANGES:
            left = sum(len(t) for _, t in parts[i + 1 :]) + size - MAX_CHANGES
            return [*pieces, ("note", f"[{left:,} more characters]")]
    return pieces


def _shorten_equal(text: str, first: bool, last: bool) -> str:
    """The ends of an unchanged passage that stand next to a change, and what is cut between."""
    half = MAX_EQUAL // 2
    head, tail = text[:half] if first else "", text[-half:] if last else ""
    between = len(text) - len(head) - len(tail)
    return f"{head} [… {between:,} characters the same …] {tail}"


def referenced_ids(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of the references that the records name."""
    return [id_ for record in records for id_ in record["reference_ids"]]


MAX_LINES = 60
CHECK_FACTS = (
    *("judge", "method", "unavailable", "prompt", "random_seed", "samples", "references"),
    *("notes", "failed", "calls", "paid"),
)


class Table(NamedTuple):
    """A table of a judge check as the page shows it: its name, columns, and lines of cells."""

    name: str
    columns: list[str]
    lines: list[list[Any]]
    more: int


def judge_check_section(check: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section on a judge-check.json; None if `refloom judge-check` does not write it so."""
    try:
        facts = {name: check[name] for name in CHECK_FACTS}
        facts["judge"] = short_name(facts["judge"])
        if check["human"] is not None:
            facts["verdicts on what was not judged"] = check["human"]["without"]
        return {
            "flags": [clip(flag, 500) for flag in check["flags"]][:MAX_LINES],
            "facts": [
                (name.replace("_", " "), cell(value))
                for name, value in facts.items()
                if value not in ([], {})
            ],
            "tables": [
                Table(
                    name,
                    [column.replace("_", " ") for column in columns],
                    [[cell(row.get(column, "")) for column in columns] for row in rows[:MAX_LINES]],
                    max(len(rows) - MAX_LINES, 0),
                )
                for name, columns, rows in check_tables(check)
            ],
        }
    except (KeyError, TypeError, AttributeError):
        return None


def cell(value: object) -> Any:
    """The value of a table cell: an interval of shares, or short text."""
    if isinstance(value, Mapping) and {"value", "low", "high", "n"} == set(value):
        interval = Interval(**value)
        if interval.value is None:
            return EMPTY
        if interval.low is not None and interval.high is not None and interval.low >= 0:
            return interval
    return clip(format_figure(value), 300).text


MAX_COMPARED = 24
MAX_COMPARED_RESPONSE = 2500


def comparison_section(compared: Mapping[str, Any]) -> dict[str, Any]:
    """The section on a compare.json, as `refloom.evaluation.compare` writes it."""
    pairs, cards, arms = compared["pairs"], compared["cards"], compared["arms"]
    accepted = [
        _pair_row({**{k: pair[k] for k in ("a", "b", "judge", "prompt")}, **pair["accepted"]})
        for pair in pairs
    ]
    return {
        "pairs": list(map(_pair_row, pairs)),
        "accepted": accepted,
        "arms": arms,
        "criteria": _criterion_rows(arms),
        "cards": list(map(_comparison_card, cards[:MAX_COMPARED])),
        "more_cards": max(len(cards) - MAX_COMPARED, 0),
    }


def _pair_row(pair: Mapping[str, Any]) -> dict[str, Any]:
    intervals = ("length_controlled", "same_in_both_orders", "first_picked")
    return {
        **pair,
        "rate": Interval(pair["win_rate"], pair["low"], pair["high"], pair["n"]),
        **{name: Interval(**pair[name]) for name in intervals},
        "judge": short_name(pair["judge"]),
    }


def _criterion_rows(arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Interval | None]]]:
    """Each criterion, with its pass rate in each arm."""
    rows: dict[str, list[Interval | None]] = {}
    for i, arm in enumerate(arms):
        for criterion in arm["criteria"]:
            cells = rows.setdefault(criterion["criterion"], [None] * len(arms))
            if criterion["n"]:
                cells[i] = Interval(*(criterion[key] for key in ("share", "low", "high", "n")))
    return list(rows.items())[:MAX_LINES]


def _comparison_card(card: Mapping[str, Any]) -> dict[str, Any]:
    a, b, score = card["a"], card["b"], card["score"]
    return {
        "instruction": clip(card["instruction"], 1500),
        "a": a,
        "b": b,
        "a_response": clip(card["a_response"], MAX_COMPARED_RESPONSE),
        "b_response": clip(card["b_response"], MAX_COMPARED_RESPONSE),
        "better": "as good" if score == 0.5 else a if score > 0.5 else b,
        "score": f"{score:g}",
        "reasons": [clip(reason, 500) for reason in card["reasons"] if reason],
    }
