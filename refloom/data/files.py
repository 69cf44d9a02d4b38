"""Rows out of files of every kind, and by the `datasets` library."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refloom.errors import InputError

Numbered = Iterator[tuple[int, Any]]
FIELD_BYTES = 1 << 28
# The name of a dataset, with a configuration and a split if it has several.
_NAMED = re.compile(r"(?P<name>[^:@]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
FILE_FORMATS = (".jsonl", ".json", ".parquet", ".csv", ".txt")


Skip = Callable[[str, int, str], None]


def read_rows(given: str | Path | list[Any], bad: Skip | None) -> Numbered:
    """The rows of a file, a dataset or a list, with their line numbers; streams.

    `bad` is told of lines that cannot be parsed; without it they raise `InputError`.
    """
    if isinstance(given, list):
        return iter(enumerate(given, 1))
    path = Path(given)
    named = _NAMED.fullmatch(str(given))
    if path.is_dir() or (named and not path.exists() and Path(named["name"]).is_dir()):
        return _read_dataset(str(given))
    if not path.exists():
        if path.suffix in FILE_FORMATS or path.is_absolute():
            raise InputError(f"{path}: no such file")
        return _read_dataset(str(given))
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".txt": _read_txt}
    if path.suffix == ".parquet":
        return _read_parquet(path)
    reader = readers.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: unknown kind of file; known are {', '.join(FILE_FORMATS)}")
    return reader(path, bad)


def _text_lines(path: Path, bad: Skip | None) -> Iterator[tuple[int, str]]:
    """Lines as text; one that is no UTF-8 or holds NUL bytes is bad."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    _bad_line(path, number, f"is no UTF-8 text ({error.reason})", bad)
                    continue
                if "\0" in text:
                    _bad_line(path, number, "holds a NUL byte", bad)
                    continue
                yield number, text
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _bad_line(path: Path, line: int, what: str, bad: Skip | None) -> None:
    if bad is None:
        raise InputError(f"{path}: line {line} {what}. Mend it, or pass --skip-bad-lines")
    bad(str(path), line, what)


def _read_jsonl(path: Path, bad: Skip | None) -> Numbered:
    for number, text in _text_lines(path, bad):
        if not text.strip():
            continue
        try:
            yield number, json.loads(text)
        except (ValueError, RecursionError) as error:
            _bad_line(path, number, f"is no JSON ({str(error)[:120]})", bad)


def _read_json(path: Path, bad: Skip | None) -> Numbered:
    text = "".join(line for _, line in _text_lines(path, bad))
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON ({str(error)[:120]})") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: must hold a list of rows; for one row a line call it .jsonl")
    yield from enumerate(rows, 1)


def _read_csv(path: Path, bad: Skip | None) -> Numbered:
    csv.field_size_limit(FIELD_BYTES)
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for at, line in _text_lines(path, bad):  # noqa: B007 - kept for the message
            yield line

    # Strict, or a quote that is never closed would swallow the rest of the file.
    rows = csv.reader(lines(), strict=True)
    header: list[str] | None = None
    while True:
        begun = at + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            since = f", in the row that begins in line {begun}" if at > begun else ""
            _bad_line(path, at, f"is no CSV ({error}{since})", bad)
            continue
        if not cells:
            continue
        if header is None:
            header = _check_header(path, cells)
        elif len(cells) > len(header):
            more = f"has {len(cells)} cells for {len(header)} columns; quote what holds a comma"
            _bad_line(path, at, more, bad)
        else:
            yield at, {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _check_header(path: Path, cells: list[str]) -> list[str]:
    twice = [name for name in cells if name and cells.count(name) > 1]
    if twice:
        raise InputError(f"{path}: has two columns {twice[0]!r}; give each a name of its own")
    return cells


def _read_txt(path: Path, bad: Skip | None) -> Numbered:
    for number, text in _text_lines(path, bad):
        if text.strip():
            yield number, text.strip()


def _read_parquet(path: Path) -> Numbered:
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
            f"{path}: is no parquet file, or row {number + 1} or one after it cannot be read "
            f"({str(error)[:120]})"
        ) from error


def _read_dataset(given: str) -> Numbered:
    """Rows by the `datasets` library: a folder, or a name on the Hugging Face hub."""
    import datasets

    named = None if Path(given).is_dir() else _NAMED.fullmatch(given)
    name, config, split = named.group("name", "config", "split") if named else (given, None, None)
    split = split or "train"
    try:
        if any((Path(name) / kept).is_file() for kept in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(name)
            found = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            found = datasets.load_dataset(name, config, split=split, streaming=True)
        yield from enumerate(found, 1)
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        raise InputError(f"{given}: is neither a file nor a dataset ({said})") from error
