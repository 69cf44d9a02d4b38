"""What is written on the command line, read and judged."""

from __future__ import annotations

import argparse
import re
import sys

from refloom.serve.api_keys import LOCAL_USER, NAME_PATTERN


def count(text: str) -> int:
    """A whole number over 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number over 0")
    return min(int(text), sys.maxsize)


def port(text: str) -> int:
    """A port."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port; give 1 to 65535")
    return int(text)


def name(text: str) -> str:
    """A user's name."""
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: 1 to 64 letters, digits, _ . @ -")
    if text == LOCAL_USER:
        raise argparse.ArgumentTypeError(f"{text!r} is who asks where there are no keys")
    return text


def share(text: str) -> float:
    """A number over 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not over 0 and at most 1")
    return value
