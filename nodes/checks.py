"""Checks: criteria that a function decides, by name."""

from __future__ import annotations

import re
from importlib import import_module

# Checks that run and read nothing; rows of data and clients of a server may name these alone.
SAFE_CHECKS = ("json", "python", "math", "language", "max_words")
TRUSTED_CHECKS = ("json_schema", "python_tests", "regex")
# Checks that stand before an argument: `max_words:80`.
WITH_ARGUMENT = frozenset({"json_schema", "regex", "max_words"})
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def parse_check(name: str, *, trusted: bool) -> None:
    """Raise `ValueError` for a check that does not exist or is not permitted here.

    What is not `trusted` may name only checks that run and read nothing.
    """
    kind, colon, argument = name.partition(":")
    known = kind in (*SAFE_CHECKS, *TRUSTED_CHECKS)
    if not known and not _FUNCTION.fullmatch(name):
        names = ", ".join((*SAFE_CHECKS, *TRUSTED_CHECKS))
        raise ValueError(f"there is no check {name!r}; the checks are {names}, and module:function")
    if not trusted and kind not in SAFE_CHECKS:
        raise ValueError(
            f"the check {name!r} may not be named here, but only one that runs and reads nothing: "
            f"{', '.join(SAFE_CHECKS)}"
        )
    if not known:
        _find_function(kind, argument)
    elif kind in WITH_ARGUMENT and not argument.strip():
        raise ValueError(f"the check {kind} needs what to check after a colon: {kind}:..")
    elif kind not in WITH_ARGUMENT and colon:
        raise ValueError(f"the check {kind} takes nothing after a colon")
    elif kind == "max_words" and not (argument.isdecimal() and int(argument)):
        raise ValueError(f"max_words:{argument}: give a number of words of at least 1")


def _find_function(module: str, function: str) -> None:
    """Raise `ValueError` if there is no such function."""
    try:
        found = getattr(import_module(module), function, None)
    except ImportError as error:
        raise ValueError(f"there is no module {module!r} ({error})") from error
    if not callable(found):
        raise ValueError(f"there is no function {function!r} in {module!r}")
