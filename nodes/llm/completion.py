"""Reading a chat completion off the wire."""

from __future__ import annotations

import math
from typing import Any

from nodes.llm import Reply
from nodes.state import Usage

# A count of tokens above this is not a count.
MAX_TOKEN_COUNT = 1 << 40


class NotACompletion(ValueError):
    """An answer with status 200 that is not a chat completion."""

    def __init__(self, body: Any) -> None:
        super().__init__(f"{str(body)[:200]!r} is not a chat completion")
        self.body = body


def read_event_stream(content: bytes) -> dict[str, Any]:
    """One completion out of the chunks of a stream."""
    raise NotImplementedError


def parse_reply(body: Any) -> Reply:
    """A chat completion as a `Reply`; fields that are missing are read as empty.

    Raises `NotACompletion` for an error in spite of status 200.
    """
    if not isinstance(body, dict) or ("error" in body and not body.get("choices")):
        raise NotACompletion(body)
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
    )


def _usage(reported: Any) -> Usage:
    usage = reported if isinstance(reported, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return {
        "calls": 1,
        "prompt_tokens": _token_count(usage.get("prompt_tokens")),
        "cached_tokens": _token_count(cached),
        "completion_tokens": _token_count(usage.get("completion_tokens")),
    }


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
