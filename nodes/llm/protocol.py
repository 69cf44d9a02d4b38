"""A call and its reply on the wire: chat completions, with four ways to ask for JSON."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from json import JSONDecodeError
from typing import Any, Literal

from nodes.llm import Answer, Call, CallFailed, ProviderStopped, Reply
from nodes.state import Usage

MOST_TOKENS = 1 << 40
Mode = Literal["json_schema", "tools", "json_object", "text"]
# From the strictest way of asking for an answer's shape to the one every endpoint understands.
MODES: tuple[Mode, ...] = ("json_schema", "tools", "json_object", "text")


@cache
def schema_of(answer: type[Answer]) -> dict[str, Any]:
    """The JSON schema of an answer, with every key required, as strict endpoints want it."""
    schema = answer.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        part.pop("description", None)
        for one in part.get("properties", {}).values():
            one.pop("title", None)
    return schema


def request_body(call: Call, mode: Mode, without: frozenset[str]) -> dict[str, Any]:
    """The request without its model; `without` names the fields this endpoint refuses."""
    body: dict[str, Any] = {
        "messages": list(call.messages),
        "temperature": call.temperature,
        "max_tokens": call.max_tokens * call.room,
        "seed": call.seed,
    }
    if call.answer is None:
        body |= {"logprobs": True, "top_logprobs": 20}
    else:
        body |= _shape(call, mode)
        if mode in ("json_object", "text"):
            body["messages"] = _with_schema(call)
    if "max_tokens" in without:
        body["max_completion_tokens"] = body["max_tokens"]
    body = {key: value for key, value in body.items() if key not in without}
    return body | call.extra_body


def _shape(call: Call, mode: Mode) -> dict[str, Any]:
    assert call.answer is not None
    schema = schema_of(call.answer)
    if mode == "json_schema":
        named = {"name": call.stage, "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if mode == "tools":
        function = {"name": call.stage, "description": "Give the answer.", "parameters": schema}
        chosen = {"type": "function", "function": {"name": call.stage}}
        return {"tools": [{"type": "function", "function": function}], "tool_choice": chosen}
    return {"response_format": {"type": "json_object"}} if mode == "json_object" else {}


def _with_schema(call: Call) -> list[dict[str, str]]:
    assert call.answer is not None
    told = (
        f"\n\nAnswer with one JSON object, named {call.stage}, and nothing else. "
        f"It must fit this JSON schema:\n{json.dumps(schema_of(call.answer))}"
    )
    first, *rest = call.messages
    return [{**first, "content": first["content"] + told}, *rest]


class NoCompletion(ValueError):
    """An answer that is no chat completion, in spite of its status 200."""


def raw_reply(raw: Any) -> Reply:
    """Read a chat completion; whatever is missing in it reads as nothing said.

    Raises `NoCompletion` for an answer that is an error in spite of its status 200.
    """
    if not isinstance(raw, dict) or ("error" in raw and not raw.get("choices")):
        raise NoCompletion(f"{str(raw)[:200]!r} is no chat completion")
    choice = (raw.get("choices") or [{}])[0] or {}
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or []
    text = message.get("content")
    if calls:
        text = (calls[0].get("function") or {}).get("arguments")
    return Reply(
        text=text if isinstance(text, str) else None,
        finish=choice.get("finish_reason") or "stop",
        refusal=message.get("refusal") or None,
        usage=_usage(raw.get("usage")),
        odds=_odds(choice.get("logprobs")),
    )


def _usage(reported: Any) -> Usage:
    got = reported if isinstance(reported, dict) else {}
    details = got.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return {
        "calls": 1,
        "prompt_tokens": _count(got.get("prompt_tokens")),
        "cached_tokens": _count(cached),
        "completion_tokens": _count(got.get("completion_tokens")),
    }


def _count(reported: Any) -> int:
    """A number of tokens; what is no sensible number counts as not reported."""
    number = isinstance(reported, int | float) and not isinstance(reported, bool)
    return int(reported) if number and 0 <= reported < MOST_TOKENS else 0


def _odds(logprobs: Any) -> dict[str, float] | None:
    content = (logprobs or {}).get("content") or []
    if not content:
        return None
    found: dict[str, float] = {}
    for top in content[0].get("top_logprobs") or [content[0]]:
        token, logprob = str(top.get("token", "")).strip().casefold(), top.get("logprob")
        if not isinstance(logprob, int | float):
            continue
        weight = math.exp(min(logprob, 0.0))
        found[token] = found.get(token, 0.0) + weight
    return found


# MERGED nodes~faults
# What an endpoint's error means: this call is lost, every call is, or ask in another way.
# The words by which an endpoint refuses a way of asking for the answer's shape.
_REFUSALS = {
    "json_schema": ("response_format", "json_schema", "structured output", "grammar", "guided"),
    "tools": ("tool", "function"),
    "json_object": ("response_format", "json_object", "json mode"),
}
KEY_SHAPE = re.compile(r"\b(?:sk|key|gsk|pk)[-_][\w*.-]{6,}")
_OPTIONAL = ("seed", "temperature", "max_tokens")
_UNREADABLE = (JSONDecodeError, UnicodeDecodeError, NoCompletion)
_NO_QUOTA = ("insufficient_quota", "billing", "exceeded your current quota", "insufficient balance")


@dataclass(frozen=True, slots=True)
class Lower:
    """The endpoint refuses `what`: the mode in use, or one optional field."""

    what: str


class Transient(CallFailed):
    """A call that may succeed when made again; `retry_after` is what the endpoint asked for."""

    retry_after: float | None = None


def adjust(fault: Lower, mode: int, without: frozenset[str]) -> tuple[int, frozenset[str]]:
    """What to use from now on."""
    if fault.what in _OPTIONAL:
        return mode, without | {fault.what}
    return mode + 1, without


def failure_of(
    error: Exception, call: Call, mode: int, without: frozenset[str]
) -> Exception | Lower:
    """The failure that an exception of a request stands for, or what to lower.

    What is no fault of a request is given back as it is.
    """
    from nodes.llm.endpoint import NO_CONNECTION_IN_TIME, NOT_CONNECTED, Refused

    if isinstance(error, TimeoutError) and not isinstance(error, NO_CONNECTION_IN_TIME):
        return Transient(call.stage, "timeout", "the endpoint did not answer in time")
    if isinstance(error, NOT_CONNECTED):
        return Transient(call.stage, "connection", f"no connection to the endpoint: {error}")
    if isinstance(error, _UNREADABLE):
        return Transient(call.stage, "server", f"the endpoint's answer is no JSON: {error}")
    if not isinstance(error, Refused):
        return error
    status, text = error.status, _told(error)
    if status in (400, 422):
        return _refused(call, status, text, mode, without)
    return _by_status(call, status, text, error)


def _refused(
    call: Call, status: int, text: str, mode: int, without: frozenset[str]
) -> Exception | Lower:
    low = text.lower()
    if "content_filter" in low or "content management policy" in low or "responsibleai" in low:
        return CallFailed(
            call.stage, "filtered", "the endpoint's content filter refused the prompt"
        )
    if "context_length" in low or "context length" in low or "too long" in low:
        return CallFailed(call.stage, "too_long", f"the prompt is too long: {text[:200]}")
    if call.answer is None and "logprobs" in low:
        return ProviderStopped(
            "the endpoint gives no log-probabilities; judge with --judge-method verdict"
        )
    if call.answer is not None and any(w in low for w in _REFUSALS.get(MODES[mode], ())):
        return Lower(MODES[mode])
    for name in _OPTIONAL:
        if name in low and name not in without:
            return Lower(name)
    if "model" in low and ("not exist" in low or "not found" in low or "unknown" in low):
        return _no_model(call, text)
    return CallFailed(call.stage, "bad_request", f"status {status}: {text[:300]}")


def _by_status(call: Call, status: int, text: str, error: Any) -> Exception:
    low = text.lower()
    if status == 403 and ("moderation" in low or "flagged" in low):
        return CallFailed(call.stage, "filtered", "the endpoint's moderation refused the prompt")
    if status in (401, 403):
        return ProviderStopped(
            f"the endpoint refused the key (status {status}): check OPENAI_API_KEY"
            + (" or JUDGE_API_KEY" if call.judge else "")
        )
    if status == 404:
        return _no_model(call, text)
    if status == 402 or (status == 429 and any(word in low for word in _NO_QUOTA)):
        return ProviderStopped("the endpoint's quota is used up: see your plan and billing there")
    kinds = {408: "timeout", 429: "rate_limit", 503: "overloaded", 529: "overloaded"}
    kind = kinds.get(status, "server" if status == 409 else None)
    if kind is None and status < 500:
        return CallFailed(call.stage, "bad_request", f"status {status}: {text[:300]}")
    failure = Transient(call.stage, kind or "server", f"status {status}: {text[:300]}")
    failure.retry_after = retry_after(error.headers)
    return failure


def _no_model(call: Call, text: str) -> ProviderStopped:
    return ProviderStopped(
        f"the endpoint knows no model {call.model!r} (or no such address): check --model and "
        f"--base-url ({text[:200]})"
    )


def _told(error: Any) -> str:
    """What an endpoint said of its refusal."""
    try:
        body = json.loads(error.said)
        said = f"{body.get('error') or body}" if isinstance(body, dict) else f"{body}"
    except ValueError:
        said = error.said
    # Endpoints quote the key they were sent.
    return KEY_SHAPE.sub("(key)", said)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds an endpoint asks to wait: `retry-after-ms`, `Retry-After` as number or date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(float(headers[name]) * unit, 0.0)
        except (KeyError, ValueError):
            continue
    try:
        return max(
            parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0
        )
    except ValueError:
        return None
