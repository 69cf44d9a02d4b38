"""Tables and figures as Markdown has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; what would end a cell is escaped.

    >>> print(table(["what", "n"], [["a|b", 3]]))
    | what | n |
    |---|---|
    | a\\|b | 3 |
    """
    lines = [list(map(_cell, head)), ["---"] * len(head), *(list(map(_cell, r)) for r in rows)]
    return "\n".join(
        f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines
    )


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def figure(value: float | None, digits: int = 2) -> str:
    """A number for a reader: thousands apart, no more digits than asked for; a dash for none.

    >>> figure(1234.5, 0), figure(0.25), figure(None)
    ('1,234', '0.25', '–')
    """
    return "–" if value is None else f"{value:,.{digits}f}"


def median(values: Iterable[float]) -> float:
    """The middle one; of an even number the lower of the two, so that it is one that was seen."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and in brackets the least and the most where there are several."""
    said = figure(median(values), digits)
    if len(values) == 1:
        return said
    return f"{said} ({figure(min(values), digits)} to {figure(max(values), digits)})"
