"""Rows whose columns have names of their own, read under the names they are known by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refloom.data.shapes import KEYS, Unfit

ABOUT = frozenset({"id", "source", "license", "tags"})


def renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with each mapped column under the name it is mapped to.

    As soon as a column that holds text is mapped, only mapped ones count as such: what else is
    there cannot make the row one of another shape. `a.b` is `b` inside `a`, unless a column is
    called that. Raises `Unfit` where a mapped column of text is missing.

    >>> renamed({"question": "Why?", "answer": "So.", "prompt": "-"}, {"instruction": "question"})
    {'question': 'Why?', 'answer': 'So.', 'instruction': 'Why?'}
    """
    if not columns or not isinstance(row, Mapping):
        return row
    own = KEYS if set(columns) - ABOUT else frozenset()
    made = {key: value for key, value in row.items() if key not in own}
    for name, column in columns.items():
        found, value = _at(row, column)
        if found:
            made[name] = value
        elif name not in ABOUT and name != "input":
            keys = ", ".join(sorted(map(str, row))[:8])
            raise Unfit(f"it has no column {column!r}, only {keys}", "without a mapped column")
    return made


def _at(row: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    if column in row:
        return True, row[column]
    first, dot, rest = column.partition(".")
    inner = row.get(first)
    return _at(inner, rest) if dot and isinstance(inner, Mapping) else (False, None)
