"""Responses that are to be scored: the rows of a file, each with its instruction and response.

Every shape that references may have is read. A row keeps all its fields as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from memory.references import Turn
from refloom.data.files import read_rows
from refloom.data.read import ReadReport
from refloom.data.rubrics import conversation_key
from refloom.data.shapes import (
    UnknownShape,
    check_exchange,
    check_media,
    join_history,
    parse_exchanges,
    rename_columns,
)
from refloom.errors import InputError


class ResponseRow(NamedTuple):
    """A row to be scored.

    `fields` is the whole row as it stands in the file, `history` what was said before the
    instruction, `text` the instruction with what the row's own columns say before it.
    """

    line: int
    fields: Mapping[str, Any]
    instruction: str
    response: str
    history: Sequence[Turn]
    text: str
    tags: Sequence[str]

    @property
    def key(self) -> str:
        """What the row is matched by: the instruction, and the conversation before it."""
        # Where the row's own columns say something before it, the text has that.
        return conversation_key(self.text, self.history if self.text == self.instruction else ())


class Responses:
    """The rows of a file that can be iterated any number of times, in the same order.

    Of a conversation the last answer is the response. A row without one is left out and counted;
    an empty one is a response. `report` is about the last iteration.
    """

    def __init__(
        self,
        source: str,
        *,
        columns: Mapping[str, str] | None = None,
        skip_bad_lines: bool = False,
        limit: int | None = None,
    ) -> None:
        """Open nothing yet. See `refloom.data.read.Source`."""
        self.name = source
        self._columns, self._skip, self._limit = columns or {}, skip_bad_lines, limit
        self.report = ReadReport(Path(source).name)

    def __iter__(self) -> Iterator[ResponseRow]:
        """Yield the rows. Raises `InputError` at a line that cannot be parsed."""
        self.report = ReadReport(Path(self.name).name)
        return islice(self._rows(self.report), self._limit)

    def _rows(self, report: ReadReport) -> Iterator[ResponseRow]:
        skip = report.skip if self._skip else None
        for line, fields in read_rows(self.name, skip, report.notes.append):
            try:
                shape, turns, row = parse_response(line, fields, self._columns)
            except UnknownShape as error:
                report.skip(self.name, line, str(error), error.kind)
                continue
            report.count_item(shape, "")
            report.several_turns += turns > 1
            yield row

    def scan(self) -> ReadReport:
        """Read everything once, so that errors show before any call is paid for. Blocks.

        Raises `InputError` if there is no row to score, or at a line that cannot be parsed.
        """
        if not sum(1 for _ in self):
            raise InputError(
                f"{self.name}: no row to score{self.report.describe_first()}. A row needs an "
                "instruction and a response; --map names other columns"
            )
        return self.report


def parse_response(
    line: int, fields: Any, columns: Mapping[str, str]
) -> tuple[str, int, ResponseRow]:
    """The shape of a row, how many exchanges it holds, and the last one that is answered.

    `columns` are names of columns by what they hold. Raises `UnknownShape` if nothing is answered.
    """
    row = rename_columns(fields, columns)
    shape, exchanges = parse_exchanges(row)
    everything = list(exchanges)
    answered = [one for one in everything if one.response is not None]
    exchange = check_exchange((answered or everything)[-1])
    if exchange.calls_tool:
        raise UnknownShape(
            "it is answered by a call of a tool, and tools are not read", "with tools"
        )
    if exchange.response is None:
        raise UnknownShape("it has no response", "without a response")
    check_media(row, exchange)
    tags = fields.get("tags")
    response = ResponseRow(
        line,
        fields,
        exchange.instruction,
        exchange.response,
        exchange.history,
        join_history(exchange),
        [str(tag) for tag in tags] if isinstance(tags, list) else [],
    )
    return shape, len(everything), response


def describe_responses(report: ReadReport) -> list[str]:
    """Lines for a terminal on what was read."""
    shapes = ", ".join(f"{n} {shape}" for shape, n in report.shapes.most_common())
    lines = [f"rows: {report.taken} of {report.name} ({shapes})"]
    lines += [f"  {note}" for note in report.notes]
    if report.several_turns:
        lines.append(f"  {report.several_turns} of several turns: the last answer is scored")
    if report.skipped_count:
        kinds = ", ".join(f"{n} {kind}" for kind, n in report.kinds.most_common())
        lines.append(f"  {report.skipped_count} left out: {kinds}")
    return lines
