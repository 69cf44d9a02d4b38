"""Rows of .jsonl, .json, .csv, .txt and .parquet files, and of datasets, with line numbers.

Rows are streamed, except those of a .json file. What is in them is up to `refloom.data.shapes`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refloom.errors import InputError

NumberedRows = Iterator[tuple[int, Any]]
# Called for each skipped line with the file, the line number and what is wrong.
Skip = Callable[[str, int, str], None]
MAX_CSV_FIELD_BYTES = 1 << 28
# NAME[:CONFIG][@SPLIT]
_DATASET_NAME = re.compile(r"(?P<name>[^:@]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
FILE_FORMATS = (".jsonl", ".json", ".parquet", ".csv", ".txt")


def read_rows(source: str | Path | list[Any], skip: Skip | None) -> NumberedRows:
    """Stream the rows of a file, a dataset or a list, with their line numbers.

    Args:
        source: A file, a folder or name for the `datasets` library, or rows.
        skip: Called for lines that cannot be parsed; without it they raise `InputError`.

    Raises:
        InputError: The source does not exist or cannot be read.
    """
    if isinstance(source, list):
        return iter(enumerate(source, 1))
    path = Path(source)
    match = _DATASET_NAME.fullmatch(str(source))
    if path.is_dir() or (match and not path.exists() and Path(match["name"]).is_dir()):
        return _read_dataset(str(source))
    if not path.exists():
        if path.suffix in FILE_FORMATS or path.is_absolute():
            raise InputError(f"{path}: no such file")
        return _read_dataset(str(source))
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".txt": _read_txt}
    if path.suffix == ".parquet":
        return _read_parquet(path)
    reader = readers.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: unknown kind of file; known kinds are {', '.join(FILE_FORMATS)}")
    return reader(path, skip)


def _text_lines(path: Path, skip: Skip | None) -> Iterator[tuple[int, str]]:
    """Lines as text. Those that are not UTF-8 or have NUL bytes count as bad lines."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    _report_line(path, number, f"is not UTF-8 text ({error.reason})", skip)
                    continue
                if "\0" in text:
                    _report_line(path, number, "has a NUL byte", skip)
                    continue
                yield number, text
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _report_line(path: Path, line: int, problem: str, skip: Skip | None) -> None:
    """Skip a bad line, or raise `InputError` if bad lines are not skipped."""
    if skip is None:
        raise InputError(f"{path}: line {line} {problem}. Fix it, or pass --skip-bad-lines")
    skip(str(path), line, problem)


def _read_jsonl(path: Path, skip: Skip | None) -> NumberedRows:
    for number, text in _text_lines(path, skip):
        if not text.strip():
            continue
        try:
            yield number, json.loads(text)
        except (ValueError, RecursionError) as error:
            _report_line(path, number, f"is not valid JSON ({str(error)[:120]})", skip)


def _read_json(path: Path, skip: Skip | None) -> NumberedRows:
    text = "".join(line for _, line in _text_lines(path, skip))
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({str(error)[:120]})") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: must hold a list of rows; name it .jsonl if each line is a row")
    yield from enumerate(rows, 1)


def _read_csv(path: Path, skip: Skip | None) -> NumberedRows:
    csv.field_size_limit(MAX_CSV_FIELD_BYTES)
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in _text_lines(path, skip):  # noqa: B007 - the loop below reads it
            yield line

    # Strict, or an unclosed quote would swallow the rest of the file.
    rows = csv.reader(lines(), strict=True)
    header: list[str] | None = None
    while True:
        first_line = number + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            start = f", in the row that starts in line {first_line}" if number > first_line else ""
            _report_line(path, number, f"is not valid CSV ({error}{start})", skip)
            continue
        if not cells:
            continue
        if header is None:
            header = cells
            repeated = [name for name in header if name and header.count(name) > 1]
            if repeated:
                raise InputError(
                    f"{path}: has two columns {repeated[0]!r}; give each a different name"
                )
        elif len(cells) > len(header):
            problem = f"has {len(cells)} cells for {len(header)} columns; quote cells with commas"
            _report_line(path, number, problem, skip)
        else:
            yield number, {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _read_txt(path: Path, skip: Skip | None) -> NumberedRows:
    for number, text in _text_lines(path, skip):
        if text.strip():
            yield number, text.strip()


def _read_parquet(path: Path) -> NumberedRows:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise InputError(
            f"{path}: is not a parquet file, or a row from {number + 1} on cannot be read "
            f"({str(error)[:120]})"
        ) from error


def _read_dataset(source: str) -> NumberedRows:
    """Rows by the `datasets` library: a folder, or a name on the Hugging Face hub."""
    import datasets

    match = None if Path(source).is_dir() else _DATASET_NAME.fullmatch(source)
    name, config, split = match.group("name", "config", "split") if match else (source, None, None)
    split = split or "train"
    try:
        if any((Path(name) / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(name)
            rows = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            rows = datasets.load_dataset(name, config, split=split, streaming=True)
        yield from enumerate(rows, 1)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{source}: is neither a file nor a dataset ({reason})") from error
