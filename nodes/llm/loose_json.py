r"""JSON objects as models write them: found in a text, mended where that is safe.

Models write `\frac` inside JSON strings with one backslash. To a JSON parser that is a form feed
and "rac", so such escapes are doubled before the text is parsed. What else is mended stands outside
of strings; a string that was cut, or whose end is unclear, is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

_DECODER = json.JSONDecoder(strict=False)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
# What begins a LaTeX command after \b, \f, \n, \r, \t. A backspace or form feed before a letter
# never does anything else in text.
_CERTAIN_COMMANDS = {
    "b": r"[A-Za-z]",
    "f": r"[A-Za-z]",
    "n": r"(?:abla|otin|ewcommand|oindent|ormalsize)(?![A-Za-z])",
    "r": r"(?:ho|ight[a-z]*|angle|floor|ceil|vert|ef)(?![A-Za-z])",
    "t": r"(?:heta|imes|frac|ilde|herefore|riangle)(?![a-z])|ext\w*\s?\{",
}
# For a text that shows elsewhere that its backslashes are not escaped: here names that could be
# words after a line break or tab count too.
_LIKELY_COMMANDS = _CERTAIN_COMMANDS | {
    "n": r"(?:abla|otin|exists|eq|mid|eg|ot|u|e(?=[ \\{\d])|ewline)(?![A-Za-z])|ewcommand|oindent",
    "r": r"(?:ho|ight[a-z]*|angle|floor|ceil|vert|ef|m)(?![A-Za-z])",
    "t": r"(?:heta|imes|ext\w*|frac|ilde|herefore|riangle\w*|au|op|o|anh?)(?![A-Za-z])",
}

_CURLY = "“”„‟"
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
# Strings between other quotes end where punctuation of JSON follows. Curly quotes inside of curly
# ones could be either's end: such a string is none.
_SINGLE = r"'(?P<single>[^'\\]*(?:\\.[^'\\]*)*)'(?=\s*[:,}\]])"
_CURLED = rf'[{_CURLY}](?P<curled>[^{_CURLY}"\\]*(?:\\.[^{_CURLY}"\\]*)*)[{_CURLY}"](?=\s*[:,}}\]])'
# One that never ends goes on to the end: a search for it from every place would take too long.
_COMMENT = r"//[^\n]*|/\*.*?(?:\*/|\Z)"
# What may begin an object, but not `{x}` or `{1, 2}` in prose.
_START = re.compile(rf'\{{(?=\s*(?:["\'{_CURLY}}}]|//|/\*|#|[A-Za-z_]\w{{0,60}}\s*:))')
_FLAGS = re.DOTALL
_BRACE = re.compile(rf'{_STRING}|{_SINGLE}|{_CURLED}|{_COMMENT}|[{{}}"]', _FLAGS)
_LOOSE = re.compile(
    rf"{_STRING}|{_SINGLE}|{_CURLED}"
    rf"|(?P<comment>{_COMMENT}|#[^\n]*)"
    r"|(?P<key>(?<!\w)[A-Za-z_]\w{0,60})(?=\s*:)"
    r"|\b(?P<name>True|False|None)\b",
    _FLAGS,
)
_COMMA = re.compile(rf"{_STRING}|(?P<comma>,)(?=\s*[}}\]])", _FLAGS)
_JSON_NAMES = {"True": "true", "False": "false", "None": "null"}
# Where another object may begin after one that never ends.
_RESTART = re.compile(r'\n[^\S\n]*\n|\n(?=```|\{|[A-Za-z*#][^\n{"]*\{)')
# So many objects without an end are looked at: each costs a search to the end of the text.
MAX_UNENDED = 20
# What the parser's messages mean, by how they begin.
_MEANINGS = {
    "Expecting property name": "a key in double quotes is wanted here",
    "Expecting ',' delimiter": "a comma or the end is wanted here; a quotation mark inside a string"
    ' is written \\"',
    "Expecting ':' delimiter": "a colon is wanted here",
    "Expecting value": "a value is wanted here",
    "Unterminated string": "the string that begins here has no end",
    "Illegal trailing comma": "a comma before a closing brace or bracket",
    "Extra data": "text follows the end of the object",
}


@dataclass(frozen=True, slots=True)
class FoundObject:
    """What a text holds between two braces: its value, or why it has none."""

    start: int
    end: int
    value: Any = None
    fault: str | None = None


def find_objects(text: str, at: int = 0) -> Iterator[FoundObject]:
    r"""The objects that stand in a text from a place on, in order; not those inside of others.

    >>> [found.value for found in find_objects('Not {x}: {"a": 1,} or {\'b\': True}')]
    [{'a': 1}, {'b': True}]
    """
    any_ended, unended, first = False, 0, text.find("{", at)
    while unended < MAX_UNENDED and (begin := _START.search(text, at)) is not None:
        start, any_ended = begin.start(), True
        end = _end_of_object(text, start)
        if end is None:
            unended += 1
            yield FoundObject(start, len(text), fault=_fault(text, start, len(text)))
            again = _RESTART.search(text, start)
            at = len(text) if again is None else again.end()
        else:
            yield _read_object(text, start, end)
            at = end
    if not any_ended and first >= 0:
        yield FoundObject(first, len(text), fault=_fault(text, first, len(text)))


def decode_json(text: str) -> Any:
    """The value of a JSON text, as models write it. Raises `ValueError` or `RecursionError`."""
    return _DECODER.decode(_double_literal_backslashes(text))


def _end_of_object(text: str, start: int) -> int | None:
    """Behind the brace that closes the one at `start`; None if a string or it is never closed."""
    depth = 0
    for token in _BRACE.finditer(text, start):
        if token.group() == '"':
            return None
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return token.end()
    return None


def _read_object(text: str, start: int, end: int) -> FoundObject:
    piece = text[start:end]
    try:
        return FoundObject(start, end, decode_json(piece))
    except (ValueError, RecursionError):
        try:
            return FoundObject(start, end, decode_json(_mend(piece)))
        except (ValueError, RecursionError):
            return FoundObject(start, end, fault=_fault(text, start, end))


def _mend(piece: str) -> str:
    """An object with JSON's quotes, names and commas, and without comments."""
    return _COMMA.sub(lambda m: "" if m["comma"] else m.group(), _LOOSE.sub(_mend_token, piece))


def _mend_token(token: re.Match[str]) -> str:
    if token["comment"] is not None:
        return ""
    if token["key"] is not None:
        return f'"{token["key"]}"'
    if token["name"] is not None:
        return _JSON_NAMES[token["name"]]
    for inner in (token["single"], token["curled"]):
        if inner is not None:
            inner = re.sub(rf"\\(['{_CURLY}])|\\.|\"", _requote, inner, flags=_FLAGS)
            return f'"{inner}"'
    return token.group()


def _requote(match: re.Match[str]) -> str:
    r"""A quote inside of a string, for double quotes around it."""
    return match[1] or (r"\"" if match.group() == '"' else match.group())


def _fault(text: str, start: int, end: int) -> str:
    """Why there is no object at a place of a text; lines and columns are those of the text."""
    piece = text[start:end]
    doubled = _double_literal_backslashes(piece)
    try:
        _DECODER.raw_decode(doubled)
    except JSONDecodeError as error:
        at = start + _undoubled(piece, doubled, error.pos)
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        meaning = next(
            (meaning for begin, meaning in _MEANINGS.items() if error.msg.startswith(begin)),
            error.msg,
        )
        if text[:at].rstrip().endswith(",") and text[at : at + 1] in ("}", "]"):
            meaning = _MEANINGS["Illegal trailing comma"]
        return f"line {line} column {column}: {meaning}"
    except (ValueError, RecursionError) as error:
        return str(error)
    return "the object has no end"


def _undoubled(piece: str, doubled: str, at: int) -> int:
    """The place in a text of a place in the same with backslashes doubled."""
    here = 0
    for there in range(min(at, len(doubled))):
        # An added backslash stands where the text itself has another character.
        here += here < len(piece) and doubled[there] == piece[here]
    return here


def _double_literal_backslashes(text: str) -> str:
    r"""Double the backslash of what can only be LaTeX or a path.

    That is an escape that JSON does not know, and one that begins the name of a command. Names that
    could be words after a line break or tab count only in a text that is careless elsewhere.
    """
    if "\\" not in text:
        return text
    careless = any(_is_literal(match, text, _CERTAIN_COMMANDS) for match in _ESCAPE.finditer(text))
    commands = _LIKELY_COMMANDS if careless else _CERTAIN_COMMANDS

    def double(match: re.Match[str]) -> str:
        return "\\" * _is_literal(match, text, commands) + match.group(0)

    return _ESCAPE.sub(double, text)


def _is_literal(match: re.Match[str], text: str, commands: dict[str, str]) -> bool:
    """Whether an escape is not one of JSON's, or begins a command."""
    code = match.group(1)
    if len(code) != 5 and code not in ('"', "\\", "/", "n", "r", "t", "b", "f"):
        return True
    names = commands.get(code)
    return names is not None and re.compile(names).match(text, match.end()) is not None
