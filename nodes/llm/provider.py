"""Models of a provider by their LangChain names, such as `anthropic:claude-..`, as a `Complete`.

A name is a provider's if what stands before its first colon is one that LangChain's
`init_chat_model` knows. Every other colon belongs to the endpoint's own name of a model. Retries,
limits, budget and journal are those of every other call; the client of the provider's package has
its own turned off. Packages are imported at the first call.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from inspect import getattr_static, signature
from threading import Thread
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from nodes.inputs import BadInput
from nodes.llm import Call, CallFailed, Complete, ProviderStopped, Reply, draw_seed
from nodes.llm.protocol import (
    API_KEY_PATTERN,
    Capabilities,
    Transient,
    parse_reply,
    request_body,
    retry_after,
    schema_of,
)

# The providers that clients of the graph may name, by commas.
LISTED_VARIABLE = "REFLOOM_PROVIDERS"
MAX_RETRY_WAIT_S = 60.0
TIMEOUT_S = 600.0
# Calls at once to a model whose package has no asynchronous client.
MAX_THREADS = 64
# From the strictest way to ask for an answer's shape to the one every model understands.
MODES = ("json_schema", "function_calling", "text")
# How often the request of one call is changed, by what the provider says of it.
MAX_ADAPTATIONS = 6
PROBE_PROMPT = "Reply with the word ok, or where a JSON object is asked for, with any that fits."
PROBE_TOKENS = 64
MAX_MESSAGE = 300
TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known of a provider: its package, and the variables that hold keys and address.

    `one_try` is the value of `max_retries` with which its client makes a request once.
    """

    package: str
    keys: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    one_try: int = 0

    @property
    def module(self) -> str:
        """The module of its package."""
        return self.package.replace("-", "_")


_GOOGLE_KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
_AWS_KEYS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_BEARER_TOKEN_BEDROCK",
)  # fmt: skip
_BEDROCK = Provider(
    "langchain-aws", _AWS_KEYS, ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "AWS_ENDPOINT_URL")
)
_VERTEX = Provider("langchain-google-vertexai", one_try=1)

# The prefixes of `init_chat_model`, but `openai`: that is what endpoints are.
PROVIDERS: dict[str, Provider] = {
    "anthropic": Provider(
        "langchain-anthropic",
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        ("ANTHROPIC_API_URL", "ANTHROPIC_BASE_URL"),
    ),
    "anthropic_bedrock": _BEDROCK,
    "azure_ai": Provider(
        "langchain-azure-ai",
        ("AZURE_AI_API_KEY", "AZURE_AI_CREDENTIAL", "AZURE_OPENAI_API_KEY"),
        ("AZURE_AI_OPENAI_ENDPOINT", "AZURE_AI_INFERENCE_ENDPOINT", "AZURE_AI_PROJECT_ENDPOINT"),
    ),
    "azure_openai": Provider(
        "langchain-openai",
        ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"),
        ("AZURE_OPENAI_ENDPOINT",),
    ),
    "baseten": Provider("langchain-baseten", ("BASETEN_API_KEY",), ("BASETEN_API_BASE",)),
    "bedrock": _BEDROCK,
    "bedrock_converse": _BEDROCK,
    "bedrock_mantle_anthropic": _BEDROCK,
    "bedrock_mantle_openai": _BEDROCK,
    "cohere": Provider("langchain-cohere", ("COHERE_API_KEY",), ("CO_API_URL",)),
    "deepseek": Provider("langchain-deepseek", ("DEEPSEEK_API_KEY",), ("DEEPSEEK_API_BASE",)),
    "fireworks": Provider("langchain-fireworks", ("FIREWORKS_API_KEY",), ("FIREWORKS_API_BASE",)),
    "google_anthropic_vertex": _VERTEX,
    # Here 0 means as many as the client itself would make.
    "google_genai": Provider(
        "langchain-google-genai", _GOOGLE_KEYS, ("GOOGLE_GEMINI_BASE_URL",), one_try=1
    ),
    "google_vertexai": _VERTEX,
    "groq": Provider("langchain-groq", ("GROQ_API_KEY",), ("GROQ_API_BASE", "GROQ_BASE_URL")),
    "huggingface": Provider("langchain-huggingface", ("HUGGINGFACEHUB_API_TOKEN", "HF_TOKEN")),
    "ibm": Provider("langchain-ibm", ("WATSONX_APIKEY", "WATSONX_API_KEY"), ("WATSONX_URL",)),
    "langsmith": Provider("langchain-openai", ("LANGSMITH_GATEWAY_API_KEY", "LANGSMITH_API_KEY")),
    "litellm": Provider("langchain-litellm"),
    "meta": Provider("langchain-meta", ("META_API_KEY", "LLAMA_API_KEY")),
    "mistralai": Provider("langchain-mistralai", ("MISTRAL_API_KEY",), ("MISTRAL_BASE_URL",)),
    "nvidia": Provider("langchain-nvidia-ai-endpoints", ("NVIDIA_API_KEY",), ("NVIDIA_BASE_URL",)),
    "ollama": Provider("langchain-ollama", ("OLLAMA_API_KEY",), ("OLLAMA_HOST",)),
    "openrouter": Provider("langchain-openrouter", ("OPENROUTER_API_KEY",)),
    "perplexity": Provider("langchain-perplexity", ("PPLX_API_KEY", "PERPLEXITY_API_KEY")),
    "together": Provider("langchain-together", ("TOGETHER_API_KEY",), ("TOGETHER_API_BASE",)),
    "upstage": Provider("langchain-upstage", ("UPSTAGE_API_KEY",)),
    "xai": Provider("langchain-xai", ("XAI_API_KEY",)),
}
# What each field of a call is named by the classes of models.
_FIELD_NAMES = {
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens", "max_output_tokens", "num_predict", "max_new_tokens"),
    "seed": ("seed", "random_seed"),
}
# The finish reasons of providers, in small letters; every other means that the answer ended.
_FINISH = {
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "model_length",
         "model_context_window_exceeded"), "length"
    ),
    **dict.fromkeys(
        ("content_filter", "content_filtered", "guardrail_intervened", "safety", "recitation",
         "blocklist", "prohibited_content", "spii", "image_safety", "language"), "content_filter"
    ),
}  # fmt: skip
_FINISH_KEYS = ("finish_reason", "stop_reason", "stopReason", "done_reason", "finishReason")

T = TypeVar("T")
# Makes a chat model, as LangChain's `init_chat_model` does.
Init = Callable[..., Any]
# Makes the call of a probe by the `Complete` it is handed.
SendProbe = Callable[[Call, Complete], Awaitable[Reply]]
# Called with a model and a sentence about it.
OnLearned = Callable[[str, str], None]


def provider_of(model: str) -> str | None:
    """The provider that a name begins with; None if the name is an endpoint's own.

    >>> provider_of("anthropic:claude-x"), provider_of("qwen2.5:7b"), provider_of("openai:gpt-x")
    ('anthropic', None, None)
    """
    prefix, _, name = model.partition(":")
    return prefix if name and prefix in PROVIDERS else None


def address_of(model: str) -> str | None:
    """What stands for the address in the key of a provider's call; None for an endpoint's model.

    It is the provider, with the address that a variable of its own names.

    >>> address_of("groq:llama")
    'groq'
    """
    provider = provider_of(model)
    if provider is None:
        return None
    set_here = filter(None, map(os.environ.get, PROVIDERS[provider].addresses))
    return " ".join([provider, *set_here][:2])


def find_missing(model: str) -> str | None:
    """The line that says which package a provider's model needs, if it is not installed. Blocks."""
    provider = provider_of(model)
    if provider is None:
        return None
    package = PROVIDERS[provider].package
    missing = [p for p in (package, "langchain") if find_spec(p.replace("-", "_")) is None]
    if not missing:
        return None
    # The extra has three providers; the others' packages have names of their own.
    extra = package in ("langchain-anthropic", "langchain-google-genai", "langchain-aws")
    wanted = "'refloom[providers]'" if extra else " ".join(missing)
    return (
        f"model {model!r} needs the package {' and '.join(missing)}: pip install {wanted} (a model "
        "of an endpoint must not have a name that begins with a provider's)"
    )


def variables_of(models: Iterable[str]) -> list[str]:
    """The environment variables with keys and addresses of the models' providers."""
    providers = [PROVIDERS[p] for m in models if (p := provider_of(m)) is not None]
    return list(dict.fromkeys(name for p in providers for name in (*p.keys, *p.addresses)))


def keys_of(models: Iterable[str]) -> list[str]:
    """The keys of the models' providers that the environment holds, so that logs redact them."""
    providers = [PROVIDERS[p] for m in models if (p := provider_of(m)) is not None]
    return [key for p in providers for name in p.keys if (key := os.environ.get(name))]


def find_unlisted(model: str | None) -> str | None:
    """Why clients may not name a model: its provider is not in `REFLOOM_PROVIDERS`. Else None."""
    provider = provider_of(model or "")
    listed = os.environ.get(LISTED_VARIABLE, "").split(",")
    if provider is None or provider in (name.strip() for name in listed):
        return None
    return (
        f"{model!r} is a model of the provider {provider!r}, which this server does not use: "
        f"{LISTED_VARIABLE} must list it"
    )


class Closeable(Complete, Protocol):
    """A `Complete` with connections."""

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class RoutedClient:
    """A `Complete` that sends the calls of a provider's models to it, all others to endpoints."""

    def __init__(
        self, endpoints: Closeable, providers: ProviderClient, *, only_listed: bool = False
    ) -> None:
        """With `only_listed` a provider that `REFLOOM_PROVIDERS` does not list is refused."""
        self._endpoints, self._providers = endpoints, providers
        self._only_listed = only_listed

    async def __call__(self, call: Call) -> Reply:
        """See `nodes.llm.Complete`. Raises `BadInput` for a provider that is not listed."""
        if provider_of(call.model) is None:
            return await self._endpoints(call)
        unlisted = find_unlisted(call.model) if self._only_listed else None
        if unlisted is not None:
            raise BadInput(f"{'judge_model' if call.judge else 'model'}: {unlisted}")
        return await self._providers(call)

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._endpoints.aclose()
        await self._providers.aclose()


@dataclass(frozen=True, slots=True)
class Fault:
    """What an error means. `certain`: a code or status names it, and not words alone.

    `largest_answer` is the most `max_tokens` that the model takes.
    """

    kind: str
    message: str
    feature: str | None = None
    certain: bool = False
    wait: float | None = None
    largest_answer: int | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is asked: the mode for an answer's shape, and the fields that it refuses.

    `largest_answer` is the most `max_tokens` that it takes, where it has said so.
    """

    mode: str
    refused: frozenset[str] = frozenset()
    largest_answer: int | None = None


class ProviderClient:
    """A `Complete` over LangChain's chat models, one for each name.

    A way of asking that a model refuses is left: at once if a code names what is refused, else
    after a tiny call failed with it and passed without.
    """

    def __init__(
        self,
        init: Init | None = None,
        *,
        max_retries: int = 2,
        timeout: float = TIMEOUT_S,
        on_learned: OnLearned = lambda model, sentence: None,
    ) -> None:
        """`init` makes a model, by default LangChain's `init_chat_model`.

        `max_retries` bounds the retries of transient faults; 0 for a caller with its own.
        `timeout` bounds a request, in seconds. `on_learned` gets the model and a sentence whenever
        a way of asking is left.
        """
        self._init = init
        self._max_retries = max_retries
        self._timeout = timeout
        self._on_learned = on_learned
        # Makes the call of a probe: a run's client replaces it, to journal and to pay it.
        self.send_probe: SendProbe = _send_directly
        self._models: dict[str, asyncio.Future[Any]] = {}
        self._ways: dict[str, Way] = {}
        # Modes in which a model has answered.
        self._proven: set[tuple[str, str]] = set()

    async def __call__(self, call: Call) -> Reply:
        """See `nodes.llm.Complete`. Raises `Transient` after the last retry."""
        model = await self._model(call.model)
        for retry in range(self._max_retries):
            try:
                return await self._request(model, call)
            except Transient as fault:
                wait = fault.retry_after
            if wait is None:
                wait = random.uniform(0.25, 0.5) * 2**retry
            await asyncio.sleep(min(wait, MAX_RETRY_WAIT_S))
        return await self._request(model, call)

    async def aclose(self) -> None:
        """Close the connections that are this client's own."""
        models = [made for made in self._models.values() if made.done() and not made.cancelled()]
        self._models.clear()
        for made in models:
            if made.exception() is None:
                await _in_shared_loop(_close(made.result()))

    async def _model(self, name: str) -> Any:
        """The chat model of a name, made once. Raises `ProviderStopped` if it cannot be."""
        made = self._models.get(name)
        if made is None or made.get_loop() is not asyncio.get_running_loop():
            # Imports take seconds: not on the event loop.
            made = asyncio.ensure_future(asyncio.to_thread(self._make, name))
            # Retrieved here: asyncio warns of an exception that no waiter has seen.
            made.add_done_callback(lambda made: made.cancelled() or made.exception())
            self._models[name] = made
        return await asyncio.shield(made)

    def _make(self, name: str) -> Any:
        missing = find_missing(name) if self._init is None else None
        if missing is not None:
            raise ProviderStopped(missing)
        provider, _, own_name = name.partition(":")
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
        except Exception as error:
            raise ProviderStopped(
                f"model {name!r} cannot be set up: {_first_line(error)}{_check_keys(provider)}"
            ) from error
        self._ways.setdefault(name, Way(_best_mode(model)))
        return model

    async def _request(self, model: Any, call: Call) -> Reply:
        """Make a call's request; what the model refuses is left out of the next one."""
        fault = Fault("bad_request", "no way of asking it was found")
        for _ in range(MAX_ADAPTATIONS):
            way = self._ways[call.model]
            answer = await self._send(model, call, way)
            if isinstance(answer, Reply):
                self._proven.add((call.model, way.mode if call.answer else call.kind))
                if call.kind == "question" and answer.odds is None:
                    raise _no_log_probabilities(call.model)
                return answer
            fault = answer
            # Many calls at once may have been refused the same: the first changes what is known.
            if self._ways[call.model] == way:
                await self._adapt(model, call, way, fault)
        raise _error(call, fault)

    async def _adapt(self, model: Any, call: Call, way: Way, fault: Fault) -> None:
        """Leave the part of a way that is refused. Raises what the fault means if there is none."""
        largest = fault.largest_answer
        if largest is not None and largest < min(
            call.most_tokens, way.largest_answer or largest + 1
        ):
            self._ways[call.model] = replace(way, largest_answer=largest)
            self._on_learned(call.model, f"takes max_tokens up to {largest:,} ({fault.message})")
            return
        for without in self._suspects(call, way, fault):
            changes_mode = without.mode != way.mode
            named = fault.certain and (fault.feature is not None) and not changes_mode
            if named or await self._is_better(model, call, way, without):
                self._ways[call.model] = without
                sentence = (
                    f"is asked for answers by {without.mode}"
                    if changes_mode
                    else f"is asked without {', '.join(without.refused - way.refused)}"
                )
                self._on_learned(call.model, f"{sentence} ({fault.message})")
                return
        raise _error(call, fault)

    def _suspects(self, call: Call, way: Way, fault: Fault) -> Iterator[Way]:
        """The ways to try in place of one, by what a fault says of it."""
        if fault.kind not in ("unsupported", "bad_request"):
            return
        if fault.feature in _FIELD_NAMES and fault.feature not in way.refused:
            yield replace(way, refused=way.refused | {fault.feature})
        # A model that has answered in this mode refuses the call for another cause.
        if call.answer is not None and (call.model, way.mode) not in self._proven:
            for mode in MODES[MODES.index(way.mode) + 1 :]:
                yield replace(way, mode=mode)

    async def _is_better(self, model: Any, call: Call, way: Way, without: Way) -> bool:
        """Whether a tiny call fails in one way and passes in the other. Raises `Transient`."""
        passed = []
        for tried in (way, without):
            probe = Call(
                stage="probe",
                messages=({"role": "user", "content": PROBE_PROMPT},),
                answer=call.answer,
                model=call.model,
                judge=call.judge,
                # Another way of asking is another call.
                seed=draw_seed(0, "probe", tried.mode, " ".join(sorted(tried.refused)), 0),
                temperature=call.temperature,
                max_tokens=PROBE_TOKENS,
                order=call.order,
                text=call.text,
            )
            fault = await self._probe(model, probe, tried)
            if fault is not None and fault.kind not in ("unsupported", "bad_request"):
                raise _error(call, fault)
            passed.append(fault is None)
        return passed == [False, True]

    async def _probe(self, model: Any, probe: Call, way: Way) -> Fault | None:
        async def send(call: Call) -> Reply:
            fault = await self._send(model, call, way)
            if isinstance(fault, Reply):
                return fault
            raise _ProbeFailed(fault)

        try:
            await self.send_probe(probe, send)
        except _ProbeFailed as failed:
            return failed.fault
        return None

    async def _send(self, model: Any, call: Call, way: Way) -> Reply | Fault:
        """Send one request: its reply, or the fault."""
        try:
            runnable, messages = _asked(model, call, way)
            answer = await _in_shared_loop(runnable.ainvoke(messages))
            message = answer["raw"] if isinstance(answer, Mapping) else answer
        except (CallFailed, ProviderStopped):
            raise
        except Exception as error:  # noqa: BLE001 - every package raises its own
            return read_error(error, call)
        return read_message(message, structured=call.answer is not None)


class _ProbeFailed(Exception):
    """A probe was answered by a fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


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


async def _send_directly(call: Call, send: Complete) -> Reply:
    return await send(call)


def _asked(model: Any, call: Call, way: Way) -> tuple[Any, list[Any]]:
    """The model with a call's parameters and the shape of its answer, and the messages."""
    values = {
        "temperature": call.temperature,
        "max_tokens": min(call.most_tokens, way.largest_answer or call.most_tokens),
        "seed": call.seed,
    }
    fields = {
        field: value
        for name, value in values.items()
        if name not in way.refused and (field := _field(model, *_FIELD_NAMES[name]))
    }
    if call.kind == "question":
        if not (_field(model, "logprobs") and _field(model, "top_logprobs")):
            raise _no_log_probabilities(call.model)
        fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    fields |= _own_fields(model, call)
    # A copy shares the connections.
    asked = model.model_copy(update=fields)
    messages: list[Any] = list(call.messages)
    if call.answer is None:
        return asked, messages
    if way.mode == "text":
        return asked, list(request_body(call, Capabilities(mode="text"))["messages"])
    schema = {"title": call.stage, "description": "Give the answer.", **schema_of(call.answer)}
    return asked.with_structured_output(schema, method=way.mode, include_raw=True), messages


def _own_fields(model: Any, call: Call) -> dict[str, Any]:
    """A stage's `extra_body` as fields of the model; what has none goes into `model_kwargs`."""
    own = {field: v for name, v in call.extra_body.items() if (field := _field(model, name))}
    rest = {name: v for name, v in call.extra_body.items() if not _field(model, name)}
    if rest and not _field(model, "model_kwargs"):
        raise ProviderStopped(
            f"[stages.{call.stage}] extra_body: {call.model!r} takes no {', '.join(rest)}"
        )
    return {**own, "model_kwargs": {**model.model_kwargs, **rest}} if rest else own


def _field(model: Any, *names: str) -> str:
    """The field of a model's class that has one of the names, or an alias of it; empty if none."""
    for name in names:
        for field, info in type(model).model_fields.items():
            if name in (field, info.alias):
                return str(field)
    return ""


def _best_mode(model: Any) -> str:
    """The way a model answers in a shape best: what its profile says, else its class's default."""
    if (getattr(model, "profile", None) or {}).get("structured_output"):
        return "json_schema"
    method = signature(type(model).with_structured_output).parameters.get("method")
    default = getattr(method, "default", None)
    return default if default in MODES else "function_calling"


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
    """LangChain's message as a `Reply`: what it holds as a chat completion would."""
    metadata = message.response_metadata or {}
    texts, thoughts = _texts(message)
    text = _arguments(message) if structured else None
    finish = _finish(metadata)
    refusal = message.additional_kwargs.get("refusal")
    if finish == "refusal":
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


def _finish(metadata: Mapping[str, Any]) -> str:
    """`stop`, `length`, `content_filter` or `refusal`, whichever way the provider says it."""
    if (metadata.get("prompt_feedback") or {}).get("block_reason"):
        return "content_filter"
    for key in _FINISH_KEYS:
        reason = metadata.get(key)
        if isinstance(reason, str):
            lower = reason.casefold().removeprefix("finish_reason_")
            return "refusal" if lower == "refusal" else _FINISH.get(lower, "stop")
    return "stop"


def _no_log_probabilities(model: str) -> ProviderStopped:
    return ProviderStopped(f"{model!r} gives no log-probabilities; use --judge-method verdict")


def _error(call: Call, fault: Fault) -> Exception:
    """What a fault means for a call."""
    provider = call.model.partition(":")[0]
    if fault.kind == "key":
        return ProviderStopped(
            f"{provider} refused the key ({fault.message}){_check_keys(provider)}"
        )
    if fault.kind == "credit":
        return ProviderStopped(
            f"the quota at {provider} is used up ({fault.message}): see your plan and billing there"
        )
    if fault.kind == "model":
        flag = "--judge-model" if call.judge else "--model"
        return ProviderStopped(
            f"{provider} does not know model {call.model!r} ({fault.message}): check {flag}"
        )
    if fault.kind in (
        "rate_limit", "no_resources", "loading", "overloaded", "server", "timeout", "connection",
    ):  # fmt: skip
        transient = Transient(call.stage, fault.kind, fault.message)
        transient.retry_after = fault.wait
        return transient
    kind = "bad_request" if fault.kind == "unsupported" else fault.kind
    return CallFailed(call.stage, kind, fault.message)


def _check_keys(provider: str) -> str:
    """What to check where a key is refused or missing."""
    names = PROVIDERS[provider].keys
    return f": check {' or '.join(names)}" if names else ""


def read_error(error: Exception, call: Call) -> Fault:
    """What an error of a provider's package means.

    Status, headers and body are taken off the error or the one behind it. An error without a status
    is of the connection, or of the package itself.
    """
    links = list(_chain(error))
    for link in links:
        status = _status(link)
        if status is not None:
            fault = fault_of(status, _headers(link), _body(link))
            return replace(fault, message=_redact(fault.message, call.model))
    names = " ".join(kind.__name__ for link in links for kind in type(link).__mro__)
    text = _redact(_first_line(error), call.model)
    if "Timeout" in names:
        return Fault("timeout", f"no answer in time ({text})")
    if any(isinstance(link, OSError) for link in links) or "Connect" in names:
        return Fault("connection", f"no connection ({text})")
    if "Credential" in names or "authentication" in text.casefold():
        # The package found no key to send.
        return Fault("key", text)
    if isinstance(error, NotImplementedError | ValueError):
        # The class knows no such way to ask.
        return Fault("unsupported", text)
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
        found: list[Any] = [(response.get("ResponseMetadata") or {}).get("HTTPStatusCode")]
    else:
        found = [getattr(error, name, None) for name in ("status_code", "code", "http_status")]
        found += [getattr(response, name, None) for name in ("status_code", "status")]
    for status in found:
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


# Until what an endpoint's error means is read in one place for all: status, type and words.
_FORMS = (
    ("credit", ("insufficient_quota", "credit balance", "billing", "insufficient balance")),
    ("key", ("api key", "api_key", "x-api-key", "authentication_error", "security token")),
    ("too_long", ("prompt is too long", "context length", "context window", "input token count")),
    ("filtered", ("content filter", "content_filter", "guardrail")),
)
_LARGEST = re.compile(r"max_tokens: \d+ > (\d+)")
_KIND_OF_STATUS = {
    401: "key", 402: "credit", 403: "key", 404: "model", 408: "timeout", 413: "too_long",
    424: "server", 429: "rate_limit", 498: "no_resources", 503: "overloaded", 529: "overloaded",
}  # fmt: skip


def fault_of(status: int, headers: Mapping[str, str], body: str) -> Fault:
    """The fault that a status and a body tell of."""
    try:
        error = json.loads(body).get("error")
        code = f"{error.get('type') or ''} {error.get('status') or error.get('code') or ''}"
        words = str(error.get("message") or "")
    except (ValueError, AttributeError):
        code, words = "", body
    message = f"status {status}: {words.strip()[:MAX_MESSAGE] or code}"
    kind = _KIND_OF_STATUS.get(status, "server" if status >= 500 else "bad_request")
    text = f"{code} {words}".casefold()
    if kind in ("bad_request", "rate_limit"):
        fits = (name for name, parts in _FORMS if any(part in text for part in parts))
        kind = next(fits, kind)
    largest = _LARGEST.search(words)
    if kind == "bad_request" and largest is not None:
        return Fault("answer_too_large", message, largest_answer=int(largest[1]))
    if kind == "bad_request":
        for name, spellings in _FIELD_NAMES.items():
            if any(spelling in text for spelling in spellings):
                return Fault("unsupported", message, name)
    return Fault(kind, message, wait=retry_after(headers))


def _first_line(error: BaseException) -> str:
    """What an error says, without the values it was made from: those may hold keys."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_MESSAGE]


def _redact(text: str, model: str) -> str:
    """A text without the keys that the provider was sent."""
    keys: Sequence[str] = keys_of([model])
    for key in keys:
        text = text.replace(key, "(key)")
    return API_KEY_PATTERN.sub("(key)", text)
