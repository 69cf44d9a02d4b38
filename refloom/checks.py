"""What a setting's value has to be, beyond its type; each check raises for pydantic to tell."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import PydanticCustomError

PRESETS = ("quick", "thorough", "refed")
# What a row of a reference or seed may be read from, under whatever name a file has for it.
COLUMNS = (
    *("instruction", "input", "response", "output", "messages", "conversations"),
    *("id", "source", "license", "tags"),
)

# What may differ when a run is taken up again; anything else would make other rows.
MAY_DIFFER = frozenset(
    {
        *("concurrency", "rpm", "tpm", "timeout", "max_cost", "max_tokens", "prices"),
        *("engine", "workers", "ray_address"),
        *("max_failure_rate", "target", "limit", "quiet"),
        *("memory", "reuse", "preset"),
    }
)

# The settings that the commands which ask a judge take.
ASKING = (
    *("judge_model", "judge_method", "base_url", "judge_base_url", "concurrency", "rpm", "tpm"),
    *("timeout", "max_cost", "max_tokens", "prices", "random_seed", "quiet"),
)

_SECRET = re.compile("key|token|secret|passw|auth|credential|cookie", re.IGNORECASE)


def without_secrets(value: Any) -> Any:
    """The value, with what is no number hidden where it stands under the name of a secret.

    >>> without_secrets({"extra_body": {"api_keys": ["sk-1"], "top_k": 5, "max_tokens": 9}})
    {'extra_body': {'api_keys': '(hidden)', 'top_k': 5, 'max_tokens': 9}}
    """
    if isinstance(value, list):
        return [without_secrets(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        name: "(hidden)"
        if isinstance(part, str | list | dict) and _SECRET.search(name)
        else without_secrets(part)
        for name, part in value.items()
    }


def not_blank(text: str | None) -> str | None:
    """A text that says something."""
    if text is not None and not text.strip():
        raise PydanticCustomError("blank", "it is blank")
    return text


def address(url: str | None) -> str | None:
    """An address of a server, without a slash at its end."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        raise PydanticCustomError("address", "give an address such as http://127.0.0.1:8000/v1")
    return url.rstrip("/")


def known_preset(name: str | None) -> str | None:
    """The name of a preset there is."""
    if name is not None and name not in PRESETS:
        raise PydanticCustomError("preset", f"there is none of this name; there are {PRESETS}")
    return name


def columns(given: Any) -> Any:
    """Names of columns by what they hold, from text such as `instruction=question,response=a`."""
    if isinstance(given, str):
        pairs = [part.partition("=")[::2] for part in given.split(",") if part.strip()]
        given = {name.strip(): column.strip() for name, column in pairs}
        if len(given) < len(pairs):
            raise PydanticCustomError("columns", "it names something twice")
    if isinstance(given, dict):
        if {"response", "output"} <= given.keys():
            raise PydanticCustomError("columns", "response and output are one thing; map one")
        for name, column in given.items():
            if name not in COLUMNS:
                raise PydanticCustomError(
                    "columns",
                    "{name} cannot be mapped; give instruction=COLUMN,response=COLUMN of {known}",
                    {"name": repr(name), "known": ", ".join(COLUMNS)},
                )
            if not column:
                raise PydanticCustomError(
                    "columns", "{name} is given no column", {"name": repr(name)}
                )
    return given
