"""JSON schemas that fetch nothing: all that they refer to stands in them."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import EMPTY_REGISTRY


def check_schema(text: str) -> None:
    """Raise `ValueError` for a text that is no schema, or one that refers to another document."""
    try:
        _load(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except SchemaError as error:
        raise ValueError(f"is no JSON schema: {error.message[:200]}") from error


def find_fault(text: str, value: Any) -> str | None:
    """Why a value does not fit a schema; None if it does.

    Raises `ValueError` where the schema refers to what it does not hold.
    """
    try:
        fault = best_match(_load(text).iter_errors(value))
    except Unresolvable as error:
        raise ValueError(f"the schema refers to what it does not hold: {error}") from error
    if fault is None:
        return None
    return f"At {fault.json_path[:100]}: {fault.message[:300]}"


@lru_cache(maxsize=32)
def _load(text: str) -> Any:
    schema = json.loads(text)
    if not isinstance(schema, dict | bool):
        raise ValueError("is no JSON schema: it is neither an object nor true or false")
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    for reference in _references(schema):
        if not reference.startswith("#") and not _is_inside(reference, schema):
            raise ValueError(
                f"refers to {reference[:100]!r}, and nothing is fetched; put it into $defs"
            )
    # With a registry of its own a validator never fetches.
    registry: Registry[Any] = EMPTY_REGISTRY
    return kind(schema, registry=registry)


def _references(schema: Any) -> list[str]:
    """Every reference in a schema, wherever in it."""
    found, rest = [], [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            found += [
                part[key]
                for key in ("$ref", "$dynamicRef", "$recursiveRef")
                if isinstance(part.get(key), str)
            ]
            rest += part.values()
        elif isinstance(part, list):
            rest += part
    return found


def _is_inside(reference: str, schema: Any) -> bool:
    """Whether a reference names a part of the schema by that part's own name."""
    name = reference.partition("#")[0]
    rest = [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            own = part.get("$id")
            if isinstance(own, str) and (own == name or own.rstrip("#").endswith(f"/{name}")):
                return True
            rest += part.values()
        elif isinstance(part, list):
            rest += part
    return False
