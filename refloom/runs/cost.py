"""Caps on dollars and tokens: a call's most is set aside before it, its bill taken after it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
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

from nodes.llm import Answer, Call
from nodes.llm.protocol import schema_of
from nodes.state import Usage
from refloom.errors import BudgetSpent, InputError
from refloom.settings import embedded

# MERGED refloom~runs~prices
# What calls cost: a bundled table of list prices, under the user's own.
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


# Dollars are summed as whole picodollars: what is given back leaves exactly nothing behind.
PICO = 10**12
# More than English or code takes (about 0.25) and than most scripts do.
TOKENS_PER_BYTE = 0.4
# What a prompt takes beside its text: the marks of a chat, and how the schema is told.
TOKENS_PER_CALL = 64
_CAPS_OF_A_BODY = ("max_tokens", "max_completion_tokens")


@dataclass(slots=True, eq=False)
class Reservation:
    """What is set aside for one call under way, at the most it may use."""

    model: str
    size: int = 0
    tokens: int = 0
    pico: int = 0
    settled: bool = False


@dataclass(slots=True, eq=False)
class _Waiter:
    call: Call
    reservation: Reservation
    turn: asyncio.Future[None]


def check_priced(prices: Prices, models: Iterable[str], max_cost: float | None) -> None:
    """Refuse a cap in dollars on a model without a price. Raises `InputError`.

    Nothing is checked when there is no cap.
    """
    if max_cost is None:
        return
    unknown = [m for m in dict.fromkeys(models) if prices.of(m) is None]
    if unknown:
        lines = "  ".join(line_of(m) for m in unknown)
        raise InputError(
            f"--max-cost needs the price of every model, and there is none for "
            f"{', '.join(map(repr, unknown))}. Give --prices FILE.toml, one line a model, in "
            f"dollars per million tokens: {lines}"
        )


class Budget:
    """What a run has spent and set aside, under a cap on dollars, on tokens, on both or neither.

    Waiting calls are let on in their order. Once a cap is reached no call is let on any more.
    """

    def __init__(
        self,
        *,
        max_cost: float | None,
        max_tokens: int | None,
        prices: Prices,
        cost: float = 0.0,
        tokens: int = 0,
    ) -> None:
        """`cost` (dollars) and `tokens` are what earlier sessions of the run have used."""
        self._max_pico = None if max_cost is None else math.floor(max_cost * PICO)
        self._max_tokens = max_tokens
        self._capped = max_cost is not None or max_tokens is not None
        self._prices = prices
        self._known: dict[str, Price | None] = {}
        self._ratio: dict[str, float] = {}
        self._spent_pico, self._spent_tokens = round(cost * PICO), tokens
        self._kept_pico = self._kept_tokens = 0
        self._priced = True
        self._waiting: list[tuple[tuple[int, ...], int, _Waiter]] = []
        self._count = itertools.count()
        self._over: str | None = None

    @property
    def spent_cost(self) -> float | None:
        """Dollars billed, earlier sessions' too; None once a model without a price was used."""
        return self._spent_pico / PICO if self._priced else None

    @property
    def spent_tokens(self) -> int:
        """Prompt and completion tokens billed, earlier sessions' too."""
        return self._spent_tokens

    @property
    def reserved_cost(self) -> float:
        """Dollars set aside for calls under way; 0 without a cap."""
        return self._kept_pico / PICO

    @property
    def reserved_tokens(self) -> int:
        """Tokens set aside for calls under way; 0 without a cap."""
        return self._kept_tokens

    async def reserve(self, call: Call) -> Reservation:
        """Set aside the most a call may use; waits while others' reservations leave no room.

        Raises `BudgetSpent` when nothing could make room, and ever after. It has to be settled.
        """
        if not self._capped:
            return Reservation(call.model)
        if self._over is not None:
            raise BudgetSpent(self._over)
        wanted = self._at_most(call)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(call, wanted, turn)
        if self._too_much(wanted):
            raise BudgetSpent(self._stop(waiter))
        heapq.heappush(self._waiting, (call.order, next(self._count), waiter))
        self._let_on()
        try:
            await turn
        except asyncio.CancelledError:
            # It may have been let on, or refused, in the moment it was given up.
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.settle(wanted, None)
            self._let_on()
            raise
        return wanted

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Put the bill in the place of a reservation; None: the call failed, nothing was billed."""
        if reservation.settled:
            raise ValueError("a reservation is settled once")
        reservation.settled = True
        self._kept_pico -= reservation.pico
        self._kept_tokens -= reservation.tokens
        if usage is not None:
            self._bill(reservation, usage)
        if self._waiting:
            self._let_on()

    def check_reported(self, usage: Usage) -> None:
        """Raise `BudgetSpent` when no cap can be kept, since the endpoint reports no usage."""
        if self._capped and not usage["prompt_tokens"] + usage["completion_tokens"]:
            raise BudgetSpent("the endpoint reports no usage, so no cap can be kept; run without")

    def _bill(self, reservation: Reservation, usage: Usage) -> None:
        self._spent_tokens += usage["prompt_tokens"] + usage["completion_tokens"]
        price = self._price(reservation.model)
        if price is None:
            self._priced = False
        else:
            self._spent_pico += round(price.cost(usage) * PICO)
        if reservation.size:
            seen = (usage["prompt_tokens"] - TOKENS_PER_CALL) / reservation.size
            if seen > self._ratio.get(reservation.model, TOKENS_PER_BYTE):
                self._ratio[reservation.model] = seen

    def _price(self, model: str) -> Price | None:
        if model not in self._known:
            self._known[model] = self._prices.of(model)
        return self._known[model]

    def _at_most(self, call: Call) -> Reservation:
        size = sum(len(m["content"].encode("utf-8", "replace")) for m in call.messages)
        size += _schema_bytes(call.answer) if call.answer else 0
        ratio = self._ratio.get(call.model, TOKENS_PER_BYTE)
        prompt = TOKENS_PER_CALL + math.ceil(size * ratio)
        # A body of the user's own may ask for more than the call does.
        own = [call.extra_body.get(key) for key in _CAPS_OF_A_BODY]
        completion = max(call.max_tokens * call.room, *(n for n in own if isinstance(n, int)), 0)
        price = self._price(call.model)
        if price is None:
            check_priced(self._prices, [call.model], self._max_pico)
        pico = round(price.at_most(prompt, completion) * PICO) if price else 0
        return Reservation(call.model, size, prompt + completion, pico)

    def _too_much(self, wanted: Reservation, *, with_kept: bool = False) -> bool:
        pico, tokens = self._spent_pico + wanted.pico, self._spent_tokens + wanted.tokens
        if with_kept:
            pico, tokens = pico + self._kept_pico, tokens + self._kept_tokens
        over_cost = self._max_pico is not None and pico > self._max_pico
        return over_cost or (self._max_tokens is not None and tokens > self._max_tokens)

    def _let_on(self) -> None:
        """Let the first waiting calls on while they fit; one that never will ends them all."""
        while self._waiting:
            waiter = self._waiting[0][2]
            if waiter.turn.done():
                heapq.heappop(self._waiting)
            elif self._too_much(waiter.reservation):
                self._stop(waiter)
            elif self._too_much(waiter.reservation, with_kept=True):
                return
            else:
                heapq.heappop(self._waiting)
                self._kept_pico += waiter.reservation.pico
                self._kept_tokens += waiter.reservation.tokens
                waiter.turn.set_result(None)

    def _stop(self, last: _Waiter) -> str:
        """Refuse every call that waits and all that come, because of one that does not fit."""
        self._over = self._said(last)
        for _, _, waiter in self._waiting:
            if not waiter.turn.done():
                waiter.turn.set_exception(BudgetSpent(self._over))
        self._waiting.clear()
        return self._over

    def _said(self, last: _Waiter) -> str:
        wanted, most = last.reservation, self._max_tokens
        what = f"the next call ({last.call.stage}, {last.call.model})"
        if most is not None and self._spent_tokens + wanted.tokens > most:
            return (
                f"--max-tokens is {most:,}: {self._spent_tokens:,} are used and {what} may use "
                f"{wanted.tokens:,}; raise --max-tokens and run again to go on"
            )
        return (
            f"--max-cost is {_dollars(self._max_pico or 0)}: {_dollars(self._spent_pico)} is spent "
            f"and {what} may cost {_dollars(wanted.pico)}; raise --max-cost and run again to go on"
        )


def _dollars(pico: int) -> str:
    """Dollars to the millionth, rounded up, without needless zeros.

    >>> _dollars(50_000_000_000), _dollars(1_200_000_000_001)
    ('$0.05', '$1.200001')
    """
    whole, millionths = divmod(-(-pico // (PICO // 1_000_000)), 1_000_000)
    return f"${whole:,}.{str(millionths).zfill(6).rstrip('0').ljust(2, '0')}"


@cache
def _schema_bytes(answer: type[Answer]) -> int:
    return len(json.dumps(schema_of(answer)))
