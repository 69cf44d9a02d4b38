"""An OpenAI-compatible endpoint as a `Complete`: what it can do is found out once, and remembered.

A call is one request over aiohttp; langchain-openai's message layer costs more than a millisecond a
call. With tracing or callbacks on, the same request is made by a `ChatOpenAI` of the endpoint's
settings, so that LangSmith and Studio show it as a run: see `nodes.llm.tracing`.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakKeyDictionary

import aiohttp
from yarl import URL

from nodes.llm import Call, ProviderStopped, Reply
from nodes.llm.fast_json import dumps, loads
from nodes.llm.protocol import MODES, Transient, adjust, failure_of, raw_reply, request_body

OPENAI = "https://api.openai.com/v1"
ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where calls go. `base_url` None is OpenAI's own; the key never shows in a repr.

    `most_tokens` bounds every answer, for a model that may never come to its end.
    """

    base_url: str | None = None
    api_key: str = field(default="", repr=False)
    most_tokens: int | None = None


Resolve = Callable[[str, bool], Awaitable[Endpoint]]
Heed = Callable[[Call, Mapping[str, str]], None]
Answer = tuple[Any, Mapping[str, str]]
Post = Callable[[], Awaitable[Answer]]
Closer = AsyncGenerator[None, None]


async def from_environment(model: str, judge: bool) -> Endpoint:
    """The endpoint for a model name: one that a package registered, else the environment's.

    Packages register under the entry point group `refloom.models`; `local` is such a name.
    Raises `ProviderStopped` when there is neither a registered model nor an endpoint.
    """
    # Finding it reads files and may import a package, so neither happens on the event loop.
    registered = await asyncio.to_thread(_registered, model)
    if registered is not None:
        return await asyncio.to_thread(registered)
    base_url, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if judge:
        own = os.environ.get("JUDGE_BASE_URL")
        # The writer's key is not for another address.
        key = os.environ.get("JUDGE_API_KEY") or ("" if own else key)
        base_url = own or base_url
    if not base_url and not key:
        raise ProviderStopped(
            f"no endpoint for model {model!r}: set OPENAI_BASE_URL and OPENAI_API_KEY, "
            "or use the embedded model 'local'"
        )
    return Endpoint(base_url, key or "")


@cache
def _registered(model: str) -> Callable[[], Endpoint] | None:
    for point in entry_points(group="refloom.models", name=model):
        found: Callable[[], Endpoint] = point.load()
        return found
    return None


@dataclass(slots=True)
class _Known:
    """What was found out about a model at an endpoint."""

    mode: int = 0
    without: frozenset[str] = frozenset()


class Connection:
    """A `Complete` over the endpoints that `resolve` names; one pool of connections an event loop.

    `max_retries` is how often a fault that may pass is tried again; a run that does so by itself
    sets 0. `heed` is told of the headers of every answer, good or bad: endpoints say there how much
    more they take.
    """

    def __init__(
        self,
        resolve: Resolve = from_environment,
        *,
        max_retries: int = 2,
        heed: Heed | None = None,
    ) -> None:
        self._resolve = resolve
        self._heed = heed
        self._max_retries = max_retries
        self._known: dict[tuple[str | None, str], _Known] = {}
        self._requests: dict[Endpoint, tuple[str, dict[str, str]]] = {}
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Any, Closer]] = (
            WeakKeyDictionary()
        )

    async def __call__(self, call: Call) -> Reply:
        """Send the call the best way this endpoint knows; see `nodes.llm.Complete`."""
        endpoint = await self._resolve(call.model, call.judge)
        if endpoint.most_tokens is not None:
            most = min(call.max_tokens * call.room, endpoint.most_tokens)
            call = replace(call, max_tokens=most, room=1)
        for tries in range(self._max_retries):
            try:
                return await self._answered(endpoint, call)
            except Transient as fault:
                asked = fault.retry_after
                wait = random.uniform(0.25, 0.5) * 2**tries if asked is None else asked
            await asyncio.sleep(min(wait, LONGEST_WAIT_S))
        return await self._answered(endpoint, call)

    async def _answered(self, endpoint: Endpoint, call: Call) -> Reply:
        """One answer, asked for in other ways until the endpoint takes one."""
        http = await self._http()
        known = self._known.setdefault((endpoint.base_url, call.model), _Known())
        while True:
            mode, without = known.mode, known.without
            try:
                return await self._send(http, endpoint, call, mode, without)
            except Exception as error:  # noqa: BLE001 - every fault is told apart and raised anew
                headers = getattr(error, "headers", None)
                if self._heed is not None and headers is not None:
                    self._heed(call, headers)
                fault = failure_of(error, call, mode, without)
            if isinstance(fault, Exception):
                raise fault
            if (known.mode, known.without) == (mode, without):
                known.mode, known.without = adjust(fault, mode, without)

    async def _send(
        self, http: Any, endpoint: Endpoint, call: Call, mode: int, without: frozenset[str]
    ) -> Reply:
        body = {"model": call.model, **request_body(call, MODES[mode], without)}
        if endpoint not in self._requests:
            self._requests[endpoint] = _request_to(endpoint)
        post = partial(http.post, *self._requests[endpoint], body)
        raw, headers = await (_observed(post, endpoint, body) if _watched() else post())
        if self._heed is not None:
            self._heed(call, headers)
        return raw_reply(raw)

    async def _http(self) -> Any:
        """The connections of the running loop, made at the first call in it."""
        loop = asyncio.get_running_loop()
        if loop not in self._open:
            # Imports take a second, which no event loop has.
            made = await asyncio.to_thread(import_module, "nodes.llm.endpoint")
            if loop not in self._open:
                http = made.Http()
                self._open[loop] = http, _closing(http)
                await anext(self._open[loop][1])
        return self._open[loop][0]

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        _, closer = self._open.pop(asyncio.get_running_loop(), (None, None))
        if closer is not None:
            await closer.aclose()


async def _closing(http: Any) -> AsyncGenerator[None, None]:
    """Close the connections of a loop when it ends, for callers who have nothing to close them by.

    A loop that shuts down closes the asynchronous generators that are still open in it.
    """
    try:
        yield
    finally:
        await http.close()


async def _observed(post: Post, endpoint: Endpoint, body: dict[str, Any]) -> Answer:
    observed = await asyncio.to_thread(import_module, "nodes.llm.tracing")
    return cast(Answer, await observed.observed(post, endpoint.base_url, body))


def _request_to(endpoint: Endpoint) -> tuple[str, dict[str, str]]:
    """Address and headers of an endpoint's requests; the account's are those of OpenAI's client."""
    base_url, basic = _without_user(endpoint.base_url or OPENAI)
    account = {name: os.environ[key] for name, key in ACCOUNT.items() if os.environ.get(key)}
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": "refloom",
        "Authorization": basic or f"Bearer {endpoint.api_key or 'none'}",
        **account,
    }
    return f"{base_url.rstrip('/')}/chat/completions", headers


def _without_user(base_url: str) -> tuple[str, str | None]:
    """An address without its user and password, and the header's value that says them instead."""
    parts = urlsplit(base_url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return base_url, None
    said = b64encode(unquote(user).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {said}"


def _watched() -> bool:
    """Whether anybody listens to runs: LangSmith tracing, or callbacks of the caller's."""
    from langchain_core.runnables.config import var_child_runnable_config
    from langsmith.utils import tracing_is_enabled

    callbacks: Any = (var_child_runnable_config.get() or {}).get("callbacks")
    handlers = getattr(callbacks, "handlers", callbacks) or []
    listening = [h for h in handlers if not type(h).__module__.startswith("langgraph")]
    return bool(listening) or bool(tracing_is_enabled())


# MERGED nodes~http
# Requests to chat completion endpoints over aiohttp. The OpenAI client's own layers cost
# several times what a request over aiohttp does, and a run makes hundreds of thousands of
# them.
TIMEOUT_S = 600.0
# An address that does not even take a connection is told to the caller within seconds.
CONNECT_S = 4.0

# Whatever else keeps an answer away: connections refused, broken, without a certificate.
NOT_CONNECTED = aiohttp.ClientError
NO_CONNECTION_IN_TIME = aiohttp.ConnectionTimeoutError


class Refused(Exception):
    """The endpoint answered with an error: its status, what it said, its headers."""

    def __init__(self, status: int, said: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status, self.said, self.headers = status, said, headers


class Http:
    """Keeps the connections of one event loop, which it must be made, used and closed in."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            # How many calls are in flight is bounded by whoever makes them.
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=CONNECT_S),
        )
        self._proxies: dict[str, str | None] = {}

    async def post(
        self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, str]]:
        """Post JSON; give the answer's JSON and headers.

        Raises `Refused` for a status of 400 or more, `aiohttp.ClientError` or `TimeoutError` when
        there is no answer, `ValueError` when it is no JSON.
        """
        async with self._session.post(
            url,
            data=dumps(body),
            headers=headers,
            proxy=self._proxy(url),
            ssl=await _certificates() if url.startswith("https:") else True,
        ) as reply:
            raw = await reply.read()
        if reply.status >= 400:
            raise Refused(reply.status, raw.decode("utf-8", "replace"), reply.headers)
        return loads(raw), reply.headers

    def _proxy(self, url: str) -> str | None:
        """The proxy that the environment names for an address, looked up once."""
        if url not in self._proxies:
            there = URL(url)
            found = getproxies().get(there.scheme)
            bypassed = found is None or proxy_bypass(f"{there.host}:{there.port}")
            self._proxies[url] = None if bypassed else found
        return self._proxies[url]

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


@cache
def _context() -> ssl.SSLContext:
    from httpx2 import create_ssl_context

    # Those that the OpenAI client trusts: a bare container has none of its own.
    return create_ssl_context()


async def _certificates() -> ssl.SSLContext:
    if not _context.cache_info().currsize:
        await asyncio.to_thread(_context)
    return _context()
