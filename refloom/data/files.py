"""Rows of .jsonl, .json, .csv, .txt and .parquet files, and of datasets, with line numbers.

Rows are streamed, except those of a .json file. What is in them is up to `refloom.data.shapes`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from refloom.data.encodings import PACKED_SUFFIXES, Skip, report_line, text_lines
from refloom.data.shapes import RUBRIC_COLUMNS, SHAPE_KEYS
from refloom.errors import InputError

NumberedRows = Iterator[tuple[int, Any]]
# Called with a sentence on what was taken of a source that holds more than one list.
Note = Callable[[str], None]
MAX_CSV_FIELD_BYTES = 1 << 28
# NAME[:CONFIG][@SPLIT]
_DATASET_NAME = re.compile(r"(?P<name>[^:@]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
_FILE_SPLIT = re.compile(r"(?P<name>.+)@(?P<split>[\w.-]+)", re.DOTALL)
FILE_FORMATS = (".jsonl", ".json", ".parquet", ".csv", ".txt")
# Other suffixes of the same kinds.
_SAME_FORMATS = {".ndjson": ".jsonl", ".jsonlines": ".jsonl", ".tsv": ".csv", ".tab": ".csv"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
_SPACE = re.compile(r"[ \t\r\n]*")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Excel reads such a first line, and some programs write it.
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?[ \r\n]*')
# What tables write for a cell without a value. Of an answer, only the first are no text.
_NO_VALUES = frozenset({"NaN", "nan", "<NA>"})
_NO_WORDS = frozenset({"null", "NULL", "None"})
_MAY_BE_ABSENT = frozenset({"id", "input", "context", "system", "system_prompt", "history"})
_TURN_KEYS = frozenset({"messages", "conversations", "instances", "turns"})
# Keys of an object under which it keeps rows.
_WRAPPERS = frozenset(
    {"data", "rows", "items", "examples", "records", "samples", "results", "dataset", "entries"}
    | {"train", "test", "validation", "valid", "val", "dev", "eval"}
)


def read_rows(
    source: str | Path | list[Any], skip: Skip | None, note: Note | None = None
) -> NumberedRows:
    """Stream the rows of a file, a dataset or a list, with their line numbers.

    Args:
        source: A file, a folder or name for the `datasets` library, or rows. `FILE@NAME` is one
            list of a file that holds several, `NAME@SPLIT` one split of a dataset.
        skip: Called for lines that cannot be parsed; without it they raise `InputError`.
        note: Called with what was left aside of a source that holds several lists.

    Raises:
        InputError: The source does not exist or cannot be read.
    """
    if isinstance(source, list):
        return iter(enumerate(source, 1))
    note = note or (lambda _: None)
    path = Path(source)
    _check_is_file(str(source), path)
    match = _DATASET_NAME.fullmatch(str(source))
    if path.is_dir() or (match and not path.exists() and Path(match["name"]).is_dir()):
        return _read_dataset(str(source), note)
    split = None
    if not path.exists():
        part = _FILE_SPLIT.fullmatch(str(source))
        if part and Path(part["name"]).is_file():
            path, split = Path(part["name"]), part["split"]
        elif file_format(path) in FILE_FORMATS or path.is_absolute():
            raise InputError(f"{path}: no such file")
        else:
            return _read_dataset(str(source), note)
    return _read_file(path, skip, split, note)


def file_format(path: Path) -> str:
    """The suffix of a file in small letters, without that of a packed file.

    >>> file_format(Path("rows.JSONL.gz")), file_format(Path("rows.tsv"))
    ('.jsonl', '.csv')
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    return _SAME_FORMATS.get(suffix, suffix)


def _check_is_file(source: str, path: Path) -> None:
    """Raise `InputError` for an address, standard input, a pipe or a device."""
    if _URL.match(source):
        raise InputError(
            f"{source}: is an address, and only files are read. Download it and name the file, "
            "or name a dataset of the hub as OWNER/NAME"
        )
    is_stream = source == "-" or source.startswith(_STREAMS)
    if is_stream or (path.exists() and not path.is_file() and not path.is_dir()):
        raise InputError(
            f"{source}: is a stream, and inputs are read more than once. Save it to a file, "
            "and name the file"
        )


def _read_file(path: Path, skip: Skip | None, split: str | None, note: Note) -> NumberedRows:
    kind = file_format(path)
    if kind in (".jsonl", ".json"):
        return _read_json(path, skip, split, note, by_line=kind == ".jsonl")
    if split is not None:
        raise InputError(f"{path}: is one list of rows; leave out @{split}")
    if kind == ".csv":
        return _read_csv(path, skip)
    if kind == ".txt":
        return _read_txt(path, skip)
    if kind == ".parquet":
        if path.suffix.lower() in PACKED_SUFFIXES:
            raise InputError(f"{path}: packed parquet files are not read; unpack it first")
        return _read_parquet(path)
    raise InputError(
        f"{path}: unknown kind of file; known kinds are {', '.join(FILE_FORMATS)} and "
        f"{', '.join(_SAME_FORMATS)}, also packed ({', '.join(PACKED_SUFFIXES)})"
    )


def _read_json(
    path: Path, skip: Skip | None, split: str | None, note: Note, *, by_line: bool
) -> NumberedRows:
    """Rows of JSON: one a line, or one after the other, or in a list, whatever the file's name is.

    A .jsonl file is streamed if its first line is a row of several, any other is read whole.
    """
    if by_line:
        start = _first_lines(path, skip)
        if not start or (len(start) > 1 and _is_json(start[0])):
            return _read_lines(path, skip)
    bad_lines: list[tuple[str, int, str]] = []
    hold = None if skip is None else lambda *line: bad_lines.append(line)
    text = "".join(line for _, line in text_lines(path, hold))
    try:
        documents = _parse_documents(text)
    except (ValueError, RecursionError) as error:
        if by_line or _is_json(text.strip().partition("\n")[0]):
            return _read_lines(path, skip)
        reason = str(error)[:120] if text.strip() else "it is empty"
        raise InputError(f"{path}: is not valid JSON ({reason})") from error
    for line in bad_lines:
        report_line(Path(line[0]), *line[1:], skip)
    if len(documents) > 1:
        return iter(documents)
    return _find_rows(path, *documents[0], split, note)


def _first_lines(path: Path, skip: Skip | None) -> list[str]:
    """The first two lines that are not blank. Bad ones are passed over, if bad lines are."""
    texts: list[str] = []
    for _, text in text_lines(path, None if skip is None else lambda *_: None):
        if text.strip():
            texts.append(text)
        if len(texts) == 2:
            break
    return texts


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(path: Path, skip: Skip | None) -> NumberedRows:
    for number, text in text_lines(path, skip):
        if not text.strip():
            continue
        try:
            yield number, json.loads(text)
        except (ValueError, RecursionError) as error:
            report_line(path, number, f"is not valid JSON ({str(error)[:120]})", skip)


def _parse_documents(text: str) -> list[tuple[int, Any]]:
    """The JSON values of a text, one after the other, with the lines they start in.

    Raises `ValueError` if there is none or anything else is between them.
    """
    decoder = json.JSONDecoder()
    documents: list[tuple[int, Any]] = []
    at, line = 0, 1
    while not documents or at < len(text):
        start = _end_of_space(text, at)
        line += text.count("\n", at, start)
        value, end = decoder.raw_decode(text, start)
        documents.append((line, value))
        at = _end_of_space(text, end)
        line += text.count("\n", start, at)
    return documents


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _find_rows(path: Path, line: int, value: Any, split: str | None, note: Note) -> NumberedRows:
    """The rows of a JSON value: a list, one of an object's lists, or the object itself."""
    lists = _wrapped_lists(value) if isinstance(value, Mapping) else {}
    if not lists and split is not None:
        raise InputError(f"{path}: is one list of rows; leave out @{split}")
    if isinstance(value, list):
        return iter(enumerate(value, 1))
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: must hold a list of rows; name it .txt if each line is a text")
    if not lists:
        rows = _rows_of_columns(value)
        return iter([(line, value)] if rows is None else enumerate(rows, 1))
    name = _choose_list(str(path), {name: len(rows) for name, rows in lists.items()}, split, note)
    rows = lists[name]
    # The hub's own server puts each row into an object with its number.
    if all(isinstance(row, Mapping) and isinstance(row.get("row"), Mapping) for row in rows):
        rows = [row["row"] for row in rows]
    return iter(enumerate(rows, 1))


def _rows_of_columns(value: Mapping[str, Any]) -> list[Any] | None:
    """The rows of a table that is written by columns, as pandas does; None for a single row.

    >>> _rows_of_columns({"prompt": {"0": "Why?", "1": "How?"}, "completion": {"0": "A", "1": "B"}})
    [{'prompt': 'Why?', 'completion': 'A'}, {'prompt': 'How?', 'completion': 'B'}]
    """
    columns = [list(c.values()) if isinstance(c, Mapping) else c for c in value.values()]
    if len(columns) < 2 or _TURN_KEYS & value.keys():
        return None
    if not all(isinstance(c, list) and c and len(c) == len(columns[0]) for c in columns):
        return None
    if any(isinstance(cell, list | Mapping) for column in columns for cell in column):
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _wrapped_lists(value: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists of rows that an object holds, by name; none if it is itself a row.

    >>> list(_wrapped_lists({"version": 1, "result": {"data": [{"prompt": "Why?"}]}}))
    ['result']
    >>> _wrapped_lists({"question": "Why so?", "sources": [{"url": "x"}]})
    {}
    >>> _wrapped_lists({"question": "Why?", "rubric": [{"description": "Says so", "weight": 5}]})
    {}
    """
    if (SHAPE_KEYS | RUBRIC_COLUMNS) & value.keys():
        return {}
    is_row = any(isinstance(text, str) and " " in text for text in value.values())
    lists: dict[str, list[Any]] = {}
    for key, inner in value.items():
        known = str(key).lower() in _WRAPPERS
        if is_row and not known:
            continue
        if isinstance(inner, list):
            # Under a usual name a list may be empty, or of texts.
            kinds = Mapping | str if known else Mapping
            if (inner or known) and all(isinstance(row, kinds) for row in inner):
                lists[key] = inner
        elif isinstance(inner, Mapping):
            within = _wrapped_lists(inner)
            alone = len(within) == 1
            lists |= {(key if alone else f"{key}.{name}"): rows for name, rows in within.items()}
    return lists


def _choose_list(
    source: str, sizes: Mapping[str, int | None], split: str | None, note: Note
) -> str:
    """The name of the list to read: the one asked for, the only one, `train`, or the only usual.

    Raises `InputError` that names all if none of these is there.
    """
    listed = ", ".join(
        name if size is None else f"{name} ({size:,})" for name, size in sizes.items()
    )
    usual = [name for name in sizes if name.lower() in _WRAPPERS]
    if split is not None:
        if split not in sizes:
            raise InputError(f"{source}: has no {split}, only {listed}")
        return split
    if len(sizes) == 1:
        return next(iter(sizes))
    if "train" in sizes:
        name = "train"
    elif len(usual) == 1:
        name = usual[0]
    else:
        first = next(iter(sizes))
        raise InputError(
            f"{source}: holds several lists of rows: {listed}. Name one, as {source}@{first}"
        )
    note(f"{source}: {name} is read, of {listed}; {source}@NAME reads another")
    return name


def _read_csv(path: Path, skip: Skip | None) -> NumberedRows:
    csv.field_size_limit(MAX_CSV_FIELD_BYTES)
    number = 0
    separator = _find_separator(path, skip)

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in text_lines(path, skip):
            if number > 1 or not _SEPARATOR_LINE.fullmatch(line):
                yield line

    # Strict, or an unclosed quote would swallow the rest of the file.
    rows = csv.reader(lines(), strict=True, delimiter=separator)
    header: list[str] | None = None
    while True:
        first_line = number + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            start = f", in the row that starts in line {first_line}" if number > first_line else ""
            report_line(path, number, f"is not valid CSV ({error}{start})", skip)
            continue
        if not cells:
            continue
        if header is None:
            header = _check_header(path, cells)
        elif len(cells) > len(header):
            problem = (
                f"has {len(cells)} cells for {len(header)} columns; quote cells with "
                f"{_SEPARATORS[separator]} in them"
            )
            report_line(path, number, problem, skip)
        else:
            yield (
                number,
                {
                    name: None if _is_absent(name, cell) else cell
                    for name, cell in zip(header, cells, strict=False)
                    if name
                },
            )


def _check_header(path: Path, cells: list[str]) -> list[str]:
    """The names of the columns. Raises `InputError` if two are the same."""
    header = [name.strip() for name in cells]
    repeated = [name for name in header if name and header.count(name) > 1]
    if repeated:
        raise InputError(f"{path}: has two columns {repeated[0]!r}; give each a different name")
    return header


def _find_separator(path: Path, skip: Skip | None) -> str:
    """What stands between the cells of the header: a comma, unless another makes more of them."""
    for _, line in text_lines(path, None if skip is None else lambda *_: None):
        if match := _SEPARATOR_LINE.fullmatch(line):
            return match[1]
        if line.strip():
            return max(_SEPARATORS, key=lambda separator: _count_cells(line, separator))
    return ","


def _count_cells(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator)))
    except csv.Error:
        # Reading the file says what is wrong.
        return 0


def _is_absent(name: str, cell: str) -> bool:
    """Whether a cell says that it has no value."""
    return cell in _NO_VALUES or (cell in _NO_WORDS and name in _MAY_BE_ABSENT)


def _read_txt(path: Path, skip: Skip | None) -> NumberedRows:
    for number, text in text_lines(path, skip):
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


def _read_dataset(source: str, note: Note) -> NumberedRows:
    """Rows by the `datasets` library: a folder, or a name on the Hugging Face hub."""
    import datasets

    match = None if Path(source).is_dir() else _DATASET_NAME.fullmatch(source)
    name, config, split = match.group("name", "config", "split") if match else (source, None, None)
    try:
        if any((Path(name) / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
            rows = datasets.load_from_disk(name)
            if isinstance(rows, datasets.DatasetDict):
                sizes = {part: len(rows[part]) for part in rows}
                rows = rows[_choose_list(name, sizes, split, note)]
        else:
            rows = datasets.load_dataset(name, config, split=split or "train", streaming=True)
        yield from enumerate(rows, 1)
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{source}: is neither a file nor a dataset ({reason})") from error
