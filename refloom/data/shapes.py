"""The shapes of rows that are recognised as instruction and response pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from memory.references import Turn

Row = Mapping[str, Any]

# What fits no model's window; the graph takes no longer instruction either.
MOST_INSTRUCTION = 100_000
MOST_RESPONSE = 1_000_000
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class Unfit(Exception):
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


def whole(text: str) -> str:
    """The text, if it is one: half of a surrogate pair cannot be kept as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unfit("its text holds half of a surrogate pair", "of broken text") from error
    return text


def _text(row: Row, key: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Unfit(f"{key!r} is {type(value).__name__}, not text", "with a field that is no text")
    return value


def _pair(row: Row, question: str, answer: str | None) -> Exchanges:
    instruction, given = _text(row, question) or "", _text(row, "input")
    if question == "instruction" and given and given.strip():
        instruction = f"{instruction}\n\n{given}"
    yield Exchange(instruction, _text(row, answer) if answer else None)


def _completion(row: Row) -> Exchanges:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _exchanges(_turns_of([*prompt, *completion], "role", "content"))
    return _pair(row, "prompt", "completion")


def _self_instruct(row: Row) -> Exchanges:
    instances = row["instances"]
    first = instances[0] if isinstance(instances, list) and instances else {}
    if not isinstance(instances, list) or not isinstance(first, Mapping):
        raise Unfit("'instances' is no list of objects", "of odd turns")
    joined = {"instruction": row["instruction"], **{k: first.get(k) for k in ("input", "output")}}
    return _pair(joined, "instruction", "output")


def _messages(row: Row) -> Exchanges:
    return _exchanges(_turns_of(row["messages"], "role", "content"))


def _conversations(row: Row) -> Exchanges:
    turns = row["conversations"]
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        roles = ("user", "assistant")
        return _exchanges({"role": roles[i % 2], "content": t} for i, t in enumerate(turns))
    return _exchanges(_turns_of(turns, "from", "value"))


def _turns_of(turns: Any, who: str, what: str) -> Iterator[Turn]:
    """The turns, each looked at only when it is wanted: what is behind does no harm."""
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unfit("its turns are neither texts nor objects", "of odd turns")
    # Some publish the one shape's turns under the other's name.
    if turns and who not in turns[0]:
        who, what = ("role", "content") if who == "from" else ("from", "value")
    for turn in turns:
        role = str(turn.get(who))
        yield {"role": ROLES.get(role, role), "content": _text(turn, what) or ""}


def _exchanges(turns: Iterable[Turn]) -> Exchanges:
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
        raise Unfit("no turn is a user's", "of odd turns")


def _turns(row: Row) -> Exchanges:
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise Unfit("'turns' is no list of texts", "of odd turns")
    for turn in turns:
        if not isinstance(turn, str):
            raise Unfit("'turns' is no list of texts", "of odd turns")
        yield Exchange(turn, None)


# The first shape whose keys a row has is its shape; those with an answer come first.
SHAPES: dict[str, tuple[frozenset[str], Callable[[Row], Exchanges]]] = {
    "messages": (frozenset({"messages"}), _messages),
    "conversations": (frozenset({"conversations"}), _conversations),
    "instruction/instances": (frozenset({"instruction", "instances"}), _self_instruct),
    "instruction/output": (
        frozenset({"instruction", "output"}),
        lambda row: _pair(row, "instruction", "output"),
    ),
    "instruction/response": (
        frozenset({"instruction", "response"}),
        lambda row: _pair(row, "instruction", "response"),
    ),
    "prompt/completion": (frozenset({"prompt", "completion"}), _completion),
    "instruction": (frozenset({"instruction"}), lambda row: _pair(row, "instruction", None)),
    "prompt": (frozenset({"prompt"}), lambda row: _pair(row, "prompt", None)),
    "turns": (frozenset({"turns"}), _turns),
}
KEYS = frozenset().union(*(wanted for wanted, _ in SHAPES.values()))


def exchanges_of(row: Any) -> tuple[str, Exchanges]:
    """The shape of a row and its exchanges, at least one, each unchecked and read when wanted.

    Raises `Unfit` for a row of no known shape; so does reading a turn that is no text.
    """
    if not isinstance(row, Mapping):
        raise Unfit(f"a row must be an object, this is {type(row).__name__}", "that are no objects")
    # Tables that were put together have all columns in every row, empty where they do not belong.
    keys = {key for key, value in row.items() if value is not None}
    for name, (wanted, read) in SHAPES.items():
        if wanted <= keys:
            return name, read(row)
    raise Unfit(
        f"its keys ({', '.join(sorted(map(str, keys))[:8])}) are of no known shape",
        "of no known shape",
    )


def usable(exchange: Exchange) -> Exchange:
    """The exchange, if it can be worked with. Raises `Unfit`."""
    instruction, response = exchange.instruction, exchange.response or ""
    if not instruction.strip():
        raise Unfit("its instruction is empty", "without an instruction")
    _check_length("instruction", instruction, MOST_INSTRUCTION)
    _check_length("response", response, MOST_RESPONSE)
    history = "".join(turn["role"] + turn["content"] for turn in exchange.history)
    _check_length("history", history, MOST_INSTRUCTION)
    whole(instruction + response + history)
    return exchange


def pair_of(row: Any) -> tuple[str, str, str | None]:
    """The shape, and the first instruction and response (None if it has none) of a row.

    Raises `Unfit` for a row of no known shape or without an instruction.

    >>> pair_of({"conversations": ["Why tides?", "The Moon."]})
    ('conversations', 'Why tides?', 'The Moon.')
    """
    shape, exchanges = exchanges_of(row)
    first = usable(next(exchanges))
    return shape, first.instruction, first.response


def _check_length(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise Unfit(
            f"its {what} is {len(text):,} characters long, more than {most:,}",
            f"with {what} of over {most:,} characters",
        )


# MERGED refloom~data~columns
# Rows whose columns have names of their own, read under the names they are known by.
ABOUT = frozenset({"id", "source", "license", "tags"})


def renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with each mapped column under the name it is mapped to.

    As soon as a column that holds text is mapped, only mapped ones count as such: what else is
    there cannot make the row one of another shape. `a.b` is `b` inside `a`, unless a column is
    called that. Raises `Unfit` where a mapped column of text is missing.

    >>> renamed({"question": "Why?", "answer": "So.", "prompt": "-"}, {"instruction": "question"})
    {'question': 'Why?', 'answer': 'So.', 'instruction': 'Why?'}
    """
    if not columns or not isinstance(row, Mapping):
        return row
    own = KEYS if set(columns) - ABOUT else frozenset()
    made = {key: value for key, value in row.items() if key not in own}
    for name, column in columns.items():
        found, value = _at(row, column)
        if found:
            made[name] = value
        elif name not in ABOUT and name != "input":
            keys = ", ".join(sorted(map(str, row))[:8])
            raise Unfit(f"it has no column {column!r}, only {keys}", "without a mapped column")
    return made


def _at(row: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    if column in row:
        return True, row[column]
    first, dot, rest = column.partition(".")
    inner = row.get(first)
    return _at(inner, rest) if dot and isinstance(inner, Mapping) else (False, None)
