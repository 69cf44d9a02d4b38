"""Reading references and seeds, streamed, from files or by the `datasets` library."""

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
from nodes.state import Seed
from refloom.data.files import read_rows
from refloom.data.shapes import (
    Exchange,
    UnknownShape,
    check_exchange,
    parse_exchanges,
    rename_columns,
)
from refloom.errors import InputError
from refloom.settings import Settings

# MERGED refloom~data~found
# What reading a file found, counted, and in words.
NOT_STATED = "not stated"
OTHERS = "others, which are too many to name"
MOST_NAMED = 1000
MOST_LICENCES = 1000
LICENCE_CHARS = 500


@dataclass(slots=True)
class ReadReport:
    """What reading found, in what: items taken, rows left out and why, a hash of what was taken.

    `several_turns` counts rows that hold more than one exchange.
    """

    name: str | None = None
    taken: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    skipped_count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    several_turns: int = 0
    licences: Counter[str] = field(default_factory=Counter)
    digest: str = ""

    def skip(self, name: str, line: int, why: str, kind: str = "that cannot be parsed") -> None:
        """Count a row that is left out; the first thousand are named."""
        self.skipped_count += 1
        self.kinds[kind] += 1
        if len(self.skipped) < MOST_NAMED:
            self.skipped.append({"file": name, "line": line, "why": why})

    def shown(self) -> dict[str, Any]:
        """The counts as run.json has them."""
        return {
            "name": self.name,
            "taken": self.taken,
            "shapes": dict(self.shapes),
            "several_turns": self.several_turns,
            "skipped": dict(self.kinds),
            "licences": dict(self.licences),
        }

    def took(self, shape: str, licence: str) -> None:
        """Count what was read under its shape and its licence."""
        self.taken += 1
        self.shapes[shape] += 1
        name = " ".join(licence.split()) or NOT_STATED
        if len(name) > LICENCE_CHARS:
            name = name[:LICENCE_CHARS] + "..."
        known = name in self.licences or len(self.licences) < MOST_LICENCES
        self.licences[name if known else OTHERS] += 1


def describe_report(
    what: str,
    name: str,
    report: ReadReport,
    *,
    takes_first: bool,
    listed: str = "; run.json names them",
) -> list[str]:
    """What was read, in lines for a person; what nobody needs to know is left out."""
    shapes = ", ".join(f"{n} {shape}" for shape, n in report.shapes.most_common())
    lines = [f"{what}: {report.taken} of {name}" + (f" ({shapes})" if shapes else "")]
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


Turns = Literal["first", "all"]
Input = Union[str, Path, "Source", Iterable[Any]]


class Source:
    """References or seeds that can be read again and again, one at a time.

    Each reading yields the same items in the same order; `report` is that of the last full one.
    """

    def __init__(
        self,
        given: Input,
        *,
        as_reference: bool,
        skip_bad_lines: bool = False,
        limit: int | None = None,
        columns: Mapping[str, str] | None = None,
        turns: Turns = "first",
        licence: str | None = None,
    ) -> None:
        """What is read, and how.

        Args:
            given: A file, the name of a dataset, rows, or the references that are seeds too.
            as_reference: Whether pairs are wanted, or seeds.
            skip_bad_lines: Leave out lines that cannot be parsed instead of raising.
            limit: Take no more items than that.
            columns: Names of columns by what they hold (see `refloom.data.shapes`).
            turns: Of a conversation take the first exchange, or every one with its history.
            licence: The licence of all references.
        """
        self.name = str(given) if isinstance(given, str | Path) else "rows given"
        self._given = given if isinstance(given, str | Path | Source) else list(given)
        self._as_reference = as_reference
        self._skip_bad_lines = skip_bad_lines
        self._limit = limit
        self._columns, self._turns, self._licence = columns or {}, turns, licence
        self.report = self._begun()

    def _begun(self) -> ReadReport:
        """An empty report, with the name that others may see: no folder of this machine's."""
        if isinstance(self._given, Source):
            return ReadReport(None)
        path = Path(self.name)
        return ReadReport(path.name if path.is_absolute() or path.exists() else self.name)

    @property
    def takes_first(self) -> bool:
        """Whether of several exchanges in a row only the first is taken."""
        return not self._as_reference or self._turns == "first"

    def __iter__(self) -> Iterator[Any]:
        """Yield the items; raises `InputError` at a line that cannot be parsed."""
        self.report = self._begun()
        return islice(self._items(self.report), self._limit)

    def _items(self, report: ReadReport) -> Iterator[Any]:
        if isinstance(self._given, Source):
            yield from self._of_references(self._given, report)
            return
        bad = report.skip if self._skip_bad_lines else None
        for line, row in read_rows(self._given, bad):
            try:
                about = rename_columns(row, self._columns)
                shape, exchanges = self._shaped(about)
                for number, exchange in enumerate(self._wanted(exchanges, report)):
                    item = self._item(about, number, check_exchange(exchange))
                    report.took(shape, str(item.get("license") or _license(about) or ""))
                    yield item
            except UnknownShape as unfit:
                # Of a conversation what stands before the odd turn has been taken.
                report.skip(self.name, line, str(unfit), unfit.kind)

    def _shaped(self, row: Any) -> tuple[str, Iterator[Exchange]]:
        if isinstance(row, str) and not self._as_reference:
            return "text", iter([Exchange(row.strip(), None)])
        return parse_exchanges(row)

    def _wanted(self, exchanges: Iterator[Exchange], report: ReadReport) -> Iterator[Exchange]:
        """The first exchange, or every answered one; rows that hold several are counted."""
        first = next(exchanges)
        if not (self._as_reference and self._turns == "all"):
            yield first
            # What is wrong with a turn that is not used does no harm.
            with contextlib.suppress(UnknownShape):
                report.several_turns += next(exchanges, None) is not None
            return
        several = answered = False
        for exchange in chain([first], exchanges):
            if exchange is not first and not several:
                several = True
                report.several_turns += 1
            if exchange.response is not None:
                answered = True
                yield exchange
        if not answered:
            yield first

    def _item(self, about: Any, number: int, exchange: Exchange) -> Reference | Seed:
        own = _row_id(about)
        if own is not None and number:
            own = f"{own}-{number + 1}"
        if self._as_reference:
            reference = _to_reference(about, exchange, self._licence)
            return {**reference, "id": own or reference_hash(reference)}
        text = exchange.instruction
        return {"id": own or content_id(text), "instruction": text}

    def _of_references(self, references: Source, report: ReadReport) -> Iterator[Seed]:
        """Every reference as a seed, once."""
        for reference in distinct(references):
            report.taken += 1
            yield {"id": reference["id"], "instruction": reference["instruction"]}

    def scan(self) -> ReadReport:
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
            raise InputError(
                f"{self.name}: no usable row{why}. Known shapes: instruction/response, "
                "instruction/input/output, prompt/completion, messages, conversations; "
                f"--{'' if self._as_reference else 'seeds-'}map names other columns"
            )
        return self.report

    def digest_of(self, count: int) -> str:
        """The hash of the first `count` items, to tell whether a file was only appended to."""
        digest = sha256()
        for item in islice(iter(self), count):
            digest.update(json.dumps(item, sort_keys=True, ensure_ascii=True).encode())
        return digest.hexdigest()


def open_references(given: Input, settings: Settings, *, skip_bad_lines: bool = False) -> Source:
    """The references of a run, read as its settings say."""
    return Source(
        given,
        as_reference=True,
        skip_bad_lines=skip_bad_lines,
        columns=settings.map,
        turns=settings.turns,
        licence=settings.license,
    )


def open_seeds(given: Input, settings: Settings, *, skip_bad_lines: bool = False) -> Source:
    """The seeds of a run, read as its settings say."""
    return Source(
        given,
        as_reference=False,
        skip_bad_lines=skip_bad_lines,
        limit=settings.limit,
        columns=settings.seeds_map,
    )


def _to_reference(about: Any, exchange: Exchange, licence: str | None) -> Reference:
    """A reference, still without its id."""
    if exchange.response is None or not exchange.response.strip():
        raise UnknownShape("it has no response", "without a response")
    found: Reference = {
        "id": "",
        "instruction": exchange.instruction,
        "response": exchange.response,
    }
    if exchange.history:
        found["history"] = list(exchange.history)
    if source := _string(about, "source"):
        found["source"] = source
    if stated := licence or _license(about):
        found["license"] = stated
    if isinstance(about.get("tags"), list):
        found["tags"] = [str(tag) for tag in about["tags"]]
    return found


def _string(row: Any, key: str) -> str | None:
    value = row.get(key) if isinstance(row, Mapping) else None
    return value if isinstance(value, str) and value.strip() else None


def _license(row: Any) -> str | None:
    """What a row says of its licence; what is no text still says something."""
    value = row.get("license") if isinstance(row, Mapping) else None
    stated = value if isinstance(value, str) or value is None else json.dumps(value, default=str)
    return stated if stated and stated.strip() else None


def _row_id(row: Any) -> str | None:
    own = row.get("id") if isinstance(row, Mapping) else None
    return str(own) if isinstance(own, str | int) and str(own).strip() else None
