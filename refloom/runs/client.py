"""The `Complete` of a run: answered from the journal if it was ever paid for, else sent."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import Any

from nodes.llm import Answer, Call, CallFailed, Complete, ProviderStopped, Reply
from nodes.llm.endpoint import Endpoint
from nodes.llm.protocol import Transient, schema_of
from refloom import local
from refloom.errors import BudgetSpent, InputError
from refloom.runs.cost import Budget, Prices
from refloom.runs.event_log import event
from refloom.runs.journal import Journal, KeptCalls
from refloom.runs.rate_limit import Lane, Limiter, Turn
from refloom.settings import Settings, StageSettings, embedded

# MERGED refloom~runs~retry
# Sending a call, again after faults that pass, in its lane's turn.
TRIES = 6
LONGEST_WAIT_S = 60.0
# How long an endpoint may ask a call to wait before the run had better be taken up later.
PATIENCE_S = 300.0

Send = Callable[[Call], Awaitable[Reply]]
Keep = Callable[[Reply], Awaitable[None]]


async def with_retries(
    send: Send,
    call: Call,
    lane: Lane,
    limiter: Limiter,
    *,
    budget: Budget,
    seconds: float,
    keep: Keep,
    faulted: Callable[[Transient], None],
) -> Reply:
    """Send a call, at most six times, each time in its turn; between tries it holds no place.

    What a try may cost is reserved before it and settled after it. The place is held until `keep`
    has the answer on disk, so that no more than the calls in flight are ever to be made again.
    Waits with full jitter, or as long as the endpoint asks. While the endpoint is down for
    everybody, tries are not counted. `seconds` bounds each try; `faulted` is told of
    every fault. Raises the last `Transient`, or `ProviderStopped` when there is no more hope.
    """
    tries = late = 0
    while True:
        async with limiter.place(lane, call, late) as turn:
            got = await _tried(send, call, turn, budget, seconds)
            if isinstance(got, Reply):
                lane.answered(turn, got, _now())
                await keep(got)
                return got
            lane.failed(turn, (call.stage, call.order, call.seed), got, _now())
        late += got.kind == "timeout"
        tries += not lane.breaker.down
        wait = _wait(tries, got, lane)
        if tries >= TRIES:
            raise got
        faulted(got)
        await asyncio.sleep(wait)


async def _tried(
    send: Send, call: Call, turn: Turn, budget: Budget, seconds: float
) -> Reply | Transient:
    """One try: the reply, or the fault that may pass."""
    reservation, usage = await budget.reserve(call), None
    turn.began = _now()
    try:
        async with asyncio.timeout(seconds) as turn.deadline:
            reply = await send(call)
        usage = reply.usage
    except TimeoutError:
        return Transient(call.stage, "timeout", "the endpoint did not answer in time")
    except Transient as transient:
        return transient
    finally:
        budget.settle(reservation, usage)
    return reply


def _wait(tries: int, fault: Transient, lane: Lane) -> float:
    """The seconds until the next try. Raises what there is no use in waiting for."""
    if lane.breaker.down:
        # Behind those that have not tried: one call's own trouble must not look like an outage.
        return max(lane.breaker.until - _now(), 0.0) + random.uniform(0.1, 1.0)
    if fault.retry_after is None:
        return random.uniform(0, min(0.5 * 2**tries, LONGEST_WAIT_S))
    if fault.retry_after <= PATIENCE_S:
        return fault.retry_after + random.uniform(0, 0.5)
    if fault.kind == "rate_limit":
        raise ProviderStopped(
            f"the endpoint asks to wait {fault.retry_after:.0f} s ({fault.message}). "
            "What was made is kept; the same command goes on"
        ) from fault
    raise fault


def _now() -> float:
    return asyncio.get_running_loop().time()


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


# MERGED refloom~runs~where
# Where the calls of a run go: the writer's endpoint and the judge's, or the embedded model.
class Addresses:
    """The endpoints of a run, from its settings and the environment's keys."""

    def __init__(self, settings: Settings) -> None:
        self._base_url = settings.base_url
        self._judge_base_url = settings.judge_base_url or self._base_url
        self._key = os.environ.get("OPENAI_API_KEY", "")
        own_judge = settings.judge_base_url is not None
        for name in ("OPENAI_API_KEY", "JUDGE_API_KEY"):
            key = os.environ.get(name, "")
            if not (key.isascii() and key.isprintable()) or " " in key:
                raise InputError(
                    f"{name}: holds a character that no key has (a line break, a blank, an "
                    "accent?). Set it anew"
                )
        self._judge_key = os.environ.get("JUDGE_API_KEY") or ("" if own_judge else self._key)

    def keys(self) -> list[str]:
        """The secrets in use, so that a log can leave them out."""
        return [key for key in (self._key, self._judge_key) if key]

    async def check(self, settings: Settings) -> None:
        """Raise `ProviderStopped` now if a model of the run has no endpoint at all."""
        for model, judge in ((settings.model, False), (settings.judge, True)):
            if not embedded(model):
                await self.resolve(model, judge)

    def name(self, judge: bool) -> str:
        """What stands for the endpoint in a call's key."""
        return (self._judge_base_url if judge else self._base_url) or "default"

    async def resolve(self, model: str, judge: bool) -> Endpoint:
        """See `nodes.llm.endpoint.Resolve`. Raises `ProviderStopped` if there is no endpoint."""
        if embedded(model):
            return await asyncio.to_thread(local.endpoint, model)
        base_url, key = (
            (self._judge_base_url, self._judge_key) if judge else (self._base_url, self._key)
        )
        if not base_url and not key:
            raise ProviderStopped(
                f"no endpoint for model {model!r}: set OPENAI_BASE_URL and OPENAI_API_KEY, give "
                "--base-url, or use the embedded model with --model local"
            )
        return Endpoint(base_url, key)
