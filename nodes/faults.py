"""What an endpoint's error means: this call is lost, every call is, or ask in another way."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from typing import Any

from nodes.llm import Call, CallFailed, ProviderStopped
from nodes.wire import MODES, NoCompletion

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
    from nodes.http import NO_CONNECTION_IN_TIME, NOT_CONNECTED, Refused

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
