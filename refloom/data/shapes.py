"""The known shapes of rows, parsed into exchanges of an instruction and a response.

`rename_columns` maps columns with other names to those of a known shape first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from memory.references import Turn

DataRow = Mapping[str, Any]

# Longer texts fit in no model's context; the graph's limit for an instruction is the same.
MAX_INSTRUCTION_CHARS = 100_000
MAX_RESPONSE_CHARS = 1_000_000
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class UnknownShape(Exception):
    """A row without a usable pair. The message says why; reports count such rows by `kind`."""

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or message


class Exchange(NamedTuple):
    """An instruction, its response (None if it has none), and the turns before it."""

    instruction: str
    response: str | None
    history: Sequence[Turn] = ()


Exchanges = Iterator[Exchange]


def valid_text(text: str) -> str:
    """Return the text. Raises `UnknownShape` if UTF-8 cannot encode it (lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnknownShape("its text has a lone surrogate", "of broken text") from error
    return text


def _optional_text(row: DataRow, key: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise UnknownShape(
            f"{key!r} is {type(value).__name__}, not text", "with a field that is not text"
        )
    return value


def _from_pair(row: DataRow, instruction_key: str, response_key: str | None) -> Exchanges:
    instruction, context = _optional_text(row, instruction_key) or "", _optional_text(row, "input")
    if instruction_key == "instruction" and context and context.strip():
        instruction = f"{instruction}\n\n{context}"
    yield Exchange(instruction, _optional_text(row, response_key) if response_key else None)


def _from_completion(row: DataRow) -> Exchanges:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _pair_turns(_parse_turns([*prompt, *completion], "role", "content"))
    return _from_pair(row, "prompt", "completion")


def _from_instances(row: DataRow) -> Exchanges:
    instances = row["instances"]
    first = instances[0] if isinstance(instances, list) and instances else {}
    if not isinstance(instances, list) or not isinstance(first, Mapping):
        raise UnknownShape("'instances' is not a list of objects", "of odd turns")
    joined = {"instruction": row["instruction"], **{k: first.get(k) for k in ("input", "output")}}
    return _from_pair(joined, "instruction", "output")


def _from_messages(row: DataRow) -> Exchanges:
    return _pair_turns(_parse_turns(row["messages"], "role", "content"))


def _from_conversations(row: DataRow) -> Exchanges:
    turns = row["conversations"]
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        roles = ("user", "assistant")
        return _pair_turns({"role": roles[i % 2], "content": t} for i, t in enumerate(turns))
    return _pair_turns(_parse_turns(turns, "from", "value"))


def _parse_turns(turns: Any, role_key: str, text_key: str) -> Iterator[Turn]:
    """The turns, each parsed when it is needed, so that turns before a bad one can be used."""
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UnknownShape("its turns are neither texts nor objects", "of odd turns")
    # Some data sets have turns of {"role", "content"} under "conversations", or the reverse.
    if turns and role_key not in turns[0]:
        role_key, text_key = ("role", "content") if role_key == "from" else ("from", "value")
    for turn in turns:
        role = str(turn.get(role_key))
        yield {"role": ROLES.get(role, role), "content": _optional_text(turn, text_key) or ""}


def _pair_turns(turns: Iterable[Turn]) -> Exchanges:
    """Every user turn with the assistant turn right after it, and the turns before both."""
    history: list[Turn] = []
    question: Turn | None = None
    has_question = False
    for turn in turns:
        if question is not None:
            response = turn["content"] if turn["role"] == "assistant" else None
            yield Exchange(question["content"], response, history[:-1])
        question = turn if turn["role"] == "user" else None
        has_question = has_question or question is not None
        history.append(turn)
    if question is not None:
        yield Exchange(question["content"], None, history[:-1])
    if not has_question:
        raise UnknownShape("it has no user turn", "of odd turns")


def _from_turns(row: DataRow) -> Exchanges:
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise UnknownShape("'turns' is not a list of texts", "of odd turns")
    for turn in turns:
        if not isinstance(turn, str):
            raise UnknownShape("'turns' is not a list of texts", "of odd turns")
        yield Exchange(turn, None)


# A row has the first shape all of whose keys it has. Shapes with a response come first.
SHAPES: dict[str, tuple[frozenset[str], Callable[[DataRow], Exchanges]]] = {
    "messages": (frozenset({"messages"}), _from_messages),
    "conversations": (frozenset({"conversations"}), _from_conversations),
    "instruction/instances": (frozenset({"instruction", "instances"}), _from_instances),
    "instruction/output": (
        frozenset({"instruction", "output"}),
        lambda row: _from_pair(row, "instruction", "output"),
    ),
    "instruction/response": (
        frozenset({"instruction", "response"}),
        lambda row: _from_pair(row, "instruction", "response"),
    ),
    "prompt/completion": (frozenset({"prompt", "completion"}), _from_completion),
    "instruction": (frozenset({"instruction"}), lambda row: _from_pair(row, "instruction", None)),
    "prompt": (frozenset({"prompt"}), lambda row: _from_pair(row, "prompt", None)),
    "turns": (frozenset({"turns"}), _from_turns),
}
SHAPE_KEYS = frozenset().union(*(required for required, _ in SHAPES.values()))


def parse_exchanges(row: Any) -> tuple[str, Exchanges]:
    """The shape of a row, and its exchanges, of which there is at least one.

    Exchanges are parsed when they are iterated. Raises `UnknownShape` for a row of no known shape,
    and while iterating for an exchange that cannot be parsed.
    """
    if not isinstance(row, Mapping):
        raise UnknownShape(
            f"a row must be an object, this is {type(row).__name__}", "that are not objects"
        )
    # In concatenated tables, columns of another table's shape are null.
    keys = {key for key, value in row.items() if value is not None}
    for name, (required, parse) in SHAPES.items():
        if required <= keys:
            return name, parse(row)
    raise UnknownShape(
        f"its keys ({', '.join(sorted(map(str, keys))[:8])}) fit no known shape",
        "of no known shape",
    )


def check_exchange(exchange: Exchange) -> Exchange:
    """Return the exchange. Raises `UnknownShape` if a text is empty, too long or not valid."""
    instruction, response = exchange.instruction, exchange.response or ""
    if not instruction.strip():
        raise UnknownShape("its instruction is empty", "without an instruction")
    _check_length("instruction", instruction, MAX_INSTRUCTION_CHARS)
    _check_length("response", response, MAX_RESPONSE_CHARS)
    history = "".join(turn["role"] + turn["content"] for turn in exchange.history)
    _check_length("history", history, MAX_INSTRUCTION_CHARS)
    valid_text(instruction + response + history)
    return exchange


def parse_pair(row: Any) -> tuple[str, str, str | None]:
    """The shape of a row, and its first instruction and response (None if it has none).

    Raises `UnknownShape` for a row of no known shape or without an instruction.

    >>> parse_pair({"conversations": ["Why tides?", "The Moon."]})
    ('conversations', 'Why tides?', 'The Moon.')
    """
    shape, exchanges = parse_exchanges(row)
    first = check_exchange(next(exchanges))
    return shape, first.instruction, first.response


def _check_length(what: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise UnknownShape(
            f"its {what} is {len(text):,} characters long, more than {limit:,}",
            f"with {what} of over {limit:,} characters",
        )


# Fields that can be mapped and are not part of the exchange.
METADATA_FIELDS = frozenset({"id", "source", "license", "tags"})


def rename_columns(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with each mapped column under its known name.

    If a text column is mapped, unmapped columns do not count for the row's shape. `a.b` is the
    field `b` of `a`, unless there is a column of that name. Raises `UnknownShape` if a mapped text
    column is missing.

    >>> row = {"question": "Why?", "answer": "So.", "prompt": "-"}
    >>> rename_columns(row, {"instruction": "question"})
    {'question': 'Why?', 'answer': 'So.', 'instruction': 'Why?'}
    """
    if not columns or not isinstance(row, Mapping):
        return row
    dropped = SHAPE_KEYS if set(columns) - METADATA_FIELDS else frozenset()
    renamed = {key: value for key, value in row.items() if key not in dropped}
    for name, column in columns.items():
        exists, value = _lookup(row, column)
        if exists:
            renamed[name] = value
        elif name not in METADATA_FIELDS and name != "input":
            keys = ", ".join(sorted(map(str, row))[:8])
            raise UnknownShape(
                f"it has no column {column!r}, only {keys}", "without a mapped column"
            )
    return renamed


def _lookup(row: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    if column in row:
        return True, row[column]
    first, dot, rest = column.partition(".")
    inner = row.get(first)
    return _lookup(inner, rest) if dot and isinstance(inner, Mapping) else (False, None)
