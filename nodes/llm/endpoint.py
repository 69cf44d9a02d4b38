"""OpenAI-compatible endpoints as a `Complete`, over aiohttp.

A call is one request. The OpenAI client and langchain-openai's messages cost several times what a
request over aiohttp does, and a run makes hundreds of thousands of them. With tracing or callbacks
on, the same request is made inside a `ChatOpenAI`, so that LangSmith and Studio show it as a run:
see `nodes.llm.tracing`.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import sys
from base64 import b64encode
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakKeyDictionary

import aiohttp
from yarl import URL

from nodes.llm import Answer, Call, CallFailed, Complete, ProviderStopped, Reply, draw_seed
from nodes.llm.answers import UnreadableAnswer, read_answer
from nodes.llm.capabilities import (
    MARGIN_TOKENS,
    MODES,
    OPTIONAL_FIELDS,
    Capabilities,
    Mode,
    Way,
    least_tokens,
)
from nodes.llm.completion import NotACompletion, parse_reply, read_event_stream
from nodes.llm.fast_json import dumps, loads
from nodes.llm.faults import PASSING, Fault, read_fault
from nodes.llm.protocol import ErrorResponse, Transient, request_body
from nodes.state import Usage

OPENAI_URL = "https://api.openai.com/v1"
# Headers of the OpenAI client that come from the environment.
ACCOUNT_VARIABLES = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
# By such variables LangSmith's tracing is turned on.
TRACING_PREFIXES = ("LANGSMITH_TRACING", "LANGCHAIN_TRACING")
MAX_RETRY_WAIT_S = 60.0
TIMEOUT_S = 600.0
# An address that does not take a connection at all is reported within seconds.
CONNECT_TIMEOUT_S = 4.0
# The same until it has answered: a wrong address should be found out sooner.
FIRST_CONNECT_TIMEOUT_S = 2.2

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
# How often the request of one call is changed, by what the endpoint says of it.
MAX_ADAPTATIONS = 12
# How often a call is sent again whose generation the endpoint threw away, before the next draw.
MAX_REPEATS = 2
# A call of which so many replies could not be read has the mode probed before it is sent again.
UNREADABLE_BEFORE_PROBE = 2
PROBE_PROMPT = "Reply with the word ok. If you are asked for a JSON object, set ok to true in it."
PROBE_TOKENS = 64

# Faults that end every call.
STOPPING_KINDS = ("key", "model", "credit", "address")

ALL_CAPABILITIES = Capabilities()
# The address and name of a model.
ModelKey = tuple[str, str]
# Makes one request in a given way: see `EndpointClient.attempt`.
Attempt = Callable[[Call, Capabilities], Awaitable[Reply | Fault]]
# Makes the call of a probe by the `Complete` it is handed.
SendProbe = Callable[[Call, Complete], Awaitable[Reply]]
# The dollars of a usage: by model, usage and service tier; None without a price.
Price = Callable[[str, Usage, str | None], float | None]
# Called with a model and a sentence about it.
OnLearned = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where calls go. `base_url` None is OpenAI's own; the key does not show in a repr.

    `max_tokens` bounds every answer, for a model that may never stop.
    """

    base_url: str | None = None
    api_key: str = field(default="", repr=False)
    max_tokens: int | None = None


# The endpoint of a model, as the judge's (True) or the writer's.
Resolve = Callable[[str, bool], Awaitable[Endpoint]]
# Called with model, judge, and the headers of an answer.
OnHeaders = Callable[[str, bool, Mapping[str, str]], None]


async def resolve_from_environment(model: str, judge: bool) -> Endpoint:
    """The endpoint that a package registered for a model name, else the environment's.

    Packages register under the entry point group `refloom.models`; `local` is such a name.
    Raises `ProviderStopped` if there is neither.
    """
    # The look-up reads files and may import a package: not on the event loop.
    registered = await asyncio.to_thread(_registered_endpoint, model)
    if registered is not None:
        return await asyncio.to_thread(registered)
    base_url, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if judge:
        judge_base_url = os.environ.get("JUDGE_BASE_URL")
        # The writer's key is not sent to another address.
        key = os.environ.get("JUDGE_API_KEY") or ("" if judge_base_url else key)
        base_url = judge_base_url or base_url
    if not base_url and not key:
        raise ProviderStopped(
            f"no endpoint for model {model!r}: set OPENAI_BASE_URL and OPENAI_API_KEY, "
            "or use the embedded model 'local'"
        )
    return Endpoint(base_url, key or "")


@cache
def _registered_endpoint(model: str) -> Callable[[], Endpoint] | None:
    for point in entry_points(group="refloom.models", name=model):
        endpoint: Callable[[], Endpoint] = point.load()
        return endpoint
    return None


class EndpointClient:
    """A `Complete` over the endpoints that `resolve` names; it has a session in each event loop.

    A model's endpoint is resolved once. What it refuses, and how much it takes, is found out at the
    first calls and remembered: by a detail that names it, or by probes, never by words alone.
    """

    def __init__(
        self,
        resolve: Resolve = resolve_from_environment,
        *,
        max_retries: int = 2,
        timeout: float = TIMEOUT_S,
        on_headers: OnHeaders | None = None,
        on_learned: OnLearned | None = None,
        attempt: Attempt | None = None,
        price: Price | None = None,
    ) -> None:
        """`max_retries` bounds the retries of transient faults; 0 for a caller with its own.

        `timeout` bounds one request, in seconds. `on_headers` gets the headers of every answer,
        good or bad: endpoints say there how much more they take. `on_learned` gets the model and a
        sentence whenever something new is known of its endpoint. `attempt` makes the requests in
        another process. `price` gives the dollars of a usage, for traces.
        """
        self._remote_attempt = attempt
        self._price = price
        self._resolve = resolve
        self._on_headers = on_headers
        self._on_learned = on_learned
        self._max_retries = max_retries
        self._timeout = timeout
        # Makes the call of a probe: a run's client replaces it, to journal and to pay it.
        self.send_probe: SendProbe = _send_directly
        self._capabilities: dict[ModelKey, Capabilities] = {}
        self._probes = Probes()
        # Models that have answered, with the kind of the request and the way it was made.
        self._proven: set[tuple[str, str, str, Way]] = set()
        self._targets: dict[tuple[str, bool], Target] = {}
        self._sessions: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[HttpSession, AsyncGenerator[None, None]]
        ] = WeakKeyDictionary()

    async def __call__(self, call: Call) -> Reply:
        """See `nodes.llm.Complete`. Raises `Transient` after the last retry."""
        target = await self._target_of(call.model, call.judge)
        call = self.fit(call)
        for retry in range(self._max_retries):
            try:
                return await self._request(target, call)
            except Transient as fault:
                wait = fault.retry_after
            if wait is None:
                wait = random.uniform(0.25, 0.5) * 2**retry
            await asyncio.sleep(min(wait, MAX_RETRY_WAIT_S))
        return await self._request(target, call)

    async def attempt(self, call: Call, known: Capabilities) -> Reply | Fault:
        """One request in a given way, whatever is known: its reply, or the fault.

        Nothing is learned of it. Raises `Transient` if no answer comes.
        """
        return await self._send_traced(await self._target_of(call.model, call.judge), call, known)

    async def list_models(self, model: str, judge: bool) -> list[dict[str, Any]] | None:
        """The endpoint's list of models, as it gives it; None if it has none."""
        target = await self._target_of(model, judge)
        try:
            body = await (await self._session()).get(target, "/models")
        except (ErrorResponse, aiohttp.ClientError, TimeoutError):
            return None
        entries = body.get("data", body.get("models")) if isinstance(body, dict) else body
        listed = entries if isinstance(entries, list) else []
        return [entry for entry in listed if isinstance(entry, dict)] or None

    def fit(self, call: Call) -> Call:
        """The call with the `max_tokens` that goes on the wire, by what is known so far."""
        if call.wire_tokens is not None:
            return call
        target = self._targets.get((call.model, call.judge))
        if target is None:
            return call
        known = self._known(target, call)
        return replace(call, wire_tokens=known.fit(call, target.endpoint.max_tokens))

    def observe(self, call: Call, reply: Reply) -> None:
        """Learn from a reply, for a caller whose calls do not come back through this client."""
        target = self._targets.get((call.model, call.judge))
        if target is not None:
            self._observe(target, call, reply)

    def known(self) -> list[dict[str, Any]]:
        """What is known of each model at its endpoint, as plain JSON values."""
        return [
            {"address": address, "model": model, **known.to_dict()}
            for (address, model), known in self._capabilities.items()
        ]

    def remember(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Take up what an earlier session knew: the entries of `known`."""
        for entry in entries:
            values = {k: v for k, v in entry.items() if k not in ("address", "model")}
            key = str(entry["address"]), str(entry["model"])
            self._capabilities[key] = Capabilities.from_dict(values)

    async def _target_of(self, model: str, judge: bool) -> Target:
        target = self._targets.get((model, judge))
        if target is None:
            target = target_of(await self._resolve(model, judge))
            self._targets[model, judge] = target
        return target

    def _known(self, target: Target, call: Call) -> Capabilities:
        return self._capabilities.get((target.name, call.model), ALL_CAPABILITIES)

    def _learn(self, target: Target, call: Call, known: Capabilities, sentence: str = "") -> None:
        self._capabilities[target.name, call.model] = known
        if sentence and self._on_learned is not None:
            self._on_learned(call.model, sentence)

    async def _request(self, target: Target, call: Call) -> Reply:
        """Make a call's request; what the endpoint refuses or cannot take is left out of the next.

        Raises what a fault means: `Transient`, `CallFailed` or `ProviderStopped`.
        """
        if call.unreadable >= UNREADABLE_BEFORE_PROBE and call.answer is not None:
            await self._probe_mode_by_shape(target, call)
        smaller, message, repeats, confirmed = None, "", MAX_REPEATS, False
        for _ in range(MAX_ADAPTATIONS):
            known = self._known(target, call)
            sent = call if smaller is None else replace(call, wire_tokens=smaller.tokens)
            self._check_room(known, sent)
            answer = await self._send_traced(target, sent, known)
            if isinstance(answer, Reply):
                if smaller is not None:
                    self._learn_limit(target, call, smaller)
                if call.kind == "text" and answer.reasoning and not (answer.text or "").strip():
                    answer = await self._text_of(target, call, answer)
                return self._accept(target, sent, answer)
            if answer.kind == "bad_generation" and answer.feature is None and repeats:
                # The endpoint threw a generation away: there was no reply, so it is sent as it was.
                repeats -= 1
                continue
            if _is_too_much(answer) and not (answer.certain or confirmed):
                # Words alone: what passes as it was had no limit to learn.
                confirmed = True
                continue
            smaller = await self._adapt(target, sent, known, answer) or smaller
            message = answer.message
        raise CallFailed(call.stage, "bad_request", message)

    async def _text_of(self, target: Target, call: Call, reply: Reply) -> Reply:
        """A reply of thoughts only, as text if this endpoint puts every answer into that field.

        A tiny call decides: what it answers has no thoughts in it, and stands in that field alone.
        """
        known = self._known(target, call)
        if known.answers_in is None:
            async with self._probes.lock(target.name, call.model):
                known = self._known(target, call)
                if known.answers_in is None:
                    probe = await self._send_probe(target, call, known, None)
                    if not isinstance(probe, Reply):
                        return reply
                    thought = (probe.reasoning or "").strip(" .!\n").lower()
                    alone = not (probe.text or "").strip() and thought == "ok"
                    place: Literal["reasoning", "content"] = "reasoning" if alone else "content"
                    known = replace(self._known(target, call), answers_in=place)
                    sentence = "answers in the field for thoughts: that is read as the answer"
                    self._learn(target, call, known, sentence if alone else "")
        if known.answers_in == "reasoning" and reply.finish == "stop":
            return replace(reply, text=reply.reasoning, reasoning=None)
        return reply

    def _learn_limit(self, target: Target, call: Call, smaller: SmallerAnswer) -> None:
        """Remember the limit that a call has kept: it passed with nothing else changed."""
        known = self._known(target, call)
        if smaller.window is not None and smaller.window != known.window:
            sentence = f"has a window of {smaller.window:,} tokens: max_tokens is fitted to it"
            self._learn(target, call, replace(known, window=smaller.window), sentence)
        elif smaller.window is None and smaller.tokens != known.largest_answer:
            sentence = f"takes max_tokens up to {smaller.tokens:,}: no call asks for more"
            self._learn(target, call, replace(known, largest_answer=smaller.tokens), sentence)

    def _accept(self, target: Target, call: Call, reply: Reply) -> Reply:
        """A completion as the reply to a call, with what it teaches."""
        no_odds = call.kind == "question" and reply.odds is None
        withheld = reply.finish == "content_filter"
        if no_odds and not withheld and not self._has_answered(target, call, kind="question"):
            raise _no_log_probabilities()
        self._proven.add((target.name, call.model, call.kind, self._known(target, call).way))
        used, most = reply.usage["completion_tokens"], call.most_tokens
        empty = not (reply.text or "").strip()
        if call.kind != "question" and (used == most or (empty and used > most > 0)):
            # Some endpoints say `stop`, or nothing, of an answer that had no more room.
            reply = replace(reply, finish="length" if reply.finish == "stop" else reply.finish)
        self._observe(target, call, reply)
        return reply

    def _has_answered(self, target: Target, call: Call, kind: str | None = None) -> bool:
        """Whether the model of a call has answered before, any request or one of a kind."""
        return any(
            (address, model) == (target.name, call.model) and kind in (None, proven_kind)
            for address, model, proven_kind, _ in self._proven
        )

    def _observe(self, target: Target, call: Call, reply: Reply) -> None:
        before = self._known(target, call)
        known = before.observe(call, reply)
        if known is before:
            return
        sentence = ""
        if known.rooms != before.rooms:
            room = known.rooms[call.stage]
            sentence = (
                f"thinks before it answers: {call.stage} is asked for with max_tokens "
                f"{call.max_tokens * room:,}, {room} times as many"
            )
        self._learn(target, call, known, sentence)

    def _check_room(self, known: Capabilities, call: Call) -> None:
        """Raise `CallFailed` for a cut answer that can be given no more room than it had."""
        half = call.max_tokens * (call.room // 2)
        if call.room > 1 and call.wire_tokens is not None and call.wire_tokens <= half:
            bound = known.largest_answer or known.window
            raise CallFailed(
                call.stage,
                "cut",
                f"the answer was cut off at {call.wire_tokens:,} tokens, and the endpoint takes no "
                f"larger one (its limit is {bound or call.wire_tokens:,} tokens)",
            )

    async def _adapt(
        self, target: Target, call: Call, known: Capabilities, fault: Fault
    ) -> SmallerAnswer | None:
        """Do what a fault calls for, and give the `max_tokens` to try, if that is to change.

        Raises what the fault means if nothing can be done about it.
        """
        if _is_too_much(fault):
            return smaller_answer(call, known, fault)
        if fault.kind == "bad_generation" and fault.feature == "max_tokens":
            # Thoughts took all of the room, and the endpoint makes an error of it.
            raise CallFailed(call.stage, "unfinished", fault.message)
        by_words = fault.kind in STOPPING_KINDS and not fault.certain
        if by_words and self._has_answered(target, call):
            await self._confirm(target, call, known, fault)
        if self._known(target, call).way != known.way:
            # Many calls at once may have been refused the same: the first changes what is known.
            return None
        suspects = self._suspects(target, call, known, fault)
        if suspects:
            async with self._probes.lock(target.name, call.model):
                if self._known(target, call).way != known.way:
                    return None
                refused: tuple[str, Capabilities] | None
                if fault.certain and fault.feature in suspects:
                    refused = fault.feature, known.without(fault.feature)
                else:
                    refused = await self._probe(target, call, known, suspects)
                if refused is not None:
                    feature, without = refused
                    latest = self._known(target, call).with_way(without)
                    self._learn(target, call, latest, _refusal(feature, latest, fault))
                    return None
        raise self._error(target, call, fault)

    async def _confirm(self, target: Target, call: Call, known: Capabilities, fault: Fault) -> None:
        """Raise `Transient` if a tiny call passes: what would end the run is passing."""
        outcome = await self._send_probe(target, call, known, None, afresh=True)
        if isinstance(outcome, Reply):
            raise _transient(call, replace(fault, kind="server"))

    def _suspects(
        self, target: Target, call: Call, known: Capabilities, fault: Fault
    ) -> tuple[str, ...]:
        """The features that a fault may be about, so that it is worth probing them."""
        mode = (known.mode,) if call.answer is not None and known.mode != MODES[-1] else ()
        fields = tuple(f for f in OPTIONAL_FIELDS if f in request_body(call, known))
        if fault.kind == "unsupported":
            feature = fault.feature
            if feature in MODES:
                return mode
            return (feature,) if feature in fields else mode + fields
        # An endpoint that has answered this mode refuses the call for another cause.
        unproven = (target.name, call.model, call.kind, known.way) not in self._proven
        if fault.kind == "bad_request" and unproven:
            return mode + fields
        return mode if fault.kind == "server" and unproven else ()

    async def _probe(
        self, target: Target, call: Call, known: Capabilities, suspects: Sequence[str]
    ) -> tuple[str, Capabilities] | None:
        """The first of the suspects that the endpoint refuses, with what is known without it.

        A suspect is refused if a tiny call fails with it and passes without it. What was probed
        before and passed is not probed again. Raises `Transient` if a probe says nothing.
        """
        done = (target.name, call.model, call.answer, *suspects)
        if done in self._probes.passed:
            return None
        least = await self._least(target, call, known)
        if least is None:
            return None
        for suspect in suspects:
            if suspect in MODES:
                mode = await self._first_mode(target, call, least, known.mode)
                if mode not in (None, known.mode):
                    return suspect, replace(known, mode=mode)
                continue
            alone = replace(least, refused_fields=least.refused_fields - {suspect})
            if alone != least and not await self._passes(target, call, alone, None):
                return suspect, known.without(suspect)
        self._probes.passed.add(done)
        return None

    async def _least(self, target: Target, call: Call, known: Capabilities) -> Capabilities | None:
        """The barest way of asking that passes; None if none does, so that nothing can be told."""
        bare = frozenset(OPTIONAL_FIELDS)
        # The bound on answers has two names.
        for refused in (bare - {"max_tokens"}, bare):
            least = replace(known, mode=MODES[-1], refused_fields=refused)
            if await self._passes(target, call, least, None):
                return least
        return None

    async def _first_mode(
        self, target: Target, call: Call, least: Capabilities, first: Mode
    ) -> Mode | None:
        """The first mode, from one on, in which the endpoint takes the shape of a call."""
        for mode in MODES[MODES.index(first) :]:
            if await self._passes(target, call, replace(least, mode=mode), call.answer):
                return mode
        return None

    async def _passes(
        self, target: Target, call: Call, known: Capabilities, schema: type[Answer] | None
    ) -> bool:
        """Whether the endpoint answers a tiny call that is made so. Raises `Transient`."""
        for repeated in (False, True):
            fault = await self._send_probe(target, call, known, schema)
            if isinstance(fault, Reply):
                return True
            if fault.kind == "server":
                # One such answer may be chance.
                if repeated:
                    return False
                continue
            if fault.kind in PASSING:
                raise _transient(call, fault)
            if fault.kind in STOPPING_KINDS:
                raise self._error(target, call, fault)
            return False
        return False

    async def _send_probe(
        self,
        target: Target,
        call: Call,
        known: Capabilities,
        schema: type[Answer] | None,
        *,
        afresh: bool = False,
    ) -> Reply | Fault:
        """Make a tiny call in a given way; its reply, or its fault.

        What a journal has is the answer, unless it is made `afresh`.
        """
        way = [target.name, call.model, known.mode, *sorted(known.refused_fields)]
        if afresh:
            way.append(str(random.getrandbits(64)))
        probe = Call(
            stage="probe",
            messages=({"role": "user", "content": PROBE_PROMPT},),
            answer=schema,
            model=call.model,
            judge=call.judge,
            # Another way of asking is another call.
            seed=draw_seed(0, "probe", schema.__name__ if schema else "", "\x1f".join(way), 0),
            temperature=0.0,
            max_tokens=PROBE_TOKENS,
            order=call.order,
            text=schema is None,
            wire_tokens=PROBE_TOKENS,
        )

        async def send(call: Call) -> Reply:
            fault = await self._send_traced(target, call, known)
            if isinstance(fault, Reply):
                return fault
            raise _ProbeFailed(fault)

        try:
            return await self.send_probe(probe, send)
        except _ProbeFailed as failed:
            return failed.fault

    async def _probe_mode_by_shape(self, target: Target, call: Call) -> None:
        """Give up a mode in which the endpoint does not keep to a shape.

        A call in which two answers could not be read leads here. The mode goes only if a tiny call
        in it brings no answer of its shape, and one in a later mode does.
        """
        known = self._known(target, call)
        if known.mode == MODES[-1]:
            return
        async with self._probes.lock(target.name, call.model):
            done = (target.name, call.model, "shape", known.mode)
            if self._known(target, call).way != known.way or done in self._probes.passed:
                return
            for mode in MODES[MODES.index(known.mode) :]:
                reply = await self._send_probe(target, call, replace(known, mode=mode), Probed)
                if not isinstance(reply, Reply):
                    if reply.kind in PASSING:
                        raise _transient(call, reply)
                    continue
                if reply.finish == "length":
                    # Thoughts took its room: that says nothing of the mode.
                    break
                try:
                    read_answer(reply.text or reply.reasoning or "", Probed, name="probe")
                except UnreadableAnswer:
                    continue
                if mode != known.mode:
                    sentence = f"does not keep to a shape by {known.mode}: it is asked by {mode}"
                    latest = replace(self._known(target, call), mode=mode)
                    self._learn(target, call, latest, sentence)
                    return
                break
            self._probes.passed.add(done)

    async def _send(self, target: Target, call: Call, known: Capabilities) -> Reply | Fault:
        """Send one request: its reply, or the fault. Raises `Transient` if no answer comes."""
        # A preflight is sent from here: no other process has begun yet.
        if self._remote_attempt is not None and call.stage != "preflight":
            return await self._remote_attempt(call, known)
        body = request_body(call, known)
        try:
            answer, headers = await (await self._session()).post(target, body)
        except ErrorResponse as error:
            status, content, headers = error.status, error.content, error.headers
        except (aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error, TimeoutError) and not isinstance(
                error, aiohttp.ConnectionTimeoutError
            ):
                kind, message = "timeout", "the endpoint did not answer in time"
            else:
                kind, message = "connection", f"no connection to the endpoint: {error}"
            raise Transient(call.stage, kind, message) from error
        else:
            self._report_headers(call, headers)
            try:
                return parse_reply(answer, call)
            except NotACompletion as error:
                status, content = 200, error.body
        self._report_headers(call, headers)
        return read_fault(status, headers, content, sent=[m["content"] for m in call.messages])

    async def _send_traced(self, target: Target, call: Call, known: Capabilities) -> Reply | Fault:
        """Send one request as `_send` does, inside a run of a chat model if anyone traces it."""
        # Another process traces what it sends.
        elsewhere = self._remote_attempt is not None and call.stage != "preflight"
        if elsewhere or not is_traced():
            return await self._send(target, call, known)
        # Its imports take a second: not on the event loop.
        tracing = await asyncio.to_thread(import_module, "nodes.llm.tracing")
        send = partial(self._send, target, call, known)
        exchange = tracing.Exchange(call, target.name, send, self._price)
        traced: Reply | Fault = await tracing.send_traced(exchange)
        return traced

    def _error(self, target: Target, call: Call, fault: Fault) -> Exception:
        """What a fault means that cannot be mended by asking another way."""
        stop = _stop_message(call, fault)
        if stop is not None:
            if fault.kind == "address" and self._has_answered(target, call):
                # It has answered before: something in between is out of order.
                return _transient(call, replace(fault, kind="server"))
            return ProviderStopped(stop)
        if fault.kind in PASSING:
            return _transient(call, fault)
        no_odds = fault.kind == "unsupported" and fault.feature in ("logprobs", "top_logprobs")
        if no_odds and call.kind == "question":
            return _no_log_probabilities()
        kind = "bad_request" if fault.kind == "unsupported" else fault.kind
        return CallFailed(call.stage, kind, fault.message)

    def _report_headers(self, call: Call, headers: Mapping[str, str]) -> None:
        if self._on_headers is not None:
            self._on_headers(call.model, call.judge, headers)

    async def _session(self) -> HttpSession:
        """The session of the running event loop, opened at the first call in it."""
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            session = HttpSession(self._timeout)
            closer = _close_with_loop(session)
            self._sessions[loop] = session, closer
            await anext(closer)
        return self._sessions[loop][0]

    async def aclose(self) -> None:
        """Close the session of the running event loop."""
        _, closer = self._sessions.pop(asyncio.get_running_loop(), (None, None))
        if closer is not None:
            await closer.aclose()


def _is_too_much(fault: Fault) -> bool:
    """Whether a smaller answer may be taken; a limit of tokens a minute may be too small too."""
    whole = fault.kind == "rate_limit" and fault.window is not None
    return whole or fault.kind in ("too_long", "answer_too_large")


@dataclass(frozen=True, slots=True)
class SmallerAnswer:
    """The `max_tokens` with which a call may fit, and the window that bounds it, if that is one."""

    tokens: int
    window: int | None = None


def smaller_answer(call: Call, known: Capabilities, fault: Fault) -> SmallerAnswer:
    """What to ask for instead of an answer that is too large, alone or with its prompt.

    Raises `CallFailed` if that leaves too little room for an answer.
    """
    window = None
    if fault.kind == "answer_too_large":
        tokens = fault.largest_answer or call.most_tokens // 2
    elif fault.window is not None:
        window = fault.window
        tokens = window - (fault.prompt_tokens or known.prompt_tokens(call)) - MARGIN_TOKENS
    else:
        tokens = 0
    if tokens >= call.most_tokens > 1:
        # What the endpoint says would change nothing.
        tokens = call.most_tokens // 2
    if tokens < least_tokens(call):
        raise CallFailed(
            call.stage,
            "too_long",
            f"the prompt is too long for the model: {fault.message}. Serve the model with a "
            "larger context, or use shorter references",
        )
    return SmallerAnswer(tokens, window)


class Probed(Answer):
    """What a probe of a mode asks for."""

    ok: bool


class Probes:
    """The probes of a client: one at a time for a model, and what passed is not probed again."""

    def __init__(self) -> None:
        self.passed: set[tuple[Any, ...]] = set()
        self._locks: WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[tuple[str, str], asyncio.Lock]
        ] = WeakKeyDictionary()

    def lock(self, address: str, model: str) -> asyncio.Lock:
        """The lock under which a model at an address is probed; each event loop has its own."""
        locks = self._locks.setdefault(asyncio.get_running_loop(), {})
        return locks.setdefault((address, model), asyncio.Lock())


class _ProbeFailed(Exception):
    """A probe was answered by a fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


async def _send_directly(call: Call, send: Complete) -> Reply:
    return await send(call)


def _transient(call: Call, fault: Fault) -> Transient:
    transient = Transient(call.stage, fault.kind, fault.message)
    transient.retry_after = fault.wait
    return transient


def _no_log_probabilities() -> ProviderStopped:
    return ProviderStopped("the endpoint gives no log-probabilities; use --judge-method verdict")


def _stop_message(call: Call, fault: Fault) -> str | None:
    """What ends every call, and what to do about it; None if the fault is not of that kind."""
    if fault.kind == "key":
        variables = "OPENAI_API_KEY" + (" or JUDGE_API_KEY" if call.judge else "")
        return f"the endpoint refused the key ({fault.message}): check {variables}"
    if fault.kind == "credit":
        return (
            f"the endpoint's quota is used up ({fault.message}): see your plan and billing at the "
            "provider"
        )
    if fault.kind == "model":
        return (
            f"the endpoint does not know model {call.model!r} ({fault.message}): check --model"
            + (" or --judge-model" if call.judge else "")
        )
    if fault.kind == "address":
        return f"this is no address of chat completions ({fault.message}): check --base-url"
    return None


def _refusal(feature: str, known: Capabilities, fault: Fault) -> str:
    """The sentence that says what is left out from now on, and why."""
    if feature in MODES:
        what = f"refuses {feature}: it is asked by {known.mode}"
    elif feature == "max_tokens":
        what = "refuses max_tokens: max_completion_tokens is sent"
    else:
        what = f"refuses {feature}: requests go without it"
    return f"{what} ({fault.message})"


class HttpSession:
    """The connections of one event loop, in which it must be opened, used and closed."""

    def __init__(self, timeout: float = TIMEOUT_S) -> None:
        self._session = aiohttp.ClientSession(
            # Callers bound how many calls are in flight.
            connector=aiohttp.TCPConnector(limit=0),
        )
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT_S)
        self._first_timeout = aiohttp.ClientTimeout(
            total=timeout, sock_connect=FIRST_CONNECT_TIMEOUT_S
        )
        self._proxies: dict[str, str | None] = {}
        # The addresses that have answered.
        self._reached: set[str] = set()

    async def post(self, target: Target, body: Mapping[str, Any]) -> tuple[Any, Mapping[str, str]]:
        """Post JSON; return the answer's JSON and headers. An event stream is read as one answer.

        An address that has moved on its own host is followed with the same request, and
        remembered in the target. Raises `ErrorResponse` for another status than 200 or what is not
        JSON, `aiohttp.ClientError` or `TimeoutError` if no answer comes.
        """
        data = dumps(body)
        for _ in range(MAX_REDIRECTS):
            url = target.url
            async with self._session.post(
                url,
                data=data,
                headers=target.headers,
                timeout=self._timeout if url in self._reached else self._first_timeout,
                proxy=self._proxy(url),
                ssl=await _ssl_context() if url.startswith("https:") else True,
                allow_redirects=False,
            ) as response:
                self._reached.add(url)
                content = await response.read()
            status, headers = response.status, response.headers
            moved = headers.get("Location") if status in REDIRECTS else None
            if moved is None or not target.follow(moved):
                break
        if status != 200:
            raise ErrorResponse(status, content, headers)
        if is_event_stream(content, headers):
            return read_event_stream(content), headers
        try:
            return loads(content), headers
        except ValueError as error:
            raise ErrorResponse(status, content, headers) from error

    async def get(self, target: Target, path: str) -> Any:
        """The JSON of a page beside the chat completions, such as `/models`.

        Raises as `post` does.
        """
        parts = urlsplit(target.url)
        base = parts.path.removesuffix("/chat/completions")
        url = urlunsplit(parts._replace(path=base + path))
        async with self._session.get(
            url,
            headers=target.headers,
            proxy=self._proxy(url),
            ssl=await _ssl_context() if url.startswith("https:") else True,
            timeout=self._first_timeout,
            allow_redirects=False,
        ) as response:
            content = await response.read()
        try:
            if response.status == 200:
                return loads(content)
        except ValueError as error:
            raise ErrorResponse(response.status, content, response.headers) from error
        raise ErrorResponse(response.status, content, response.headers)

    def _proxy(self, url: str) -> str | None:
        """The proxy that the environment names for an address, looked up once."""
        if url not in self._proxies:
            parts = URL(url)
            proxy = getproxies().get(parts.scheme)
            bypass = proxy is None or proxy_bypass(f"{parts.host}:{parts.port}")
            self._proxies[url] = None if bypass else proxy
        return self._proxies[url]

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def is_event_stream(content: bytes, headers: Mapping[str, str]) -> bool:
    """Whether an answer came as server-sent events, which may begin with a comment."""
    begun = content.lstrip()[:6].startswith((b"data:", b"event:", b"id:", b"retry:", b":"))
    return begun or "event-stream" in headers.get("Content-Type", "")


async def _close_with_loop(session: HttpSession) -> AsyncGenerator[None, None]:
    """Close a session when its loop ends, for callers that close nothing.

    A loop that shuts down closes the asynchronous generators still open in it.
    """
    try:
        yield
    finally:
        await session.close()


@dataclass(slots=True)
class Target:
    """An endpoint with the URL and headers of its requests. `name` is its address for people."""

    endpoint: Endpoint
    name: str
    url: str
    headers: dict[str, str] = field(repr=False)

    def follow(self, location: str) -> bool:
        """Take the address that the endpoint has moved to; not that of another host."""
        moved = URL(self.url).join(URL(location))
        if moved.host != URL(self.url).host or moved.scheme not in ("http", "https"):
            return False
        if URL(self.url).scheme == "https" and moved.scheme == "http":
            # The key would cross the net in the open.
            return False
        self.url = str(moved)
        return True


def target_of(endpoint: Endpoint) -> Target:
    """How an endpoint's requests are sent.

    A user and password in its address become a header; a query, such as Azure's `api-version`,
    stays behind the path. Azure takes the key in a header of its own.
    """
    parts = urlsplit(endpoint.base_url or OPENAI_URL)
    authorization = f"Bearer {endpoint.api_key or 'none'}"
    user, at, host = parts.netloc.rpartition("@")
    if at:
        parts = parts._replace(netloc=host)
        authorization = f"Basic {b64encode(unquote(user).encode()).decode()}"
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": "refloom",
    }
    azure = host.split(":")[0].endswith(".azure.com") or "api-version=" in parts.query
    if azure and not at and endpoint.api_key:
        headers["api-key"] = endpoint.api_key
    else:
        headers["Authorization"] = authorization
    for name, variable in ACCOUNT_VARIABLES.items():
        if os.environ.get(variable):
            headers[name] = os.environ[variable]
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    name = urlunsplit(parts._replace(path=parts.path.rstrip("/"), query="", fragment=""))
    return Target(endpoint, name, urlunsplit(parts._replace(path=path, fragment="")), headers)


def is_traced() -> bool:
    """Whether LangSmith tracing is on, or callbacks other than LangGraph's own are set."""
    if (
        "langchain_core" not in sys.modules
        and "langsmith" not in sys.modules
        and not any(name.startswith(TRACING_PREFIXES) for name in os.environ)
    ):
        # Before LangChain is imported nobody can have set any; the import takes half a second.
        return False
    from langchain_core.runnables.config import var_child_runnable_config
    from langsmith.utils import tracing_is_enabled

    callbacks: Any = (var_child_runnable_config.get() or {}).get("callbacks")
    handlers = getattr(callbacks, "handlers", callbacks) or []
    if any(not type(handler).__module__.startswith("langgraph") for handler in handlers):
        return True
    # A run of LangChain's has a tracer among its handlers if tracing is on: no need to ask.
    return not hasattr(callbacks, "handlers") and bool(tracing_is_enabled())


async def _ssl_context() -> ssl.SSLContext:
    """The context of all sessions; its certificates are read once, off the event loop."""
    if not _load_ssl_context.cache_info().currsize:
        await asyncio.to_thread(_load_ssl_context)
    return _load_ssl_context()


@cache
def _load_ssl_context() -> ssl.SSLContext:
    from httpx2 import create_ssl_context

    # As the OpenAI client: SSL_CERT_FILE or SSL_CERT_DIR, else the certificates of the system.
    return create_ssl_context()
