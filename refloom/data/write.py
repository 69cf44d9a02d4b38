"""Files that appear complete or not at all: text lines, JSON lines and parquet.

They are written beside their place and moved there at the end, so that a crash leaves the old file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Rows of a parquet file that are held in memory.
ROW_GROUP_SIZE = 1000
OutputRow = dict[str, Any]
WriteRow = Callable[[OutputRow], None]


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is removed on an error.

    Raises `OSError` if the directory cannot be written to.
    """
    path = Path(os.path.realpath(path))
    # With the process id, so that two processes can write the same file at once.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_row_writer(path: Path, example: OutputRow) -> Iterator[WriteRow]:
    """Yield a function that writes a row; the file appears at `path` at the end.

    A .parquet file gets the column types of the `example` row, and memory for `ROW_GROUP_SIZE` rows
    is used at most. Any other file gets a line of JSON for each row.
    """
    with write_atomically(path) as temporary:
        if path.suffix == ".parquet":
            with _open_parquet_writer(temporary, example) as write:
                yield write
            return
        with temporary.open("w", encoding="utf-8", newline="\n") as file:

            def write_line(row: OutputRow) -> None:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

            yield write_line


@contextmanager
def _open_parquet_writer(path: Path, example: OutputRow) -> Iterator[WriteRow]:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(list(_arrow_type(example)))
    buffer: list[OutputRow] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            # A group without rows cannot be read by the datasets library.
            if not buffer:
                return
            writer.write_table(pyarrow.Table.from_pylist(buffer, schema))
            buffer.clear()

        def write(row: OutputRow) -> None:
            buffer.append(row)
            if len(buffer) >= ROW_GROUP_SIZE:
                flush()

        yield write
        flush()


def _arrow_type(example: Any) -> Any:
    """The Arrow type of values like the example: objects, lists, booleans, numbers and text."""
    import pyarrow

    if isinstance(example, dict):
        return pyarrow.struct([(name, _arrow_type(value)) for name, value in example.items()])
    if isinstance(example, list):
        return pyarrow.list_(_arrow_type(example[0]))
    types = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    return types.get(type(example), pyarrow.string())


def replace_lines(path: Path, lines: Iterable[str]) -> int:
    """Write a file of text lines, replacing any at `path`; return the number of lines."""
    count = 0
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        for line in lines:
            file.write(line + "\n")
            count += 1
    return count


def replace_parquet(path: Path, rows: Iterable[OutputRow], schema: Any = None) -> int:
    """Write a parquet file of all columns of the rows, replacing any; return the number of rows.

    The rows are held in memory, since the columns are known only when all have been read. Raises
    `ValueError` if the values of a column are of different types.
    """
    import pyarrow
    import pyarrow.parquet

    table_rows = list(rows)
    names = dict.fromkeys(name for row in table_rows for name in row)
    columns = {name: [row.get(name) for row in table_rows] for name in names}
    try:
        table = pyarrow.table(columns, schema=schema)
        with write_atomically(path) as temporary:
            pyarrow.parquet.write_table(table, temporary)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise ValueError(str(error)[:200]) from error
    return len(table_rows)
