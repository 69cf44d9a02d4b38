"""A file of a person's own criteria: TOML with `[[criteria]]`, or an object a line of JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from nodes.own_criteria import OwnCriterion, read_own_criterion
from refloom.errors import InputError

# A longer file is another kind of file.
MAX_FILE_CRITERIA = 1000
TABLE = "criteria"
_HEADER = re.compile(r"\s*\[\[\s*criteria\s*\]\]")
_BAD_KEY = re.compile(r"(?:unknown key \'([^\']+)\')|([\w]+):")
_TOML_LINE = re.compile(r"at line (\d+)")


def load_criteria(path: Path) -> list[OwnCriterion]:
    """Read the criteria of a file. Blocks.

    Raises `InputError` with file and line if one of them, or the file, cannot be used.
    """
    text = _read_text(path)
    if path.suffix.lower() == ".toml":
        entries = list(_toml_entries(path, text))
    elif path.suffix.lower() == ".jsonl":
        entries = list(_jsonl_entries(path, text))
    else:
        raise InputError(f"{path}: a file of criteria is named .toml or .jsonl")
    if not 0 < len(entries) <= MAX_FILE_CRITERIA:
        raise InputError(
            f"{path}: holds {len(entries) or 'no'} criteria; give 1 to {MAX_FILE_CRITERIA}"
        )
    criteria: list[OwnCriterion] = []
    lines: dict[str, int] = {}
    for lines_of_entry, value in entries:
        try:
            own = read_own_criterion(value, trusted=True)
        except ValueError as error:
            line = _line_of(str(error), lines_of_entry)
            raise InputError(f"{path}: line {line}: {error}") from error
        id_ = own["criterion"]["id"]
        if id_ in lines:
            named = isinstance(value, Mapping) and value.get("id") is not None
            what = f"id: {id_!r}" if named else "the criterion"
            line = _line_of("id:", lines_of_entry)
            raise InputError(f"{path}: line {line}: {what} is that of line {lines[id_]} already")
        lines[id_] = _line_of("id:", lines_of_entry)
        criteria.append(own)
    return criteria


def hash_criteria(criteria: Sequence[OwnCriterion]) -> str:
    """A hash of what a file of criteria says, whatever its name, form and comments."""
    return sha256(json.dumps(criteria, sort_keys=True).encode()).hexdigest()[:16]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line}: is not UTF-8 text") from error
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise InputError(f"{path}: cannot be read: {reason}") from error


# A criterion's lines by key, the first of them under ""; and what it says.
_Entry = tuple[dict[str, int], Any]


def _jsonl_entries(path: Path, text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield {"": number}, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number}: is not valid JSON ({error})") from error


def _toml_entries(path: Path, text: str) -> Iterator[_Entry]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = _TOML_LINE.search(str(error))
        line = int(at[1]) if at else text.count("\n") + 1
        raise InputError(f"{path}: line {line}: is not valid TOML ({error})") from error
    for key in document:
        if key != TABLE:
            line = _find_key(text.split("\n"), key) or 1
            raise InputError(
                f"{path}: line {line}: unknown key {key!r}; each criterion begins with [[{TABLE}]]"
            )
    tables = document.get(TABLE, [])
    if not isinstance(tables, list):
        line = _find_key(text.split("\n"), TABLE) or 1
        raise InputError(f"{path}: line {line}: {TABLE} must be a list of tables, [[{TABLE}]]")
    yield from zip(_lines_of_tables(text, len(tables)), tables, strict=True)


def _lines_of_tables(text: str, count: int) -> list[dict[str, int]]:
    """The lines of each table, by key; the parser tells none."""
    lines = text.split("\n")
    heads = [number for number, line in enumerate(lines, 1) if _HEADER.match(line)]
    if not heads or len(heads) != count:
        # They stand in one list, or a text holds what looks like a head.
        return [{"": _find_key(lines, TABLE) or 1}] * count
    found = []
    for head, end in zip(heads, [*heads[1:], len(lines) + 1], strict=True):
        numbers = {"": head}
        for number in range(head, end):
            if key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", lines[number - 1]):
                numbers.setdefault(key[1], number)
        found.append(numbers)
    return found


def _find_key(lines: Sequence[str], key: str) -> int | None:
    pattern = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}\b")
    return next((number for number, line in enumerate(lines, 1) if pattern.match(line)), None)


def _line_of(message: str, lines: Mapping[str, int]) -> int:
    """The line of the key that a message names, else that of the criterion."""
    named = _BAD_KEY.match(message)
    return lines.get(named[1] or named[2] if named else "", lines[""])
