"""Chat completions on the wire: requests, replies, and what the errors of an endpoint mean.

There are four ways to ask for an answer of a given shape, and fields that some endpoints refuse.
`Capabilities` is what is known of an endpoint so far.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Literal

from nodes.llm import Answer, Call, CallFailed, ProviderStopped, Reply
from nodes.state import Usage

Mode = Literal["json_schema", "tools", "json_object", "text"]
# From the strictest way to ask for an answer's shape to the one every endpoint understands.
MODES: tuple[Mode, ...] = ("json_schema", "tools", "json_object", "text")
OPTIONAL_FIELDS = ("seed", "temperature", "max_tokens")
# What the error of a service tier without resources is called, by status.
NO_RESOURCES_NAMES = {
    429: frozenset({"resource_unavailable", "resource unavailable"}),
    498: frozenset({"capacity_exceeded"}),
    503: frozenset({"unavailable"}),
}
# Names of the tier that a call is made in unless it asks for another.
USUAL_TIERS = ("", "default", "standard", "auto", "on_demand", "on-demand")
# Where a usage tells the prompt tokens that were written to the prompt cache.
CACHE_WRITE_FIELDS = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens")
# A count of tokens above this is not a count.
MAX_TOKEN_COUNT = 1 << 40
API_KEY_PATTERN = re.compile(r"\b(?:sk|key|gsk|pk)[-_][\w*.-]{6,}")

# The words by which an endpoint refuses a mode.
_MODE_WORDS = {
    "json_schema": ("response_format", "json_schema", "structured output", "grammar", "guided"),
    "tools": ("tool", "function"),
    "json_object": ("response_format", "json_object", "json mode"),
}
_QUOTA_WORDS = (
    "insufficient_quota", "billing", "exceeded your current quota", "insufficient balance",
)  # fmt: skip
_KIND_OF_STATUS = {
    408: "timeout", 409: "server", 429: "rate_limit", 503: "overloaded", 529: "overloaded",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an endpoint can do with a model: the mode to ask in, and the fields it refuses."""

    mode: Mode = "json_schema"
    refused_fields: frozenset[str] = frozenset()

    def without(self, feature: str) -> Capabilities:
        """These without an optional field, or with the next mode in place of a refused one."""
        if feature in OPTIONAL_FIELDS:
            return replace(self, refused_fields=self.refused_fields | {feature})
        return replace(self, mode=MODES[MODES.index(self.mode) + 1])


class ErrorResponse(Exception):
    """An endpoint's answer with a status of 400 or more. The message does not hold `text`."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status, self.text, self.headers = status, text, headers


class NotACompletion(ValueError):
    """An answer with status 200 that is not a chat completion."""


class Transient(CallFailed):
    """A call that may succeed if made again; `retry_after` is the wait the endpoint asks for."""

    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Unsupported:
    """The endpoint refuses a feature: the mode in use, or one of `OPTIONAL_FIELDS`."""

    feature: str


@cache
def schema_of(answer: type[Answer]) -> dict[str, Any]:
    """The JSON schema of an answer; every key is required, as strict endpoints want it."""
    schema = answer.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        part.pop("description", None)
        for property_schema in part.get("properties", {}).values():
            property_schema.pop("title", None)
    return schema


def request_body(call: Call, capabilities: Capabilities) -> dict[str, Any]:
    """The JSON body of a call's request, in what the endpoint is known to take."""
    body: dict[str, Any] = {
        "model": call.model,
        "messages": list(call.messages),
        "temperature": call.temperature,
        "max_tokens": call.most_tokens,
        "seed": call.seed,
    }
    if call.answer is not None:
        body |= _answer_fields(call, call.answer, capabilities.mode)
    elif not call.text:
        body |= {"logprobs": True, "top_logprobs": 20}
    if call.tier is not None:
        body["service_tier"] = call.tier
    refused = capabilities.refused_fields
    if "max_tokens" in refused:
        body["max_completion_tokens"] = body["max_tokens"]
    body = {key: value for key, value in body.items() if key not in refused}
    return body | call.extra_body


def _answer_fields(call: Call, answer: type[Answer], mode: Mode) -> dict[str, Any]:
    """The fields that ask for an answer's shape; without a schema field the prompt has it."""
    schema = schema_of(answer)
    if mode == "json_schema":
        named = {"name": call.stage, "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if mode == "tools":
        function = {"name": call.stage, "description": "Give the answer.", "parameters": schema}
        choice = {"type": "function", "function": {"name": call.stage}}
        return {"tools": [{"type": "function", "function": function}], "tool_choice": choice}
    first, *rest = call.messages
    instruction = (
        f"\n\nAnswer with one JSON object, named {call.stage}, and nothing else. "
        f"It must fit this JSON schema:\n{json.dumps(schema)}"
    )
    messages = [{**first, "content": first["content"] + instruction}, *rest]
    if mode == "json_object":
        return {"messages": messages, "response_format": {"type": "json_object"}}
    return {"messages": messages}


def parse_reply(body: Any) -> Reply:
    """A chat completion as a `Reply`; fields that are missing are read as empty.

    Raises `NotACompletion` for an error in spite of status 200.
    """
    if not isinstance(body, dict) or ("error" in body and not body.get("choices")):
        raise NotACompletion(f"{str(body)[:200]!r} is not a chat completion")
    choice = (body.get("choices") or [{}])[0] or {}
    message = choice.get("message") or {}
    tool_calls = message.get("tool_calls") or []
    text = message.get("content")
    if tool_calls:
        text = (tool_calls[0].get("function") or {}).get("arguments")
    return Reply(
        text=text if isinstance(text, str) else None,
        finish=choice.get("finish_reason") or "stop",
        refusal=message.get("refusal") or None,
        usage=_usage(body.get("usage")),
        odds=_first_token_odds(choice.get("logprobs")),
        tier=_service_tier(body),
    )


def _service_tier(body: dict[str, Any]) -> str | None:
    """The service tier that a completion names; None for the usual one, whatever its name."""
    tier = body.get("service_tier")
    tier = tier.strip().lower() if isinstance(tier, str) else ""
    return None if tier in USUAL_TIERS else tier[:40]


def _usage(reported: Any) -> Usage:
    usage = reported if isinstance(reported, dict) else {}
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    read: Usage = {
        "calls": 1,
        "prompt_tokens": _token_count(usage.get("prompt_tokens")),
        "cached_tokens": _token_count(details.get("cached_tokens")),
        "completion_tokens": _token_count(usage.get("completion_tokens")),
    }
    written = max(
        _token_count(part.get(name)) for part in (usage, details) for name in CACHE_WRITE_FIELDS
    )
    return {**read, "cache_write_tokens": written} if written else read


def _token_count(reported: Any) -> int:
    """A count of tokens; a value that cannot be one counts as not reported."""
    number = isinstance(reported, int | float) and not isinstance(reported, bool)
    return int(reported) if number and 0 <= reported < MAX_TOKEN_COUNT else 0


def _first_token_odds(logprobs: Any) -> dict[str, float] | None:
    """The probabilities of the first token's candidates, by token without case and spaces."""
    content = (logprobs or {}).get("content") or []
    if not content:
        return None
    odds: dict[str, float] = {}
    for candidate in content[0].get("top_logprobs") or [content[0]]:
        token, logprob = str(candidate.get("token", "")), candidate.get("logprob")
        if isinstance(logprob, int | float):
            token = token.strip().casefold()
            odds[token] = odds.get(token, 0.0) + math.exp(min(logprob, 0.0))
    return odds


def classify_error(
    error: ErrorResponse, call: Call, capabilities: Capabilities
) -> Exception | Unsupported:
    """What an error response means: this call failed, every call would, or ask another way.

    A `Transient` has the wait that the endpoint asks for.
    """
    status = error.status
    try:
        body = json.loads(error.text)
        text = f"{body.get('error') or body}" if isinstance(body, dict) else f"{body}"
    except ValueError:
        body, text = None, error.text
    # Endpoints quote the key they were sent.
    text = API_KEY_PATTERN.sub("(key)", text)
    if status in (400, 422):
        return _classify_bad_request(call, status, text, capabilities)
    lower = text.lower()
    if status == 403 and ("moderation" in lower or "flagged" in lower):
        return CallFailed(call.stage, "filtered", "the endpoint's moderation refused the prompt")
    if status in (401, 403):
        return ProviderStopped(
            f"the endpoint refused the key (status {status}): check OPENAI_API_KEY"
            + (" or JUDGE_API_KEY" if call.judge else "")
        )
    if status == 404:
        return _unknown_model(call, text)
    if status == 402 or (status == 429 and any(word in lower for word in _QUOTA_WORDS)):
        return ProviderStopped(
            "the endpoint's quota is used up: see your plan and billing at the provider"
        )
    if status < 500 and status not in (*_KIND_OF_STATUS, *NO_RESOURCES_NAMES):
        return CallFailed(call.stage, "bad_request", f"status {status}: {text[:300]}")
    kind = _KIND_OF_STATUS.get(status, "server")
    if call.tier is not None and _lacks_resources(status, body):
        kind = "no_resources"
    fault = Transient(call.stage, kind, f"status {status}: {text[:300]}")
    fault.retry_after = retry_after(error.headers)
    return fault


def _lacks_resources(status: int, body: Any) -> bool:
    """Whether an error says that a cheaper service tier has no room now.

    OpenAI and Azure say so with 429 and a code of its own, Groq with 498, Gemini with 503.
    """
    body = body[0] if isinstance(body, list) and body else body
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return False
    names = {str(error.get(key)).strip().lower() for key in ("code", "type", "status")}
    if names & NO_RESOURCES_NAMES.get(status, frozenset()):
        return True
    return status == 429 and "resource unavailable" in str(error.get("message")).lower()


def _classify_bad_request(
    call: Call, status: int, text: str, capabilities: Capabilities
) -> Exception | Unsupported:
    lower = text.lower()
    if any(w in lower for w in ("content_filter", "content management policy", "responsibleai")):
        return CallFailed(
            call.stage, "filtered", "the endpoint's content filter refused the prompt"
        )
    if "context_length" in lower or "context length" in lower or "too long" in lower:
        return CallFailed(call.stage, "too_long", f"the prompt is too long: {text[:200]}")
    if call.kind == "question" and "logprobs" in lower:
        return ProviderStopped(
            "the endpoint gives no log-probabilities; use --judge-method verdict"
        )
    mode = capabilities.mode
    if call.answer is not None and any(word in lower for word in _MODE_WORDS.get(mode, ())):
        return Unsupported(mode)
    for name in OPTIONAL_FIELDS:
        if name in lower and name not in capabilities.refused_fields:
            return Unsupported(name)
    if "model" in lower and any(w in lower for w in ("not exist", "not found", "unknown")):
        return _unknown_model(call, text)
    return CallFailed(call.stage, "bad_request", f"status {status}: {text[:300]}")


def _unknown_model(call: Call, text: str) -> ProviderStopped:
    return ProviderStopped(
        f"the endpoint does not know model {call.model!r}, or there is no such address: check "
        f"--model and --base-url ({text[:200]})"
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds an endpoint asks to wait: `retry-after-ms`, `Retry-After` as number or date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(float(headers[name]) * unit, 0.0)
        except (KeyError, ValueError):
            continue
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(date.timestamp() - time.time(), 0.0)
