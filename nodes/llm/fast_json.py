"""Fast JSON by orjson, with the standard library for what orjson refuses.

orjson refuses lone surrogates, which models and users do write, and integers over 64 bits.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def dumps(value: Any) -> bytes:
    r"""Compact JSON as UTF-8; a lone surrogate becomes a question mark.

    >>> dumps({"a": ["潮", None]}).decode(), dumps("\ud83d!")
    ('{"a":["潮",null]}', b'"?!"')
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def loads(data: bytes | str) -> Any:
    r"""The value of a JSON text. Raises `ValueError`.

    >>> loads(b'{"a": "\\ud83d"}') == {"a": "\ud83d"}
    True
    """
    try:
        return orjson.loads(data)
    except ValueError:
        return json.loads(data)
