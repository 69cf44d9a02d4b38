"""Accepted rows as training data: one pure function a format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Record = dict[str, Any]
Format = Callable[[Record], dict[str, Any]]


def messages(record: Record) -> dict[str, Any]:
    """TRL's conversational shape.

    >>> messages({"instruction": "Why?", "response": "So."})["messages"][1]
    {'role': 'assistant', 'content': 'So.'}
    """
    return {
        "messages": [
            {"role": "user", "content": record["instruction"]},
            {"role": "assistant", "content": record["response"]},
        ]
    }


# To add a format: write a function from a record to a row and name it here.
FORMATS: dict[str, Format] = {"messages": messages}


def rows(records: Iterable[str], format_: str) -> Iterator[str]:
    """The JSON lines of an export, in the order of the records."""
    make = FORMATS[format_]
    for line in records:
        yield json.dumps(make(json.loads(line)), ensure_ascii=False)
