"""Tables as plain text, for a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO

# More than any table needs: a row is a line, whatever the terminal.
MAX_WIDTH = 10_000


def text_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of cells under their heads, as wide as what they hold; whole numbers to the right.

    >>> print(text_table(["run", "rows", "cost"], [["a", 1200, "$1"], ["b", 7, "unknown"]]))
    run   rows  cost
    a    1,200  $1
    b        7  unknown
    """
    # Imported here: most commands show no table.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name, *cells in zip(head, *lines, strict=True):
        numbers = all(isinstance(cell, int) for cell in cells)
        table.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for line in lines:
        cells = [f"{c:,}" if isinstance(c, int) else _on_one_line(str(c)) for c in line]
        table.add_row(*map(Text, cells))
    file = StringIO()
    Console(file=file, width=MAX_WIDTH, color_system=None, markup=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _on_one_line(text: str) -> str:
    """A text without breaks; blanks at its beginning stay, since they indent."""
    indent = " " * (len(text) - len(text.lstrip(" ")))
    return indent + " ".join(text.split())
