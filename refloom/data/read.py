"""Reading references and seeds, streamed, from files or by the `datasets` library."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from memory.index import Reference, content_id
from nodes.state import Seed
from refloom.data.shapes import Unfit, pair_of, whole

Numbered = Iterator[tuple[int, Any]]
FIELD_BYTES = 1 << 28
FORMATS = (".jsonl", ".json", ".parquet", ".csv", ".txt")


class BadFile(Exception):
    """A file that cannot be read as asked: which, at which line, what is wrong, how to mend it."""


@dataclass(slots=True)
class Report:
    """What reading found: rows taken, rows left out and why, shapes, a hash of what was taken."""

    taken: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    skipped_count: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    digest: str = ""

    def skip(self, name: str, line: int, why: str) -> None:
        """Count a row that is left out; the first thousand are named."""
        self.skipped_count += 1
        if len(self.skipped) < 1000:
            self.skipped.append({"file": name, "line": line, "why": why})


class Source:
    """References or seeds that can be read again and again, one at a time.

    Each reading yields the same items in the same order; `report` is that of the last full one.
    """

    def __init__(
        self,
        given: str | Path | Iterable[Any],
        *,
        as_reference: bool,
        skip_bad_lines: bool = False,
        limit: int | None = None,
    ) -> None:
        """`given`: a file, the name of a dataset, or rows."""
        self.name = str(given) if isinstance(given, str | Path) else "rows given"
        self._given = given if isinstance(given, str | Path) else list(given)
        self._convert = _reference if as_reference else _seed
        self._skip_bad_lines = skip_bad_lines
        self._limit = limit
        self.report = Report()

    def __iter__(self) -> Iterator[Any]:
        """Yield the items; raises `BadFile` at a line that cannot be parsed."""
        self.report = Report()
        return islice(self._items(self.report), self._limit)

    def _items(self, report: Report) -> Iterator[Any]:
        bad = report.skip if self._skip_bad_lines else None
        for line, row in _rows(self._given, bad):
            try:
                shape, item = self._convert(row)
            except Unfit as unfit:
                report.skip(self.name, line, str(unfit))
                continue
            report.taken += 1
            report.shapes[shape] += 1
            yield item

    def scan(self) -> Report:
        """Read everything once, so that what is wrong is known before anything is paid for."""
        digest = sha256()
        count = 0
        for item in self:
            digest.update(json.dumps(item, sort_keys=True, ensure_ascii=True).encode())
            count += 1
        self.report.taken, self.report.digest = count, digest.hexdigest()
        if not count:
            first = self.report.skipped[0] if self.report.skipped else None
            why = f"; line {first['line']}: {first['why']}" if first else " (it is empty)"
            raise BadFile(
                f"{self.name}: no usable row{why}. Known shapes: instruction/response, "
                "instruction/input/output, prompt/completion, messages, conversations"
            )
        return self.report

    def digest_of(self, count: int) -> str:
        """The hash of the first `count` items, to tell whether a file was only appended to."""
        digest = sha256()
        for item in islice(iter(self), count):
            digest.update(json.dumps(item, sort_keys=True, ensure_ascii=True).encode())
        return digest.hexdigest()


def _reference(row: Any) -> tuple[str, Reference]:
    shape, instruction, response = pair_of(row)
    if response is None or not response.strip():
        raise Unfit("it has no response")
    found: Reference = {
        "id": _own_id(row) or content_id(instruction, response),
        "instruction": instruction,
        "response": response,
    }
    for key in ("source", "license"):
        if isinstance(row.get(key), str):
            found[key] = row[key]
    if isinstance(row.get("tags"), list):
        found["tags"] = [str(tag) for tag in row["tags"]]
    return shape, found


def _seed(row: Any) -> tuple[str, Seed]:
    if isinstance(row, str):
        if not whole(row).strip():
            raise Unfit("it is blank")
        return "text", {"id": content_id(row.strip()), "instruction": row.strip()}
    shape, instruction, _ = pair_of(row)
    return shape, {"id": _own_id(row) or content_id(instruction), "instruction": instruction}


def _own_id(row: Any) -> str | None:
    own = row.get("id")
    return str(own) if isinstance(own, str | int) and str(own).strip() else None


Skip = Callable[[str, int, str], None]


def _rows(given: str | Path | list[Any], bad: Skip | None) -> Numbered:
    if isinstance(given, list):
        return iter(enumerate(given, 1))
    path = Path(given)
    if path.is_dir():
        return _dataset(str(given))
    if not path.exists():
        if path.suffix in FORMATS or path.is_absolute():
            raise BadFile(f"{path}: no such file")
        return _dataset(str(given))
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".txt": _txt}
    if path.suffix == ".parquet":
        return _parquet(path)
    reader = readers.get(path.suffix)
    if reader is None:
        raise BadFile(f"{path}: unknown kind of file; known are {', '.join(FORMATS)}")
    return reader(path, bad)


def _lines(path: Path, bad: Skip | None) -> Iterator[tuple[int, str]]:
    """Lines as text; one that is no UTF-8 or holds NUL bytes is bad."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    _bad(path, number, f"is no UTF-8 text ({error.reason})", bad)
                    continue
                if "\0" in text:
                    _bad(path, number, "holds a NUL byte", bad)
                    continue
                yield number, text
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error.strerror or error}") from error


def _bad(path: Path, line: int, what: str, bad: Skip | None) -> None:
    if bad is None:
        raise BadFile(f"{path}: line {line} {what}. Mend it, or pass --skip-bad-lines")
    bad(str(path), line, what)


def _jsonl(path: Path, bad: Skip | None) -> Numbered:
    for number, text in _lines(path, bad):
        if not text.strip():
            continue
        try:
            yield number, json.loads(text)
        except (ValueError, RecursionError) as error:
            _bad(path, number, f"is no JSON ({str(error)[:120]})", bad)


def _json(path: Path, bad: Skip | None) -> Numbered:
    text = "".join(line for _, line in _lines(path, bad))
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path}: is no JSON ({str(error)[:120]})") from error
    if not isinstance(rows, list):
        raise BadFile(f"{path}: must hold a list of rows; for one row a line call it .jsonl")
    yield from enumerate(rows, 1)


def _csv(path: Path, bad: Skip | None) -> Numbered:
    csv.field_size_limit(FIELD_BYTES)
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for at, line in _lines(path, bad):  # noqa: B007 - kept for the message
            yield line

    reader = csv.DictReader(lines())
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            _bad(path, at, f"is no CSV ({error})", bad)
            continue
        yield at, {k: v for k, v in row.items() if k and v is not None}


def _txt(path: Path, bad: Skip | None) -> Numbered:
    for number, text in _lines(path, bad):
        if text.strip():
            yield number, text.strip()


def _parquet(path: Path) -> Numbered:
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: is no parquet file ({str(error)[:120]})") from error


def _dataset(name: str) -> Numbered:
    """Rows by the `datasets` library: a folder, or a name on the Hugging Face hub."""
    import datasets

    try:
        found = datasets.load_dataset(name, split="train", streaming=True)
        yield from enumerate(found, 1)
    except Exception as error:
        raise BadFile(f"{name}: is neither a file nor a dataset ({str(error)[:160]})") from error
