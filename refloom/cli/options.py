"""What the commands share: flags made from settings, types of values, lines of output."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from refloom.data.read import ReadReport
from refloom.serve.api_keys import LOCAL_USER, NAME_PATTERN
from refloom.settings import JUDGE_SETTINGS, Settings

# Skipped rows and warnings that are listed one by one.
MAX_LISTED = 20

T = TypeVar("T")


def add_setting(group: Any, name: str) -> None:
    """Add a flag for a field of `Settings`; its value stays text, which pydantic parses."""
    field = Settings.model_fields[name]
    flag = name.replace("_", "-")
    help_text = (field.description or "").replace("%", "%%")
    if field.annotation is bool:
        default = field.default is True
        group.add_argument(
            f"--no-{flag}" if default else f"--{flag}",
            dest=name,
            action="store_const",
            const=not default,
            default=argparse.SUPPRESS,
            help=("do not " if default else "") + help_text,
        )
        return
    if field.annotation == tuple[str, ...] or name == "max_tokens_per_call":
        group.add_argument(
            f"--{flag}",
            dest=name,
            default=argparse.SUPPRESS,
            nargs="+",
            metavar="STAGE=N" if name == "max_tokens_per_call" else "FILE",
            help=help_text,
        )
        return
    if field.default not in (None, ...) and field.default_factory is None:
        help_text += f" (default: {field.default})"
    group.add_argument(
        f"--{flag}", dest=name, default=argparse.SUPPRESS, metavar=name.upper(), help=help_text
    )


def add_judge_settings(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a judge of finished rows; without them it is the run's own judge."""
    group = parser.add_argument_group("judge (default: as in the run)")
    for name in JUDGE_SETTINGS:
        add_setting(group, name)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the flag that has a command write what it says as JSON."""
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def add_skip_bad_lines(parser: argparse.ArgumentParser) -> None:
    """Add the flag that has bad lines skipped."""
    parser.add_argument(
        "--skip-bad-lines", action="store_true", help="count and skip lines that cannot be parsed"
    )


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return min(int(text), sys.maxsize)


def port(text: str) -> int:
    """Parse a port number."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not a port; give 1 to 65535")
    return int(text)


def user_name(text: str) -> str:
    """Parse the name of a user of the server."""
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a user name: 1 to 64 letters, digits, _ . @ -"
        )
    if text == LOCAL_USER:
        raise argparse.ArgumentTypeError(f"{text!r} is reserved for a server without keys")
    return text


def ratio(text: str) -> float:
    """Parse a number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and at most 1")
    return value


def print_line(text: str) -> None:
    """Write a result to stdout."""
    sys.stdout.write(text + "\n")


def print_json(value: object) -> None:
    """Write a result to stdout as indented JSON."""
    print_line(json.dumps(value, indent=2, ensure_ascii=False))


def print_result(value: T, describe: Callable[[T], str], *, as_json: bool) -> None:
    """Write a result to stdout as JSON, or as text."""
    if as_json:
        print_json(value)
    else:
        print_line(describe(value))


def warn_of_skipped_rows(report: ReadReport) -> None:
    """List skipped rows with the reason on stderr, the first `MAX_LISTED` of them."""
    for row in report.skipped[:MAX_LISTED]:
        sys.stderr.write(f"left out: {row['file']}: line {row['line']}: {row['why']}\n")
    if report.skipped_count > MAX_LISTED:
        sys.stderr.write(f"left out: {report.skipped_count - MAX_LISTED} more\n")
