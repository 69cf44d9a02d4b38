"""A copy of a file without near-duplicates, in which the first of similar rows stays.

Rows are compared by their instruction, with the filters of `memory.novelty`.
"""

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
from refloom.data.files import file_format, read_rows
from refloom.data.read import ReadReport
from refloom.data.shapes import UnknownShape, parse_pair, valid_text
from refloom.data.write import replace_lines, replace_parquet
from refloom.errors import InputError

Encode = Callable[[Sequence[str]], Any]
# Instructions that are embedded at a time.
BATCH = 256


class DroppedRow(NamedTuple):
    """A dropped row and the row it is too near to, by line number.

    `by` is the filter that dropped it: "rouge-l" or "embedding".
    """

    line: int
    near: int
    instruction: str
    by: str


class MeaningFilter(NamedTuple):
    """Drops rows whose instruction has a cosine similarity over `threshold` with an earlier one."""

    threshold: float
    encode: Encode


class _Row(NamedTuple):
    line: int
    row: dict[str, Any]
    instruction: str


@dataclass(slots=True)
class DedupSummary:
    """What `deduplicate` did: rows written and dropped.

    Rows of no known shape are not written; `report` counts them.
    """

    written: int = 0
    dropped: list[DroppedRow] = field(default_factory=list)
    report: ReadReport = field(default_factory=ReadReport)


def deduplicate(
    source: str | Path,
    out: Path,
    *,
    threshold: float = 0.7,
    skip_bad_lines: bool = False,
    meaning: MeaningFilter | None = None,
) -> DedupSummary:
    """Write the rows of a file that are not near-duplicates of an earlier one. Blocks.

    Args:
        source: A file or data set, as `read_rows` takes it.
        out: A .jsonl or .parquet file, which is written whole or not at all. Rows keep their
            columns; a line of text becomes {"instruction": line}.
        threshold: Drop rows with a ROUGE-L above it.
        skip_bad_lines: Skip lines that cannot be parsed instead of raising.
        meaning: A second filter.

    Raises:
        InputError: A file cannot be read or written, or has no row with an instruction.
    """
    _check_files(source, out)
    summary = DedupSummary()
    rows = _instruction_rows(source, summary.report, skip_bad_lines)
    distinct = _without_duplicates(rows, NoveltyFilter(threshold), meaning, summary)
    try:
        if out.suffix == ".parquet":
            summary.written = replace_parquet(
                out, (r.row for r in distinct), _parquet_schema(source)
            )
        else:
            summary.written = replace_lines(out, map(_to_line, distinct))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    except ValueError as error:
        raise InputError(f"{out}: rows do not fit one table ({error}); name it .jsonl") from error
    return summary


def _check_files(source: str | Path, out: Path) -> None:
    if out.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{out}: rows are written as .jsonl or .parquet; name it so")
    if out.is_dir():
        raise InputError(f"{out}: is a directory")
    path = Path(source)
    if out.resolve() == path.resolve() or (out.exists() and path.exists() and out.samefile(path)):
        raise InputError(f"{out}: is the input file; give another output")


def _instruction_rows(
    source: str | Path, report: ReadReport, skip_bad_lines: bool
) -> Iterator[_Row]:
    """The rows with an instruction. Raises `InputError` at the end if there was none."""
    skip = report.skip if skip_bad_lines else None
    for line, row in read_rows(source, skip, report.notes.append):
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
        raise InputError(f"{source}: no row with an instruction{report.describe_first()}")


def _without_duplicates(
    rows: Iterator[_Row],
    words: NoveltyFilter,
    meaning: MeaningFilter | None,
    summary: DedupSummary,
) -> Iterator[_Row]:
    """The rows that are not near-duplicates; the others are added to the summary."""
    vectors = None if meaning is None else CosineFilter(meaning.threshold)
    while batch := list(islice(rows, BATCH)):
        texts = [row.instruction for row in batch]
        encoded = [None] * len(batch) if meaning is None else meaning.encode(texts)
        for row, vector in zip(batch, encoded, strict=True):
            name, by = str(row.line), "rouge-l"
            if vectors is None:
                near = words.admit(row.instruction, name)
            elif (near := words.collision(row.instruction)) is None:
                near, by = vectors.collision(vector), "embedding"
                if near is None:
                    words.add(row.instruction, name)
                    vectors.add(vector, name)
            if near is None:
                yield row
            else:
                summary.dropped.append(DroppedRow(row.line, int(near), row.instruction, by))


def _to_line(row: _Row) -> str:
    try:
        line = json.dumps(row.row, ensure_ascii=False, default=_to_json_value)
        try:
            return valid_text(line)
        except UnknownShape:
            # Lone surrogates can only be written to a UTF-8 file as escapes.
            return json.dumps(row.row, default=_to_json_value)
    except TypeError as error:
        raise InputError(f"line {row.line}: {error}; name the output .parquet") from error


def _to_json_value(value: Any) -> str:
    """Values of parquet files that JSON has no type for, as text. Raises `TypeError`."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"has a value of type {type(value).__name__}, which JSON cannot hold")


def _parquet_schema(source: str | Path) -> Any:
    """The schema of a parquet file, so that the copy has the same types; None for other files."""
    if file_format(Path(source)) != ".parquet":
        return None
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(source)
