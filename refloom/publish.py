"""The commands that give a run's rows away: export, push."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError, Namespace
from functools import partial
from typing import Any

from refloom.data.rows import BadFile
from refloom.shelf import say

WHY_NONE = {
    "preference": "no accepted row had an earlier attempt that failed a `must` criterion",
    "kto": "no row was accepted",
}


def parts(text: str) -> dict[str, float]:
    """Shares of an export, for argparse."""
    from refloom.data.split import shares

    try:
        return shares(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{error}; give train=0.95,validation=0.05") from error


def export(given: Namespace, flags: dict[str, Any]) -> int:
    """Write a run's accepted rows as training data."""
    from refloom.data.export import export as write
    from refloom.runs.kept import records

    if given.file.suffix not in (".jsonl", ".parquet"):
        raise BadFile(f"{given.file}: exports are written as .jsonl or .parquet; name it so")
    journal = given.directory / "journal.sqlite"
    # Where there is no run, that is to be said before any file is begun.
    next(records(journal, "accepted"), None)
    try:
        written = write(
            partial(records, journal, "accepted"),
            given.file,
            given.format,
            parts=given.split,
            most=given.max_rows,
            random_seed=given.random_seed,
        )
    except OSError as error:
        raise BadFile(f"{given.file}: cannot be written ({error.strerror or error})") from error
    for path, count in written.items():
        say(f"{count} rows in {path}")
        if not count:
            why = WHY_NONE.get(given.format, "no row was accepted")
            why = "there are too few seeds" if given.split and sum(written.values()) else why
            sys.stderr.write(f"{path} is empty: {why}\n")
    return 0
