r"""The final answer of a response to a problem, and whether two answers are the same."""

from __future__ import annotations

import re
from fractions import Fraction

# A longer one is no final answer.
MAX_ANSWER_CHARS = 200

_MARKED = re.compile(
    r"#{4}[ \t]*(?P<hashes>[^\n#]+)\s*\Z"
    r"|\b(?:final answer|answer|result|solution)\b(?:[ \t]+(?:is|to the \w+ is))?[ \t]*"
    r"(?:[:=]|(?<=is))[ \t*]*(?P<words>[^\n]+)",
    re.IGNORECASE,
)
_NUMBER = r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+(?!\.?\d))?%?"
_LAST_NUMBER = re.compile(rf"(?<![\w.])[$€£]?{_NUMBER}(?![\w])")
_WHOLE_NUMBER = re.compile(rf"[$€£]?{_NUMBER}")
_AFTER_EQUALS = re.compile(r"=[ \t]*(?P<value>[^=\n]{1,60}?)[\s.*$]*\Z")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_FRAC = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d{1,30})\s*\}\s*\{\s*(\d{1,30})\s*\}")


def find_final_answer(text: str, *, guess: bool = False) -> str | None:
    r"""The final answer that a text marks, the last one; None if there is none.

    It stands in a box, after `####`, after "the answer is", or at the end after an equals sign, or
    is the whole text. With `guess` the last number will do.

    >>> find_final_answer(r"So we get \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> find_final_answer("6 * 7 = 42.\nThe answer is **42**.")
    '42'
    >>> find_final_answer("It was in 1945.") is None
    True
    """
    tail = text[-20_000:]
    boxed = _last_box(tail)
    if boxed is not None:
        return boxed
    marked = [m["hashes"] or m["words"] for m in _MARKED.finditer(tail)]
    for candidate in reversed(marked):
        answer = _clean(candidate)
        # "The answer is the sum of .." says where it is, not what it is.
        if answer and (len(answer.split()) <= 4 or _LAST_NUMBER.match(answer)):
            return _first_value(answer)
    whole = _clean(tail)
    if _WHOLE_NUMBER.fullmatch(whole):
        return whole
    if found := _AFTER_EQUALS.search(tail):
        return _clean(found["value"]) or None
    if guess:
        numbers = _LAST_NUMBER.findall(tail)
        return numbers[-1] if numbers else None
    return None


def _last_box(text: str) -> str | None:
    r"""What the last `\boxed{..}` holds."""
    begin = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if begin < 0:
        return None
    start = text.index("{", begin) + 1
    depth = 1
    for at in range(start, min(len(text), start + 2 * MAX_ANSWER_CHARS)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at].strip()[:MAX_ANSWER_CHARS] or None
    return None


def _first_value(answer: str) -> str:
    """A number without the words after it, which name what is counted."""
    number = _LAST_NUMBER.match(answer)
    rest = answer[number.end() :] if number else ""
    return number[0] if number and re.match(r"\s+[A-Za-z]|\W*\Z", rest) else answer


def _clean(text: str) -> str:
    text = text.strip().strip("*_` \t")
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.rstrip(".").endswith(closing) and text.startswith(opening):
            text = text.rstrip(".")[len(opening) : -len(closing)]
    return text.strip().rstrip(".;").strip("*_` \t")[:MAX_ANSWER_CHARS]


def is_same_answer(one: str, other: str) -> bool:
    r"""Whether two answers are the same number, or the same text but for how it is set.

    >>> is_same_answer(r"\frac{1}{2}", "0.5"), is_same_answer("1,000", "1000")
    (True, True)
    >>> is_same_answer("x + 1", "x+1"), is_same_answer("3", "4")
    (True, False)
    """
    a, b = _fold(one), _fold(other)
    if a == b:
        return bool(a)
    first, second = _read_number(a), _read_number(b)
    return first is not None and first == second


def is_same_expression(one: str, other: str) -> bool:
    r"""Whether two answers are the same expression, as `math-verify` tells it.

    False if that is not installed. It may take for ever: call it where it can be ended.
    """
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError:
        return False
    config = [LatexExtractionConfig()]
    # Its own time limits are signals, which only a main thread may set.
    first, second = (
        parse(f"${_clean(text)}$", config, parsing_timeout=None) for text in (one, other)
    )
    return bool(first and second and verify(first, second, timeout_seconds=None))


def _fold(text: str) -> str:
    text = _TEXT.sub(r"\1", _clean(text))
    text = text.replace("−", "-").replace(r"\%", "%").replace(r"\$", "").replace(r"\!", "")
    text = re.sub(r"\\left|\\right|\\,|\\;|\\ ", "", text)
    text = _FRAC.sub(r"\1/\2", text)
    text = re.sub(r"[$€£\s]", "", text).casefold()
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def _read_number(text: str) -> Fraction | None:
    percent = text.endswith("%")
    if not re.fullmatch(r"[-+]?\d{1,100}(?:\.\d{1,100})?(?:/\d{1,100})?%?", text):
        return None
    numerator, _, denominator = text.rstrip("%").partition("/")
    if denominator and not int(denominator):
        return None
    value = Fraction(numerator) / (int(denominator) if denominator else 1)
    return value / 100 if percent else value
