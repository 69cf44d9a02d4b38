"""A call and its reply on the wire: chat completions, with four ways to ask for JSON."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any, Literal

from nodes.llm import Answer, Call, Reply
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
