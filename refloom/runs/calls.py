"""The `Complete` of a run: answered from the journal if it was ever paid for, else sent."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

from nodes.llm import Call, Complete, Reply
from nodes.wire import schema_of
from refloom.runs.journal import Journal
from refloom.runs.limits import Limiter, with_retries
from refloom.settings import StageSettings


class Interrupted(Exception):
    """The run was asked to stop: no further call is begun."""


class JournaledCalls:
    """Answers calls from the journal, sends new ones, and commits each answer before it is used.

    A call is known by all that makes its answer what it is: where it goes, model, messages, the
    shape asked for, parameters, and the draw's seed. Equal calls at once are sent once.
    """

    def __init__(
        self,
        send: Complete,
        journal: Journal,
        limiter: Limiter,
        *,
        address: Callable[[bool], str],
        stages: dict[Any, StageSettings],
    ) -> None:
        """`address` says where a judge's (True) or a writer's call goes, for the key."""
        self._send = send
        self._journal = journal
        self._limiter = limiter
        self._address = address
        self._stages = stages
        self._under_way: dict[bytes, asyncio.Future[Reply]] = {}
        self.counts: Counter[str] = Counter()
        self.stopping = False

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        return self._limiter.in_flight

    async def __call__(self, call: Call) -> Reply:
        """See `nodes.llm.Complete`. Raises `Interrupted` once the run is stopping."""
        call = self._with_stage_settings(call)
        key = self._key(call)
        if self._journal.knows_call(key):
            found = await asyncio.to_thread(
                self._journal.read, "SELECT reply FROM calls WHERE key = ?", key
            )
            if found:
                self.counts["reused"] += 1
                return Reply(**json.loads(found[0][0]))
        return await self._once(key, lambda: self._pay(key, call))

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

    def _ended(self, key: bytes, done: asyncio.Future[Reply]) -> None:
        self._under_way.pop(key, None)
        if not done.cancelled():
            # Looked at here, so that asyncio does not complain when every waiter was cancelled.
            done.exception()

    async def _pay(self, key: bytes, call: Call) -> Reply:
        async with self._limiter.place(call.order):
            if self.stopping:
                raise Interrupted
            reply = await with_retries(
                self._send,
                call,
                retried=lambda: self.counts.update(retried=1),
                opened=lambda: self._limiter.opened,
            )
            self._limiter.open()
        usage = reply.usage
        await self._journal.put(
            "INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)",
            key,
            call.stage,
            call.model,
            json.dumps(asdict(reply), ensure_ascii=True),
            usage["prompt_tokens"],
            usage["cached_tokens"],
            usage["completion_tokens"],
        )
        self._journal.remember_call(key)
        self.counts["paid"] += 1
        return reply

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
        schema = schema_of(call.answer) if call.answer else None
        rests_on = [
            self._address(call.judge),
            call.model,
            call.messages,
            schema,
            call.temperature,
            call.max_tokens * call.room,
            call.seed,
            call.extra_body,
        ]
        return sha256(json.dumps(rests_on, sort_keys=True).encode()).digest()
