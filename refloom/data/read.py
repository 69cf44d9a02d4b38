"""Reading references and seeds, streamed, from files or by the `datasets` library."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from memory.references import Reference, content_id, distinct
from nodes.state import Seed
from refloom.data.rows import BadFile, rows_of
from refloom.data.shapes import Unfit, pair_of, whole


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
        given: str | Path | Source | Iterable[Any],
        *,
        as_reference: bool,
        skip_bad_lines: bool = False,
        limit: int | None = None,
    ) -> None:
        """`given`: a file, the name of a dataset, rows, or the references that are seeds too."""
        self.name = str(given) if isinstance(given, str | Path) else "rows given"
        self._given = given if isinstance(given, str | Path | Source) else list(given)
        self._convert = _reference if as_reference else _seed
        self._skip_bad_lines = skip_bad_lines
        self._limit = limit
        self.report = Report()

    def __iter__(self) -> Iterator[Any]:
        """Yield the items; raises `BadFile` at a line that cannot be parsed."""
        self.report = Report()
        return islice(self._items(self.report), self._limit)

    def _items(self, report: Report) -> Iterator[Any]:
        if isinstance(self._given, Source):
            yield from self._of_references(self._given, report)
            return
        bad = report.skip if self._skip_bad_lines else None
        for line, row in rows_of(self._given, bad):
            try:
                shape, item = self._convert(row)
            except Unfit as unfit:
                report.skip(self.name, line, str(unfit))
                continue
            report.taken += 1
            report.shapes[shape] += 1
            yield item

    def _of_references(self, references: Source, report: Report) -> Iterator[Seed]:
        """Every reference as a seed, once."""
        for reference in distinct(references):
            report.taken += 1
            yield {"id": reference["id"], "instruction": reference["instruction"]}

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
