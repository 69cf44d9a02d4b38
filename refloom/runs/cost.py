"""What calls cost, and caps on dollars and tokens.

Prices come from a bundled table and the user's own file. `Budget` keeps the caps: the most a call
may use is reserved before it is sent, and replaced by what it used.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nodes.context import is_embedded
from nodes.llm import Answer, Call
from nodes.llm.protocol import schema_of
from nodes.llm.provider import provider_of
from nodes.state import Usage
from refloom.errors import BudgetSpent, InputError
from refloom.settings import DEFAULT_TIER, FLEX_TIER

MILLION = 1_000_000
MAX_PRICE = 1e9
PRICE_KEYS = ("input", "cached_input", "cache_write", "output")
# Providers who make what they sell: their price is that of the name alone.
MAKERS = ("anthropic", "deepseek", "google_genai", "mistralai", "xai")
_DATE = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$", re.ASCII)

# Dollars are summed as whole picodollars, so that reserving and giving back leaves exactly nothing.
PICO = 10**12
# More than English or code takes (about 0.25), and than most scripts do.
TOKENS_PER_BYTE = 0.4
# What a prompt takes beside its text: the marks of a chat, and how the schema is written.
TOKENS_PER_CALL = 64
_MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost, in dollars per million; `flex` is the price in that tier.

    Without prices of their own, tokens that are read from the prompt cache or written to it cost as
    much as other input, and calls in any tier as much as those in the default one.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    flex: Price | None = None

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Price:
        """A price from plain values, as `dataclasses.asdict` gives them."""
        flex = entry.get("flex")
        return cls(**{**entry, "flex": None if flex is None else cls(**flex)})

    def in_tier(self, tier: str | None) -> Price:
        """The price of calls in a service tier."""
        return self.flex if tier == FLEX_TIER and self.flex is not None else self

    def cost(self, usage: Usage) -> float:
        """The dollars of a usage; its cached and cache-written tokens are part of its prompt's."""
        prompt = usage["prompt_tokens"]
        cached = min(usage["cached_tokens"], prompt)
        written = min(usage.get("cache_write_tokens", 0), prompt - cached)
        prompt_cost = (prompt - cached - written) * self.input
        prompt_cost += cached * _or_else(self.cached_input, self.input)
        prompt_cost += written * _or_else(self.cache_write, self.input)
        return (prompt_cost + usage["completion_tokens"] * self.output) / MILLION

    def max_cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The most dollars so many tokens can cost, whatever of the prompt is cached."""
        prompt_price = max(self.input, self.cached_input or 0.0, self.cache_write or 0.0)
        return (prompt_tokens * prompt_price + completion_tokens * self.output) / MILLION


def _or_else(price: float | None, default: float) -> float:
    return default if price is None else price


FREE = Price(0.0, 0.0)


class Prices:
    """Prices by model name. A name that is not in the table has none; nothing is guessed."""

    def __init__(self, table: Mapping[str, Price]) -> None:
        self._table = dict(table)

    @classmethod
    def load(cls, path: Path | None = None) -> Prices:
        """The bundled table, with the models of the user's TOML file in place of its own. Blocks.

        Raises `InputError` if the file is missing, is not TOML, or has a wrong key or number.
        """
        bundled = files("refloom.runs").joinpath("prices.toml").read_text(encoding="utf-8")
        table = _parse_prices(bundled, "the bundled prices.toml")
        if path is None:
            return cls(table)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: is not UTF-8 text ({error.reason}). Save it as UTF-8"
            ) from error
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read: {error.strerror or error}. Give --prices a TOML file "
                f"with lines like {example_line('model')}"
            ) from error
        return cls(table | _parse_prices(text, str(path)))

    def get(self, model: str) -> Price | None:
        """The price of a model; without one of its own, that without its date or its maker."""
        bare = model.partition(":")[2] if provider_of(model) in MAKERS else model
        for name in (model, _DATE.sub("", model), bare, _DATE.sub("", bare)):
            if name in self._table:
                return self._table[name]
        return FREE if is_embedded(model) else None

    def cost(self, model: str, usage: Usage, tier: str | None = None) -> float | None:
        """The dollars of a usage in a service tier; None if the model has no price."""
        price = self.get(model)
        return None if price is None else price.in_tier(tier).cost(usage)


def check_priced(prices: Prices, models: Iterable[str], max_cost: float | None) -> None:
    """Raise `InputError` if there is a cap in dollars and a model without a price."""
    if max_cost is None:
        return
    unknown = [m for m in dict.fromkeys(models) if prices.get(m) is None]
    if unknown:
        lines = "  ".join(example_line(m) for m in unknown)
        raise InputError(
            f"--max-cost needs the price of every model, and there is none for "
            f"{', '.join(map(repr, unknown))}. Give --prices FILE.toml, one line a model, in "
            f"dollars per million tokens: {lines}"
        )


def example_line(model: str) -> str:
    """A line of a price file, to show how it is written.

    >>> example_line("m")
    '"m" = { input = 1.00, cached_input = 0.50, output = 2.00 }'
    """
    return f"{json.dumps(model)} = {{ input = 1.00, cached_input = 0.50, output = 2.00 }}"


def _parse_prices(text: str, name: str) -> dict[str, Price]:
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name}: is not TOML ({str(error)[:120]}). A line of it is {example_line('model')}"
        ) from error
    return {
        model: _parse_price(entry, f"{name}: {model!r}", model) for model, entry in table.items()
    }


def _parse_price(entry: Any, where: str, model: str, *, tier: bool = False) -> Price:
    """The price in a table of a price file, or in the part of it for a `tier`."""
    fix = f"Write {example_line(model)}, in dollars per million tokens"
    if not isinstance(entry, dict):
        raise InputError(f"{where} has no prices but {entry!r}. {fix}")
    flex = None
    for key, value in entry.items():
        if key == FLEX_TIER and not tier:
            flex = _parse_price(value, f"{where}, {key}", model, tier=True)
        elif key in PRICE_KEYS:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= MAX_PRICE:
                raise InputError(
                    f"{where} has {key} = {repr(value)[:60]}; give dollars per million tokens, 0 "
                    "or more"
                )
        elif isinstance(value, dict):
            quoted = f"[{json.dumps(f'{model}.{key}')}]"
            raise InputError(
                f"{where} has a part {key!r}. A name with a dot needs quotes: {quoted}"
            )
        else:
            raise InputError(
                f"{where} has an unknown key {key!r}; known are "
                f"{', '.join(PRICE_KEYS if tier else (*PRICE_KEYS, FLEX_TIER))}"
            )
    for key in ("input", "output"):
        if key not in entry:
            raise InputError(f"{where} has no {key!r}. {fix}")
    numbers = {key: float(value) for key, value in entry.items() if key in PRICE_KEYS}
    return Price(**numbers, flex=flex)


@dataclass(slots=True, eq=False)
class Reservation:
    """The most that one call may use: `tokens`, and `pico` dollars; `size` is its prompt in bytes.

    Without a cap nothing is reserved.
    """

    model: str
    size: int = 0
    tokens: int = 0
    pico: int = 0
    settled: bool = False


class Budget:
    """What a run has spent and reserved, under a cap on dollars, on tokens, on both or neither.

    Once a cap is reached, no further call is admitted. `refloom.runs.rate_limit` has those that
    wait for room.
    """

    def __init__(
        self,
        *,
        max_cost: float | None,
        max_tokens: int | None,
        prices: Prices,
        cost: float = 0.0,
        tokens: int = 0,
        tiers: tuple[str, ...] = (DEFAULT_TIER,),
    ) -> None:
        """`cost` (dollars) and `tokens` are what earlier sessions of the run have used.

        Calls are made in one of the service `tiers`: the dearest is reserved.
        """
        self._max_pico = None if max_cost is None else math.floor(max_cost * PICO)
        self._max_tokens = max_tokens
        self._capped = max_cost is not None or max_tokens is not None
        self._prices = prices
        self._price_of_model: dict[str, Price | None] = {}
        self._tokens_per_byte: dict[str, float] = {}
        # Those allowed, and those in which a model has answered in spite of that.
        self._tiers = frozenset(tiers)
        self._tiers_of_model: dict[str, frozenset[str]] = {}
        self._spent_pico, self._spent_tokens = round(cost * PICO), tokens
        self._reserved_pico = self._reserved_tokens = 0
        self._all_priced = True
        self._refusal: str | None = None

    @property
    def spent_cost(self) -> float | None:
        """Dollars billed, earlier sessions' too; None once a model without a price was used."""
        return self._spent_pico / PICO if self._all_priced else None

    @property
    def spent_tokens(self) -> int:
        """Prompt and completion tokens billed, earlier sessions' too."""
        return self._spent_tokens

    def reserve(self, call: Call) -> Reservation | None:
        """Reserve the most a call may use; None while other reservations leave no room.

        The reservation must be settled. Raises `BudgetSpent` if the call can never fit, and for
        every later call.
        """
        if not self._capped:
            return Reservation(call.model)
        if self._refusal is not None:
            raise BudgetSpent(self._refusal)
        reservation = self._estimate(call)
        if self._exceeds_cap(reservation):
            self._refusal = self._refusal_message(call, reservation)
            raise BudgetSpent(self._refusal)
        if self._exceeds_cap(reservation, beside_reserved=True):
            return None
        self._reserved_pico += reservation.pico
        self._reserved_tokens += reservation.tokens
        return reservation

    def reserve_now(self, call: Call) -> Reservation:
        """`reserve` for a call that cannot wait: raises `BudgetSpent` if there is no room now."""
        reservation = self.reserve(call)
        if reservation is None:
            raise BudgetSpent(self._refusal_message(call, self._estimate(call)))
        return reservation

    def settle(
        self, reservation: Reservation, usage: Usage | None, tier: str | None = None
    ) -> None:
        """Replace a reservation by what the call used; None: it failed, and nothing was billed.

        `tier` is the service tier that the answer names.
        """
        if reservation.settled:
            raise ValueError("a reservation is settled once")
        reservation.settled = True
        self._reserved_pico -= reservation.pico
        self._reserved_tokens -= reservation.tokens
        if usage is not None:
            self._spent_tokens += usage["prompt_tokens"] + usage["completion_tokens"]
            price = self._price(reservation.model)
            if price is None:
                self._all_priced = False
            else:
                self._spent_pico += round(price.in_tier(tier).cost(usage) * PICO)
            tiers = self._tiers_of_model.get(reservation.model, self._tiers)
            self._tiers_of_model[reservation.model] = tiers | {tier or DEFAULT_TIER}
            if reservation.size:
                ratio = (usage["prompt_tokens"] - TOKENS_PER_CALL) / reservation.size
                if ratio > self._tokens_per_byte.get(reservation.model, TOKENS_PER_BYTE):
                    self._tokens_per_byte[reservation.model] = ratio

    def check_usage(self, usage: Usage) -> None:
        """Raise `BudgetSpent` if there is a cap and the endpoint reports no usage to keep it by."""
        if self._capped and not usage["prompt_tokens"] + usage["completion_tokens"]:
            raise BudgetSpent(
                "the endpoint reports no usage, so no cap can be kept; run without --max-cost and "
                "--max-tokens"
            )

    def _price(self, model: str) -> Price | None:
        if model not in self._price_of_model:
            self._price_of_model[model] = self._prices.get(model)
        return self._price_of_model[model]

    def _estimate(self, call: Call) -> Reservation:
        """The most a call may use. Raises `InputError` for a cap in dollars without a price."""
        size = sum(len(m["content"].encode("utf-8", "replace")) for m in call.messages)
        size += _schema_bytes(call.answer) if call.answer else 0
        ratio = self._tokens_per_byte.get(call.model, TOKENS_PER_BYTE)
        prompt = TOKENS_PER_CALL + math.ceil(size * ratio)
        # The user's own fields may ask for more than the call does.
        extra = [call.extra_body.get(name) for name in _MAX_TOKENS_FIELDS]
        completion = max(call.most_tokens, *(n for n in extra if isinstance(n, int)), 0)
        price = self._price(call.model)
        if price is None:
            check_priced(self._prices, [call.model], self._max_pico)
        pico = 0
        if price is not None:
            tiers = self._tiers_of_model.get(call.model, self._tiers)
            dearest = max(price.in_tier(tier).max_cost(prompt, completion) for tier in tiers)
            pico = round(dearest * PICO)
        return Reservation(call.model, size, prompt + completion, pico)

    def _exceeds_cap(self, wanted: Reservation, *, beside_reserved: bool = False) -> bool:
        """Whether a reservation does not fit beside what is spent, and what is reserved."""
        pico, tokens = self._spent_pico + wanted.pico, self._spent_tokens + wanted.tokens
        if beside_reserved:
            pico, tokens = pico + self._reserved_pico, tokens + self._reserved_tokens
        over_cost = self._max_pico is not None and pico > self._max_pico
        return over_cost or (self._max_tokens is not None and tokens > self._max_tokens)

    def _refusal_message(self, unfit: Call, wanted: Reservation) -> str:
        max_tokens = self._max_tokens
        call = f"the next call ({unfit.stage}, {unfit.model})"
        if max_tokens is not None and self._spent_tokens + wanted.tokens > max_tokens:
            return (
                f"--max-tokens is {max_tokens:,}: {self._spent_tokens:,} are used and {call} may "
                f"use {wanted.tokens:,}; raise --max-tokens and run again to resume"
            )
        return (
            f"--max-cost is {_dollars(self._max_pico or 0)}: {_dollars(self._spent_pico)} is spent "
            f"and {call} may cost {_dollars(wanted.pico)}; raise --max-cost and run again to resume"
        )


def _dollars(pico: int) -> str:
    """Dollars to the millionth, rounded up, without needless zeros.

    >>> _dollars(50_000_000_000), _dollars(1_200_000_000_001)
    ('$0.05', '$1.200001')
    """
    dollars, millionths = divmod(-(-pico // (PICO // 1_000_000)), 1_000_000)
    return f"${dollars:,}.{str(millionths).zfill(6).rstrip('0').ljust(2, '0')}"


@cache
def _schema_bytes(answer: type[Answer]) -> int:
    return len(json.dumps(schema_of(answer)))
