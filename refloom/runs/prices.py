"""What calls cost: a bundled table of list prices, under the user's own."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from nodes.state import Usage
from refloom.errors import InputError
from refloom.settings import embedded

MILLION = 1_000_000
DEAREST = 1e9
_KEYS = ("input", "cached_input", "output")
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost, in dollars per million."""

    input: float
    output: float
    cached_input: float | None = None

    def cost(self, usage: Usage) -> float:
        """The dollars of a usage; its cached tokens are part of its prompt's."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        prompt = usage["prompt_tokens"]
        cached = min(usage["cached_tokens"], prompt)
        paid = (prompt - cached) * self.input + cached * cached_price
        return (paid + usage["completion_tokens"] * self.output) / MILLION

    def at_most(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The dollars of that many tokens at the most, whatever of them the cache serves."""
        dearest = max(self.input, self.cached_input or 0.0)
        return (prompt_tokens * dearest + completion_tokens * self.output) / MILLION


FREE = Price(0.0, 0.0)


def line_of(model: str) -> str:
    """A line of a price file, to show how one is written.

    >>> line_of("m")
    '"m" = { input = 1.00, cached_input = 0.50, output = 2.00 }'
    """
    return f"{json.dumps(model)} = {{ input = 1.00, cached_input = 0.50, output = 2.00 }}"


class Prices:
    """Prices by model name. A name it does not know has none; nothing is guessed."""

    def __init__(self, table: Mapping[str, Price]) -> None:
        """`table`: what is given goes before what is built in for embedded models."""
        self._table = dict(table)

    @classmethod
    def load(cls, path: Path | None = None) -> Prices:
        """The bundled table, with the models of the user's TOML file in place of its own. Blocks.

        Raises `InputError` when the file is missing, is no TOML, or has a wrong key or number.
        """
        bundled = files("refloom.runs").joinpath("prices.toml").read_text(encoding="utf-8")
        table = _read(bundled, "the bundled prices.toml")
        if path is not None:
            table |= _read(_text_of(path), str(path))
        return cls(table)

    def of(self, model: str) -> Price | None:
        """The price of a model; a dated name takes that of the name without its date."""
        found = self._table.get(model) or self._table.get(_DATE.sub("", model))
        return found or (FREE if embedded(model) else None)

    def cost(self, model: str, usage: Usage) -> float | None:
        """The dollars of a usage; None when the model's price is unknown."""
        price = self.of(model)
        return None if price is None else price.cost(usage)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text ({error.reason}). Save it as UTF-8") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror or error}. Give --prices a TOML file with "
            f"lines like {line_of('model')}"
        ) from error


def _read(text: str, name: str) -> dict[str, Price]:
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name}: is no TOML ({str(error)[:120]}). A line of it is {line_of('model')}"
        ) from error
    return {model: _price(entry, f"{name}: {model!r}", model) for model, entry in table.items()}


def _price(entry: Any, where: str, model: str) -> Price:
    mend = f"Write {line_of(model)}, in dollars per million tokens"
    if not isinstance(entry, dict):
        raise InputError(f"{where} has no prices but {entry!r}. {mend}")
    for key, value in entry.items():
        if key in _KEYS:
            _check_number(key, value, where)
        elif isinstance(value, dict):
            quoted = f"[{json.dumps(f'{model}.{key}')}]"
            raise InputError(
                f"{where} has a part {key!r}. A name with a dot needs quotes: {quoted}"
            )
        else:
            raise InputError(f"{where} has an unknown key {key!r}; known are {', '.join(_KEYS)}")
    for key in ("input", "output"):
        if key not in entry:
            raise InputError(f"{where} has no {key!r}. {mend}")
    return Price(**{key: float(value) for key, value in entry.items()})


def _check_number(key: str, value: Any, where: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= DEAREST:
        said = repr(value)[:60]
        raise InputError(f"{where} has {key} = {said}; give dollars per million tokens, 0 or more")
