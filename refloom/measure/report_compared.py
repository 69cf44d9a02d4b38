"""The part of a report on a comparison of runs, and on what a judge check has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from refloom.measure.report_cards import clip
from refloom.measure.report_head import money, number
from refloom.measure.stats import Interval

MOST_LINES = 60
MOST_COLUMNS = 12
MOST_CARDS = 24
LONG = 2500
# What is shown by name elsewhere in the part.
FLAGS = "flags"


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
        found or Interval(None, None, None, 0),
        controlled or Interval(None, None, None, 0),
        *(number(pair.get(name)) for name in ("wins", "ties", "losses")),
        "" if p is None else f"{p:.4f}",
        str(pair.get("judge") or ""),
        str(pair.get("prompt") or ""),
    )


def _arm(arm: Mapping[str, Any]) -> dict[str, str]:
    counts = ("accepted", "rejected", "failed", "calls", "tokens")
    return {
        "name": str(arm.get("name") or ""),
        **{name: number(arm.get(name)) for name in counts},
        "dollars": money(arm.get("cost_usd")),
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
        "a_response": clip(card.get("a_response"), LONG),
        "b_response": clip(card.get("b_response"), LONG),
        "better": said,
        "score": "" if score is None else f"{score:g}",
        "reasons": [clip(reason, 500) for reason in card.get("reasons") or () if reason],
    }


def interval_of(value: object) -> Interval | None:
    """A figure with its interval, where a value is one; its n may not be told."""
    if not isinstance(value, Mapping):
        return None
    shares = [value.get(name) for name in ("value", "low", "high")]
    if not all(isinstance(s, int | float) and 0 <= s <= 1 for s in shares):
        return None
    n = value.get("n")
    return Interval(*map(float, shares), n if isinstance(n, int) else 0)  # type: ignore[arg-type]


class Table(NamedTuple):
    """A table of what was found: its name, its columns, its lines of cells."""

    name: str
    columns: list[str]
    lines: list[list[Any]]
    more: int


def checked(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a judge check says: its flags, single facts, and tables of all that has several."""
    flags = said.get(FLAGS)
    facts: list[tuple[str, Any]] = []
    tables: list[Table] = []
    for name, value in said.items():
        if name == FLAGS:
            continue
        if (table := _table(_words(name), value)) is not None:
            tables.append(table)
        else:
            facts.append((_words(name), cell(value)))
    shown = [clip(flag, 500) for flag in flags] if isinstance(flags, list) else []
    return {"flags": shown[:MOST_LINES], "facts": facts[:MOST_LINES], "tables": tables[:MOST_LINES]}


def _table(name: str, value: object) -> Table | None:
    """A list or a mapping of mappings, or a plain mapping, as a table; None of what is neither."""
    if isinstance(value, Mapping) and value and interval_of(value) is None:
        lines = [{"": key, **_columns(inner)} for key, inner in value.items()]
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        lines = [dict(v) for v in value]
    else:
        return None
    columns = list(dict.fromkeys(key for line in lines for key in line))[:MOST_COLUMNS]
    shown = [[cell(line.get(column)) for column in columns] for line in lines[:MOST_LINES]]
    return Table(name, list(map(_words, columns)), shown, max(len(lines) - MOST_LINES, 0))


def _columns(inner: object) -> dict[str, Any]:
    plain = not isinstance(inner, Mapping) or interval_of(inner) is not None
    return {"value": inner} if plain else dict(inner)  # type: ignore[call-overload]


def cell(value: object) -> Any:
    """A value for a cell: an interval stays one, all else becomes short text."""
    if (found := interval_of(value)) is not None:
        return found
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, Mapping):
        return clip(", ".join(f"{_words(k)} {_plain(v)}" for k, v in value.items()), 300).text
    if isinstance(value, list):
        return clip(", ".join(map(_plain, value)), 300).text
    return clip(value, 300).text


def _plain(value: object) -> str:
    found = cell(value) if not isinstance(value, Mapping | list) else clip(value, 100).text
    return found if isinstance(found, str) else f"{found.value}"


def _words(name: object) -> str:
    return str(name).replace("_", " ")
