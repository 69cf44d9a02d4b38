"""Checks: criteria that a function decides, by name.

A check is named as `python`, `max_words:80` or, a function of the user's own, `module:function`.
`parse_check` says whether there is such a one, and `apply_checks` has them decided. How a check is
run is up to a `RunCheck`: `run_safe_check` runs those that run and read nothing, and a run brings
one of its own for the others. To add a check, write a function that is like those below, and add
it to `SAFE_CHECKS` or `TRUSTED_CHECKS`.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import textwrap
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from memory.references import Reference
from nodes.criteria import RULES, verdict
from nodes.final_answer import find_final_answer, is_same_answer
from nodes.language import is_loaded, language_of, may_be_told, names_language
from nodes.state import Criterion, Verdict

# Raised when a check of refloom's own passes what it failed before, or fails what it passed.
CHECKS_VERSION = 1
# Characters of a reason that are kept.
MAX_REASON_CHARS = 1000
# A longer file of a schema is another kind of file.
MAX_SCHEMA_BYTES = 1 << 20

# Possessive: what follows never holds what the blanks gave back, and trying takes minutes.
_FENCE = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)[ \t]*+([^`\n]*+)")
_PYTHON_NAMES = ("python", "py", "python3")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
_ASSERT = re.compile(r"^[ \t]*assert\b", re.MULTILINE)
# The file name of what is parsed, by which its warnings are known.
_PARSED = "refloom_check_of_python"


@dataclass(frozen=True, slots=True)
class CheckInput:
    """What a check looks at: its criterion, an instruction, a response, and references."""

    criterion: Criterion
    instruction: str
    response: str
    references: Sequence[Reference]

    @property
    def name(self) -> str:
        """The check by name, with what follows its colon."""
        return self.criterion.get("check") or ""

    @property
    def kind(self) -> str:
        """What stands before the colon."""
        return self.name.partition(":")[0]

    @property
    def reads_references(self) -> bool:
        """Whether it looks at the references."""
        return self.kind == "math" or self.kind not in (*SAFE_CHECKS, *TRUSTED_CHECKS)


RunCheck = Callable[[CheckInput], Awaitable[Verdict]]


class NotApplicable(Exception):
    """A check does not apply to a response; the message says why."""


# What a function makes of a response, an instruction, references, and what follows the check's
# colon: None if it passes, else why not. It raises `NotApplicable`.
Decide = Callable[[str, str, Sequence[Reference], str], str | None]


def json_only(
    response: str, instruction: str, references: Sequence[Reference], _: str
) -> str | None:
    """Fail a response that is not JSON; a fence around it is allowed."""
    try:
        parse_json(response)
    except ValueError as error:
        return f"It is not valid JSON: {error}."
    return None


def parse_json(response: str) -> Any:
    """The JSON value that a response holds, with or without a fence around it.

    Raises `ValueError`.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON value")

    text = response.strip()
    fenced, prose = split_fences(text)
    if len(fenced) == 1 and not prose.strip():
        text = fenced[0][1]
    try:
        return json.loads(text, parse_constant=refuse, parse_int=_read_int)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _read_int(digits: str) -> int | float:
    # Python refuses to read thousands of digits, which JSON allows.
    return int(digits) if len(digits) < 4000 else float(digits)


def split_fences(text: str) -> tuple[list[tuple[str, str]], str]:
    r"""The fenced blocks of a text, each with the words after its fence, and the rest of the text.

    A block that is never closed is part of neither.

    >>> split_fences("So:\n```py\nx = 1\n```\nDone.")
    ([('py', 'x = 1')], 'So:\nDone.')
    """
    blocks: list[tuple[str, str]] = []
    prose: list[str] = []
    body: list[str] = []
    fence = name = ""
    for line in text.split("\n"):
        match = _FENCE.fullmatch(line.rstrip())
        if fence and match and match[1].startswith(fence) and not match[2]:
            blocks.append((name, "\n".join(body)))
            fence = ""
        elif fence:
            body.append(line)
        elif match:
            fence, name, body = match[1], match[2].strip(), []
        else:
            prose.append(line)
    return blocks, "\n".join(prose)


def blocks_of_python(response: str) -> list[str]:
    """The fenced blocks of a response that are named python, without their indent."""
    return [
        textwrap.dedent(body)
        for info, body in split_fences(response)[0]
        if re.split(r"[\s{,]", info, maxsplit=1)[0].casefold() in _PYTHON_NAMES
    ]


def python_blocks(
    response: str, instruction: str, references: Sequence[Reference], _: str
) -> str | None:
    """Fail a block named python that does not parse.

    Blocks with `...`, which stands for what is left out, and with `>>>` are passed over.
    """
    blocks = [b for b in blocks_of_python(response) if "..." not in b and ">>>" not in b]
    if not blocks:
        raise NotApplicable("It has no block of Python that could be parsed.")
    for number, block in enumerate(blocks, 1):
        why = _parse_python(block)
        if why is not None:
            which = f"block {number} of Python" if len(blocks) > 1 else "the block of Python"
            return f"{which[0].upper()}{which[1:]} does not parse: {why}."
    return None


def _parse_python(source: str) -> str | None:
    # Of a text nobody runs, a backslash in a string is no news.
    warnings.filterwarnings("ignore", module=_PARSED)
    try:
        ast.parse(source, filename=f"{_PARSED}.py")
    except SyntaxError as error:
        return f"{error.msg} (line {error.lineno})"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or "it is nested too deeply"
    return None


def final_answer(
    response: str, instruction: str, references: Sequence[Reference], _: str
) -> str | None:
    """Fail a response whose final answer is not the reference's, as a number or word for word."""
    wanted, final = find_answers(response, instruction, references)
    return None if is_same_answer(final, wanted) else describe_answers(final, wanted)


def find_answers(
    response: str, instruction: str, references: Sequence[Reference]
) -> tuple[str, str]:
    """The final answer of the reference, and that of the response, which may be empty.

    The reference is the one with the same instruction, or else the first. Raises `NotApplicable`.
    """
    reference = reference_of(instruction, references)
    wanted = find_final_answer(reference["response"]) if reference else None
    if wanted is None:
        raise NotApplicable("The reference has no final answer.")
    return wanted, find_final_answer(response, guess=True) or ""


def describe_answers(final: str, wanted: str) -> str:
    """Why an answer is not the one wanted. It tells no model what the right one is."""
    if not final:
        return "It has no final answer."
    return f"Its final answer, {final[:100]}, is not the reference's."


def reference_of(instruction: str, references: Sequence[Reference]) -> Reference | None:
    """The reference with the same instruction, or else the first."""
    words = instruction.split()
    same = (r for r in references if r["instruction"].split() == words)
    return next(same, references[0] if references else None)


def same_language(
    response: str, instruction: str, references: Sequence[Reference], _: str
) -> str | None:
    """Fail a response in another language than the instruction's.

    Not applicable where the instruction names a language, and where either is too short or of too
    many languages to tell.
    """
    if not may_be_told(instruction):
        raise NotApplicable("The instruction is too short to tell its language.")
    if names_language(instruction):
        raise NotApplicable("The instruction names a language.")
    prose = split_fences(response)[1]
    if not may_be_told(prose):
        raise NotApplicable("The response is too short to tell its language.")
    language = language_of(instruction)
    answered = None if language is None else language_of(prose)
    if answered is None:
        raise NotApplicable("A language could not be told for certain.")
    if language == answered:
        return None
    return f"It is in another language ({answered}) than the instruction ({language})."


def max_words(
    response: str, instruction: str, references: Sequence[Reference], argument: str
) -> str | None:
    """Fail a response of more words than the argument says."""
    n, most = len(response.split()), int(argument)
    return None if n <= most else f"It has {n} words; {most} are the most it may have."


# Checks that run and read nothing: rows of data and clients of a server may name these alone.
SAFE_CHECKS: dict[str, Decide] = {
    "json": json_only,
    "python": python_blocks,
    "math": final_answer,
    "language": same_language,
    "max_words": max_words,
}
# Those that always come out the same, and take less than a millisecond for so many characters.
QUICK_CHECKS = ("json", "python", "language", "max_words")
MAX_QUICK_CHARS = 10_000
# Checks that read a file, run code, or may take for ever.
TRUSTED_CHECKS = ("json_schema", "python_tests", "regex")
# Checks that stand before an argument: `max_words:80`.
WITH_ARGUMENT = frozenset({"json_schema", "regex", "max_words"})


def parse_check(name: str, *, trusted: bool) -> None:
    """Raise `ValueError` for a check that does not exist or is not permitted here.

    What is not `trusted` may name only checks that run and read nothing. A function of the user's
    own is looked for in a process of its own.
    """
    kind, colon, argument = name.partition(":")
    known = kind in SAFE_CHECKS or kind in TRUSTED_CHECKS
    if not known and not _FUNCTION.fullmatch(name):
        names = ", ".join((*SAFE_CHECKS, *TRUSTED_CHECKS))
        raise ValueError(f"there is no check {name!r}; the checks are {names}, and module:function")
    if not trusted and kind not in SAFE_CHECKS:
        raise ValueError(
            f"the check {name!r} may not be named here, but only one that runs and reads nothing: "
            f"{', '.join(SAFE_CHECKS)}"
        )
    if not known:
        _find_function(name)
    elif kind in WITH_ARGUMENT and not argument.strip():
        raise ValueError(f"the check {kind} needs what to check after a colon: {kind}:..")
    elif kind not in WITH_ARGUMENT and colon:
        raise ValueError(f"the check {kind} takes nothing after a colon")
    elif kind == "max_words":
        # int() reads digits of any script, and refuses thousands of them.
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", argument):
            raise ValueError(f"max_words:{argument[:40]}: give a number of words of at least 1")
    elif kind == "regex":
        _check_pattern(argument)
    elif kind == "json_schema":
        read_schema(argument)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"regex: the pattern cannot be read: {error}") from error


def read_schema(path: str) -> str:
    """The text of a JSON schema that can be used without fetching anything. Blocks.

    Raises `ValueError` for a file that is none.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_SCHEMA_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ValueError(f"json_schema: {path} cannot be read: {why}") from error
    if len(data) > MAX_SCHEMA_BYTES:
        raise ValueError(f"json_schema: {path} is too long for a schema")
    # Imported here: few runs have a schema.
    from nodes.json_schema import check_schema

    try:
        check_schema(text)
    except ValueError as error:
        raise ValueError(f"json_schema: {path}: {error}") from error
    return text


@cache
def _find_function(name: str) -> None:
    """Raise `ValueError` if there is no such function.

    What its module does when it is imported does not reach this process.
    """
    from nodes.check_worker import find_in_new_process

    why = find_in_new_process(name)
    if why is not None:
        raise ValueError(why)


@dataclass(frozen=True, slots=True)
class DefaultCheck:
    """A check that every response is held to, unless the seed's references fail it."""

    check: str
    text: str


DEFAULT_CHECKS: dict[str, DefaultCheck] = {
    "check-python": DefaultCheck("python", "has no block of Python that does not parse"),
    "check-language": DefaultCheck("language", "is in the language of the instruction"),
}


def rule_versions() -> dict[str, str]:
    """The version of each rule and of each check by default: what is asked, and if it is a must."""
    rules = {id_: (rule.text, rule.must) for id_, rule in RULES.items()}
    defaults = DEFAULT_CHECKS.items()
    checks = {id_: (default.check, default.text, CHECKS_VERSION) for id_, default in defaults}
    return {
        id_: sha256(repr(what).encode()).hexdigest()[:12] for id_, what in (rules | checks).items()
    }


def is_check(criterion: Criterion) -> bool:
    """Whether a function decides a criterion."""
    return criterion["judged_by"] == "check"


async def default_checks(
    references: Sequence[Reference], run: RunCheck, *, wanted: bool = True
) -> list[Criterion]:
    """The checks by default, if `wanted`, without those that a seed's own references fail."""
    criteria: list[Criterion] = [
        {
            "id": id_,
            "text": default.text,
            "must": False,
            "reference_id": None,
            "quote": None,
            "judged_by": "check",
            "check": default.check,
        }
        for id_, default in (DEFAULT_CHECKS.items() if wanted else ())
    ]

    async def holds(criterion: Criterion) -> bool:
        for reference in references:
            instruction, response = reference["instruction"], reference["response"]
            result = await run(CheckInput(criterion, instruction, response, [reference]))
            if result["verdict"] == "fail":
                return False
        return True

    return [criterion for criterion in criteria if await holds(criterion)]


def before_rules(criteria: Sequence[Criterion], checks: Sequence[Criterion]) -> list[Criterion]:
    """The criteria with the checks by default where they belong: before the rules."""
    rules = [criterion for criterion in criteria if criterion["judged_by"] == "rule"]
    others = [criterion for criterion in criteria if criterion["judged_by"] != "rule"]
    return [*others, *checks, *rules]


async def apply_checks(
    criteria: Sequence[Criterion],
    instruction: str,
    response: str,
    references: Sequence[Reference],
    run: RunCheck,
) -> list[Verdict]:
    """The verdict of every check among the criteria, in their order."""
    inputs = [CheckInput(c, instruction, response, references) for c in criteria if is_check(c)]
    return list(await asyncio.gather(*map(run, inputs)))


def does_not_apply(check: CheckInput) -> Verdict | None:
    """The verdict on a response that a check by default has nothing to say of; None if it has.

    It takes no time to find out, so it is not worth a place in a journal.
    """
    why = None
    if check.kind == "python" and "```" not in check.response and "~~~" not in check.response:
        why = "It has no block of Python that could be parsed."
    elif check.kind == "language" and not may_be_told(check.instruction):
        why = "The instruction is too short to tell its language."
    return None if why is None else verdict(check.criterion["id"], "not_applicable", why)


def decide_safely(check: CheckInput) -> Verdict:
    """The verdict of a check that runs and reads nothing; unknown for any other. Blocks."""
    id_, decide = check.criterion["id"], SAFE_CHECKS.get(check.kind)
    if decide is None:
        return verdict(id_, "unknown", f"The check {check.name} is made in a run only.")
    argument = check.name.partition(":")[2]
    try:
        why = decide(check.response, check.instruction, check.references, argument)
    except NotApplicable as reason:
        return verdict(id_, "not_applicable", str(reason))
    return verdict(id_, "pass" if why is None else "fail", (why or "")[:MAX_REASON_CHARS])


async def run_safe_check(check: CheckInput) -> Verdict:
    """The `RunCheck` of a graph without a run: it knows checks that run and read nothing.

    A thread is used for what may take longer than handing it over does.
    """
    known = does_not_apply(check)
    if known is not None:
        return known
    length = len(check.instruction) + len(check.response)
    quick = check.kind in QUICK_CHECKS and length <= MAX_QUICK_CHARS
    if quick and (check.kind != "language" or is_loaded()):
        return decide_safely(check)
    return await asyncio.to_thread(decide_safely, check)


def blocks_with_asserts(response: str) -> str:
    """The program that `python_tests` runs: the blocks named python, one after another.

    Raises `NotApplicable` if none of them has an assert.
    """
    program = "\n\n".join(blocks_of_python(response))
    if not _ASSERT.search(program):
        raise NotApplicable("It has no block of Python with an assert.")
    return program
