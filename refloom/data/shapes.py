"""The shapes of rows that are recognised as instruction and response pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Pair = tuple[str, str | None]


# What fits no model's window; the graph takes no longer instruction either.
MOST_INSTRUCTION = 100_000
MOST_RESPONSE = 1_000_000


class Unfit(Exception):
    """A row that holds no usable pair; the message says why."""


def whole(text: str) -> str:
    """The text, if it is one: half of a surrogate pair cannot be kept as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unfit("its text holds half of a surrogate pair") from error
    return text


def _text(row: Row, key: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Unfit(f"{key!r} is {type(value).__name__}, not text")
    return value


def _with_input(instruction: str, given: str | None) -> str:
    return f"{instruction}\n\n{given}" if given and given.strip() else instruction


def _alpaca(row: Row) -> Pair:
    return _with_input(_text(row, "instruction") or "", _text(row, "input")), _text(row, "output")


def _response(row: Row) -> Pair:
    return _with_input(_text(row, "instruction") or "", _text(row, "input")), _text(row, "response")


def _completion(row: Row) -> Pair:
    return _text(row, "prompt") or "", _text(row, "completion")


def _self_instruct(row: Row) -> Pair:
    instances = row["instances"]
    first = instances[0] if isinstance(instances, list) and instances else {}
    if not isinstance(instances, list) or not isinstance(first, Mapping):
        raise Unfit("'instances' is no list of objects")
    instruction = _text(row, "instruction") or ""
    return _with_input(instruction, _text(first, "input")), _text(first, "output")


def _messages(row: Row) -> Pair:
    return _exchange(row["messages"], "role", "content", ("user",), ("assistant",))


def _conversations(row: Row) -> Pair:
    turns = row["conversations"]
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        return turns[0], turns[1] if len(turns) > 1 else None
    return _exchange(turns, "from", "value", ("human", "user"), ("gpt", "assistant"))


def _exchange(
    turns: Any, who: str, what: str, askers: tuple[str, ...], answerers: tuple[str, ...]
) -> Pair:
    """The first question and the answer right after it."""
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unfit("its turns are neither texts nor objects")
    for i, turn in enumerate(turns):
        if turn.get(who) in askers:
            answer = turns[i + 1] if i + 1 < len(turns) else {}
            said = _text(answer, what) if answer.get(who) in answerers else None
            return _text(turn, what) or "", said
    raise Unfit("no turn is a user's")


def _instruction(row: Row) -> Pair:
    return _with_input(_text(row, "instruction") or "", _text(row, "input")), None


def _prompt(row: Row) -> Pair:
    return _text(row, "prompt") or "", None


def _turns(row: Row) -> Pair:
    turns = row["turns"]
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise Unfit("'turns' is no list of texts")
    return turns[0], None


# The first shape whose keys a row has is its shape; those with an answer come first.
SHAPES: dict[str, tuple[frozenset[str], Callable[[Row], Pair]]] = {
    "messages": (frozenset({"messages"}), _messages),
    "conversations": (frozenset({"conversations"}), _conversations),
    "instruction/instances": (frozenset({"instruction", "instances"}), _self_instruct),
    "instruction/output": (frozenset({"instruction", "output"}), _alpaca),
    "instruction/response": (frozenset({"instruction", "response"}), _response),
    "prompt/completion": (frozenset({"prompt", "completion"}), _completion),
    "instruction": (frozenset({"instruction"}), _instruction),
    "prompt": (frozenset({"prompt"}), _prompt),
    "turns": (frozenset({"turns"}), _turns),
}


def pair_of(row: Any) -> tuple[str, str, str | None]:
    """The shape, instruction and response (None if it has none) of a row.

    Raises `Unfit` for a row of no known shape or without an instruction.

    >>> pair_of({"conversations": ["Why tides?", "The Moon."]})
    ('conversations', 'Why tides?', 'The Moon.')
    """
    if not isinstance(row, Mapping):
        raise Unfit(f"a row must be an object, this is {type(row).__name__}")
    keys = set(row)
    for name, (wanted, read) in SHAPES.items():
        if wanted <= keys:
            instruction, response = read(row)
            if not instruction.strip():
                raise Unfit("its instruction is empty")
            _check_length("instruction", instruction, MOST_INSTRUCTION)
            _check_length("response", response or "", MOST_RESPONSE)
            whole(instruction + (response or ""))
            return name, instruction, response
    raise Unfit(f"its keys ({', '.join(sorted(map(str, keys))[:8])}) are of no known shape")


def _check_length(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise Unfit(f"its {what} is {len(text):,} characters long, more than {most:,}")
