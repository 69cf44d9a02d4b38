"""Chat completions on the wire: requests, in what an endpoint is known to take.

`nodes.llm.completion` reads what comes back, and `nodes.llm.faults` what an error means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from nodes.llm import Answer, Call, CallFailed
from nodes.llm.capabilities import Capabilities, Mode

# The candidates of a first token that are asked for, and how many every endpoint gives.
TOP_LOGPROBS = 20
FEWER_TOP_LOGPROBS = 5


class ErrorResponse(Exception):
    """An endpoint's answer that is not JSON, or of another status than 200.

    The message does not hold `content`, which may quote keys and prompts.
    """

    def __init__(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status, self.content, self.headers = status, content, headers


class Transient(CallFailed):
    """A call that may succeed if made again; `retry_after` is the wait the endpoint asks for."""

    retry_after: float | None = None


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
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    for refused in capabilities.refused_fields & body.keys():
        value = body.pop(refused)
        if refused == "max_tokens":
            body["max_completion_tokens"] = value
        elif refused == "top_logprobs":
            body[refused] = FEWER_TOP_LOGPROBS
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
