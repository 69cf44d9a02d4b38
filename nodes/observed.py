"""ChatOpenAI whose calls are this project's own requests, so that they show as runs unchanged."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI

RAW, HEADERS = "raw", "headers"


class ObservedChatOpenAI(ChatOpenAI):
    """Sends the very body it is given and keeps the raw answer in `response_metadata`.

    LangChain's own way would send other fields and read the answer with other eyes than the
    direct way does; callbacks and tracing want no more than that a call begins and ends.
    """

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        *,
        body: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        response = await self.post(body or {})
        raw = response.json()
        content = ""
        if isinstance(raw, dict):
            choice = (raw.get("choices") or [{}])[0] or {}
            content = (choice.get("message") or {}).get("content") or ""
        told = {RAW: raw, HEADERS: dict(response.headers)}
        said = AIMessage(content=content, response_metadata=told)
        return ChatResult(generations=[ChatGeneration(message=said)])

    async def post(self, body: dict[str, Any]) -> Any:
        """The HTTP response to a request; raises what the OpenAI client raises."""
        from httpx2 import Response

        return await self.root_async_client.post(
            "/chat/completions", cast_to=Response, body={"model": self.model_name, **body}
        )
