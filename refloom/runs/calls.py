"""The `Complete` of a run: answered from the journal if it was ever paid for, else sent."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import Any

from nodes.llm import Answer, Call, CallFailed, Complete, ProviderStopped, Reply
from nodes.llm.protocol import Transient, schema_of
from refloom.errors import BudgetSpent
from refloom.runs.budget import Budget
from refloom.runs.journal import Journal
from refloom.runs.kept import KeptCalls
from refloom.runs.limits import Limiter
from refloom.runs.log import event
from refloom.runs.prices import Prices
from refloom.runs.retry import with_retries
from refloom.settings import Settings, StageSettings

Faulted = Callable[[str, CallFailed], None]


class Interrupted(Exception):
    """The run is stopping: no further call is begun."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a run's calls: places and pace, dollars and tokens, seconds a try."""

    limiter: Limiter
    budget: Budget
    timeout: float

    @classmethod
    def of(cls, settings: Settings, prices: Prices, cost: float, tokens: int) -> Limits:
        """The bounds that settings set; `cost` and `tokens` are what earlier sessions used."""
        budget = Budget(
            max_cost=settings.max_cost,
            max_tokens=settings.max_tokens,
            prices=prices,
            cost=cost,
            tokens=tokens,
        )
        limiter = Limiter(settings.calls_at_once, settings.rpm, settings.tpm)
        return cls(limiter, budget, settings.timeout)


class JournaledCalls:
    """Answers calls from the journal, sends new ones, and commits each answer before it is used.

    A call is known by all that makes its answer what it is: where it goes, model, messages (every
    word of the prompt, so its version too), the shape asked for, parameters, and the draw's seed.
    Equal calls at once are sent once.
    """

    def __init__(
        self,
        send: Complete,
        journal: Journal,
        limits: Limits,
        *,
        address: Callable[[bool], str],
        stages: dict[Any, StageSettings],
        prices: Prices,
        elsewhere: KeptCalls | None = None,
        shared: Journal | None = None,
        faulted: Faulted = lambda stage, fault: None,
    ) -> None:
        """`address` says where a judge's (True) or a writer's call goes, for the key.

        `elsewhere` are the calls of another run's journal, which are used as this run's own;
        `shared` is a journal over several runs: what is paid for goes there first, and what is
        there is used; `faulted` is told of what goes wrong with calls.
        """
        self._send = send
        self._journal = journal
        self._limits = limits
        self._address = address
        self._stages = stages
        self._prices = prices
        self._elsewhere = elsewhere
        self._shared = shared
        self._faulted = faulted
        self._under_way: dict[bytes, asyncio.Future[Reply]] = {}
        self.counts: Counter[str] = Counter()
        self.stopping = False
        # No row is wanted any more: calls end as in a stop, but the run is done.
        self.shut = False
        self.stopped_by: Exception | None = None

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        return self._limits.limiter.in_flight

    def stop(self, why: Exception | None = None) -> None:
        """Begin no further call; those in flight are finished and kept. The first reason counts."""
        if not self.stopping:
            self.stopping, self.stopped_by = True, why
            event("stopping", why=str(why) if why else "asked to")

    async def __call__(self, call: Call) -> Reply:
        """See `nodes.llm.Complete`. Raises `Interrupted` once the run is stopping."""
        call = self._with_stage_settings(call)
        key = self._key(call)
        reply = await self._kept(key, call)
        if reply is None:
            reply = await self._once(key, lambda: self._pay(key, call))
        # Priced here and not in the journal, which outlives the prices of a day.
        cost = self._prices.cost(call.model, reply.usage)
        return replace(reply, usage={**reply.usage, "cost_usd": cost})

    async def _kept(self, key: bytes, call: Call) -> Reply | None:
        """The answer that was paid for before, in this run or in the one whose calls it reuses."""
        found = await self._journal.reply(key)
        if found is None:
            if self._shared is not None:
                found = await self._shared.reply(key)
            if found is None and self._elsewhere is not None:
                found = await asyncio.to_thread(self._elsewhere.reply, key)
            if found is not None:
                # Kept here too: this run must not need the other's directory to be taken up.
                await self._journal.borrow(key, call.stage, call.model, found)
        if found is None:
            return None
        self.counts["reused"] += 1
        return Reply(**json.loads(found))

    async def _once(self, key: bytes, pay: Callable[[], Awaitable[Reply]]) -> Reply:
        under_way = self._under_way.get(key)
        if under_way is None:
            under_way = asyncio.ensure_future(pay())
            self._under_way[key] = under_way
            under_way.add_done_callback(lambda done: self._ended(key, done))
        # A sample that is given up must not take the call from another that waits for it.
        return await asyncio.shield(under_way)

    async def aclose(self) -> None:
        """Give up the calls under way; nothing of a run that has ended goes on."""
        left = list(self._under_way.values())
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self._limits.limiter.close()

    def _ended(self, key: bytes, done: asyncio.Future[Reply]) -> None:
        self._under_way.pop(key, None)
        if not done.cancelled():
            # Looked at here, so that asyncio does not complain when every waiter was cancelled.
            done.exception()

    async def _pay(self, key: bytes, call: Call) -> Reply:
        began = asyncio.get_running_loop().time()
        try:
            reply = await self._sent(key, call)
        except (BudgetSpent, ProviderStopped) as stop:
            self.stop(stop)
            raise Interrupted from stop
        except CallFailed as failed:
            self._heard(call, failed)
            raise
        seconds = round(asyncio.get_running_loop().time() - began, 3)
        event("call", stage=call.stage, slot=list(call.order), seconds=seconds, **reply.usage)
        return reply

    async def _sent(self, key: bytes, call: Call) -> Reply:
        limits = self._limits
        lane = limits.limiter.lane(self._address(call.judge), call.model)

        async def send(one: Call) -> Reply:
            if self.stopping or self.shut:
                raise Interrupted
            return await self._send(one)

        async def keep(reply: Reply) -> None:
            kept = (key, call.stage, call.model, kept_form(reply))
            if self._shared is not None:
                await self._shared.keep(*kept)
            await self._journal.keep(*kept)
            self.counts["paid"] += 1
            limits.budget.check_reported(reply.usage)

        def faulted(fault: Transient) -> None:
            self.counts["retried"] += 1
            self._heard(call, fault)

        return await with_retries(
            send,
            call,
            lane,
            limits.limiter,
            budget=limits.budget,
            seconds=limits.timeout,
            keep=keep,
            faulted=faulted,
        )

    def _heard(self, call: Call, fault: CallFailed) -> None:
        self._faulted(call.stage, fault)
        slot, message = list(call.order), fault.message
        event("fault", stage=call.stage, slot=slot, kind=fault.kind, message=message)

    def _with_stage_settings(self, call: Call) -> Call:
        own = self._stages.get(call.stage)
        if own is None or call.answer is None:
            return call
        return replace(
            call,
            temperature=call.temperature if own.temperature is None else own.temperature,
            max_tokens=call.max_tokens if own.max_tokens is None else own.max_tokens,
            extra_body=own.extra_body,
        )

    def _key(self, call: Call) -> bytes:
        """A hash of a JSON list of all that the answer rests on, whose schema is written once."""
        before = (self._address(call.judge), call.model, call.messages)
        after = (call.temperature, call.max_tokens * call.room, call.seed, call.extra_body)
        parts = (_written(before), _schema_written(call.answer), _written(after))
        return sha256(f"[{', '.join(parts)}]".encode()).digest()


def kept_form(reply: Reply) -> dict[str, Any]:
    """A reply as the journal keeps it; `Reply(**...)` is the way back."""
    return {
        "text": reply.text,
        "finish": reply.finish,
        "usage": reply.usage,
        "refusal": reply.refusal,
        "odds": reply.odds,
    }


def _written(values: tuple[Any, ...]) -> str:
    return json.dumps(values, sort_keys=True)[1:-1]


@cache
def _schema_written(answer: type[Answer] | None) -> str:
    return json.dumps(schema_of(answer) if answer else None, sort_keys=True)
