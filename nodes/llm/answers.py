r"""Reading a model's text as a JSON object of a given shape, without harm to LaTeX or code.

Models write `\frac` inside JSON strings with one backslash. Read by the letter that is a form
feed and "rac", so such escapes are made literal before the text is read.
"""

from __future__ import annotations

import json
import re
from json import JSONDecodeError
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

_THINK = re.compile(r"^\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"^\s*```[a-zA-Z0-9]*\s*\n(.*)\n\s*```\s*$", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
# What begins a LaTeX command after \b, \f, \n, \r, \t. A backspace or form feed before a letter
# never does anything else in text. The second table is for texts that show elsewhere that their
# backslashes are not escaped: there, names that could be words after a line break or tab count too.
_SURE = {
    "b": r"[A-Za-z]",
    "f": r"[A-Za-z]",
    "n": r"(?:abla|otin|ewcommand|oindent|ormalsize)(?![A-Za-z])",
    "r": r"(?:ho|ight[a-z]*|angle|floor|ceil|vert|ef)(?![A-Za-z])",
    "t": r"(?:heta|imes|frac|ilde|herefore|riangle)(?![a-z])|ext\w*\s?\{",
}
_DOUBTFUL = _SURE | {
    "n": r"(?:abla|otin|exists|eq|mid|eg|ot|u|e(?=[ \\{\d])|ewline)(?![A-Za-z])|ewcommand|oindent",
    "r": r"(?:ho|ight[a-z]*|angle|floor|ceil|vert|ef|m)(?![A-Za-z])",
    "t": r"(?:heta|imes|ext\w*|frac|ilde|herefore|riangle\w*|au|op|o|anh?)(?![A-Za-z])",
}
# How many opening braces are tried: prose before the answer may hold one.
MOST_STARTS = 5
_DECODER = json.JSONDecoder(strict=False)


class Unreadable(Exception):
    """The text holds no answer of the asked shape; the message is fit to show to the model."""


def read_answer(text: str, answer: type[M]) -> M:
    r"""The answer in a model's text; `<think>` text and code fences are taken off.

    Raises `Unreadable` with the first thing that is wrong.

    >>> class Said(BaseModel):
    ...     response: str
    >>> read_answer('<think>hm</think>```json\n{"response": "\\frac{1}{2}"}\n```', Said).response
    '\\frac{1}{2}'
    """
    value = _whole(_json(strip_wrapping(text)))
    try:
        return answer.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the answer"
        raise Unreadable(f"{where}: {first['msg']}") from error


def strip_wrapping(text: str) -> str:
    """The text without a leading `<think>` passage and without a code fence around it all."""
    bare = _THINK.sub("", text)
    fenced = _FENCED.match(bare)
    return fenced.group(1) if fenced else bare


def _json(text: str) -> Any:
    starts = [m.start() for m in re.finditer(r"\{", text)][:MOST_STARTS]
    if not starts:
        raise Unreadable("no JSON object was found")
    first: Exception | None = None
    for start in starts:
        try:
            return _DECODER.raw_decode(_literal_escapes(text[start:]))[0]
        except (ValueError, RecursionError) as error:
            first = first or error
    said = f"{first.msg} at character {first.pos}" if isinstance(first, JSONDecodeError) else first
    raise Unreadable(f"not valid JSON: {said}")


def _whole(value: Any) -> Any:
    """The value with half surrogate pairs replaced, which no file could hold as UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in value.items()}
    return value


def _literal_escapes(text: str) -> str:
    r"""Double the backslash of what can only be LaTeX or a path.

    That is: an escape JSON does not know, and one that begins a command's name. Names that could
    as well be words after a line break or tab count only in a text that is careless elsewhere.
    """
    if "\\" not in text:
        return text
    careless = any(_unknown(m) or _begins(_SURE, m, text) for m in _ESCAPE.finditer(text))
    table = _DOUBTFUL if careless else _SURE

    def mend(match: re.Match[str]) -> str:
        literal = _unknown(match) or _begins(table, match, text)
        return "\\" + match.group(0) if literal else match.group(0)

    return _ESCAPE.sub(mend, text)


def _begins(table: dict[str, str], match: re.Match[str], text: str) -> bool:
    names = table.get(match.group(1))
    return names is not None and re.compile(names).match(text, match.end()) is not None


def _unknown(match: re.Match[str]) -> bool:
    code = match.group(1)
    return len(code) != 5 and code not in ('"', "\\", "/", "n", "r", "t", "b", "f")
