"""Some samples of a run to read: draft, verdicts, what the refinement changed, what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nodes.llm.fast_json import loads
from nodes.text_diff import changes
from refloom.evaluation.report.collect import CARDS, Account, Shelf
from refloom.evaluation.report.tables import money, named, number
from refloom.evaluation.stats import EMPTY, Interval

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


# MERGED refloom~measure~report_checked
# The part of a report on what a judge check has found, whatever figures it holds.
MOST_LINES = 60
MOST_COLUMNS = 12
FLAGS = "flags"
DEEPEST = 3


class Table(NamedTuple):
    """A table of what was found: its name, its columns, its lines of cells."""

    name: str
    columns: list[str]
    lines: list[list[Any]]
    more: int = 0


def checked(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a judge check says: its flags, single facts, and tables of all that has several."""
    flags = said.get(FLAGS)
    facts: list[tuple[str, Any]] = []
    tables: list[Table] = []
    for name, value in said.items():
        if name == FLAGS or value in (None, [], {}):
            continue
        if _is_plain(value):
            facts.append((_words(name), cell(named(value) if name == "judge" else value)))
        else:
            tables += _tables(_words(name), value)
    shown = [clip(flag, 500) for flag in flags] if isinstance(flags, list) else []
    return {"flags": shown[:MOST_LINES], "facts": facts[:MOST_LINES], "tables": tables[:MOST_LINES]}


def _is_plain(value: object) -> bool:
    """Whether a value fits into a cell."""
    if isinstance(value, list):
        return not any(isinstance(v, Mapping) for v in value)
    return not isinstance(value, Mapping) or _is_figure(value)


def _is_figure(value: Mapping[str, Any]) -> bool:
    return {"value", "low", "high"} <= set(value)


def _tables(name: str, value: Any, deep: int = 0) -> Iterator[Table]:
    """A list of mappings as one table; a mapping as one, and its larger parts as their own."""
    if isinstance(value, list):
        yield _table(name, [v if isinstance(v, Mapping) else {"": v} for v in value])
        return
    rows = {k: v for k, v in value.items() if isinstance(v, Mapping) and _is_row(v)}
    plain = {k: v for k, v in value.items() if k not in rows and (deep > DEEPEST or _is_plain(v))}
    if plain:
        yield _table(name, [{"": _words(k), "found": v} for k, v in plain.items()])
    if rows:
        yield _table(name, [{"": _words(k), **v} for k, v in rows.items()])
    for key, inner in value.items():
        if key not in rows and key not in plain:
            yield from _tables(f"{name}: {_words(key)}", inner, deep + 1)


def _is_row(value: Mapping[str, Any]) -> bool:
    return not _is_figure(value) and all(map(_is_plain, value.values()))


def _table(name: str, lines: list[Any]) -> Table:
    columns = list(dict.fromkeys(key for line in lines for key in line))
    # Who reads tables has no use for columns of nothing, or for ids beside texts.
    used = [c for c in columns if any(line.get(c) not in (None, "", []) for line in lines)]
    shown = [c for c in used if c != "id" or "text" not in used][:MOST_COLUMNS]
    cells = [[cell(line.get(column)) for column in shown] for line in lines[:MOST_LINES]]
    return Table(name, list(map(_words, shown)), cells, max(len(lines) - MOST_LINES, 0))


def interval_of(value: object) -> Interval | None:
    """A share with its interval, where a value is one; its n may not be told."""
    if not isinstance(value, Mapping) or not _is_figure(value):
        return None
    n = value.get("n")
    n = n if isinstance(n, int) else 0
    if value["value"] is None:
        return EMPTY
    shares = [value[name] for name in ("value", "low", "high") if _is_share(value[name])]
    if len(shares) < 3:
        return None
    found, low, high = map(float, shares)
    return Interval(found, low, high, n)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def cell(value: object) -> Any:
    """A value for a cell: an interval stays one, all else becomes short text."""
    if (found := interval_of(value)) is not None:
        return found
    return clip(_plain(value), 300).text


def _plain(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, Mapping) and _is_figure(value):
        between = "" if value["low"] is None else f" ({_plain(value['low'])} to "
        between += f"{_plain(value['high'])})" if between else ""
        told = f", n = {_plain(value['n'])}" if value.get("n") is not None else ""
        return f"{_plain(value['value'])}{between}{told}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(k)} {_plain(v)}" for k, v in list(value.items())[:MOST_LINES])
    if isinstance(value, list):
        return ", ".join(map(_plain, value[:MOST_LINES]))
    return str(value)[:1000]


def _words(name: object) -> str:
    return str(name)[:200].replace("_", " ")


# MERGED refloom~measure~report_compared
# The part of a report on a comparison of runs.
MOST_CARDS = 24
LONGEST_RESPONSE = 2500


class Pair(NamedTuple):
    """How often one run's row was preferred to another's; its share, and with length taken out."""

    a: str
    b: str
    found: Interval
    controlled: Interval
    wins: str
    ties: str
    losses: str
    sign_p: str
    judge: str
    prompt: str
    same_order: Interval | None
    first_picked: Interval | None
    not_judged: str


def comparison(compared: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison says, ready to be shown; what it lacks is left out."""
    pairs = [pair for pair in compared.get("pairs") or () if isinstance(pair, Mapping)]
    accepted = [
        _pair({**{k: pair.get(k) for k in ("a", "b", "judge", "prompt")}, **pair["accepted"]})
        for pair in pairs
        if isinstance(pair.get("accepted"), Mapping)
    ]
    cards = list(compared.get("cards") or ())
    arms = [arm for arm in compared.get("arms") or () if isinstance(arm, Mapping)]
    return {
        "pairs": list(map(_pair, pairs)),
        "accepted": accepted,
        "arms": list(map(_arm, arms)),
        "criteria": _criteria(arms),
        "cards": list(map(_card, cards[:MOST_CARDS])),
        "more_cards": max(len(cards) - MOST_CARDS, 0),
    }


def _pair(pair: Mapping[str, Any]) -> Pair:
    found = interval_of({**pair, "value": pair.get("win_rate")})
    p = pair.get("sign_p")
    controlled = interval_of(pair.get("length_controlled"))
    return Pair(
        str(pair.get("a") or ""),
        str(pair.get("b") or ""),
        found or EMPTY,
        controlled or EMPTY,
        number(pair.get("wins")),
        number(pair.get("ties")),
        number(pair.get("losses")),
        "" if p is None else f"{p:.4f}",
        named(pair.get("judge")),
        str(pair.get("prompt") or ""),
        interval_of(pair.get("same_in_both_orders")),
        interval_of(pair.get("first_picked")),
        number(pair.get("not_judged")),
    )


def _arm(arm: Mapping[str, Any]) -> dict[str, str]:
    counts = ("accepted", "rejected", "failed", "calls", "tokens")
    return {
        "name": str(arm.get("name") or ""),
        **{name: number(arm.get(name)) for name in counts},
        "dollars": "unknown" if arm.get("cost_usd") is None else money(arm["cost_usd"]),
    }


def _criteria(arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Interval | None]]]:
    """Each criterion with a share an arm."""
    found: dict[str, list[Interval | None]] = {}
    for i, arm in enumerate(arms):
        for one in arm.get("criteria") or ():
            cells = found.setdefault(str(one.get("criterion")), [None] * len(arms))
            cells[i] = _share_of(one)
    return list(found.items())[:MOST_LINES]


def _share_of(one: Mapping[str, Any]) -> Interval | None:
    """A criterion's share; `passed` may be the share itself or how many passed."""
    value, low, high, n = (one.get(name) for name in ("passed", "low", "high", "n"))
    if value is None or low is None or high is None or not n:
        return None
    return interval_of({**one, "value": value if low <= value <= high else value / n})


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    score = card.get("score")
    a, b = str(card.get("a") or ""), str(card.get("b") or "")
    said = "" if score is None else "as good" if score == 0.5 else a if score > 0.5 else b
    return {
        "instruction": clip(card.get("instruction"), 1500),
        "a": a,
        "b": b,
        "a_response": clip(card.get("a_response"), LONGEST_RESPONSE),
        "b_response": clip(card.get("b_response"), LONGEST_RESPONSE),
        "better": said,
        "score": "" if score is None else f"{score:g}",
        "reasons": [clip(reason, 500) for reason in card.get("reasons") or () if reason],
    }
