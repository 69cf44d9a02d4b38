"""Telling a model's thoughts from its answer, where both come in one text.

A model that thinks puts marks around its thoughts; the template of its prompt often holds the
opening one, so that only the closing one comes. The answer begins behind the last closing mark,
whether or not the thoughts were opened.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple


class UnclearThoughts(ValueError):
    """It cannot be told where thoughts end and the answer begins; the message says why."""


class Marks(NamedTuple):
    """How thoughts begin and end, as regular expressions.

    A text without `word`, in small letters, holds no marks that count. `plain` marks stand in
    ordinary texts too: in an answer about XML, say. They count where they open a text. A closing
    one that is a tag also counts on a line of its own, if nothing opens it. `usual` ones are plain
    marks that are tags of HTML or of many a format: they count only as the one pair that opens a
    text, and not at all where the prompt holds them.
    """

    word: str
    opening: str
    closing: str
    plain: bool = False
    usual: bool = False


# One line a form. Behind it: a model whose template or output has it.
MARKS = (
    # DeepSeek R1, Qwen 3
    Marks("think", r"<think(?:ing)?(?:\s[^<>]*)?>", r"<\s*[/\\]\s*think(?:ing)?\s*>"),
    # The same from a gateway that escapes HTML.
    Marks("&lt;", r"&lt;think(?:ing)?&gt;", r"&lt;/think(?:ing)?&gt;"),
    Marks("seed:think", r"<seed:think>", r"</seed:think>"),  # Seed-OSS
    Marks("think:opensource", r"<think:opensource>", r"</think:opensource>"),  # Hunyuan 3
    Marks("longcat_think", r"<longcat_think>", r"</longcat_think>"),  # LongCat
    Marks("ifm|think", r"<ifm\|think\w*>", r"</ifm\|think\w*>"),  # K2 Horizon
    Marks("think]", r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    Marks("think▷", r"◁think▷", r"◁/think▷"),  # Kimi
    Marks("[unused1", r"\[unused16\]", r"\[unused17\]"),  # Pangu
    Marks("<|inner_", r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    Marks("_thinking|>", r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    Marks("channel", r"<\|channel>", r"<channel\|>"),  # Gemma 4
    Marks("_of_thought|>", r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1
    Marks("antthinking>", r"<antthinking>", r"</antthinking>"),  # Claude
    Marks("think|>", r"<\|think\|>", r"<\|/think\|>"),
    # Harmony (gpt-oss): thoughts end where another channel begins.
    Marks("<|channel|>", r"<\|channel\|>analysis", r"<\|channel\|>(?:final|comm)[^<]*"
          r"(?:<\|constrain\|>[^<]*)?<\|message\|>"),
    # The same from servers that leave special tokens out.
    Marks("analysis", r"(?-i:analysis(?=[A-Z]))", r"assistantfinal", plain=True),
    Marks("thought\n", r"(?-i:thought\n)", r"<channel\|>", plain=True),  # Gemma 4
    Marks("thought", r"<thoughts?>", r"</thoughts?>", plain=True),  # EXAONE Deep, Gemini
    Marks("reasoning>", r"<reasoning>", r"</reasoning>", plain=True),  # Reka Flash
    Marks("reflection>", r"<reflection>", r"</reflection>", plain=True),  # Reflection Llama
    Marks("scratchpad>", r"<scratchpad>", r"</scratchpad>", plain=True),  # asked for in prompts
    Marks("my thought process:", r"Here(?:'s| is) my thought process:",
          r"Here(?:'s| is) my response:", plain=True),  # Granite 3
    Marks("analysis>", r"<analysis>", r"</analysis>", plain=True, usual=True),  # Claude, Grok
    # Open WebUI
    Marks("<details", r"<details\s[^<>]*\btype=[\"']reasoning\b[^<>]*>", r"</details>", plain=True,
          usual=True),
)  # fmt: skip


# Tokens of Harmony between its channels.
_HARMONY = re.compile(r"<\|(?:start\|>assistant|(?:message|end|start)\|>)")


class _Form(NamedTuple):
    marks: Marks
    opening: re.Pattern[str]
    closing: re.Pattern[str]
    # A closing mark of a plain form on a line of its own.
    lone: re.Pattern[str] | None

    @property
    def is_tag(self) -> bool:
        return not self.marks.plain or self.lone is not None


def _compile(marks: Marks) -> _Form:
    flags = re.IGNORECASE | re.DOTALL
    lone = None
    if marks.plain and not marks.usual and marks.opening.startswith("<"):
        lone = re.compile(rf"^[^\S\n]*{marks.closing}[^\S\n]*$", flags | re.MULTILINE)
    return _Form(marks, re.compile(marks.opening, flags), re.compile(marks.closing, flags), lone)


_FORMS = [_compile(marks) for marks in MARKS]


def _forms_in(text: str, but: Collection[str] = ()) -> list[_Form]:
    """The forms of which a text may hold a mark: mostly none, which is found out fast."""
    return [form for form in _forms_by_word(text) if form.marks.word not in but]


# A prompt is looked at twice in a row, and its first message is that of the next prompt.
@lru_cache(maxsize=16)
def _forms_by_word(text: str) -> tuple[_Form, ...]:
    lower = text.lower()
    return tuple([form for form in _FORMS if form.marks.word in lower])


def has_thinking_mark(text: str) -> bool:
    """Whether a text holds a tag that would be taken for a mark of thoughts in an answer.

    >>> has_thinking_mark("Cut at </think>."), has_thinking_mark("I think.")
    (True, False)
    """
    return any(
        form.is_tag and (form.opening.search(text) or form.closing.search(text)) is not None
        for form in _forms_in(text)
    )


def find_usual_marks(text: str) -> frozenset[str]:
    """The words of the usual marks that a text holds: in an answer to it they are its own.

    >>> find_usual_marks("Put your <analysis> before the answer.")
    frozenset({'analysis>'})
    """
    return frozenset(
        form.marks.word
        for form in _forms_in(text)
        if form.marks.usual and (form.opening.search(text) or form.closing.search(text))
    )


def find_answer(text: str, usual: Collection[str] = ()) -> int:
    r"""Where the answer begins in a text that may open with thoughts; 0 if there are none.

    `usual` are the usual marks of the prompt, which do not count. Raises `UnclearThoughts` if
    thoughts are opened and not closed, or if the last closing mark is quoted, so that it may be a
    part of the answer.

    >>> text = "<think>Two?</think> No.</think>\nThree."
    >>> text[find_answer(text) :]
    '\nThree.'
    """
    forms = _forms_in(text, usual)
    for form in forms:
        marks = [*form.opening.finditer(text), *form.closing.finditer(text)]
        if form.marks.usual and len(marks) > 2 and _opening(form, text, 0) is not None:
            raise UnclearThoughts(
                f"more marks follow {marks[0].group()!r}: what is answer and what is thought is "
                "unclear"
            )
    closing = [mark for form in forms if (mark := _last_closing(form, text)) is not None]
    start = 0
    if closing:
        last = max(closing, key=lambda mark: mark.end())
        if _is_quoted(text, last):
            raise UnclearThoughts(
                f"{last.group()!r} stands in quotes: what is answer and what is thought is unclear"
            )
        start = last.end()
    for form in forms:
        opened = _opening(form, text, start)
        # Behind other thoughts, a pair of usual tags is a part of the answer.
        usual_pair = form.marks.usual and opened and form.closing.search(text, opened.end())
        if opened is not None and not usual_pair:
            raise UnclearThoughts(f"thoughts are opened by {opened.group()!r} and not closed")
    return start


def find_thoughts(text: str, usual: Collection[str] = ()) -> str:
    r"""The thoughts that open a text, without their marks; "" if there are none.

    `usual` is as for `find_answer`, which raises the same.

    >>> find_thoughts("<think>Two tides?</think><think>Yes.</think>\nSo it is.")
    'Two tides? Yes.'
    """
    thoughts = text[: find_answer(text, usual)]
    for form in _forms_in(thoughts, usual):
        if not form.marks.plain:
            thoughts = form.closing.sub(" ", form.opening.sub("", thoughts))
    return strip_marks(_HARMONY.sub("", thoughts))


def strip_marks(thoughts: str) -> str:
    r"""Thoughts without marks around them; what they say of marks stays.

    >>> strip_marks("<think>\nIt asks about <think>.\n</think>")
    'It asks about <think>.'
    """
    thoughts = thoughts.removeprefix("\ufeff").strip()
    for form in _forms_in(thoughts):
        if (opened := form.opening.match(thoughts)) is not None:
            thoughts = thoughts[opened.end() :].strip()
        for closed in form.closing.finditer(thoughts):
            if closed.end() == len(thoughts):
                thoughts = thoughts[: closed.start()].strip()
        if form.opening.match(thoughts) is not None and _ends_with(form.closing, thoughts):
            # Some servers put marks around thoughts that have them already.
            return strip_marks(thoughts)
    return thoughts


def _ends_with(closing: re.Pattern[str], text: str) -> bool:
    return any(mark.end() == len(text) for mark in closing.finditer(text))


def find_thinking_marks(text: str, usual: Collection[str] = ()) -> list[tuple[int, int]]:
    """The spans of the marks that count in a text, some of them."""
    forms = _forms_in(text, usual)
    marks = [_last_closing(form, text) for form in forms]
    marks += [_opening(form, text, 0) for form in forms]
    for form in forms:
        if not form.marks.plain:
            marks += [*form.opening.finditer(text), *form.closing.finditer(text)]
    return [mark.span() for mark in marks if mark is not None]


def _opening(form: _Form, text: str, start: int) -> re.Match[str] | None:
    """The first opening mark that counts at or behind a position."""
    if not form.marks.plain:
        return form.opening.search(text, start)
    while start < len(text) and text[start].isspace():
        start += 1
    return form.opening.match(text, start)


def _last_closing(form: _Form, text: str) -> re.Match[str] | None:
    """The last closing mark that counts."""
    marks = form.closing.finditer(text)
    if form.marks.plain and _opening(form, text, 0) is None:
        if form.lone is None:
            return None
        first = form.opening.search(text)
        marks = form.lone.finditer(text, 0, len(text) if first is None else first.start())
    last = None
    for last in marks:  # noqa: B007 - the last one is wanted
        pass
    return last


def _is_quoted(text: str, mark: re.Match[str]) -> bool:
    """Whether a mark is spoken of: in quotes on its line, or inside a block of code."""
    before, after = text[: mark.start()], text[mark.end() :]
    line = before[before.rfind("\n") + 1 :]
    rest = after.partition("\n")[0]
    if line.count("`") % 2 and "`" in rest:
        return True
    if any(line.count(quote) % 2 and rest.startswith(quote) for quote in "\"'"):
        return True
    return all(len(re.findall(r"^[^\S\n]*```", part, re.M)) % 2 for part in (before, after))
