"""LangChain's chat models as a `Complete`, for the models of providers.

Retries, limits, budget, journal and what is learned of a model are those of every other call; the
client of the provider's package has its own turned off. Packages are imported at the first call.
"""

from __future__ import annotations

import asyncio
import json
import math
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, cached_property
from importlib import import_module
from inspect import getattr_static, signature
from threading import Thread
from typing import Any, TypeVar

from pydantic import ValidationError

from nodes.inputs import BadInput
from nodes.llm import Call, ProviderStopped, Reply
from nodes.llm.capabilities import Capabilities, Mode
from nodes.llm.completion import NotACompletion, parse_reply
from nodes.llm.endpoint import (
    Endpoint,
    EndpointClient,
    Resolve,
    Target,
    resolve_from_environment,
)
from nodes.llm.faults import Fault, read_fault
from nodes.llm.protocol import (
    FEWER_TOP_LOGPROBS,
    TOP_LOGPROBS,
    Transient,
    request_body,
    schema_of,
)
from nodes.llm.provider import (
    PROVIDERS,
    address_of,
    find_missing,
    find_unlisted,
    keys_of,
    provider_of,
)

# Calls at once to a model whose package has no asynchronous client.
MAX_THREADS = 64
MAX_MESSAGE = 300
# How LangChain calls the modes that it knows.
_METHODS = {"json_schema": "json_schema", "tools": "function_calling"}
# What each field of a call is named by the classes of models.
_FIELD_NAMES = {
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens", "max_output_tokens", "num_predict", "max_new_tokens"),
    "seed": ("seed", "random_seed"),
}
# Where providers put the reason why an answer ended.
_FINISH_KEYS = ("finish_reason", "stop_reason", "stopReason", "done_reason", "finishReason")

T = TypeVar("T")
# Makes a chat model, as LangChain's `init_chat_model` does.
Init = Callable[..., Any]


class ModelClient(EndpointClient):
    """A `Complete` over endpoints, and over providers for the models that bear their names.

    Providers differ in how a call is sent, and in what a fault says to check; all else is as for
    an endpoint.
    """

    def __init__(
        self,
        resolve: Resolve = resolve_from_environment,
        *,
        init: Init | None = None,
        only_listed: bool = False,
        **options: Any,
    ) -> None:
        """`init` makes a provider's model, by default LangChain's `init_chat_model`.

        With `only_listed`, a provider that `REFLOOM_PROVIDERS` does not list is refused. The rest
        is as for `EndpointClient`.
        """
        super().__init__(resolve, **options)
        self._init = init
        self._only_listed = only_listed
        self._models: dict[str, asyncio.Future[Any]] = {}

    async def list_models(self, model: str, judge: bool) -> list[dict[str, Any]] | None:
        """See `EndpointClient`; a provider's list is not asked for."""
        return None if provider_of(model) else await super().list_models(model, judge)

    async def _target_of(self, model: str, judge: bool) -> Target:
        """The target of a model's calls. Raises `BadInput` for a provider that is not listed."""
        address = address_of(model)
        if address is None or (model, judge) in self._targets:
            return await super()._target_of(model, judge)
        unlisted = find_unlisted(model) if self._only_listed else None
        if unlisted is not None:
            raise BadInput(f"{'judge_model' if judge else 'model'}: {unlisted}")
        if self._remote_attempt is None:
            best = Capabilities(mode=_best_mode(await self._model(model)))
            self._capabilities.setdefault((address, model), best)
        # A provider's client knows where to send it.
        return self._targets.setdefault((model, judge), Target(Endpoint(), address, "", {}))

    async def aclose(self) -> None:
        """Close the session of the running event loop, and the models' own connections."""
        await super().aclose()
        models = [
            model for model in self._models.values() if model.done() and not model.cancelled()
        ]
        self._models.clear()
        for model in models:
            if model.exception() is None:
                await _in_shared_loop(_close(model.result()))

    async def _send(self, target: Target, call: Call, known: Capabilities) -> Reply | Fault:
        """Send one request, to a provider or an endpoint: its reply, or the fault."""
        if provider_of(call.model) is None or self._remote_attempt is not None:
            return await super()._send(target, call, known)
        model = await self._model(call.model)
        if call.answer is not None and known.mode == "json_object":
            message = "LangChain asks for a shape by a schema or a tool"
            return Fault("unsupported", message, feature=known.mode, certain=True)
        if call.kind == "question" and not _gives_odds(model):
            message = f"{type(model).__name__} gives no log-probabilities"
            return Fault("unsupported", message, feature="logprobs", certain=True)
        try:
            runnable, messages = _prepare(model, call, known)
        except (NotImplementedError, ValueError) as error:
            message = _first_line(error)
            return Fault("unsupported", message, feature=known.mode, certain=True)
        try:
            answer = await _in_shared_loop(runnable.ainvoke(messages))
        except Exception as error:  # noqa: BLE001 - every package raises its own
            return read_error(error, call)
        message = answer["raw"] if isinstance(answer, Mapping) else answer
        try:
            return read_message(message, structured=call.answer is not None)
        except NotACompletion as error:
            return read_fault(200, {}, error.body)

    def _suspects(
        self, target: Target, call: Call, known: Capabilities, fault: Fault
    ) -> tuple[str, ...]:
        """See `EndpointClient`; what a model's class does not have needs no probe."""
        if provider_of(call.model) and fault.certain and fault.feature == "logprobs":
            return ()
        return super()._suspects(target, call, known, fault)

    def _error(self, target: Target, call: Call, fault: Fault) -> Exception:
        """What a fault means: as of an endpoint, but for what there is to check."""
        provider = provider_of(call.model)
        if provider is None or fault.kind not in ("key", "credit", "model", "address"):
            return super()._error(target, call, fault)
        if fault.kind == "key":
            return ProviderStopped(
                f"the key for {provider} does not work ({fault.message}){_check_keys(provider)}"
            )
        if fault.kind == "credit":
            return ProviderStopped(
                f"the quota at {provider} is used up ({fault.message}): see your plan and billing "
                "there"
            )
        flag = "--judge-model" if call.judge else "--model"
        return ProviderStopped(
            f"{provider} does not know model {call.model!r} ({fault.message}): check {flag}"
        )

    async def _model(self, name: str) -> Any:
        """The chat model of a name, made once. Raises `ProviderStopped` if it cannot be."""
        model = self._models.get(name)
        if model is None or model.get_loop() is not asyncio.get_running_loop():
            # Imports take seconds: not on the event loop.
            model = asyncio.ensure_future(asyncio.to_thread(self._make, name))
            # Retrieved here: asyncio warns of an exception that no waiter has seen.
            model.add_done_callback(lambda model: model.cancelled() or model.exception())
            self._models[name] = model
        return await asyncio.shield(model)

    def _make(self, name: str) -> Any:
        provider, _, own_name = name.partition(":")
        missing = find_missing(name) if self._init is None else None
        if missing is not None:
            raise ProviderStopped(missing)
        wanted = {
            "max_retries": PROVIDERS[provider].one_try,
            "timeout": math.ceil(self._timeout),
            # Studio's stream of messages would make another request of it.
            "disable_streaming": True,
            # An answer of LangChain's own cache would be booked as paid.
            "cache": False,
        }
        try:
            init = self._init or import_module("langchain.chat_models").init_chat_model
            # Only a model that is made tells which fields its class has.
            model = init(own_name, model_provider=provider)
            fields = {key: value for key, value in wanted.items() if _field(model, key)}
            model = init(own_name, model_provider=provider, **fields)
            _make_clients(model)
            # LangChain's reading of an error that aiohttp brings, of which nothing is used here.
            warnings.filterwarnings(
                "ignore", "coroutine 'ClientResponse.json' was never awaited", RuntimeWarning
            )
        except Exception as error:
            raise ProviderStopped(
                f"model {name!r} cannot be set up: {_first_line(error)}{_check_keys(provider)}"
            ) from error
        return model


@cache
def _shared_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all providers' clients, in a thread of its own.

    Packages keep clients for the whole process, and a connection works in one loop only. One
    without an asynchronous client gets threads of its own: those of a loop are few.
    """
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, "provider"))
    Thread(target=loop.run_forever, name="providers", daemon=True).start()
    return loop


async def _in_shared_loop(work: Coroutine[Any, Any, T]) -> T:
    """Do the work of a provider's client in its loop; cancelled with the caller."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _shared_loop()))


def _best_mode(model: Any) -> Mode:
    """How a model is best asked for a shape: as its profile says, else its class's default."""
    if (getattr(model, "profile", None) or {}).get("structured_output"):
        return "json_schema"
    method = signature(type(model).with_structured_output).parameters.get("method")
    by_schema = getattr(method, "default", None) == _METHODS["json_schema"]
    return "json_schema" if by_schema else "tools"


def _gives_odds(model: Any) -> bool:
    """Whether a model's class can ask for log-probabilities in the form that is read here."""
    return bool(_field(model, "logprobs") and _field(model, "top_logprobs"))


def _prepare(model: Any, call: Call, known: Capabilities) -> tuple[Any, list[Any]]:
    """The model with a call's parameters and the shape of its answer, and the messages."""
    values = {
        "temperature": call.temperature,
        "max_tokens": call.most_tokens,
        "seed": call.seed,
    }
    fields = {
        field: value
        for name, value in values.items()
        if name not in known.refused_fields and (field := _field(model, *_FIELD_NAMES[name]))
    }
    if call.kind == "question":
        fewer = "top_logprobs" in known.refused_fields
        fields |= {"logprobs": True, "top_logprobs": FEWER_TOP_LOGPROBS if fewer else TOP_LOGPROBS}
    fields |= _own_fields(model, call)
    # A copy shares the connections.
    prepared = model.model_copy(update=fields)
    messages: list[Any] = list(call.messages)
    if call.answer is None:
        return prepared, messages
    method = _METHODS.get(known.mode)
    if method is None:
        return prepared, list(request_body(call, known)["messages"])
    schema = {"title": call.stage, "description": "Give the answer.", **schema_of(call.answer)}
    return prepared.with_structured_output(schema, method=method, include_raw=True), messages


def _own_fields(model: Any, call: Call) -> dict[str, Any]:
    """A stage's `extra_body` as fields of the model; what has none goes where its class puts such.

    Raises `ProviderStopped` if the class has no place for it.
    """
    own = {field: v for name, v in call.extra_body.items() if (field := _field(model, name))}
    rest = {name: v for name, v in call.extra_body.items() if not _field(model, name)}
    if not rest:
        return own
    place = _field(model, "extra_body", "model_kwargs")
    if not place:
        raise ProviderStopped(
            f"[stages.{call.stage}] extra_body: {call.model!r} takes no {', '.join(rest)}"
        )
    return {**own, place: {**(getattr(model, place) or {}), **rest}}


def _field(model: Any, *names: str) -> str:
    """The field of a model's class that has one of the names, or an alias of it; empty if none."""
    for name in names:
        for field, info in type(model).model_fields.items():
            if name in (field, info.alias):
                return str(field)
    return ""


def _make_clients(model: Any) -> None:
    """Make the clients that a model makes when first used, so that its copies share them."""
    for name in dir(type(model)):
        if name.endswith("client") and isinstance(
            getattr_static(type(model), name), cached_property
        ):
            getattr(model, name)


async def _close(model: Any) -> None:
    """Close the connections of a model whose client opened them for itself."""
    # Google's; the clients of other packages are shared by all models of the process.
    client: Any = getattr(getattr(model, "client", None), "aio", None)
    if hasattr(client, "aclose"):
        await client.aclose()


def read_message(message: Any, *, structured: bool) -> Reply:
    """LangChain's message as a `Reply`: what it holds as a chat completion would.

    Raises `NotACompletion` for an answer that ended with an error.
    """
    metadata = message.response_metadata or {}
    texts, thoughts = _texts(message)
    text = _arguments(message) if structured else None
    finish = _finish(metadata)
    refusal = message.additional_kwargs.get("refusal")
    if (finish or "").casefold() == "refusal":
        refusal, finish = "\n".join(texts) or "it gives no reason", "stop"
    usage = message.usage_metadata or {}
    reasoning = (usage.get("output_token_details") or {}).get("reasoning")
    reply = parse_reply(
        {
            "choices": [
                {
                    "message": {"content": "".join(texts) if text is None else text,
                                "refusal": refusal},
                    "finish_reason": finish,
                    "logprobs": metadata.get("logprobs"),
                }
            ],
            "usage": {
                "prompt_tokens": usage.get("input_tokens"),
                "completion_tokens": usage.get("output_tokens"),
                "prompt_tokens_details": {
                    "cached_tokens": (usage.get("input_token_details") or {}).get("cache_read")
                },
                "completion_tokens_details": {"reasoning_tokens": reasoning},
            },
        }
    )  # fmt: skip
    return replace(reply, reasoning="\n".join(thoughts) or None)


def _texts(message: Any) -> tuple[list[str], list[str]]:
    """The texts of a message, and its thoughts, which never are part of the answer."""
    texts, thoughts = [], []
    for block in message.content_blocks:
        kind = block.get("type")
        value = block.get("value")
        if kind == "text":
            texts.append(str(block.get("text") or ""))
        elif kind == "reasoning":
            thoughts.append(str(block.get("reasoning") or ""))
        elif kind == "non_standard" and isinstance(value, dict):
            thoughts.append(str(value.get("thinking") or value.get("reasoning") or ""))
    own = message.additional_kwargs.get("reasoning_content")
    if isinstance(own, str) and own not in thoughts:
        thoughts.append(own)
    return texts, [thought for thought in thoughts if thought]


def _arguments(message: Any) -> str | None:
    """The arguments of a message's tool call as the model wrote them, or as JSON again."""
    for written in message.additional_kwargs.get("tool_calls") or ():
        arguments = (written.get("function") or {}).get("arguments")
        if isinstance(arguments, str):
            return arguments
    for tool_call in message.tool_calls:
        return json.dumps(tool_call["args"], ensure_ascii=False)
    for tool_call in message.invalid_tool_calls:
        return tool_call["args"] or ""
    return None


def _finish(metadata: Mapping[str, Any]) -> str | None:
    """Why an answer ended, in the provider's own word."""
    if (metadata.get("prompt_feedback") or {}).get("block_reason"):
        return "content_filter"
    reasons = (metadata.get(key) for key in _FINISH_KEYS)
    return next((reason for reason in reasons if isinstance(reason, str)), None)


def _check_keys(provider: str) -> str:
    """What to check where a key is refused or missing."""
    names = PROVIDERS[provider].keys
    return f": check {' or '.join(names)}" if names else ""


def read_error(error: Exception, call: Call) -> Fault:
    """What an error of a provider's package means. Raises `Transient` if no answer came.

    Status, headers and body are taken off the error or the one behind it. An error without a status
    is of the connection, or of the package itself.
    """
    links = list(_chain(error))
    for link in links:
        status = _status(link)
        if status is not None:
            sent = [message["content"] for message in call.messages]
            fault = read_fault(status, _headers(link), _body(link), sent=sent)
            return replace(fault, message=_redact(fault.message, call.model))
    names = " ".join(kind.__name__ for link in links for kind in type(link).__mro__)
    text = _redact(_first_line(error), call.model)
    if "LocalProtocolError" in names:
        return Fault("key", "it cannot be sent: it is empty, or holds a line break or an accent")
    if "Credential" in names or "authentication" in text.casefold():
        # The package found no key to send.
        return Fault("key", text)
    if "Timeout" in names:
        raise Transient(call.stage, "timeout", f"no answer in time ({text})") from error
    if any(isinstance(link, OSError) for link in links) or "Connect" in names:
        raise Transient(call.stage, "connection", f"no connection ({text})") from error
    if "ContextOverflow" in names:
        return Fault("too_long", text)
    return Fault("bad_request", f"{type(error).__name__}: {text}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error, under whichever name its package has it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        statuses: list[Any] = [(response.get("ResponseMetadata") or {}).get("HTTPStatusCode")]
    else:
        statuses = [getattr(error, name, None) for name in ("status_code", "code", "http_status")]
        statuses += [getattr(response, name, None) for name in ("status_code", "status")]
    for status in statuses:
        if isinstance(status, int) and not isinstance(status, bool) and 100 <= status < 600:
            return int(status)
    return None


def _headers(error: BaseException) -> dict[str, str]:
    response: Any = getattr(error, "response", None)
    headers: Any
    if isinstance(response, dict):
        headers = (response.get("ResponseMetadata") or {}).get("HTTPHeaders")
    else:
        headers = getattr(response, "headers", None)
    pairs = headers.items() if hasattr(headers, "items") else ()
    return {str(name).lower(): str(value) for name, value in pairs}


def _body(error: BaseException) -> str:
    """The body of an error response, as JSON or as text."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        own = response.get("Error") or {}
        return json.dumps({"error": {"code": own.get("Code"), "message": own.get("Message")}})
    for body in (getattr(error, "body", None), getattr(error, "details", None)):
        if isinstance(body, dict):
            return json.dumps(body if "error" in body else {"error": body}, default=str)
    for text in (getattr(response, "text", None), getattr(error, "message", None)):
        if isinstance(text, str) and text:
            return text
    return str(error)


def _first_line(error: BaseException) -> str:
    """What an error says, without the values it was made from: those may hold keys."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_MESSAGE]


def _redact(text: str, model: str) -> str:
    """A text without the keys that the provider was sent."""
    for key in keys_of([model]):
        text = text.replace(key, "(key)")
    return text
