"""Reading an answer out of a model's text: an object of a given shape, or plain text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from nodes.llm.loose_json import FoundObject, decode_json, find_objects
from nodes.llm.thoughts import (
    UnclearThoughts,
    find_answer,
    find_thinking_marks,
    find_usual_marks,
    has_thinking_mark,
)

__all__ = [
    "UnreadableAnswer",
    "find_usual_marks",
    "has_thinking_mark",
    "read_answer",
    "read_text",
    "split_plan",
]

M = TypeVar("M", bound=BaseModel)

# Keys under which models put an answer; the stage's own name and that of the shape are others.
WRAPPER_KEYS = frozenset({
    "answer", "arguments", "data", "function", "function_call", "input", "json", "output",
    "parameters", "properties", "result", "tool_call", "tool_calls", "tool_input",
})  # fmt: skip
# How deep an answer may be wrapped.
MAX_WRAPPERS = 5
# Tags that models put around a whole answer; in a prompt they may have a suffix.
_WRAPPER_TAG = re.compile(
    r"<(?P<name>(?:(?:improved|final|revised|refined)_)?(?:response|answer)|output|final)"
    r"(?P<suffix>-[0-9a-f]{6})?(?:\s[^<>]*)?>(?P<text>.*)</(?P=name)(?(suffix)(?P=suffix))>",
    re.DOTALL | re.IGNORECASE,
)
# The same as special tokens: Command A, GLM 4.1V, Sky-T1. A server may leave out the last one.
_WRAPPER_TOKENS = re.compile(
    r"(?:<\|START_RESPONSE\|>|<\|begin_of_box\|>)(?P<text>.*)"
    r"(?:<\|END_RESPONSE\|>|<\|end_of_box\|>)"
    r"|<\|begin_of_solution\|>(?P<solution>.*?)(?:<\|end_of_solution\|>)?",
    re.DOTALL,
)
# The closing tag alone, whose opening one may be the end of a prompt.
_CLOSING_TAG = re.compile(
    r"</(?P<name>(?:(?:improved|final|revised|refined)_)?(?:response|answer)|output|final)"
    r"(?:-[0-9a-f]{6})?>",
    re.IGNORECASE,
)
# What a text may end with; not with a colon, behind which a tag is spoken of.
_ENDS_OF_TEXTS = ".!?…)]}*`|\"'”»。！？）」"
# Tokens that end a turn, which some servers leave in the text.
_TURN_ENDS = (
    "<|return|>", "<|call|>", "<|end|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>",
    "<|end_of_text|>", "<turn|>",
)  # fmt: skip
_FENCE = re.compile(r"^ {0,3}(?P<ticks>`{3,})[^\S\n]*(?P<language>[^`\n]*)$", re.MULTILINE)
# A fence of one of these languages says only that text stands in it; of another it is content.
_TEXT_LANGUAGES = frozenset({"", "markdown", "md", "text", "txt", "plain", "plaintext"})
_FENCED_JSON = re.compile(r"```[a-zA-Z0-9]*\s*\n(?P<json>.*)\n\s*```", re.DOTALL)
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")
_PLAN = re.compile(r"\s*<plan>(?P<plan>.*?)</plan>[^\S\n]*\n*", re.DOTALL | re.IGNORECASE)
_PLAN_OPENED = re.compile(r"\s*<plan>", re.IGNORECASE)


class UnreadableAnswer(Exception):
    """The text holds no answer that can be read; the message is shown to the model."""


class _Fit(NamedTuple, Generic[M]):
    """An object of the shape asked for, and where in the text it stands."""

    answer: M
    start: int
    end: int


def read_answer(
    text: str,
    answer: type[M],
    *,
    name: str = "",
    marks_in_prompt: bool = False,
    usual_marks: Collection[str] = (),
    at_end: bool = False,
) -> M:
    r"""The object of a given shape in a model's text; the last one, if several fit.

    `name` is what the answer may be wrapped in: `{"extract": {..}}`. Thoughts are taken off, or,
    with `marks_in_prompt`, no mark of thoughts may stand outside of the object: the prompt's data
    holds such a mark, so that the answer may quote it. The prompt's `usual_marks` count for none:
    see `nodes.llm.thoughts.Marks`. With `at_end` nothing may follow the object: in a text of
    thoughts another is a draft. Raises `UnreadableAnswer` with what is wrong.

    >>> class Draft(BaseModel):
    ...     response: str
    >>> read_answer('{"response": "a"}</think>{"response": "\\frac{1}{2}",}', Draft).response
    '\\frac{1}{2}'
    """
    text = text.removeprefix("\ufeff")
    start = 0 if marks_in_prompt else _find_answer(text, usual_marks)
    wrappers = (WRAPPER_KEYS | {_fold(name), _fold(answer.__name__)}) - {""}
    fit = _read_whole(text, start, answer, wrappers)
    if fit is None:
        fit = _choose_fit(text, start, answer, wrappers)
    if at_end and re.search(r"\w", text[fit.end :]):
        raise UnreadableAnswer("the JSON object does not end the text")
    if marks_in_prompt:
        for begin, end in find_thinking_marks(text, usual_marks):
            if begin < fit.start or end > fit.end:
                raise UnreadableAnswer(
                    f"{text[begin:end][-40:]!r} stands outside of the JSON object"
                )
    return fit.answer


# A response, and behind its closing tag what the prompt holds: a small model goes on writing. The
# opening tag may be missing, or stand behind words such as "Here is the response:".
_ECHO = re.compile(
    r"</response(?:-\w+)?>\s*"
    r"(?P<more><(?:feedback|verdict|criterion|instruction|reference|response|seed)(?:-\w+)?[ >])",
    re.IGNORECASE,
)


def read_text(
    text: str,
    *,
    marks_in_prompt: bool = False,
    usual_marks: Collection[str] = (),
    code_only: bool = False,
) -> str:
    r"""The plain text of an answer, without thoughts and without what stands around all of it.

    That is a tag such as `<response>`, or a fence without the name of a programming language, which
    stays with `code_only`: the instruction asks for code and nothing else. With `marks_in_prompt`
    nothing is cut off, and never at the prompt's `usual_marks`. All else is left as it is, but for
    blank lines around it. Raises `UnreadableAnswer` if it cannot be told where thoughts end, or for
    any mark of thoughts if the prompt's data holds such marks.

    >>> read_text("<think>Hm.</think>\n<response>\nSo it is.\n</response>")
    'So it is.'
    """
    text = text.removeprefix("\ufeff")
    if marks_in_prompt:
        for begin, end in find_thinking_marks(text, usual_marks):
            raise UnreadableAnswer(
                f"{text[begin:end][-40:]!r} may be a mark of thoughts or a part of the answer"
            )
    else:
        text = text[_find_answer(text, usual_marks) :]
    while (bare := text.rstrip()).endswith(_TURN_ENDS):
        text = bare[: bare.rindex("<")]
    echo = _ECHO.search(text)
    # In a block of code it may be a part of the answer.
    if echo is not None and text.count("```", 0, echo.start()) % 2 == 0:
        raise UnreadableAnswer(
            f"after the response comes more, from {echo['more']!r} on: give the response alone"
        )
    text = _untag(text)
    if not code_only and (inner := _unfence(text.strip())) is not None:
        text = _untag(inner)
    text = _BLANK_LINES.sub("", text).rstrip()
    # A single space comes from the tokenizer; more of them indent code.
    return text[1:] if re.match(r" \S", text) else text


def split_plan(text: str) -> tuple[str | None, str]:
    r"""The plan at the very start of a text, if one is there, and the rest.

    Raises `UnreadableAnswer` if it is opened and not closed.

    >>> split_plan("<plan>Be brief.</plan>\n\nNo.")
    ('Be brief.', 'No.')
    """
    plan = _PLAN.match(text)
    if plan is not None:
        return plan["plan"].strip(), text[plan.end() :]
    if _PLAN_OPENED.match(text):
        raise UnreadableAnswer("the plan is opened by <plan> and not closed by </plan>")
    return None, text


def _find_answer(text: str, usual_marks: Collection[str]) -> int:
    try:
        return find_answer(text, usual_marks)
    except UnclearThoughts as error:
        raise UnreadableAnswer(str(error)) from error


def _fold(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", name.casefold()).strip("_")


def _read_whole(text: str, start: int, answer: type[M], wrappers: frozenset[str]) -> _Fit[M] | None:
    """The answer, if it is all that the text holds, as JSON: so it is nearly always."""
    whole = text[start:].strip()
    if (fenced := _FENCED_JSON.fullmatch(whole)) is not None:
        whole = fenced["json"].strip()
    if not whole.startswith(("{", "[", '"')):
        return None
    try:
        value = decode_json(whole)
    except (ValueError, RecursionError):
        return None
    fit, _ = _fit(value, answer, wrappers)
    return None if fit is None else _Fit(fit, start, len(text))


def _choose_fit(text: str, start: int, answer: type[M], wrappers: frozenset[str]) -> _Fit[M]:
    """The last object that fits. Raises `UnreadableAnswer` if that is none, or may be none."""
    fits: list[_Fit[M]] = []
    faults: list[tuple[bool, str]] = []
    for found in find_objects(text, start):
        if found.fault is not None:
            fit, fault = None, f"not valid JSON: {found.fault}"
        else:
            fit, fault = _fit(found.value, answer, wrappers)
        if fit is not None:
            fits.append(_Fit(fit, found.start, found.end))
            faults.clear()
        else:
            written = text[found.start : found.end]
            faults.append((_names_a_key(found, written, answer, wrappers), fault))
    meant = [fault for is_meant, fault in faults if is_meant]
    if meant:
        # The model's answer is the last: a draft before it is none.
        raise UnreadableAnswer(meant[-1])
    if not fits:
        fault = faults[-1][1] if faults else "no JSON object was found"
        if start:
            mark = text[max(0, start - 40) : start].split()[-1]
            fault += f" (all up to {mark!r} was taken for thoughts)"
        raise UnreadableAnswer(fault)
    *others, last = fits
    for other in others:
        if other.answer != last.answer and _is_either(text, other, last):
            raise UnreadableAnswer("several JSON objects fit; give one, with nothing around it")
    return last


def _is_either(text: str, one: _Fit[M], last: _Fit[M]) -> bool:
    """Whether the last of two objects may not be the answer.

    So it is in a list, and if the last stands inside of a line, as an example does, and one before
    it does not.
    """
    in_list = text[one.end : last.start].strip() == ","
    return in_list or (_ends_line(text, one.end) and not _ends_line(text, last.end))


def _fit(value: Any, answer: type[M], wrappers: frozenset[str]) -> tuple[M | None, str]:
    """The answer that a value holds, or why it holds none.

    What stands in an answer is a part of it. Two answers in wrappers of their own are none, unless
    they are equal.
    """
    fault = "no JSON object was found"
    fits: dict[tuple[str, ...], M] = {}
    for path, inner in _unwrappings(value, wrappers):
        if any(path[: len(outer)] == outer for outer in fits):
            continue
        if isinstance(inner, list):
            # The only field's value, without the object around it.
            if len(answer.model_fields) > 1:
                continue
            inner = dict.fromkeys(answer.model_fields, inner)
        try:
            fits[path] = answer.model_validate(_replace_surrogates(inner))
        except ValidationError as error:
            fault = _explain(error, inner, answer)
    if not fits:
        return None, fault
    first, *others = fits.values()
    if any(other != first for other in others):
        keys = ", ".join(f"`{'.'.join(path)[:40]}`" for path in fits)
        return None, f"several answers stand in the object, in {keys}; give one"
    return first, ""


def _unwrappings(
    value: Any, wrappers: frozenset[str], path: tuple[str, ...] = (), depth: int = 0
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A value, and what it holds if it is a wrapper: an answer's name, a call, JSON as a string.

    With each come the keys that lead to it.
    """
    if isinstance(value, str):
        decoded = _decode(value)
        if decoded is not None and depth < MAX_WRAPPERS:
            yield from _unwrappings(decoded, wrappers, path, depth + 1)
    elif isinstance(value, list):
        if len(value) == 1 and depth < MAX_WRAPPERS:
            yield from _unwrappings(value[0], wrappers, path, depth + 1)
        yield path, value
    elif isinstance(value, dict):
        yield path, value
        decoded = {key: _decode(item) for key, item in value.items()}
        if any(item is not None for item in decoded.values()):
            yield path, {key: value[key] if item is None else item for key, item in decoded.items()}
        for key, item in value.items():
            if _fold(key) in wrappers and depth < MAX_WRAPPERS:
                yield from _unwrappings(item, wrappers, (*path, key), depth + 1)


def _decode(text: Any) -> Any:
    """The object or list that stands in a string as JSON, or None."""
    if not isinstance(text, str) or not text.lstrip().startswith(("{", "[", '"')):
        return None
    try:
        value = decode_json(text.strip())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list | str) else None


def _explain(error: ValidationError, value: Any, answer: type[BaseModel]) -> str:
    """The first thing that is wrong with a value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the answer"
    fault = f"{where}: {first['msg']}"
    if first["type"] == "missing" and len(first["loc"]) == 1 and isinstance(value, dict):
        keys = ", ".join(f"`{key[:40]}`" for key in list(value)[:8]) or "none"
        wanted = ", ".join(f"`{key}`" for key in answer.model_fields)
        fault += f" (the keys are {keys}; wanted: {wanted})"
    return fault


def _names_a_key(
    found: FoundObject, written: str, answer: type[BaseModel], wrappers: frozenset[str]
) -> bool:
    """Whether an object that does not fit was meant as the answer."""
    if found.fault is None:
        values = [v for _, v in _unwrappings(found.value, wrappers) if isinstance(v, dict)]
        return any(answer.model_fields.keys() & value.keys() for value in values)
    first = re.search(r"\w+", written)
    return first is not None and (
        first.group() in answer.model_fields or _fold(first.group()) in wrappers
    )


def _ends_line(text: str, at: int) -> bool:
    """Whether nothing but punctuation follows on the line."""
    line_end = text.find("\n", at)
    return not re.search(r"\w", text[at : line_end if line_end >= 0 else len(text)])


def _untag(text: str) -> str:
    """What stands in the tags around a whole text."""
    whole = text
    for pattern in (_WRAPPER_TOKENS, _WRAPPER_TAG):
        if (tag := pattern.fullmatch(text.strip())) is not None:
            own = tag.groupdict()
            name, suffix = own.get("name"), own.get("suffix")
            inner = own["text"] if own.get("solution") is None else own["solution"]
            again = name and re.search(rf"</{name}{suffix or ''}\b", inner, re.IGNORECASE)
            # An answer that is XML may have such a root of its own.
            is_xml = name and not suffix and re.fullmatch(r"\s*<.*>\s*", inner, re.DOTALL)
            if not again and not is_xml:
                text = inner
    return _without_closing_tag(text) if text == whole else text


def _without_closing_tag(text: str) -> str:
    """A text without a closing tag at its end that nothing opens; one in a sentence stays."""
    bare = text.rstrip()
    start = bare.rfind("</")
    tag = _CLOSING_TAG.fullmatch(bare, start) if start > 0 else None
    if tag is None or re.search(rf"</?{tag['name']}\b", bare[:start], re.IGNORECASE):
        return text
    before = bare[:start].rstrip()
    alone = "\n" in bare[len(before) : start]
    ends = before[-1:] in _ENDS_OF_TEXTS and len(before) == start
    return before if alone or ends else text


def _unfence(text: str) -> str | None:
    """What stands in the fence around a whole text, if it is one of text and closes at its end."""
    first = _FENCE.match(text)
    if first is None or first["language"].strip().lower() not in _TEXT_LANGUAGES:
        return None
    inside = False
    for fence in _FENCE.finditer(text, first.end()):
        if len(fence["ticks"]) < len(first["ticks"]):
            continue
        if fence["language"].strip():
            inside = True
        elif inside:
            inside = False
        else:
            return text[first.end() + 1 : fence.start()] if fence.end() == len(text) else None
    return None


def _replace_surrogates(value: Any) -> Any:
    """The value with lone surrogates replaced, which no UTF-8 file could hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {key: _replace_surrogates(item) for key, item in value.items()}
    return value
