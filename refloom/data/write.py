"""Files written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` at the end; after an error, it is gone.

    Raises `OSError` where the directory cannot be written to.
    """
    aside = path.with_name(path.name + ".new")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def replace_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines aside and put the file in its place; return how many."""
    count = 0
    with staged(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
        file.flush()
    return count


def replace_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: Any = None) -> int:
    """Write rows as a parquet file, with all their keys as columns; return how many.

    Holds the rows in memory, since only the last of them shows what columns there are. Raises
    `ValueError` when the values of one column are of different types.
    """
    import pyarrow
    import pyarrow.parquet

    held = list(rows)
    columns = {key: [row.get(key) for row in held] for key in _keys(held)}
    try:
        table = pyarrow.table(columns, schema=schema)
        with staged(path) as aside:
            pyarrow.parquet.write_table(table, aside)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise ValueError(str(error)[:200]) from error
    return len(held)


def _keys(rows: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
