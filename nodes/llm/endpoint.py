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
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from json import JSONDecodeError
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakKeyDictionary

import aiohttp
from yarl import URL

from nodes.llm import Call, ProviderStopped, Reply
from nodes.llm.fast_json import dumps, loads
from nodes.llm.protocol import (
    Capabilities,
    ErrorResponse,
    NotACompletion,
    Transient,
    classify_error,
    parse_reply,
    request_body,
)

OPENAI_URL = "https://api.openai.com/v1"
# Headers of the OpenAI client that come from the environment.
ACCOUNT_VARIABLES = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
MAX_RETRY_WAIT_S = 60.0
TIMEOUT_S = 600.0
# An address that does not take a connection at all is reported within seconds.
CONNECT_TIMEOUT_S = 4.0

ALL_CAPABILITIES = Capabilities()
# What a request raises when no answer comes, and when the answer is not a completion.
NO_ANSWER = (aiohttp.ClientError, TimeoutError)
NO_COMPLETION = (JSONDecodeError, UnicodeDecodeError, NotACompletion)


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

    A model's endpoint is resolved once. What it refuses is found out at the first calls and
    remembered.
    """

    def __init__(
        self,
        resolve: Resolve = resolve_from_environment,
        *,
        max_retries: int = 2,
        timeout: float = TIMEOUT_S,
        on_headers: OnHeaders | None = None,
    ) -> None:
        """`max_retries` bounds the retries of transient faults; 0 for a caller with its own.

        A request may take `timeout` seconds.

        `on_headers` gets the headers of every answer, good or bad: endpoints say there how much
        more they take.
        """
        self._resolve = resolve
        self._on_headers = on_headers
        self._max_retries = max_retries
        self._timeout = timeout
        self._capabilities: dict[tuple[str, str], Capabilities] = {}
        self._targets: dict[tuple[str, bool], Target] = {}
        self._sessions: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[HttpSession, AsyncGenerator[None, None]]
        ] = WeakKeyDictionary()

    async def __call__(self, call: Call) -> Reply:
        """See `nodes.llm.Complete`. Raises `Transient` after the last retry."""
        target = self._targets.get((call.model, call.judge))
        if target is None:
            target = target_of(await self._resolve(call.model, call.judge))
            self._targets[call.model, call.judge] = target
        limit = target.endpoint.max_tokens
        if limit is not None:
            call = replace(call, max_tokens=min(call.max_tokens * call.room, limit), room=1)
        for retry in range(self._max_retries):
            try:
                return await self._request(target, call)
            except Transient as fault:
                wait = fault.retry_after
            if wait is None:
                wait = random.uniform(0.25, 0.5) * 2**retry
            await asyncio.sleep(min(wait, MAX_RETRY_WAIT_S))
        return await self._request(target, call)

    async def _request(self, target: Target, call: Call) -> Reply:
        """Make a call's request; what the endpoint refuses is left out of the next one."""
        key = (target.url, call.model)
        while True:
            capabilities = self._capabilities.get(key, ALL_CAPABILITIES)
            try:
                return await self._send(target, call, request_body(call, capabilities))
            except ErrorResponse as error:
                self._report_headers(call, error.headers)
                meaning = classify_error(error, call, capabilities)
                if isinstance(meaning, Exception):
                    raise meaning from error
            # Many calls at once may have been refused the same: the first changes what is known.
            if self._capabilities.get(key, ALL_CAPABILITIES) == capabilities:
                self._capabilities[key] = capabilities.without(meaning.feature)

    async def _send(self, target: Target, call: Call, body: dict[str, Any]) -> Reply:
        """Send one request and read its answer. Raises `ErrorResponse` or `Transient`."""
        post = partial((await self._session()).post, target.url, target.headers, body)
        try:
            if _is_traced():
                # Its imports take a second: not on the event loop.
                tracing = await asyncio.to_thread(import_module, "nodes.llm.tracing")
                answer, headers = await tracing.post_traced(post, target.endpoint.base_url, body)
            else:
                answer, headers = await post()
            self._report_headers(call, headers)
            return parse_reply(answer)
        except (*NO_ANSWER, *NO_COMPLETION) as error:
            if isinstance(error, NotACompletion):
                kind, message = "server", f"the endpoint's answer {error}"
            elif isinstance(error, NO_COMPLETION):
                kind, message = "server", f"the endpoint's answer is not valid JSON: {error}"
            elif isinstance(error, TimeoutError) and not isinstance(
                error, aiohttp.ConnectionTimeoutError
            ):
                kind, message = "timeout", "the endpoint did not answer in time"
            else:
                kind, message = "connection", f"no connection to the endpoint: {error}"
            raise Transient(call.stage, kind, message) from error

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


class HttpSession:
    """The connections of one event loop, in which it must be opened, used and closed."""

    def __init__(self, timeout: float = TIMEOUT_S) -> None:
        self._session = aiohttp.ClientSession(
            # Callers bound how many calls are in flight.
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT_S),
        )
        self._proxies: dict[str, str | None] = {}

    async def post(
        self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, str]]:
        """Post JSON; return the answer's JSON and headers.

        Raises `ErrorResponse` for a status of 400 or more, `aiohttp.ClientError` or `TimeoutError`
        if no answer comes, `ValueError` if it is not JSON.
        """
        async with self._session.post(
            url,
            data=dumps(body),
            headers=headers,
            proxy=self._proxy(url),
            ssl=await _ssl_context() if url.startswith("https:") else True,
        ) as response:
            content = await response.read()
        if response.status >= 400:
            text = content.decode("utf-8", "replace")
            raise ErrorResponse(response.status, text, response.headers)
        return loads(content), response.headers

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


async def _close_with_loop(session: HttpSession) -> AsyncGenerator[None, None]:
    """Close a session when its loop ends, for callers that close nothing.

    A loop that shuts down closes the asynchronous generators still open in it.
    """
    try:
        yield
    finally:
        await session.close()


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint with the URL and headers of its requests."""

    endpoint: Endpoint
    url: str
    headers: dict[str, str] = field(repr=False)


def target_of(endpoint: Endpoint) -> Target:
    """How an endpoint's requests are sent; a user and password in its address become a header."""
    base_url = endpoint.base_url or OPENAI_URL
    authorization = f"Bearer {endpoint.api_key or 'none'}"
    parts = urlsplit(base_url)
    user, at, host = parts.netloc.rpartition("@")
    if at:
        base_url = urlunsplit(parts._replace(netloc=host))
        authorization = f"Basic {b64encode(unquote(user).encode()).decode()}"
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": "refloom",
        "Authorization": authorization,
    }
    for name, variable in ACCOUNT_VARIABLES.items():
        if os.environ.get(variable):
            headers[name] = os.environ[variable]
    return Target(endpoint, f"{base_url.rstrip('/')}/chat/completions", headers)


def _is_traced() -> bool:
    """Whether LangSmith tracing is on, or callbacks other than LangGraph's own are set."""
    from langchain_core.runnables.config import var_child_runnable_config
    from langsmith.utils import tracing_is_enabled

    callbacks: Any = (var_child_runnable_config.get() or {}).get("callbacks")
    handlers = getattr(callbacks, "handlers", callbacks) or []
    foreign = any(not type(handler).__module__.startswith("langgraph") for handler in handlers)
    return foreign or bool(tracing_is_enabled())


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
