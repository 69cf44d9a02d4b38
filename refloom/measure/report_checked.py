"""The part of a report on what a judge check has found, whatever figures it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from refloom.measure.report_cards import clip
from refloom.measure.report_head import named
from refloom.measure.stats import NOTHING, Interval

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
        return NOTHING
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
