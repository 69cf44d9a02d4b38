"""The client of a run's model calls.

A call goes from cache to single flight, budget, rate limit and endpoint, and back: an answer that
was paid for before comes from the journal, equal calls at the same time are sent once, and every
new answer is in the journal before anyone uses it. Retries happen here, and nothing below calls
back into this module.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from typing import Any

from nodes.context import is_embedded
from nodes.llm import MAX_ASKS, Answer, Call, CallFailed, Complete, ProviderStopped, Reply
from nodes.llm.chat_model import ModelClient
from nodes.llm.endpoint import Attempt, Endpoint, OnLearned
from nodes.llm.protocol import Transient, schema_of
from nodes.llm.provider import address_of, find_missing, keys_of, provider_of
from refloom import local
from refloom.errors import BudgetSpent, InputError
from refloom.runs.cost import Budget, Prices
from refloom.runs.event_log import event
from refloom.runs.journal import INSERT_META, Journal, ReusedCalls
from refloom.runs.rate_limit import MAX_WAIT_S, CircuitBreaker, Limiter, Permit
from refloom.runs.retry import DrawLog
from refloom.runs.single_flight import SingleFlight
from refloom.settings import DEFAULT_TIER, Settings, StageSettings

MAX_TRIES = 6
MAX_BACKOFF_S = 60.0
# A model that is being loaded is looked after more often: nobody else waits for it.
MAX_LOADING_DELAY_S = 10.0
# An endpoint that asks for a longer wait than this ends the run, which is resumed later.
MAX_RETRY_AFTER_S = 300.0
# The longest wait after a failure to connect, until the endpoint has answered: a wrong address is
# found out within seconds.
MAX_RECONNECT_DELAY_S = 0.5

FaultCallback = Callable[[CallFailed], None]


class Interrupted(Exception):
    """The run is stopping: no further call is begun."""


@asynccontextmanager
async def open_client(
    settings: Settings,
    journal: Journal,
    endpoints: Endpoints,
    prices: Prices,
    *,
    prior_cost: float,
    prior_tokens: int,
    complete: Complete | None = None,
    attempt: Attempt | None = None,
    reused: ReusedCalls | None = None,
    shared: Journal | None = None,
    on_fault: FaultCallback = lambda fault: None,
    on_learned: OnLearned = lambda model, sentence: None,
) -> AsyncIterator[CachedClient]:
    """Open the client of a run or of a judge, with the limits and caps that the settings set.

    `prior_cost` (dollars) and `prior_tokens` are what earlier sessions have used. `complete`
    replaces the endpoints; `attempt` and `on_learned` are those of `EndpointClient`, `reused`,
    `shared` and `on_fault` those of `CachedClient`. At the end calls in flight are cancelled,
    connections closed, and what was learned of the endpoints is journaled.
    """
    addresses = endpoints.addresses
    limiter = Limiter(settings.max_in_flight, settings.rpm, settings.tpm, addresses=addresses)
    budget = Budget(
        max_cost=settings.max_cost,
        max_tokens=settings.max_tokens,
        prices=prices,
        cost=prior_cost,
        tokens=prior_tokens,
        tiers=settings.service_tiers,
    )

    def remember(model: str, sentence: str) -> None:
        journal.put_soon(INSERT_META, "endpoints", json.dumps(endpoint_client.known()))
        on_learned(model, sentence)

    endpoint_client = ModelClient(
        endpoints.resolve,
        max_retries=0,
        timeout=settings.call_timeout,
        on_headers=limiter.apply_headers,
        on_learned=remember,
        attempt=attempt,
        price=prices.cost,
    )
    endpoint_client.remember(await asyncio.to_thread(journal.meta, "endpoints") or [])
    client = CachedClient(
        complete or endpoint_client,
        journal,
        limiter,
        budget,
        timeout=settings.call_timeout,
        tiers=settings.service_tiers,
        addresses=addresses,
        stages=settings.stage_settings(),
        prices=prices,
        reused=reused,
        shared=shared,
        on_fault=on_fault,
        fit=endpoint_client.fit,
        observe=endpoint_client.observe,
    )
    endpoint_client.send_probe = client.send_probe
    try:
        yield client
    finally:
        await client.aclose()
        await endpoint_client.aclose()
        await journal.put_meta("endpoints", endpoint_client.known())


class CachedClient:
    """The `Complete` of a run: cache, single flight, budget, rate limit, retries, journal.

    A call's key is a hash of all that its answer rests on: address, model, messages (so every word
    of the prompt), the schema asked for, parameters, and the seed of the draw.
    """

    def __init__(
        self,
        send: Complete,
        journal: Journal,
        limiter: Limiter,
        budget: Budget,
        *,
        timeout: float,
        addresses: tuple[str, str],
        stages: Mapping[Any, StageSettings],
        prices: Prices,
        tiers: tuple[str, ...] = (DEFAULT_TIER,),
        reused: ReusedCalls | None = None,
        shared: Journal | None = None,
        on_fault: FaultCallback = lambda fault: None,
        fit: Callable[[Call], Call] = lambda call: call,
        observe: Callable[[Call, Reply], None] = lambda call, reply: None,
    ) -> None:
        """`send` makes one try of a call, which may take `timeout` seconds.

        Calls are made in the first of the service `tiers`; if that has no resources, in the next
        one, or again when there is none.
        `addresses` name the writer's and the judge's endpoint, for the keys; `stages` holds
        parameters that replace those of a stage's calls. `reused` are the calls of another run,
        used as this run's own. `shared` is a journal of several runs: their calls are looked up
        there too, and what is paid for goes there first. `on_fault` is called with every fault of a
        call, retried or not. `fit` gives a call the room that its endpoint is known to need or to
        allow, and `observe` learns that from replies.
        """
        self.limiter = limiter
        self.budget = limiter.budget = budget
        self._send = send
        self._journal = journal
        self._timeout = timeout
        self._addresses = addresses
        self._stages = stages
        self._prices = prices
        self._tiers = tiers
        self._reused = reused
        self._shared = shared
        self._on_fault = on_fault
        self._fit, self._observe = fit, observe
        self._in_progress = SingleFlight[Reply]()
        # Calls of this session: `paid`, `reused` and `retried`.
        self.counts: Counter[str] = Counter()
        self.stopping = False
        self.stopped_by: Exception | None = None
        # Set when no row is wanted any more: calls end as in a stop, but the run is done.
        self.closed = False
        # The draws of questions in progress, where somebody tries again what failed.
        self.draws: DrawLog | None = None

    def stop(self, reason: Exception | None = None) -> None:
        """Begin no further call; those in flight end and are recorded. The first reason counts."""
        if not self.stopping:
            self.stopping, self.stopped_by = True, reason
            event("stopping", why=str(reason) if reason else "asked to")

    async def __call__(self, call: Call) -> Reply:
        """See `nodes.llm.Complete`. Raises `Interrupted` once the run is stopping."""
        stage = self._stages.get(call.stage)
        if stage is not None and call.kind != "question":
            call = replace(
                call,
                temperature=call.temperature if stage.temperature is None else stage.temperature,
                max_tokens=call.max_tokens if stage.max_tokens is None else stage.max_tokens,
                extra_body=stage.extra_body,
            )
        asked = call
        call, key = await self._next_draw(call)
        try:
            reply = await self._cached(key, call)
            if reply is None:
                reply = await self._in_progress.do(key, partial(self._send_and_record, key, call))
        except CallFailed as failed:
            if self.draws is not None:
                self.draws.add(asked, key, failed)
            raise
        if self.draws is not None:
            self.draws.add(asked, key, reply)
        # Priced here and not in the journal, which outlives the prices of a day.
        cost = self._prices.cost(call.model, reply.usage, reply.tier)
        return replace(reply, usage={**reply.usage, "cost_usd": cost})

    def _key(self, call: Call) -> bytes:
        """The hash of a JSON list; the schema in it is serialized once per answer type."""
        address = address_of(call.model) or self._addresses[call.judge]
        before = (address, call.model, call.messages)
        after = (call.temperature, call.max_tokens * call.room, call.seed, call.extra_body)
        asked = '"text"' if call.text else _schema_json(call.answer)
        parts = (_json_items(before), asked, _json_items(after))
        return sha256(f"[{', '.join(parts)}]".encode()).digest()

    async def _next_draw(self, call: Call) -> tuple[Call, bytes]:
        """The call and its key, with the seed of the first draw that is not passed over.

        A draw is passed over if its replies ended a sample that is now tried again, in this run or
        in one that it reuses.
        """
        while True:
            key = self._key(call)
            if not self._journal.is_unusable(key):
                elsewhere = self._reused is not None and self._reused.is_unusable(key)
                if not elsewhere or await self._journal.reply(key) is not None:
                    return call, key
                # Resuming this run must not need the other's directory.
                await self._journal.pass_over(key)
            call = replace(call, seed=(call.seed + MAX_ASKS) & 0x7FFFFFFF)

    async def _cached(self, key: bytes, call: Call) -> Reply | None:
        """The answer of a call that was paid for in this run, or in one it shares or reuses."""
        data = await self._journal.reply(key)
        if data is None:
            if self._shared is not None:
                data = await self._shared.reply(key)
            if data is None and self._reused is not None:
                data = await asyncio.to_thread(self._reused.reply, key)
            if data is None:
                return None
            # Recorded here too: resuming this run must not need the other's directory.
            await self._journal.borrow(key, call.stage, call.model, data)
        self.counts["reused"] += 1
        return Reply(**json.loads(data))

    async def _send_and_record(self, key: bytes, call: Call) -> Reply:
        """Send a call with retries, and log how it ended. What ends all calls stops the client."""
        start = _now()
        try:
            reply = await self._send_with_retries(key, call)
        except (BudgetSpent, ProviderStopped) as error:
            self.stop(error)
            raise Interrupted from error
        except CallFailed as fault:
            self._report(call, fault)
            raise
        seconds = round(_now() - start, 3)
        event("call", stage=call.stage, slot=list(call.order), seconds=seconds, **reply.usage)
        return reply

    async def _send_with_retries(self, key: bytes, call: Call) -> Reply:
        """Try a call until it is answered, at most `MAX_TRIES` times, and record the answer.

        The permit is held until the answer is on disk, so a kill loses no more calls than are in
        flight; it is not held between tries. While the endpoint is down, tries do not count, and
        neither does being asked to wait, for a service tier too.
        Raises the last `Transient`, or `ProviderStopped` when no call can succeed.
        """
        tries = timeouts = limited = 0
        if self._tiers[0] != DEFAULT_TIER and not is_embedded(call.model):
            call = replace(call, tier=self._tiers[0])
        while True:
            async with self.limiter.acquire(call, timeouts, self._fit) as permit:
                result = await self._try(permit)
                if isinstance(result, Reply):
                    permit.limiter.record_reply(permit, result, _now())
                    await self._record(key, call, result)
                    self.budget.check_usage(result.usage)
                    return result
                permit.limiter.record_fault(permit, result, _now())
            if result.kind == "no_resources" and call.tier is not None and len(self._tiers) > 1:
                self.counts["retried"] += 1
                self._report(call, result)
                call = replace(call, tier=None)
                continue
            timeouts += result.kind == "timeout"
            if result.kind in MAX_WAIT_S:
                # The endpoint is well and the call is sound: it only has to wait.
                limited += 1
            else:
                tries += not permit.limiter.breaker.down
            delay = _retry_delay(max(tries, limited), result, permit.limiter.breaker)
            if result.kind == "connection" and not permit.limiter.responsive:
                delay = min(delay, MAX_RECONNECT_DELAY_S)
            if tries >= MAX_TRIES:
                raise result
            self.counts["retried"] += 1
            self._report(call, result)
            await asyncio.sleep(delay)

    async def _record(self, key: bytes, call: Call, reply: Reply) -> None:
        """Commit a reply that was paid for; with a shared journal there first."""
        row = (key, call.stage, call.model, reply_to_dict(reply))
        if self._shared is not None:
            await self._shared.record(*row)
        await self._journal.record(*row)
        self.counts["paid"] += 1

    async def send_probe(self, call: Call, send: Complete) -> Reply:
        """See `nodes.llm.endpoint.SendProbe`: a probe is journaled, paid and never sent twice.

        It waits for no other call's room under a cap, since the call that led to it has such room.
        """
        key = self._key(call)
        reply = await self._cached(key, call)
        if reply is None:
            reservation, usage, tier = self.budget.reserve_now(call), None, None
            try:
                reply = await send(call)
                usage, tier = reply.usage, reply.tier
            finally:
                self.budget.settle(reservation, usage, tier)
            await self._record(key, call, reply)
        return reply

    async def _try(self, permit: Permit) -> Reply | Transient:
        """Send a call once: its reply, or the fault that may pass.

        The most it may cost, which is reserved with the permit, is replaced by what it did cost.
        """
        call = permit.call
        try:
            async with asyncio.timeout(self._timeout) as permit.deadline:
                if self.stopping or self.closed:
                    raise Interrupted
                reply = await self._send(call)
        except TimeoutError:
            return Transient(call.stage, "timeout", "the endpoint did not answer in time")
        except Transient as fault:
            if fault.kind == "overloaded" and call.tier is not None:
                # So says Gemini where its flex tier has no room.
                fault.kind = "no_resources"
            return fault
        assert permit.reservation is not None
        self.budget.settle(permit.reservation, reply.usage, reply.tier)
        self._observe(call, reply)
        return reply

    def _report(self, call: Call, fault: CallFailed) -> None:
        self._on_fault(fault)
        slot, message = list(call.order), fault.message
        event("fault", stage=call.stage, slot=slot, kind=fault.kind, message=message)

    async def aclose(self) -> None:
        """Cancel the calls in flight; may be called again."""
        pending = self._in_progress.tasks()
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        self.limiter.close()


def _retry_delay(tries: int, fault: Transient, breaker: CircuitBreaker) -> float:
    """The seconds until the next try: what the endpoint asks for, or backoff with full jitter.

    Raises `ProviderStopped` or the fault if the endpoint asks for too long a wait.
    """
    if breaker.down:
        # Behind the calls not tried yet: one call's own trouble must not look like an outage.
        return max(breaker.until - _now(), 0.0) + random.uniform(0.1, 1.0)
    if fault.retry_after is None and fault.kind == "loading":
        return random.uniform(0, min(0.5 * 2 ** min(tries, 10), MAX_LOADING_DELAY_S))
    if fault.retry_after is None:
        return random.uniform(0, min(0.5 * 2 ** min(tries, 10), MAX_BACKOFF_S))
    if fault.retry_after <= MAX_RETRY_AFTER_S or fault.kind == "no_resources":
        return min(fault.retry_after, MAX_RETRY_AFTER_S) + random.uniform(0, 0.5)
    if fault.kind == "rate_limit":
        raise ProviderStopped(
            f"the endpoint asks to wait {fault.retry_after:.0f} s ({fault.message}). "
            "Finished work is kept; the same command resumes the run"
        ) from fault
    raise fault


def reply_to_dict(reply: Reply) -> dict[str, Any]:
    """A reply as the journal keeps it; `Reply(**...)` is the inverse."""
    return {
        "text": reply.text,
        "finish": reply.finish,
        "usage": reply.usage,
        "refusal": reply.refusal,
        "odds": reply.odds,
        **({"reasoning": reply.reasoning} if reply.reasoning else {}),
        **({"tier": reply.tier} if reply.tier else {}),
    }


def _now() -> float:
    return asyncio.get_running_loop().time()


# Made once: `json.dumps` makes an encoder for every call that sorts keys.
_encode = json.JSONEncoder(sort_keys=True).encode


def _json_items(values: tuple[Any, ...]) -> str:
    return _encode(values)[1:-1]


@cache
def _schema_json(answer: type[Answer] | None) -> str:
    return json.dumps(schema_of(answer) if answer else None, sort_keys=True)


class Endpoints:
    """The writer's and the judge's endpoint, from settings and the API keys in the environment."""

    def __init__(self, settings: Settings) -> None:
        """Raises `InputError` if an API key holds a character that cannot be sent."""
        self._base_url = settings.base_url
        self._judge_base_url = settings.judge_base_url or self._base_url
        for name in ("OPENAI_API_KEY", "JUDGE_API_KEY"):
            key = os.environ.get(name, "")
            if not (key.isascii() and key.isprintable()) or " " in key:
                raise InputError(
                    f"{name}: holds a character that no API key has (a line break, a space, an "
                    "accent?). Set it again"
                )
        # The names of the writer's and the judge's endpoint in the keys of their calls, but for
        # a provider's model, which has its own.
        self.addresses = (self._base_url or "default", self._judge_base_url or "default")
        self._key = os.environ.get("OPENAI_API_KEY", "")
        # The writer's key is not sent to another address.
        writer_key = self._key if settings.judge_base_url is None else ""
        self._judge_key = os.environ.get("JUDGE_API_KEY") or writer_key
        self._provider_keys = keys_of(settings.models)

    def api_keys(self) -> list[str]:
        """The API keys in use, so that a log can redact them."""
        return [key for key in (self._key, self._judge_key, *self._provider_keys) if key]

    async def check(self, settings: Settings) -> None:
        """Raise `ProviderStopped` if a model of the run has no endpoint at all."""
        await self._check_model(settings.model, False)
        await self.check_judge(settings)

    async def check_judge(self, settings: Settings) -> None:
        """Raise `ProviderStopped` if the judge, or a juror, has no endpoint at all."""
        for juror in settings.jurors:
            await self._check_model(juror, True)

    async def _check_model(self, model: str, judge: bool) -> None:
        if not is_embedded(model):
            await self.resolve(model, judge)

    async def resolve(self, model: str, judge: bool) -> Endpoint:
        """See `nodes.llm.endpoint.Resolve`. Raises `ProviderStopped` if there is no endpoint.

        A provider's model needs none, but a package: raises `InputError` if that is missing.
        """
        if provider_of(model) is not None:
            missing = await asyncio.to_thread(find_missing, model)
            if missing is not None:
                raise InputError(missing)
            return Endpoint()
        if is_embedded(model):
            return await asyncio.to_thread(local.endpoint, model)
        base_url, key = (
            (self._judge_base_url, self._judge_key) if judge else (self._base_url, self._key)
        )
        if not base_url and not key:
            raise ProviderStopped(
                f"no endpoint for model {model!r}: set OPENAI_BASE_URL and OPENAI_API_KEY, pass "
                "--base-url, or use the embedded model with --model local"
            )
        return Endpoint(base_url, key)
