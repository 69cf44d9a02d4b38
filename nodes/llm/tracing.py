"""Model calls as LangChain runs, for LangSmith, OpenTelemetry and callbacks.

LangChain's own request would have other fields, and its reader would see another reply. Tracing
and callbacks need only a run that begins and ends around this project's request: it is named by the
stage, and has the prompt, the answer as it was read, the tokens, and the cost if a price is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from langchain_core.language_models import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables.config import var_child_runnable_config
from langchain_openai import ChatOpenAI
from langsmith import tracing_context

from nodes.llm import Call, Reply
from nodes.llm.endpoint import Price
from nodes.llm.faults import Fault
from nodes.llm.provider import provider_of

# Makes a call's request: its reply, or the fault. May raise.
Send = Callable[[], Awaitable[Reply | Fault]]


@dataclass(slots=True)
class Exchange:
    """One request and what became of it, for the run around it."""

    call: Call
    address: str
    send: Send
    price: Price | None
    outcome: Reply | Fault | None = None


_exchange: ContextVar[Exchange] = ContextVar("exchange")


class RequestFault(Exception):
    """The endpoint answered with a fault; so the run ends as an error."""


class TracedChatOpenAI(ChatOpenAI):
    """Makes the request of its context; what is asked and answered is that exchange's."""

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        exchange = _exchange.get()
        # A provider's package would trace the same request again. The change stays in this task.
        var_child_runnable_config.set({})
        with tracing_context(enabled=False):
            exchange.outcome = await exchange.send()
        if isinstance(exchange.outcome, Fault):
            raise RequestFault(exchange.outcome.message)
        message = message_of(exchange.outcome, exchange.call, exchange.price)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _get_invocation_params(self, stop: Any = None, **kwargs: Any) -> dict[str, Any]:
        call = _exchange.get().call
        return {
            "model": call.model,
            "temperature": call.temperature,
            "max_tokens": call.most_tokens,
            "seed": call.seed,
        }

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> LangSmithParams:
        exchange = _exchange.get()
        call = exchange.call
        provider = provider_of(call.model)
        return LangSmithParams(
            ls_provider=provider or _provider_at(exchange.address),
            ls_model_name=call.model.partition(":")[2] if provider else call.model,
            ls_model_type="chat",
            ls_temperature=call.temperature,
            ls_max_tokens=call.most_tokens,
        )


def message_of(reply: Reply, call: Call, price: Price | None) -> AIMessage:
    """A reply as LangChain's message, with its usage, and its cost in dollars if that is known."""
    usage = reply.usage
    metadata: UsageMetadata = {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        "input_token_details": {"cache_read": usage["cached_tokens"]},
        "output_token_details": {"reasoning": usage.get("reasoning_tokens", 0)},
    }
    if "cache_write_tokens" in usage:
        metadata["input_token_details"]["cache_creation"] = usage["cache_write_tokens"]
    own = {"reasoning_content": reply.reasoning, "refusal": reply.refusal}
    details = {"finish_reason": reply.finish, "model_name": call.model, "odds": reply.odds}
    message = AIMessage(
        content=reply.text or "",
        additional_kwargs={name: value for name, value in own.items() if value},
        response_metadata={name: value for name, value in details.items() if value is not None},
        usage_metadata=metadata,
    )
    total = None if price is None else price(call.model, usage, reply.tier)
    if price is not None and total is not None:
        asked = price(call.model, {**usage, "completion_tokens": 0}, reply.tier) or 0.0
        costs = {"input_cost": asked, "output_cost": total - asked, "total_cost": total}
        # LangSmith reads these there; LangChain's own type has no such keys.
        metadata.update(costs)  # type: ignore[typeddict-item]
        message.usage_metadata = metadata
    return message


async def send_traced(exchange: Exchange) -> Reply | Fault:
    """Make a request inside a run of a chat model; raises what the request raises."""
    call = exchange.call
    model = await asyncio.to_thread(_model)
    seed_id, _, slot = call.source.partition("\x1f")
    place = {"seed_id": seed_id, "slot": slot, "draw": call.draw}
    token = _exchange.set(exchange)
    try:
        messages = [(m["role"], m["content"]) for m in call.messages]
        # A fault ends the run in the trace; whoever asked gets it as the outcome.
        with suppress(RequestFault):
            await model.ainvoke(messages, {"run_name": call.stage, "metadata": place})
    finally:
        _exchange.reset(token)
    assert exchange.outcome is not None
    return exchange.outcome


def _provider_at(address: str) -> str:
    """What traces call the endpoint of an address: by the name, prices are looked up there."""
    host = urlsplit(address).hostname or "openai"
    if host.endswith(".azure.com"):
        return "azure"
    return "openai" if host == "api.openai.com" else host


@cache
def _model() -> TracedChatOpenAI:
    # The request has the key and the connections; these keep the model from making its own.
    client: Any = object()
    return TracedChatOpenAI(
        model="refloom",
        api_key=None,
        client=client,
        async_client=client,
        disable_streaming=True,
        cache=False,
    )
