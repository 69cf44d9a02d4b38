"""The sections of a report that show texts: sample cards, a judge check, a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nodes.llm.fast_json import loads
from nodes.text_diff import diff
from refloom.evaluation.report.collect import MAX_CARDS, ReferenceSample, RunData
from refloom.evaluation.report.tables import format_count, format_dollars, short_name
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
MAX_COLUMNS = 12
FLAGS = "flags"
MAX_NESTING = 3


class Table(NamedTuple):
    """A table of a judge check: its name, columns, and lines of cells."""

    name: str
    columns: list[str]
    lines: list[list[Any]]
    more: int = 0


def judge_check_section(results: Mapping[str, Any]) -> dict[str, Any]:
    """The section on a judge-check.json: flags, single facts, and tables of the rest."""
    flags = results.get(FLAGS)
    facts: list[tuple[str, Any]] = []
    tables: list[Table] = []
    for name, value in results.items():
        if name == FLAGS or value in (None, [], {}):
            continue
        if _is_plain(value):
            facts.append((_label(name), cell(short_name(value) if name == "judge" else value)))
        else:
            tables += _tables(_label(name), value)
    clipped = [clip(flag, 500) for flag in flags] if isinstance(flags, list) else []
    return {"flags": clipped[:MAX_LINES], "facts": facts[:MAX_LINES], "tables": tables[:MAX_LINES]}


def _is_plain(value: object) -> bool:
    """Whether a value fits into a cell."""
    if isinstance(value, list):
        return not any(isinstance(v, Mapping) for v in value)
    return not isinstance(value, Mapping) or _is_figure(value)


def _is_figure(value: Mapping[str, Any]) -> bool:
    return {"value", "low", "high"} <= set(value)


def _tables(name: str, value: Any, depth: int = 0) -> Iterator[Table]:
    """One table for a list of mappings; one for a mapping, and one for each of its larger parts."""
    if isinstance(value, list):
        yield _table(name, [v if isinstance(v, Mapping) else {"": v} for v in value])
        return
    rows = {
        k: v
        for k, v in value.items()
        if isinstance(v, Mapping) and not _is_figure(v) and all(map(_is_plain, v.values()))
    }
    plain = {
        k: v for k, v in value.items() if k not in rows and (depth > MAX_NESTING or _is_plain(v))
    }
    if plain:
        yield _table(name, [{"": _label(k), "found": v} for k, v in plain.items()])
    if rows:
        yield _table(name, [{"": _label(k), **v} for k, v in rows.items()])
    for key, inner in value.items():
        if key not in rows and key not in plain:
            yield from _tables(f"{name}: {_label(key)}", inner, depth + 1)


def _table(name: str, lines: list[Any]) -> Table:
    columns = list(dict.fromkeys(key for line in lines for key in line))
    # Leave out empty columns, and ids where there are texts.
    used = [c for c in columns if any(line.get(c) not in (None, "", []) for line in lines)]
    names = [c for c in used if c != "id" or "text" not in used][:MAX_COLUMNS]
    cells = [[cell(line.get(column)) for column in names] for line in lines[:MAX_LINES]]
    return Table(name, list(map(_label, names)), cells, max(len(lines) - MAX_LINES, 0))


def interval_of(value: object) -> Interval | None:
    """The value as an interval, if it is one of shares; n is 0 if it is not stated."""
    if not isinstance(value, Mapping) or not _is_figure(value):
        return None
    n = value.get("n")
    n = n if isinstance(n, int) else 0
    if value["value"] is None:
        return EMPTY
    shares = [value[name] for name in ("value", "low", "high")]
    if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares):
        return None
    rate, low, high = map(float, shares)
    return Interval(rate, low, high, n)


def cell(value: object) -> Any:
    """The value of a table cell: an interval, or short text."""
    if (interval := interval_of(value)) is not None:
        return interval
    return clip(_format_value(value), 300).text


def _format_value(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, Mapping) and _is_figure(value):
        between = "" if value["low"] is None else f" ({_format_value(value['low'])} to "
        between += f"{_format_value(value['high'])})" if between else ""
        size = f", n = {_format_value(value['n'])}" if value.get("n") is not None else ""
        return f"{_format_value(value['value'])}{between}{size}"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{_label(k)} {_format_value(v)}" for k, v in list(value.items())[:MAX_LINES]
        )
    if isinstance(value, list):
        return ", ".join(map(_format_value, value[:MAX_LINES]))
    return str(value)[:1000]


def _label(name: object) -> str:
    return str(name)[:200].replace("_", " ")


MAX_COMPARED = 24
MAX_COMPARED_RESPONSE = 2500


class Pair(NamedTuple):
    """The results of a pair of runs: win rate, also at equal length, counts, and consistency."""

    a: str
    b: str
    rate: Interval
    controlled: Interval
    wins: str
    ties: str
    losses: str
    sign_p: str
    judge: str
    prompt: str
    same_order: Interval
    first_picked: Interval
    not_judged: str


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
        "arms": list(map(_arm_row, arms)),
        "criteria": _criterion_rows(arms),
        "cards": list(map(_comparison_card, cards[:MAX_COMPARED])),
        "more_cards": max(len(cards) - MAX_COMPARED, 0),
    }


def _pair_row(pair: Mapping[str, Any]) -> Pair:
    p = pair["sign_p"]
    return Pair(
        pair["a"],
        pair["b"],
        Interval(pair["win_rate"], pair["low"], pair["high"], pair["n"]),
        Interval(**pair["length_controlled"]),
        format_count(pair["wins"]),
        format_count(pair["ties"]),
        format_count(pair["losses"]),
        "" if p is None else f"{p:.4f}",
        short_name(pair["judge"]),
        pair["prompt"],
        Interval(**pair["same_in_both_orders"]),
        Interval(**pair["first_picked"]),
        format_count(pair["not_judged"]),
    )


def _arm_row(arm: Mapping[str, Any]) -> dict[str, str]:
    counts = ("accepted", "rejected", "failed", "calls", "tokens")
    return {
        "name": arm["name"],
        **{name: format_count(arm[name]) for name in counts},
        "dollars": "unknown" if arm["cost_usd"] is None else format_dollars(arm["cost_usd"]),
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
