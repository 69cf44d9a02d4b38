"""`refloom dedup`: a copy of a file without near-duplicates; the first of similar rows stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from memory.novelty import CosineFilter, NoveltyFilter
from refloom.data.files import Skip, read_rows
from refloom.data.read import ReadReport
from refloom.data.shapes import UnknownShape, parse_pair, valid_text
from refloom.data.write import replace_lines, replace_parquet
from refloom.errors import InputError

Encode = Callable[[Sequence[str]], Any]
BATCH = 256


class DroppedRow(NamedTuple):
    """A dropped row, and the row it is too near to, by line number."""

    line: int
    near: int
    instruction: str
    by: str
    """The filter that dropped it: "rouge-l" or "embedding"."""


class MeaningFilter(NamedTuple):
    """Also drop rows whose instruction has a cosine over `threshold` with an earlier one."""

    threshold: float
    encode: Encode


class _Row(NamedTuple):
    line: int
    row: dict[str, Any]
    instruction: str


@dataclass(slots=True)
class DedupSummary:
    """The result of `dedup`; `report` counts rows of no known shape, which are not written."""

    kept: int = 0
    dropped: list[DroppedRow] = field(default_factory=list)
    report: ReadReport = field(default_factory=ReadReport)


def dedup(
    source: str | Path,
    out: Path,
    *,
    threshold: float = 0.7,
    skip_bad_lines: bool = False,
    meaning: MeaningFilter | None = None,
) -> DedupSummary:
    """Write the rows of a file that are not near-duplicates to `out` (.jsonl or .parquet). Blocks.

    Rows are written as read and compared by their instruction: by ROUGE-L above `threshold`, and by
    `meaning` if given. A line of text becomes {"instruction": line}. `out` appears atomically.
    Raises `InputError` for files that cannot be read or written.
    """
    _check_files(source, out)
    summary = DedupSummary()
    rows = _read_rows(source, summary.report, summary.report.skip if skip_bad_lines else None)
    distinct = _without_duplicates(rows, NoveltyFilter(threshold), meaning, summary)
    try:
        if out.suffix == ".parquet":
            summary.kept = replace_parquet(out, (r.row for r in distinct), _schema(source))
        else:
            summary.kept = replace_lines(out, map(_to_line, distinct))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    except ValueError as error:
        raise InputError(f"{out}: rows do not fit one table ({error}); name it .jsonl") from error
    return summary


def _check_files(source_name: str | Path, out: Path) -> None:
    if out.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{out}: rows are written as .jsonl or .parquet; name it so")
    if out.is_dir():
        raise InputError(f"{out}: is a directory")
    source = Path(source_name)
    if out.resolve() == source.resolve() or (
        out.exists() and source.exists() and out.samefile(source)
    ):
        raise InputError(f"{out}: is the file that is read; give another output")


def _read_rows(source: str | Path, report: ReadReport, skip: Skip | None) -> Iterator[_Row]:
    """The rows with an instruction. Raises `InputError` at the end if there was none."""
    for line, row in read_rows(source, skip):
        try:
            if isinstance(row, str):
                report.shapes["text"] += 1
                yield _Row(line, {"instruction": valid_text(row)}, row)
            else:
                shape, instruction, _ = parse_pair(row)
                report.shapes[shape] += 1
                yield _Row(line, row, instruction)
            report.taken += 1
        except UnknownShape as error:
            report.skip(str(source), line, str(error))
    if not report.taken:
        first = report.skipped[0] if report.skipped else None
        reason = f"; line {first['line']}: {first['why']}" if first else " (it is empty)"
        raise InputError(f"{source}: no row with an instruction{reason}")


def _without_duplicates(
    rows: Iterator[_Row],
    known: NoveltyFilter,
    meaning: MeaningFilter | None,
    summary: DedupSummary,
) -> Iterator[_Row]:
    """The rows that are not near-duplicates; the others go into the summary."""
    if meaning is None:
        for row in rows:
            near = known.admit(row.instruction, str(row.line))
            if near is None:
                yield row
            else:
                summary.dropped.append(DroppedRow(row.line, int(near), row.instruction, "rouge-l"))
        return
    vectors = CosineFilter(meaning.threshold)
    while batch := list(islice(rows, BATCH)):
        for row, vector in zip(batch, meaning.encode([r.instruction for r in batch]), strict=True):
            near, by = known.collision(row.instruction), "rouge-l"
            if near is None:
                near, by = vectors.collision(vector), "embedding"
            if near is not None:
                summary.dropped.append(DroppedRow(row.line, int(near), row.instruction, by))
                continue
            known.add(row.instruction, str(row.line))
            vectors.add(vector, str(row.line))
            yield row


def _to_line(row: _Row) -> str:
    try:
        line = json.dumps(row.row, ensure_ascii=False, default=_to_json_value)
        # UTF-8 cannot hold lone surrogates unless they are escaped.
        return (
            line
            if line.isascii() or _is_valid_text(line)
            else json.dumps(row.row, default=_to_json_value)
        )
    except TypeError as error:
        raise InputError(f"line {row.line}: {error}; name the output .parquet") from error


def _is_valid_text(text: str) -> bool:
    try:
        return valid_text(text) is text
    except UnknownShape:
        return False


def _to_json_value(value: Any) -> str:
    """JSON for values that only parquet has."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"holds {type(value).__name__}, which JSON does not have")


def _schema(source: str | Path) -> Any:
    """The schema of a parquet file, so that the copy has the same types."""
    if Path(source).suffix != ".parquet":
        return None
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(source)
