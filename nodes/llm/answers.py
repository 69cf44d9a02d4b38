r"""Reading a model's text as a JSON object of a given shape, without harm to LaTeX or code.

Models write `\frac` inside JSON strings with one backslash. To a JSON parser that is a form feed
and "rac", so such escapes are doubled before the text is parsed.
"""

from __future__ import annotations

import json
import re
from json import JSONDecodeError
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

# How many opening braces are tried: prose before the answer may hold one.
MAX_STARTS = 5
_DECODER = json.JSONDecoder(strict=False)
_THINK = re.compile(r"^\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"^\s*```[a-zA-Z0-9]*\s*\n(.*)\n\s*```\s*$", re.DOTALL)
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


class UnreadableAnswer(Exception):
    """The text holds no answer of the shape asked for; the message is shown to the model."""


def read_answer(text: str, answer: type[M], *, name: str = "", marks_in_prompt: bool = False) -> M:
    r"""The answer in a model's text, without `<think>` text and code fences.

    Raises `UnreadableAnswer` with the first thing that is wrong.

    >>> class Draft(BaseModel):
    ...     response: str
    >>> read_answer('<think>hm</think>```json\n{"response": "\\frac{1}{2}"}\n```', Draft).response
    '\\frac{1}{2}'
    """
    value = _replace_surrogates(_parse_object(strip_wrapping(text)))
    try:
        return answer.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the answer"
        raise UnreadableAnswer(f"{where}: {first['msg']}") from error


def read_text(text: str, *, marks_in_prompt: bool = False, code_only: bool = False) -> str:
    """The answer in a model's text, without `<think>` text and a code fence around it all."""
    return strip_wrapping(text).strip()


def split_plan(text: str) -> tuple[str | None, str]:
    """The closed plan at the start of a text, and the rest."""
    found = re.match(r"\s*<plan>(.*?)</plan>\s*", text, re.DOTALL)
    return (found.group(1).strip(), text[found.end() :]) if found else (None, text)


def has_thinking_mark(text: str) -> bool:
    """Whether a text holds a mark of thoughts."""
    return "</think" in text


def strip_wrapping(text: str) -> str:
    """The text without a leading `<think>` passage, and without a code fence around the rest."""
    text = _THINK.sub("", text)
    fenced = _FENCED.match(text)
    return fenced.group(1) if fenced else text


def _parse_object(text: str) -> Any:
    """The first JSON object in a text."""
    starts = [m.start() for m in re.finditer(r"\{", text)][:MAX_STARTS]
    if not starts:
        raise UnreadableAnswer("no JSON object was found")
    first: Exception | None = None
    for start in starts:
        try:
            return _DECODER.raw_decode(_double_literal_backslashes(text[start:]))[0]
        except (ValueError, RecursionError) as error:
            first = first or error
    at = f"{first.msg} at character {first.pos}" if isinstance(first, JSONDecodeError) else first
    raise UnreadableAnswer(f"not valid JSON: {at}")


def _replace_surrogates(value: Any) -> Any:
    """The value with lone surrogates replaced, which no UTF-8 file could hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {key: _replace_surrogates(item) for key, item in value.items()}
    return value


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
