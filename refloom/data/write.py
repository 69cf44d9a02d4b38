"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GROUP = 1000


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` at the end; after an error, it is gone.

    Raises `OSError` where the directory cannot be written to.
    """
    path = Path(os.path.realpath(path))
    # A name of its own, so that two processes that write one file do not write into each other's.
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, types: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a row to what will be `path`: lines of JSON, or a parquet file.

    `types` is an example of a row. Rows are held by the thousand at most.
    """
    with staged(path) as aside:
        if path.suffix == ".parquet":
            with _parquet(aside, types) as put:
                yield put
            return
        with aside.open("w", encoding="utf-8", newline="\n") as file:

            def put(row: dict[str, Any]) -> None:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

            yield put


@contextmanager
def _parquet(path: Path, types: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(list(_type(types)))
    held: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(held, schema))
            held.clear()

        def put(row: dict[str, Any]) -> None:
            held.append(row)
            if len(held) >= GROUP:
                flush()

        yield put
        flush()


def _type(example: Any) -> Any:
    """The Arrow type of what looks like the example."""
    import pyarrow

    if isinstance(example, dict):
        return pyarrow.struct([(name, _type(value)) for name, value in example.items()])
    if isinstance(example, list):
        return pyarrow.list_(_type(example[0]))
    return pyarrow.bool_() if isinstance(example, bool) else pyarrow.string()


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
