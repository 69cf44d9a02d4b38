"""The shapes of rows that are recognised as instruction and response pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from memory.references import Turn

DataRow = Mapping[str, Any]

# What fits no model's window; the graph takes no longer instruction either.
MOST_INSTRUCTION = 100_000
MOST_RESPONSE = 1_000_000
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class UnknownShape(Exception):
    """A row that holds no usable pair; the message says why, `kind` in words that repeat."""

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or message


class Exchange(NamedTuple):
    """A question, its answer (None if it has none), and the turns before it."""

    instruction: str
    response: str | None
    history: Sequence[Turn] = ()


Exchanges = Iterator[Exchange]


def valid_text(text: str) -> str:
    """The text, if it is one: half of a surrogate pair cannot be kept as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnknownShape("its text holds half of a surrogate pair", "of broken text") from error
    return text


def _text(row: DataRow, key: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise UnknownShape(
            f"{key!r} is {type(value).__name__}, not text", "with a field that is no text"
        )
    return value


def _from_pair(row: DataRow, question: str, answer: str | None) -> Exchanges:
    instruction, given = _text(row, question) or "", _text(row, "input")
    if question == "instruction" and given and given.strip():
        instruction = f"{instruction}\n\n{given}"
    yield Exchange(instruction, _text(row, answer) if answer else None)


def _from_completion(row: DataRow) -> Exchanges:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _pair_turns(_parse_turns([*prompt, *completion], "role", "content"))
    return _from_pair(row, "prompt", "completion")


def _self_instruct(row: DataRow) -> Exchanges:
    instances = row["instances"]
    first = instances[0] if isinstance(instances, list) and instances else {}
    if not isinstance(instances, list) or not isinstance(first, Mapping):
        raise UnknownShape("'instances' is no list of objects", "of odd turns")
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


def _parse_turns(turns: Any, who: str, what: str) -> Iterator[Turn]:
    """The turns, each looked at only when it is wanted: what is behind does no harm."""
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UnknownShape("its turns are neither texts nor objects", "of odd turns")
    # Some publish the one shape's turns under the other's name.
    if turns and who not in turns[0]:
        who, what = ("role", "content") if who == "from" else ("from", "value")
    for turn in turns:
        role = str(turn.get(who))
        yield {"role": ROLES.get(role, role), "content": _text(turn, what) or ""}


def _pair_turns(turns: Iterable[Turn]) -> Exchanges:
    """Every question with the answer right after it and what came before."""
    before: list[Turn] = []
    asked: Turn | None = None
    found = False
    for turn in turns:
        if asked is not None:
            answered = turn["role"] == "assistant"
            yield Exchange(asked["content"], turn["content"] if answered else None, before[:-1])
        asked = turn if turn["role"] == "user" else None
        found = found or asked is not None
        before.append(turn)
    if asked is not None:
        yield Exchange(asked["content"], None, before[:-1])
    if not found:
        raise UnknownShape("no turn is a user's", "of odd turns")


def _from_turns(row: DataRow) -> Exchanges:
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise UnknownShape("'turns' is no list of texts", "of odd turns")
    for turn in turns:
        if not isinstance(turn, str):
            raise UnknownShape("'turns' is no list of texts", "of odd turns")
        yield Exchange(turn, None)


# The first shape whose keys a row has is its shape; those with an answer come first.
SHAPES: dict[str, tuple[frozenset[str], Callable[[DataRow], Exchanges]]] = {
    "messages": (frozenset({"messages"}), _from_messages),
    "conversations": (frozenset({"conversations"}), _from_conversations),
    "instruction/instances": (frozenset({"instruction", "instances"}), _self_instruct),
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
SHAPE_KEYS = frozenset().union(*(wanted for wanted, _ in SHAPES.values()))


def parse_exchanges(row: Any) -> tuple[str, Exchanges]:
    """The shape of a row and its exchanges, at least one, each unchecked and read when wanted.

    Raises `UnknownShape` for a row of no known shape; so does reading a turn that is no text.
    """
    if not isinstance(row, Mapping):
        raise UnknownShape(
            f"a row must be an object, this is {type(row).__name__}", "that are no objects"
        )
    # Tables that were put together have all columns in every row, empty where they do not belong.
    keys = {key for key, value in row.items() if value is not None}
    for name, (wanted, read) in SHAPES.items():
        if wanted <= keys:
            return name, read(row)
    raise UnknownShape(
        f"its keys ({', '.join(sorted(map(str, keys))[:8])}) are of no known shape",
        "of no known shape",
    )


def check_exchange(exchange: Exchange) -> Exchange:
    """The exchange, if it can be worked with. Raises `UnknownShape`."""
    instruction, response = exchange.instruction, exchange.response or ""
    if not instruction.strip():
        raise UnknownShape("its instruction is empty", "without an instruction")
    _check_length("instruction", instruction, MOST_INSTRUCTION)
    _check_length("response", response, MOST_RESPONSE)
    history = "".join(turn["role"] + turn["content"] for turn in exchange.history)
    _check_length("history", history, MOST_INSTRUCTION)
    valid_text(instruction + response + history)
    return exchange


def parse_pair(row: Any) -> tuple[str, str, str | None]:
    """The shape, and the first instruction and response (None if it has none) of a row.

    Raises `UnknownShape` for a row of no known shape or without an instruction.

    >>> parse_pair({"conversations": ["Why tides?", "The Moon."]})
    ('conversations', 'Why tides?', 'The Moon.')
    """
    shape, exchanges = parse_exchanges(row)
    first = check_exchange(next(exchanges))
    return shape, first.instruction, first.response


def _check_length(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise UnknownShape(
            f"its {what} is {len(text):,} characters long, more than {most:,}",
            f"with {what} of over {most:,} characters",
        )


# MERGED refloom~data~columns
# Rows whose columns have names of their own, read under the names they are known by.
ABOUT = frozenset({"id", "source", "license", "tags"})


def rename_columns(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with each mapped column under the name it is mapped to.

    As soon as a column that holds text is mapped, only mapped ones count as such: what else is
    there cannot make the row one of another shape. `a.b` is `b` inside `a`, unless a column is
    called that. Raises `UnknownShape` where a mapped column of text is missing.

    >>> rename_columns({"question": "Why?", "answer": "So.", "prompt": "-"}, {"instruction": "question"})
    {'question': 'Why?', 'answer': 'So.', 'instruction': 'Why?'}
    """
    if not columns or not isinstance(row, Mapping):
        return row
    own = SHAPE_KEYS if set(columns) - ABOUT else frozenset()
    made = {key: value for key, value in row.items() if key not in own}
    for name, column in columns.items():
        found, value = _lookup(row, column)
        if found:
            made[name] = value
        elif name not in ABOUT and name != "input":
            keys = ", ".join(sorted(map(str, row))[:8])
            raise UnknownShape(
                f"it has no column {column!r}, only {keys}", "without a mapped column"
            )
    return made


def _lookup(row: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    if column in row:
        return True, row[column]
    first, dot, rest = column.partition(".")
    inner = row.get(first)
    return _lookup(inner, rest) if dot and isinstance(inner, Mapping) else (False, None)
