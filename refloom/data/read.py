"""References and seeds, streamed from files or by the `datasets` library, and a report on them.

`files` reads rows, `shapes` parses them; a `Source` makes references or seeds of what they give.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Union

from memory.references import Reference, content_id, distinct, reference_hash
from nodes.own_criteria import MAX_CRITERIA, read_own_criterion
from nodes.state import Seed
from refloom.data.files import read_rows
from refloom.data.shapes import (
    Exchange,
    UnknownShape,
    check_exchange,
    check_media,
    find_criteria,
    find_unread_columns,
    join_history,
    parse_exchanges,
    rename_columns,
)
from refloom.errors import InputError
from refloom.settings import Settings

NOT_STATED = "not stated"
OTHERS = "others, which are too many to name"
MAX_SKIPPED_LISTED = 1000
MAX_LICENSES = 1000
MAX_LICENSE_CHARS = 500
# The graph takes no longer id of a seed.
MAX_ID_CHARS = 200
MAX_COLUMNS_LISTED = 20


@dataclass(slots=True)
class ReadReport:
    """What was read.

    `taken` counts items, `kinds` skipped rows by the reason, and `shapes` and `licences` items.
    `skipped` lists the first skipped rows, `several_turns` counts rows of more than one exchange,
    `unread` counts the rows with text in a column that is not read, `with_criteria` the references
    that carry criteria of a person's, `notes` say what else of the
    source was left aside, and `digest` is a hash of all items.
    """

    name: str | None = None
    taken: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    skipped_count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    several_turns: int = 0
    licences: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    with_criteria: int = 0
    notes: list[str] = field(default_factory=list)
    digest: str = ""

    def skip(self, name: str, line: int, why: str, kind: str = "that cannot be parsed") -> None:
        """Count a skipped row; the first `MAX_SKIPPED_LISTED` are listed."""
        self.skipped_count += 1
        self.kinds[kind] += 1
        if len(self.skipped) < MAX_SKIPPED_LISTED:
            self.skipped.append({"file": name, "line": line, "why": why})

    def describe_first(self, listed: int = 0) -> str:
        """The first skipped row and the reason, for an error; `listed` rows are passed over."""
        if listed >= len(self.skipped):
            return "" if self.skipped_count else " (it is empty)"
        first = self.skipped[listed]
        return f"; line {first['line']}: {first['why']}"

    def as_json(self) -> dict[str, Any]:
        """The counts as run.json has them."""
        return {
            "name": self.name,
            "taken": self.taken,
            "shapes": dict(self.shapes),
            "several_turns": self.several_turns,
            "skipped": dict(self.kinds),
            "licences": dict(self.licences),
        }

    def count_item(self, shape: str, licence: str) -> None:
        """Count an item under its shape and its licence."""
        self.taken += 1
        self.shapes[shape] += 1
        name = " ".join(licence.split()) or NOT_STATED
        if len(name) > MAX_LICENSE_CHARS:
            name = name[:MAX_LICENSE_CHARS] + "..."
        known = name in self.licences or len(self.licences) < MAX_LICENSES
        self.licences[name if known else OTHERS] += 1


def describe_report(
    what: str,
    name: str,
    report: ReadReport,
    *,
    takes_first: bool,
    listed: str = "; run.json names them",
) -> list[str]:
    """Lines for a terminal on what was read.

    Args:
        what: "references" or "seeds".
        name: The file or data set.
        report: The report on it.
        takes_first: Whether only the first exchange of a row is used.
        listed: Where the skipped rows are listed.
    """
    shapes = ", ".join(f"{n} {shape}" for shape, n in report.shapes.most_common())
    lines = [f"{what}: {report.taken} of {name}" + (f" ({shapes})" if shapes else "")]
    lines += [f"  {note}" for note in report.notes]
    if report.with_criteria:
        lines.append(f"  {report.with_criteria} carry criteria, for the seeds that retrieve them")
    if report.unread:
        each = ", ".join(
            f"`{column}` ({rows})" for column, rows in report.unread.most_common(MAX_COLUMNS_LISTED)
        )
        rest = len(report.unread) - MAX_COLUMNS_LISTED
        others = f" and {rest} more" if rest > 0 else ""
        lines.append(f"  columns with text that are not used (rows): {each}{others}")
    if report.several_turns and not takes_first:
        lines.append(f"  {report.several_turns} rows of several turns: every exchange is used")
    if report.several_turns and takes_first:
        more = "; --turns all takes every one" if what == "references" else ""
        lines.append(f"  {report.several_turns} of several turns: the first exchange is used{more}")
    if report.skipped_count:
        kinds = ", ".join(f"{n} {kind}" for kind, n in report.kinds.most_common())
        lines.append(f"  {report.skipped_count} left out: {kinds}{listed}")
    if set(report.licences) - {NOT_STATED}:
        each = ", ".join(f"{n} {name}" for name, n in report.licences.most_common(8))
        lines.append(f"  licences: {each}")
    return lines


class _BadCriterion(Exception):
    """A criterion of a row that cannot be used."""


Turns = Literal["first", "all"]
Input = Union[str, Path, "Source", Iterable[Any]]


class Source:
    """References or seeds that can be iterated any number of times, in the same order.

    `report` is about the last iteration, and complete when that has come to its end.
    """

    def __init__(
        self,
        source: Input,
        *,
        as_reference: bool,
        skip_bad_lines: bool = False,
        limit: int | None = None,
        columns: Mapping[str, str] | None = None,
        turns: Turns = "first",
        licence: str | None = None,
        with_tags: bool = False,
    ) -> None:
        """Open nothing yet.

        Args:
            source: A file, the name of a dataset, rows, or references, to be seeds too.
            as_reference: Yield references, which need a response; else seeds.
            skip_bad_lines: Skip lines that cannot be parsed instead of raising.
            limit: The highest number of items.
            columns: Column names by what they hold (see `refloom.data.shapes`).
            turns: Take the first exchange of a conversation, or all with their history.
            licence: The licence of all references.
            with_tags: Give seeds the tags of their rows, which a file of criteria may name.
        """
        self.name = str(source) if isinstance(source, str | Path) else "rows given"
        self._source = source if isinstance(source, str | Path | Source) else list(source)
        self._as_reference = as_reference
        self._skip_bad_lines = skip_bad_lines
        self._limit = limit
        self._columns, self._turns, self._licence = columns or {}, turns, licence
        self._with_tags = with_tags
        self.report = self._new_report()

    def _new_report(self) -> ReadReport:
        """An empty report, named without the folders of this machine."""
        if isinstance(self._source, Source):
            return ReadReport(None)
        path = Path(self.name)
        return ReadReport(path.name if path.is_absolute() or path.exists() else self.name)

    @property
    def takes_first(self) -> bool:
        """Whether only the first of several exchanges in a row is taken."""
        return not self._as_reference or self._turns == "first"

    def __iter__(self) -> Iterator[Any]:
        """Yield the items. Raises `InputError` at a line that cannot be parsed."""
        self.report = self._new_report()
        return islice(self._items(self.report), self._limit)

    def _items(self, report: ReadReport) -> Iterator[Any]:
        if isinstance(self._source, Source):
            for reference in distinct(self._source):
                report.taken += 1
                text = reference["instruction"]
                yield {"id": _shorten_id(reference["id"]), "instruction": text}
            return
        skip = report.skip if self._skip_bad_lines else None
        for line, original_row in read_rows(self._source, skip, report.notes.append):
            try:
                row = rename_columns(original_row, self._columns)
                shape, exchanges = self._parse_row(row)
                for number, exchange in enumerate(self._select_exchanges(exchanges, report)):
                    item = self._build_item(row, number, check_exchange(exchange))
                    report.count_item(shape, str(item.get("license") or _license(row) or ""))
                    report.with_criteria += "criteria" in item
                    if not number:
                        self._count_unread(shape, original_row, exchange, report)
                    yield item
            except _BadCriterion as error:
                if skip is None:
                    raise InputError(f"{self.name}: line {line}: {error}") from error
                report.skip(self.name, line, str(error), "with criteria that cannot be used")
            except UnknownShape as error:
                # Exchanges before the bad turn of a conversation have been yielded.
                report.skip(self.name, line, str(error), error.kind)

    def _parse_row(self, row: Any) -> tuple[str, Iterator[Exchange]]:
        if isinstance(row, str) and not self._as_reference:
            return "text", iter([Exchange(row.strip(), None)])
        return parse_exchanges(row)

    def _count_unread(self, shape: str, row: Any, exchange: Exchange, report: ReadReport) -> None:
        """Count the columns of a row, by their own names, that hold text and are not read."""
        if not isinstance(row, Mapping) or shape == "text":
            return
        if self._columns:
            mapped = {part for c in self._columns.values() for part in (c, c.partition(".")[0])}
            row = {key: value for key, value in row.items() if key not in mapped}
        texts = (exchange.instruction, exchange.response or "")
        for column in find_unread_columns(shape, row, texts):
            report.unread[column] += 1

    def _select_exchanges(
        self, exchanges: Iterator[Exchange], report: ReadReport
    ) -> Iterator[Exchange]:
        """The first exchange, or all answered ones; counts rows with several."""
        first = next(exchanges)
        if not (self._as_reference and self._turns == "all"):
            yield first
            # A bad turn that is not used is ignored.
            with contextlib.suppress(UnknownShape):
                report.several_turns += next(exchanges, None) is not None
            return
        counted = answered = False
        for exchange in chain([first], exchanges):
            if exchange is not first and not counted:
                counted = True
                report.several_turns += 1
            if exchange.response is not None:
                answered = True
                yield exchange
        if not answered:
            yield first

    def _build_item(self, row: Any, number: int, exchange: Exchange) -> Reference | Seed:
        """A reference or a seed of the row's exchange `number`, which counts from 0."""
        if isinstance(row, Mapping):
            check_media(row, exchange)
        row_id = _row_id(row)
        if row_id is not None and number:
            row_id = f"{row_id}-{number + 1}"
        if self._as_reference:
            reference = _to_reference(row, exchange, self._licence)
            return {**reference, "id": row_id or reference_hash(reference)}
        text = join_history(exchange)
        seed: Seed = {"id": _shorten_id(row_id or content_id(text)), "instruction": text}
        tags = row.get("tags") if self._with_tags and isinstance(row, Mapping) else None
        if isinstance(tags, list) and tags:
            seed["tags"] = [str(tag) for tag in tags]
        return seed

    def scan(self) -> ReadReport:
        """Read everything once, so that errors show before any call is paid for.

        The report gets the number of items and a hash of them. Raises `InputError` if there is no
        item, or at a line that cannot be parsed.
        """
        digest = sha256()
        count = 0
        for item in self:
            digest.update(json.dumps(item, sort_keys=True, ensure_ascii=True).encode())
            count += 1
        self.report.taken, self.report.digest = count, digest.hexdigest()
        if not count:
            raise InputError(
                f"{self.name}: no usable row{self.report.describe_first()}. Known shapes: "
                "instruction/response, instruction/input/output, prompt/completion, "
                "prompt/response, messages, conversations; "
                f"--{'' if self._as_reference else 'seeds-'}map names other columns"
            )
        return self.report

    def digest_of(self, count: int) -> str:
        """The hash of the first `count` items, which shows whether a file was only appended to."""
        digest = sha256()
        for item in islice(iter(self), count):
            digest.update(json.dumps(item, sort_keys=True, ensure_ascii=True).encode())
        return digest.hexdigest()


def read_references(source: Input, settings: Settings, *, skip_bad_lines: bool = False) -> Source:
    """The references of a run, as its settings say."""
    return Source(
        source,
        as_reference=True,
        skip_bad_lines=skip_bad_lines,
        columns=settings.map,
        turns=settings.turns,
        licence=settings.license,
    )


def read_seeds(source: Input, settings: Settings, *, skip_bad_lines: bool = False) -> Source:
    """The seeds of a run, as its settings say."""
    return Source(
        source,
        as_reference=False,
        skip_bad_lines=skip_bad_lines,
        limit=settings.limit,
        columns=settings.seeds_map,
        with_tags=settings.criteria is not None,
    )


def _to_reference(row: Any, exchange: Exchange, licence: str | None) -> Reference:
    """Build a reference, without its id."""
    if exchange.calls_tool:
        raise UnknownShape(
            "it is answered by a call of a tool, and tools are not read", "with tools"
        )
    if exchange.response is None or not exchange.response.strip():
        raise UnknownShape("it has no response", "without a response")
    reference: Reference = {
        "id": "",
        "instruction": exchange.instruction,
        "response": exchange.response,
    }
    if exchange.history:
        reference["history"] = list(exchange.history)
    origin = row.get("source")
    if isinstance(origin, str) and origin.strip():
        reference["source"] = origin
    if stated := licence or _license(row):
        reference["license"] = stated
    if isinstance(row.get("tags"), list):
        reference["tags"] = [str(tag) for tag in row["tags"]]
    if criteria := find_criteria(row):
        reference["criteria"] = _check_criteria(criteria)
    return reference


def _check_criteria(criteria: list[Any]) -> list[dict[str, Any]]:
    """The criteria of a row, each as an object. Raises `_BadCriterion`."""
    if len(criteria) > MAX_CRITERIA:
        raise _BadCriterion(f"it has {len(criteria)} criteria, and at most {MAX_CRITERIA} are read")
    for number, criterion in enumerate(criteria, 1):
        try:
            read_own_criterion(criterion, trusted=False)
        except ValueError as error:
            raise _BadCriterion(f"criterion {number}: {error}") from error
    return [{"text": c} if isinstance(c, str) else c for c in criteria]


def _license(row: Any) -> str | None:
    """The licence a row states; a value that is not text becomes JSON."""
    value = row.get("license") if isinstance(row, Mapping) else None
    stated = value if isinstance(value, str) or value is None else json.dumps(value, default=str)
    return stated if stated and stated.strip() else None


def _row_id(row: Any) -> str | None:
    value = row.get("id") if isinstance(row, Mapping) else None
    return str(value) if isinstance(value, str | int) and str(value).strip() else None


def _shorten_id(id_: str) -> str:
    """An id that the graph takes: a longer one is cut, and ends in a hash of the whole.

    >>> _shorten_id("a7"), len(_shorten_id("a" * 5000))
    ('a7', 200)
    """
    if len(id_) <= MAX_ID_CHARS:
        return id_
    digest = content_id(id_)
    return f"{id_[: MAX_ID_CHARS - len(digest) - 1]}-{digest}"
