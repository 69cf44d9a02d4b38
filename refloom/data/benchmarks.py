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
from refloom.data.shapes import UnknownShape, parse_pair, valid_text
from refloom.errors import InputError

# Keys under which a row keeps all of its turns, and those under which it keeps one prompt.
_TURNS = ("turns", "messages", "conversations", "conversation", "prompt")
_PROMPTS = (
    *("question", "problem", "query", "text", "prompt", "instruction", "input", "goal", "ctx"),
    *("sentence", "task"),
)
_USERS = ("user", "human")


def load_benchmarks(
    paths: Sequence[str | Path], *, report: ReadReport | None = None
) -> Contamination:
    """Read the prompts of benchmark files, of any kind that references are read from.

    Args:
        paths: Files; a hit names the file without its folder, or with it where two are alike.
        report: Is told of rows taken and rows left out, and of a hash of all prompts.

    Raises:
        InputError: A file is missing, cannot be parsed, or no row of it has a prompt.
    """
    report = ReadReport() if report is None else report
    found = Contamination()
    digest = sha256()
    for path, name in zip(paths, _benchmark_names(paths), strict=True):
        before = report.taken, report.skipped_count, len(report.skipped)
        for line, row in read_rows(path, None):
            try:
                shape, prompts = prompts_in(row)
            except UnknownShape as unfit:
                report.skip(str(path), line, str(unfit))
                continue
            report.taken += 1
            report.shapes[shape] += 1
            for prompt in prompts:
                found.add(prompt, name, line)
                digest.update(json.dumps([name, line, prompt]).encode())
        if report.taken == before[0]:
            raise InputError(_unusable_message(path, report, *before[1:]))
    report.digest = digest.hexdigest()
    return found


def prompts_in(row: Any) -> tuple[str, list[str]]:
    """The shape of a benchmark's row, and what it asks: one prompt for each turn of a user.

    Raises `UnknownShape` for a row that asks nothing.

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
    lower = {str(key).lower(): value for key, value in row.items()}
    for key in _TURNS:
        if isinstance(lower.get(key), list):
            return key, _user_turns(key, lower[key])
    try:
        shape, instruction, _ = parse_pair(row)
        return shape, [instruction]
    except UnknownShape as unfit:
        for key in _PROMPTS:
            if isinstance(lower.get(key), str) and lower[key].strip():
                return key, [lower[key]]
        raise unfit


def _user_turns(key: str, turns: list[Any]) -> list[str]:
    """What a user says in a list of turns; of texts in `conversations`, every other one."""
    if turns and all(isinstance(turn, str) for turn in turns):
        return turns[:: 2 if key.startswith("conversation") else 1]
    said = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise UnknownShape(f"{key!r} holds neither texts nor objects")
        text = turn.get("content", turn.get("value"))
        if turn.get("role", turn.get("from")) in _USERS:
            if not isinstance(text, str):
                raise UnknownShape(f"a user's turn in {key!r} is {type(text).__name__}, not text")
            said.append(text)
    if not said:
        raise UnknownShape("no turn is a user's")
    return said


def _benchmark_names(paths: Sequence[str | Path]) -> list[str]:
    """The file names; with the folder, where it stands beside another of the same name."""
    named = [Path(path) for path in paths]
    alike = Counter(path.name for path in named)
    return [
        path.name if alike[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in named
    ]


def _unusable_message(path: str | Path, report: ReadReport, skipped: int, named: int) -> str:
    count = report.skipped_count - skipped
    if not count:
        return f"{path}: no benchmark prompt in it (it is empty)"
    first = report.skipped[named] if named < len(report.skipped) else None
    why = f"; line {first['line']}: {first['why']}" if first else ""
    return (
        f"{path}: no benchmark prompt in any of its {count:,} rows{why}. A prompt is read from "
        f"instruction/input, {', '.join(_TURNS[:3])}, or a text under {', '.join(_PROMPTS)}"
    )
