"""Model calls as LangChain runs: what tracing and callbacks see of a request of this project's own.

LangChain's own way would send other fields and read the answer with other eyes than the direct way
does; callbacks and tracing want no more than that a call begins and ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI

Answer = tuple[Any, Mapping[str, str]]
Post = Callable[[], Awaitable[Answer]]
RAW, HEADERS = "raw", "headers"

_request: ContextVar[Post] = ContextVar("request")


class ObservedChatOpenAI(ChatOpenAI):
    """Makes the request of its context and keeps the raw answer in `response_metadata`."""

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        raw, headers = await _request.get()()
        content = ""
        if isinstance(raw, dict):
            choice = (raw.get("choices") or [{}])[0] or {}
            content = (choice.get("message") or {}).get("content") or ""
        said = AIMessage(content=content, response_metadata={RAW: raw, HEADERS: dict(headers)})
        return ChatResult(generations=[ChatGeneration(message=said)])


async def observed(post: Post, base_url: str | None, body: dict[str, Any]) -> Answer:
    """Make a request as a run of a chat model; what the request raises is raised."""
    model = await asyncio.to_thread(_model, base_url, body["model"])
    token = _request.set(post)
    try:
        messages = [(m["role"], m["content"]) for m in body["messages"]]
        said = (await model.ainvoke(messages, body=body)).response_metadata
    finally:
        _request.reset(token)
    return said[RAW], said[HEADERS]


@lru_cache(maxsize=64)
def _model(base_url: str | None, name: str) -> ObservedChatOpenAI:
    # It needs neither a key nor clients of its own, since the request has them.
    none: Any = object()
    return ObservedChatOpenAI(
        model=name, base_url=base_url, api_key=None, client=none, async_client=none,
        disable_streaming=True,
    )  # fmt: skip
