"""The known shapes of rows, parsed into exchanges of an instruction and a response.

`rename_columns` maps columns with other names to those of a known shape first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cache, lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple

from memory.references import Turn

DataRow = Mapping[str, Any]

# Longer texts fit in no model's context; the graph's limit for an instruction is the same.
MAX_INSTRUCTION_CHARS = 100_000
MAX_RESPONSE_CHARS = 1_000_000
# Names of the two who speak, in small letters; any other role stays as it is.
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "ai", "chatgpt"), "assistant"),
}
TOOL_ROLES = frozenset({"tool", "function", "tool_call", "function_call", "observation", "ipython"})
# Columns that are part of the question beside its own, where a row has them.
OWN_COLUMNS = frozenset({"input", "context", "system", "system_prompt", "history"})
_MEDIA_COLUMNS = frozenset({"image", "images", "audio", "audios", "video", "videos"})
_MEDIA_MARK = re.compile(r"<(?:image|audio|video)>")
_MEDIA_PART = re.compile("image|audio|video|file|document|media", re.IGNORECASE)
_TOOL_PART = re.compile("tool|function", re.IGNORECASE)
_THOUGHT_PART = re.compile("thinking|reasoning", re.IGNORECASE)
# How Python, pandas and NumPy print lists, which is no JSON.
_PRINTED_LIST = re.compile(r"array\(|[\[({][\[({\s]*'")


class UnknownShape(Exception):
    """A row without a usable pair. The message says why; reports count such rows by `kind`."""

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or message


class Exchange(NamedTuple):
    """An instruction, its response (None if it has none), and the turns before it.

    `calls_tool` says that a tool is called in place of a response, `in_conversation` that the row
    is a conversation, of which the exchange may be any.
    """

    instruction: str
    response: str | None
    history: Sequence[Turn] = ()
    calls_tool: bool = False
    in_conversation: bool = False


Exchanges = Iterator[Exchange]


def valid_text(text: str) -> str:
    """Return the text. Raises `UnknownShape` if UTF-8 cannot encode it (lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnknownShape("its text has a lone surrogate", "of broken text") from error
    return text


def is_missing(value: Any) -> bool:
    """Whether a field has no value: None, or the NaN that tables put in its place."""
    return value is None or (isinstance(value, float) and value != value)


def read_text(row: DataRow, key: str) -> str | None:
    """The text of a field, None if it has no value. Numbers are text as JSON writes them."""
    value = row.get(key)
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Decimal):
        return str(value)
    parts = [value] if isinstance(value, Mapping) and "type" in value else value
    if isinstance(parts, list) and all(isinstance(part, Mapping) for part in parts):
        return _join_parts(parts)
    raise UnknownShape(
        f"{key!r} is {type(value).__name__}, not text", "with a field that is not text"
    )


def _join_parts(parts: Iterable[Mapping[str, Any]]) -> str:
    """The text of a message in parts. Raises `UnknownShape` if one is a picture or the like."""
    texts = []
    for part in parts:
        kind = str(part.get("type", "text"))
        text = part.get("text")
        if _MEDIA_PART.search(kind):
            raise UnknownShape(
                f"it has a part of type {kind}: it is multi-modal, and only text is read",
                "that are multi-modal",
            )
        if _TOOL_PART.search(kind):
            raise UnknownShape(f"it has a part of type {kind}: tools are not read", "with tools")
        if _THOUGHT_PART.search(kind):
            continue
        if not isinstance(text, str):
            raise UnknownShape(
                f"it has a part of type {kind} without text", "with a field that is not text"
            )
        texts.append(text)
    return "\n".join(texts)


def parse_cell(row: DataRow, key: str) -> Any:
    """A field that holds turns; JSON text, as in a table, is parsed.

    Raises `UnknownShape` for text that is not JSON but looks like a list.
    """
    value = row[key]
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _PRINTED_LIST.match(text):
        raise UnknownShape(
            f"{key!r} is Python's printout of a list, which cannot be read back; "
            "write the column as JSON (json.dumps)",
            "with Python's printout of a list",
        )
    if not text.startswith(("[", "{")):
        return value
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnknownShape(
            f"{key!r} is not valid JSON ({str(error)[:80]})", "of odd turns"
        ) from error
    return parsed.get(key, parsed) if isinstance(parsed, dict) else parsed


def context_text(value: Any) -> str | None:
    r"""What an instruction is about: text, or a list of texts; None if it is anything else.

    >>> context_text(["One.", "Two."])
    'One.\n\nTwo.'
    """
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        return None
    return "\n\n".join(text for text in texts if text.strip())


def is_user(role: Any) -> bool:
    """Whether a role is that of who asks.

    >>> is_user("Human"), is_user("ai"), is_user(None)
    (True, False, False)
    """
    return ROLES.get(str(role).strip().lower()) == "user"


def history_turns(value: Any) -> list[Turn] | None:
    """The turns in a column `history`; None if they cannot be read.

    They are pairs of texts, turns of roles, texts by turns, JSON text of these, or a text.

    >>> [turn["role"] for turn in history_turns([["Why?", "So."]])]
    ['user', 'assistant']
    """
    if is_missing(value):
        return []
    try:
        turns = parse_cell({"history": value}, "history")
        if isinstance(turns, str):
            return [{"role": "conversation", "content": turns}] if turns.strip() else []
        if not isinstance(turns, list):
            return None
        if all(isinstance(turn, Mapping) for turn in turns):
            return [{"role": t.role, "content": t.content} for t in _parse_turns(turns)]
    except UnknownShape:
        return None
    if all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns):
        turns = [text for pair in turns for text in pair]
    if not all(isinstance(text, str) for text in turns):
        return None
    texts: list[str] = turns
    return _alternate(texts)


def _alternate(texts: Iterable[str]) -> list[Turn]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


def _system_turns(row: DataRow) -> list[Turn]:
    """The system prompt of a row that has a column for it."""
    for key in ("system", "system_prompt"):
        text = row.get(key)
        if isinstance(text, str) and text.strip():
            return [{"role": "system", "content": text}]
    return []


def _from_pair(row: DataRow, instruction_key: str, response_key: str | None) -> Exchanges:
    turns = _turns_in_text(row[instruction_key])
    if _are_turns(turns):
        # A conversation in place of a question; what answers it is a text, or turns as well.
        answer = _turns_in_text(row[response_key]) if response_key else []
        if not _are_turns(answer):
            text = read_text(row, response_key) if response_key else None
            answer = [] if text is None else [{"role": "assistant", "content": text}]
        return _pair_turns(chain(_parse_turns(turns), _parse_turns(answer)), row)
    return _from_texts(row, instruction_key, response_key)


def _from_texts(row: DataRow, instruction_key: str, response_key: str | None) -> Exchanges:
    instruction = read_text(row, instruction_key) or ""
    own_input = read_text(row, "input") if instruction_key == "instruction" else None
    if own_input and own_input.strip():
        instruction = f"{instruction}\n\n{own_input}"
    context = context_text(row.get("context"))
    if context and instruction.strip() and context not in instruction:
        instruction = f"{instruction}\n\n{context}"
    history = [*_system_turns(row), *(history_turns(row.get("history")) or ())]
    response = read_text(row, response_key) if response_key else None
    yield Exchange(instruction, response, history)


def _turns_in_text(value: Any) -> Any:
    """The turns of a text that is their JSON; any other value is left as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            turns = json.loads(value)
            return turns if _are_turns(turns) else value
    return value


def _are_turns(value: Any) -> bool:
    keys = ({"role", "content"}, {"from", "value"})
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(t, Mapping) and any(k <= t.keys() for k in keys) for t in value)
    )


def _from_instances(row: DataRow) -> Exchanges:
    instances = parse_cell(row, "instances")
    first = instances[0] if isinstance(instances, list) and instances else {}
    if not isinstance(instances, list) or not isinstance(first, Mapping):
        raise UnknownShape("'instances' is not a list of objects", "of odd turns")
    joined = {**row, **{k: first.get(k) for k in ("input", "output")}}
    return _from_pair(joined, "instruction", "output")


def _from_messages(row: DataRow) -> Exchanges:
    return _pair_turns(_parse_turns(parse_cell(row, "messages")), row)


def _from_conversations(row: DataRow) -> Exchanges:
    turns = parse_cell(row, "conversations")
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        parsed = (_ParsedTurn(turn["role"], turn["content"], False) for turn in _alternate(turns))
        return _pair_turns(parsed, row)
    return _pair_turns(_parse_turns(turns, ("from", "role")), row)


class _ParsedTurn(NamedTuple):
    """A turn as it is parsed; `calls_tool` if it calls a tool or is its answer."""

    role: str
    content: str
    calls_tool: bool


_TEXT_KEYS = {"role": "content", "from": "value", "speaker": "text"}


# How rubrics of other data sets name the text and the weight of a criterion: HealthBench, RaR.
_RUBRIC_KEYS = {"criterion": "points", "description": "weight"}
RUBRIC_COLUMNS = frozenset({"rubric", "rubrics"})
CRITERIA_COLUMNS = ("criteria", *sorted(RUBRIC_COLUMNS))


def find_criteria(row: DataRow) -> list[Any]:
    """The criteria that a row carries for its own reference: texts, or objects with a `text`.

    They are read of a column `criteria`, of RaR's `rubric` and HealthBench's `rubrics`. What is of
    another shape there, such as the verdicts on a row that was made by refloom, is none.

    >>> find_criteria({"rubric": [{"title": "Cause", "description": "Names it", "weight": 3}]})
    [{'text': 'Names it', 'weight': 3, 'must': False}]
    """
    columns = [criteria_in_column(row[key]) or [] for key in CRITERIA_COLUMNS if key in row]
    return [criterion for criteria in columns for criterion in criteria]


def criteria_in_column(value: Any) -> list[Any] | None:
    """The criteria in the value of a column; None if it does not hold such a list."""
    try:
        values = parse_cell({"criteria": value}, "criteria")
    except UnknownShape:
        return None
    if not isinstance(values, list) or not values:
        return None
    criteria = [_as_criterion(part) for part in values]
    return None if None in criteria else criteria


def _as_criterion(part: Any) -> str | dict[str, Any] | None:
    """A criterion of one of the known shapes; that of a row of refloom's own is another's."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    filled = {key: value for key, value in part.items() if not is_missing(value)}
    if "text" in filled and "judged_by" not in filled:
        return filled
    for key, weight in _RUBRIC_KEYS.items():
        if isinstance(filled.get(key), str) and weight in filled:
            essential = filled[key].lstrip().lower().startswith("essential")
            return {"text": filled[key], "weight": filled[weight], "must": essential}
    return None


def _parse_turns(turns: Any, role_keys: Sequence[str] = ("role", "from")) -> Iterator[_ParsedTurn]:
    """The turns, each parsed when it is needed, so that turns before a bad one can be used."""
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UnknownShape("its turns are neither texts nor objects", "of odd turns")
    # Some data sets have turns of {"role", "content"} under "conversations", or the reverse.
    role_key = next((k for k in (*role_keys, "speaker") if turns and k in turns[0]), role_keys[0])
    text_key = _TEXT_KEYS[role_key]
    for turn in turns:
        role = str(turn.get(role_key))
        # Some have their text, or the parts of it, under yet another name.
        key = next((k for k in (text_key, "text", "parts") if k in turn), text_key)
        content = read_text(turn, key) or ""
        calls = any(turn.get(key) for key in ("tool_calls", "function_call"))
        is_tool = role.strip().lower() in TOOL_ROLES or (calls and not content.strip())
        yield _ParsedTurn(ROLES.get(role.strip().lower(), role), content, is_tool)


def _pair_turns(turns: Iterable[_ParsedTurn], row: DataRow) -> Exchanges:
    """Every user turn with the assistant turn right after it, and the turns before both."""
    history: list[Turn] = []
    question: Turn | None = None
    roles: list[str] = []
    for turn in turns:
        if question is not None:
            response = turn.content if turn.role == "assistant" else None
            yield Exchange(question["content"], response, history[:-1], turn.calls_tool, True)
        elif not roles and turn.role.strip().lower() not in ("system", "developer"):
            history += _system_turns(row)
        message: Turn = {"role": turn.role, "content": turn.content}
        question = message if turn.role == "user" else None
        roles.append(turn.role)
        history.append(message)
    if question is not None:
        yield Exchange(question["content"], None, history[:-1], in_conversation=True)
    if "user" not in roles:
        named = ", ".join(dict.fromkeys(roles[:8]))
        raise UnknownShape(
            "it has no user turn" + (f", only {named}"[:80] if named else ""), "of odd turns"
        )


def _from_turns(row: DataRow) -> Exchanges:
    turns = parse_cell(row, "turns")
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
    **{
        f"{question}/{answer}": (
            frozenset({question, answer}),
            partial(_from_pair, instruction_key=question, response_key=answer),
        )
        for question, answer in (
            ("instruction", "output"),
            ("instruction", "response"),
            ("prompt", "completion"),
            ("prompt", "response"),
        )
    },
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
    for keys in (_filled_keys(row), {key for key, value in row.items() if not is_missing(value)}):
        for name, (required, parse) in SHAPES.items():
            if required <= keys:
                return name, parse(row)
    raise UnknownShape(
        f"its keys ({', '.join(sorted(map(str, keys))[:8])}) fit no known shape",
        "of no known shape",
    )


def _filled_keys(row: DataRow) -> set[str]:
    """The keys that say what shape a row has.

    In concatenated tables, columns of another table's shape are null or empty.
    """
    keys, blank = set(), set()
    for key, value in row.items():
        if is_missing(value):
            continue
        keys.add(key)
        if isinstance(value, str) and key in SHAPE_KEYS and (not value or value.isspace()):
            blank.add(key)
    if not blank:
        return keys
    # An empty response is one, if no other column has it; so is an instruction with an input.
    counted = {"output", "response", "completion"}
    if row.get("instances") or (isinstance(row.get("input"), str) and row["input"].strip()):
        counted.add("instruction")
    if "response" in keys - blank:
        counted.discard("output")
    return keys - (blank - counted)


def join_history(exchange: Exchange) -> str:
    r"""The instruction as one text with what a row's own columns say before it.

    The turns of a conversation before it are no part of it.

    >>> join_history(Exchange("Why?", None, [{"role": "system", "content": "Be brief."}]))
    'Be brief.\n\nWhy?'
    """
    if exchange.in_conversation:
        return exchange.instruction
    turns = list(exchange.history)
    texts = [turns.pop(0)["content"]] if turns and turns[0]["role"] == "system" else []
    texts += [f"{turn['role']}: {turn['content']}" for turn in turns]
    return "\n\n".join([*texts, f"user: {exchange.instruction}" if turns else exchange.instruction])


def find_unread_columns(shape: str, row: DataRow, texts: Iterable[str] = ()) -> Iterator[str]:
    """The columns of a row that hold text and are not read, but for usual ones about the row.

    Those that repeat one of `texts` are not among them.

    >>> list(find_unread_columns("prompt/completion", {"prompt": "a", "notes": "b", "lang": "en"}))
    ['notes']
    """
    read = _read_columns(shape)
    for key, value in row.items():
        if key in read and (key not in _READ_IF or _READ_IF[key](value) is not None):
            continue
        # Some data sets repeat the question beside the conversation.
        if value and not _is_about_rows(str(key)) and value not in texts and _has_text(value):
            yield str(key)


@cache
def _read_columns(shape: str) -> frozenset[str]:
    """The columns that are read of rows of a shape."""
    read = SHAPES[shape][0] | METADATA_FIELDS | {"system", "system_prompt", *CRITERIA_COLUMNS}
    if shape.startswith(("messages", "conversations", "turns")):
        return read
    own = {"context", "history"}
    return read | own | ({"input"} if shape.startswith("instruction") else set())


# Columns that are read if they hold what they should.
_READ_IF: dict[str, Callable[[Any], Any]] = {
    "context": context_text,
    "history": history_turns,
    **dict.fromkeys(CRITERIA_COLUMNS, criteria_in_column),
}


@lru_cache(1000)
def _is_about_rows(column: str) -> bool:
    name = column.lower()
    return name in _ABOUT_ROWS or name.endswith("_id")


def _has_text(value: Any) -> bool:
    if isinstance(value, str):
        return any(map(str.isalpha, value))
    if isinstance(value, Mapping):
        return any(map(_has_text, value.values()))
    return isinstance(value, list) and any(map(_has_text, value))


def check_media(row: DataRow, exchange: Exchange) -> None:
    """Raise `UnknownShape` for a question about a picture, a sound or a film beside the text."""
    for key in _MEDIA_COLUMNS & row.keys():
        value = row[key]
        if is_missing(value) or not value:
            continue
        first = value[0] if isinstance(value, list) else value
        holds_bytes = isinstance(first, Mapping) and bool(first.keys() & {"bytes", "path", "array"})
        before = (turn["content"] for turn in exchange.history if turn["role"] == "user")
        questions = (exchange.instruction, *before)
        if holds_bytes or any(map(_MEDIA_MARK.search, questions)):
            raise UnknownShape(
                f"it has {key!r}: it is multi-modal, and only text is read", "that are multi-modal"
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
# Usual columns about a row rather than of its text.
_ABOUT_ROWS = frozenset(
    {"category", "categories", "type", "kind", "task", "label", "language", "lang", "split"}
    | {"model", "model_name", "dataset", "domain", "difficulty", "level", "url", "uuid", "hash"}
    | {"date", "created", "created_at", "timestamp", "index", "idx", "__index_level_0__"}
)


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
        elif name not in METADATA_FIELDS | OWN_COLUMNS:
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
