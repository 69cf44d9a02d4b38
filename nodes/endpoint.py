"""An OpenAI-compatible endpoint as a `Complete`: what it can do is found out once, and remembered.

langchain-openai configures the client. Calls go to it directly, since its message layer costs
more than a millisecond a call; with tracing or callbacks on they go through it, so that Studio
shows them as runs.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from nodes.faults import adjust, failure_of
from nodes.llm import Call, ProviderStopped, Reply
from nodes.wire import MODES, raw_reply, request_body

RAW, HEADERS = "raw", "headers"
TIMEOUT_S = 600.0
# An address that does not even take a connection is told to the caller within seconds.
CONNECT_S = 4.0


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
    """A `Complete` over the endpoints that `resolve` names; one client an endpoint and loop.

    `max_retries` are the client's own; a run that retries by itself sets 0. `heed` is told of the
    headers of every answer, good or bad: endpoints say there how much more they take.
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
        self._models: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Any]] = (
            WeakKeyDictionary()
        )
        self._making: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )
        self._closers: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = (
            WeakKeyDictionary()
        )

    async def __call__(self, call: Call) -> Reply:
        """Send the call the best way this endpoint knows; see `nodes.llm.Complete`."""
        endpoint = await self._resolve(call.model, call.judge)
        model = await self._model(endpoint, call.model)
        if endpoint.most_tokens is not None:
            most = min(call.max_tokens * call.room, endpoint.most_tokens)
            call = replace(call, max_tokens=most, room=1)
        known = self._known.setdefault((endpoint.base_url, call.model), _Known())
        while True:
            mode, without = known.mode, known.without
            try:
                return await self._send(model, call, mode, without)
            except Exception as error:  # noqa: BLE001 - every fault is told apart and raised anew
                response = getattr(error, "response", None)
                if self._heed is not None and response is not None:
                    self._heed(call, response.headers)
                fault = failure_of(error, call, mode, without)
            if isinstance(fault, Exception):
                raise fault
            if (known.mode, known.without) == (mode, without):
                known.mode, known.without = adjust(fault, mode, without)

    async def _send(self, model: Any, call: Call, mode: int, without: frozenset[str]) -> Reply:
        body = request_body(call, MODES[mode], without)
        if not _watched():
            response = await model.post(body)
            raw, headers = response.json(), response.headers
        else:
            messages = [(m["role"], m["content"]) for m in body["messages"]]
            said = (await model.ainvoke(messages, body=body)).response_metadata
            raw, headers = said[RAW], said[HEADERS]
        if self._heed is not None:
            self._heed(call, headers)
        return raw_reply(raw)

    async def _model(self, endpoint: Endpoint, name: str) -> Any:
        loop = asyncio.get_running_loop()
        models = self._models.setdefault(loop, {})
        if loop not in self._closers:
            self._closers[loop] = _closing(models)
            await anext(self._closers[loop])
        if (endpoint, name) in models:
            return models[endpoint, name]
        async with self._making.setdefault(loop, asyncio.Lock()):
            if (endpoint, name) not in models:
                # Imports and certificates take a second or more, which no event loop has.
                made = await asyncio.to_thread(_chat_model, endpoint, name, self._max_retries)
                models[endpoint, name] = made
        return models[endpoint, name]

    async def aclose(self) -> None:
        """Close the clients of the running loop."""
        loop = asyncio.get_running_loop()
        closer = self._closers.pop(loop, None)
        if closer is not None:
            await closer.aclose()
        self._models.pop(loop, None)


async def _closing(models: dict[Any, Any]) -> AsyncGenerator[None, None]:
    """Close the clients of a loop when it ends, for callers who have nothing to close them by.

    A loop that shuts down closes the asynchronous generators that are still open in it.
    """
    try:
        yield
    finally:
        for model in models.values():
            await model.root_async_client.close()


def _chat_model(endpoint: Endpoint, name: str, max_retries: int) -> Any:
    from httpx2 import Timeout
    from openai import DefaultAioHttpClient

    from nodes.observed import ObservedChatOpenAI

    timeout = Timeout(TIMEOUT_S, connect=CONNECT_S)
    base_url, headers = _without_user(endpoint.base_url)

    return ObservedChatOpenAI(
        model=name,
        base_url=base_url,
        default_headers=headers,
        api_key=endpoint.api_key or "none",
        timeout=timeout,
        max_retries=max_retries,
        http_async_client=DefaultAioHttpClient(timeout=timeout),
        disable_streaming=True,
    )


def _without_user(base_url: str | None) -> tuple[str | None, dict[str, str] | None]:
    """An address without its user and password, and the header that says them instead."""
    parts = urlsplit(base_url or "")
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return base_url, None
    said = b64encode(unquote(user).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {said}"}


def _watched() -> bool:
    """Whether anybody listens to runs: LangSmith tracing, or callbacks of the caller's."""
    from langchain_core.runnables.config import ensure_config
    from langsmith.utils import tracing_is_enabled

    callbacks: Any = ensure_config().get("callbacks")
    handlers = getattr(callbacks, "handlers", callbacks) or []
    listening = [h for h in handlers if not type(h).__module__.startswith("langgraph")]
    return bool(listening) or bool(tracing_is_enabled())
