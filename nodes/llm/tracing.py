"""Model calls as LangChain runs, for tracing and callbacks.

LangChain's own request would have other fields, and its reader would see another reply. Tracing
and callbacks need only a run that begins and ends around this project's request.
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

# Makes a request; its answer as JSON, and the headers.
Post = Callable[[], Awaitable[tuple[Any, Mapping[str, str]]]]

_post: ContextVar[Post] = ContextVar("post")


class TracedChatOpenAI(ChatOpenAI):
    """Makes the request of its context, and puts the answer into `response_metadata`."""

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer, headers = await _post.get()()
        content = ""
        if isinstance(answer, dict):
            choice = (answer.get("choices") or [{}])[0] or {}
            content = (choice.get("message") or {}).get("content") or ""
        metadata = {"answer": answer, "headers": dict(headers)}
        message = AIMessage(content=content, response_metadata=metadata)
        return ChatResult(generations=[ChatGeneration(message=message)])


async def post_traced(
    post: Post, base_url: str | None, body: dict[str, Any]
) -> tuple[Any, Mapping[str, str]]:
    """Make a request inside a run of a chat model; raises what the request raises."""
    model = await asyncio.to_thread(_model, base_url, body["model"])
    token = _post.set(post)
    try:
        messages = [(m["role"], m["content"]) for m in body["messages"]]
        metadata = (await model.ainvoke(messages, body=body)).response_metadata
    finally:
        _post.reset(token)
    return metadata["answer"], metadata["headers"]


@lru_cache(maxsize=64)
def _model(base_url: str | None, name: str) -> TracedChatOpenAI:
    # The request has the key and the connections; these keep the model from making its own.
    client: Any = object()
    return TracedChatOpenAI(
        model=name,
        base_url=base_url,
        api_key=None,
        client=client,
        async_client=client,
        disable_streaming=True,
    )
