"""Reading benchmarks: every prompt that a model is asked, of every turn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from memory.contamination import Contamination, word_tokens
from refloom.data.files import read_rows
from refloom.data.read import ReadReport
from refloom.data.shapes import (
    UnknownShape,
    is_user,
    parse_cell,
    parse_pair,
    read_text,
    valid_text,
)
from refloom.errors import InputError

# Keys under which a row keeps all of its turns, and those under which it keeps one prompt.
_TURNS = ("turns", "messages", "conversations", "conversation", "prompt")
_PROMPTS = (
    *("question", "problem", "query", "text", "prompt", "instruction", "input", "goal", "ctx"),
    *("sentence", "task"),
)


def load_benchmarks(
    paths: Sequence[str | Path], *, report: ReadReport | None = None
) -> Contamination:
    """Read the prompts of benchmark files, of any kind that references are read from.

    Args:
        paths: The files. Hits are named after the file, with its folder if two have one name.
        report: Counts the rows taken and skipped, and gets a hash of all prompts.

    Raises:
        InputError: A file is missing, cannot be parsed, or no row of it has a prompt.
    """
    report = ReadReport() if report is None else report
    contamination = Contamination()
    digest = sha256()
    for path, name in zip(paths, _benchmark_names(paths), strict=True):
        taken, skipped, listed = report.taken, report.skipped_count, len(report.skipped)
        for line, row in read_rows(path, None):
            try:
                shape, prompts = prompts_in(row)
            except UnknownShape as error:
                report.skip(str(path), line, str(error))
                continue
            report.taken += 1
            report.shapes[shape] += 1
            for prompt in prompts:
                contamination.add(prompt, name, line)
                digest.update(json.dumps([name, line, prompt]).encode())
        if report.taken == taken:
            raise InputError(_unusable_message(path, report, skipped, listed))
    report.digest = digest.hexdigest()
    return contamination


def prompts_in(row: Any) -> tuple[str, list[str]]:
    """The shape of a benchmark's row, and its prompts, one for each turn of a user.

    Raises `UnknownShape` for a row without a prompt.

    >>> prompts_in({"turns": ["Why tides?", "And why two a day?"]})
    ('turns', ['Why tides?', 'And why two a day?'])
    >>> prompts_in({"Question": "Why tides?", "answer": "The Moon."})
    ('question', ['Why tides?'])
    """
    shape, prompts = _prompts_of_shape(row)
    usable = [valid_text(prompt) for prompt in prompts if word_tokens(prompt)]
    if not usable:
        raise UnknownShape("its prompt has no words")
    return shape, usable


def _prompts_of_shape(row: Any) -> tuple[str, list[str]]:
    if isinstance(row, str):
        return "text", [row]
    if not isinstance(row, Mapping):
        raise UnknownShape(f"a row must be an object or text, this is {type(row).__name__}")
    lowered = {str(key).lower(): value for key, value in row.items()}
    for key in _TURNS:
        turns = _find_turns(lowered, key)
        if turns is not None:
            return key, _user_turns(key, turns)
    try:
        shape, instruction, _ = parse_pair(row)
        return shape, [instruction]
    except UnknownShape:
        for key in _PROMPTS:
            if isinstance(lowered.get(key), str) and lowered[key].strip():
                return key, [lowered[key]]
        raise


def _find_turns(row: Mapping[str, Any], key: str) -> list[Any] | None:
    """The turns under a key, as a list or as its JSON text; None if there are none."""
    value = row.get(key)
    if isinstance(value, list) or not isinstance(value, str):
        return value if isinstance(value, list) else None
    try:
        turns = parse_cell(row, key)
    except UnknownShape:
        return None
    # A prompt may be a list of numbers or texts as it stands.
    kinds = Mapping if key == "prompt" else Mapping | str
    is_turns = isinstance(turns, list) and turns and all(isinstance(t, kinds) for t in turns)
    return turns if is_turns else None


def _user_turns(key: str, turns: list[Any]) -> list[str]:
    """The texts of the user's turns. Of plain texts in `conversations`, every other one is."""
    if turns and all(isinstance(turn, str) for turn in turns):
        return turns[:: 2 if key.startswith("conversation") else 1]
    texts = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise UnknownShape(f"{key!r} holds neither texts nor objects")
        if is_user(turn.get("role", turn.get("from"))):
            texts.append(read_text(turn, "content" if "content" in turn else "value") or "")
    if not texts:
        raise UnknownShape("no turn is a user's")
    return texts


def _benchmark_names(paths: Sequence[str | Path]) -> list[str]:
    """The file names, with the folder where two files have the same name."""
    files = [Path(path) for path in paths]
    counts = Counter(path.name for path in files)
    return [
        path.name if counts[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in files
    ]


def _unusable_message(path: str | Path, report: ReadReport, skipped: int, listed: int) -> str:
    """Why a file has no prompt; `skipped` and `listed` count rows skipped before it was read."""
    count = report.skipped_count - skipped
    if not count:
        return f"{path}: no benchmark prompt in it (it is empty)"
    return (
        f"{path}: no benchmark prompt in any of its {count:,} rows{report.describe_first(listed)}. "
        "Prompts are read from "
        f"instruction/input, {', '.join(_TURNS[:3])}, or text under {', '.join(_PROMPTS)}"
    )
