"""Figures, the bars that they are held to, and tables as Markdown has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; what would end a cell is escaped.

    >>> print(table(["what", "n"], [["a|b", 3]]))
    | what | n |
    |---|---|
    | a\\|b | 3 |
    """
    lines = [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


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
    if not values:
        return figure(None)
    said = figure(median(values), digits)
    if len(values) == 1:
        return said
    return f"{said} ({figure(min(values), digits)} to {figure(max(values), digits)})"


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit on one figure; `most` False: the figure has to be at least that."""

    limit: float
    most: bool = True

    def reached(self, value: float) -> bool:
        """Whether a figure keeps to the limit; one that is on it does."""
        return value <= self.limit if self.most else value >= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: what it is, its repeats, and its bar.

    `enough` False: it is of smaller numbers than the bar is for.
    """

    what: str
    values: Sequence[float]
    unit: str = ""
    digits: int = 2
    bar: Bar | None = None
    enough: bool = True

    def judged(self) -> str:
        """Whether the median reaches the bar, or why nothing can be said."""
        if self.bar is None:
            return "–"
        if not self.values:
            return "not measured"
        if not self.enough:
            return "too few to say"
        return "yes" if self.bar.reached(median(self.values)) else "**no**"

    def cells(self, before: Row | None) -> list[str]:
        """The row's line in a table, beside the figure that was measured before."""
        limit = "–"
        if self.bar is not None:
            side = "at most" if self.bar.most else "at least"
            limit = f"{side} {self.bar.limit:,g}{self.unit}"
        earlier = figure(median(before.values), self.digits) if before and before.values else "–"
        measured = spread(self.values, self.digits) + (self.unit if self.values else "")
        return [self.what, measured, limit, self.judged(), earlier]


def beside_bars(rows: Sequence[Row], before: Mapping[str, Row]) -> str:
    """Figures beside their bars and beside what was measured before, by what they are."""
    head = ["what", "measured", "bar", "reached", "before"]
    return table(head, (row.cells(before.get(row.what)) for row in rows))
