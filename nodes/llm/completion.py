"""Reading a chat completion off the wire, in the forms in which endpoints write it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from nodes.llm import Call, Reply
from nodes.llm.answers import UnreadableAnswer, read_answer
from nodes.llm.fast_json import loads
from nodes.state import Usage

# Names of the tier that a call is made in unless it asks for another.
USUAL_TIERS = ("", "default", "standard", "auto", "on_demand", "on-demand")
# A count of tokens above this is not a count.
MAX_TOKEN_COUNT = 1 << 40

# What an endpoint may call the end of an answer. `error` is no end of an answer; what is on no line
# is a stop, such as the name of a token.
FINISH_REASONS = {
    "stop": """
        stop eos eos_token end_turn stop_sequence stop_token complete completed finished tool_calls
        tool_call tool_use function_call
    """,
    "length": """
        length max_tokens max_output_tokens max_completion_tokens max_new_tokens max_length
        model_length token_limit incomplete model_context_window_exceeded context_length
    """,
    "content_filter": """
        content_filter content_filtered content_filtering filtered safety recitation blocklist
        prohibited_content spii image_safety language sensitive refusal guardrail_intervened
        guardrails error_toxic
    """,
    "error": """
        error error_limit network_error insufficient_system_resource abort aborted cancelled
        canceled timeout failed
    """,
}
_FINISH = {spelling: finish for finish, line in FINISH_REASONS.items() for spelling in line.split()}
# Where the reason may stand, in a choice. Some give the model's own beside OpenAI's.
_FINISH_FIELDS = ("finish_reason", "stop_reason", "native_finish_reason", "done_reason")
# Fields for thoughts, in a message.
REASONING_FIELDS = (
    "reasoning_content", "reasoning", "thinking", "thoughts", "reasoning_text",
    "reasoning_details", "thinking_blocks",
)  # fmt: skip
_REASONING_TYPES = ("thinking", "reasoning", "thought", "reasoning_content")
# Where a usage has its counts; a dot leads into its details. The first that is told counts.
_USAGE_FIELDS = {
    "prompt_tokens": ("prompt_tokens", "input_tokens", "prompt_eval_count", "promptTokenCount"),
    "completion_tokens": (
        "completion_tokens", "output_tokens", "eval_count", "candidatesTokenCount",
    ),
    "cached_tokens": (
        "prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens",
        "prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens",
        "prompt_tokens_details.cache_read_tokens", "cachedContentTokenCount",
    ),
    "cache_write_tokens": (
        "cache_creation_input_tokens", "cache_write_tokens", "cache_creation_tokens",
        "prompt_tokens_details.cache_write_tokens", "prompt_tokens_details.cache_creation_tokens",
        "prompt_tokens_details.cache_creation_input_tokens",
        "input_tokens_details.cache_write_tokens",
    ),
    "reasoning_tokens": (
        "completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens",
        "reasoning_tokens", "thoughtsTokenCount",
    ),
}  # fmt: skip
_USAGE_PATHS = {
    count: tuple((name, inner) for name, _, inner in (field.partition(".") for field in fields))
    for count, fields in _USAGE_FIELDS.items()
}


class NotACompletion(ValueError):
    """An answer with status 200 that is not a chat completion; `body` is what came, decoded."""

    def __init__(self, body: Any) -> None:
        super().__init__(f"{str(body)[:200]!r} is not a chat completion")
        self.body = body


def parse_reply(body: Any, call: Call | None = None) -> Reply:
    """A chat completion as a `Reply`; fields that are missing are read as empty.

    The text is the content, or the arguments of tool calls; it is never what the model thought. Of
    both, the one with the shape that the `call` asks for counts; a call that asks for no shape has
    no use for tools. Raises `NotACompletion` for an error in spite of status 200.
    """
    shapeless = call is not None and call.answer is None
    body = _without_envelope(body)
    choice = _choice(body, shapeless)
    message = _message(choice)
    for holder in (body, choice, message):
        if _error_in(holder):
            raise NotACompletion({"error": holder["error"]})
    content, thought, refusals = _read_content(message.get("content"), shapeless)
    arguments = [] if shapeless else _arguments(message)
    text = _one_of(content or "", ",\n".join(arguments), call) if arguments else content
    if not text and isinstance(choice.get("text"), str):
        text = choice["text"]
    finish = _finish(choice, body)
    if finish == "error":
        raise NotACompletion({"error": {"message": "the answer ended with an error"}})
    refusal = message.get("refusal")
    return Reply(
        text=text,
        finish=finish,
        refusal=(refusal if isinstance(refusal, str) else "") or "\n".join(refusals) or None,
        usage=_usage(_reported_usage(body, choice)),
        odds=_first_token_odds(choice.get("logprobs") or message.get("logprobs")),
        reasoning=_reasoning(message) or "".join(thought) or None,
        tier=_service_tier(body),
    )


def _service_tier(body: dict[str, Any]) -> str | None:
    """The service tier that a completion names; None for the usual one, whatever its name."""
    tier = body.get("service_tier")
    tier = tier.strip().lower() if isinstance(tier, str) else ""
    return None if tier in USUAL_TIERS else tier[:40]


def _one_of(content: str, called: str, call: Call | None) -> str:
    """What is said or the arguments of the tool calls, by the shape asked for.

    If both have it and differ, they stand in a list, which says that neither is the answer.
    """
    if call is None or call.answer is None or "{" not in content:
        return called
    answers: list[BaseModel] = []
    for text in (content, called):
        try:
            answers.append(read_answer(text, call.answer, name=call.stage))
        except UnreadableAnswer:
            if text is called:
                return content if answers else called
    if len(answers) == 1 or answers[0] == answers[1]:
        return called
    return ",\n".join(answer.model_dump_json() for answer in answers)


def _without_envelope(body: Any) -> Any:
    """A body of a provider's own interface in the form of a chat completion; others as they are."""
    if not isinstance(body, dict) or body.get("choices"):
        return body
    output, message, content = (body.get(name) for name in ("output", "message", "content"))
    candidates = body.get("candidates")
    choices: Any = None
    if isinstance(output, dict):  # DashScope
        choices = output.get("choices")
        if not choices and isinstance(output.get("text"), str):
            choices = [{"message": output["text"], "finish_reason": output.get("finish_reason")}]
    elif body.get("done") is True and isinstance(message, dict):  # Ollama
        choices = [{"message": message}]
    elif body.get("done") is True and isinstance(body.get("response"), str):  # Ollama
        choices = [{"message": {"content": body["response"], "thinking": body.get("thinking")}}]
    elif body.get("type") == "message" and isinstance(content, list):  # Anthropic
        choices = [{"message": {"content": content}, "finish_reason": body.get("stop_reason")}]
    elif isinstance(candidates, list) and candidates and isinstance(candidates[0], dict):  # Gemini
        inner = candidates[0].get("content")
        parts = inner.get("parts") if isinstance(inner, dict) else None
        finish = candidates[0].get("finishReason")
        choices = [{"message": {"content": parts}, "finish_reason": finish}]
    return body | {"choices": choices} if choices else body


def _choice(body: Any, shapeless: bool) -> dict[str, Any]:
    """The choice that has an answer in it, or else the first. Raises `NotACompletion`."""
    listed = body.get("choices") if isinstance(body, dict) else None
    if isinstance(listed, dict):
        listed = [listed]
    choices: list[dict[str, Any]] = []
    if isinstance(listed, list):
        choices += (choice for choice in listed if isinstance(choice, dict))
    if not choices:
        raise NotACompletion(body)

    # Some put what is said and the tool call into choices of their own.
    def holds(choice: dict[str, Any]) -> bool:
        message = _message(choice)
        return bool(message.get("content")) if shapeless else any(_arguments(message))

    return next((choice for choice in choices if holds(choice)), choices[0])


def _error_in(holder: dict[str, Any]) -> bool:
    """Whether an object holds an error; one without any content is none."""
    error = holder.get("error")
    return any(error.values()) if isinstance(error, dict) else bool(error)


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    for name in ("message", "delta"):
        message = choice.get(name)
        if isinstance(message, dict):
            return message
        if isinstance(message, str):
            return {"content": message}
    return {}


def _read_content(content: Any, shapeless: bool) -> tuple[str | None, list[str], list[str]]:
    """What is said, thought and refused in a content: text, parts, or an object that was decoded.

    None for what is said if there is no text at all. Calls of tools are left out if no shape is
    asked for.
    """
    if content is None or isinstance(content, str):
        return content, [], []
    texts: list[str] = []
    thought: list[str] = []
    refused: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            kind = part.get("type")
            if kind in _REASONING_TYPES or part.get("thought") is True:
                thought.append(_text_of(part))
            elif kind == "refusal":
                refused.append(str(part.get("refusal") or ""))
            elif kind == "tool_use":
                texts.append("" if shapeless else _as_json(part.get("input")))
            elif kind is None and not isinstance(part.get("text"), str | dict):
                texts.append(_as_json(part))
            else:
                texts.append(_text_of(part))
    return "".join(texts) or None, thought, refused


def _text_of(value: Any) -> str:
    """The text in a part, however deep it stands."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text_of, value))
    if isinstance(value, dict):
        names = ("text", "thinking", "reasoning", "summary", "content", "value")
        return next((text for name in names if (text := _text_of(value.get(name)))), "")
    return ""


def _as_json(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _arguments(message: dict[str, Any]) -> list[str]:
    """The arguments of a message's tool calls as JSON texts."""
    calls = message.get("tool_calls") or message.get("function_call") or []
    texts = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict):
            names = ("arguments", "parameters", "input")
            values = [function[name] for name in names if function.get(name)]
            texts += [_as_json(value) for value in values[:1]]
    return texts


def _reasoning(message: dict[str, Any]) -> str:
    """What the model thought, from the first field that holds any."""
    for name in REASONING_FIELDS:
        if name in message and (text := _text_of(message[name])):
            return text
    return ""


def _finish(choice: dict[str, Any], body: dict[str, Any]) -> str:
    """Why an answer ended: `stop`, `length`, `content_filter` or `error`."""
    reasons = [choice.get(name) for name in _FINISH_FIELDS] + [body.get("done_reason")]
    for reason in reasons:
        if isinstance(reason, dict):
            reason = reason.get("type")
        if isinstance(reason, str) and reason:
            spelling = reason.rpartition(".")[2].lower().replace("-", "_").replace(" ", "_")
            spelling = spelling.removeprefix("finish_reason_")
            if spelling in _FINISH:
                return _FINISH[spelling]
            if any(word in spelling for word in ("length", "limit", "max_token")):
                return "length"
            return "error" if "error" in spelling or "interrupt" in spelling else "stop"
    return "stop"


def _reported_usage(body: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """The usage, from where an endpoint puts it."""
    groq = body.get("x_groq")
    places = [body, choice, groq if isinstance(groq, dict) else {}]
    usages = [
        place[name] for place in places for name in ("usage", "usageMetadata") if name in place
    ]
    if "eval_count" in body:  # Ollama
        usages.append(body)
    return next((usage for usage in usages if isinstance(usage, dict)), {})


def _usage(reported: dict[str, Any]) -> Usage:
    """The tokens of a call. Cached ones are part of the prompt's, thoughts of the completion's."""
    count = {name: _first_count(reported, paths) for name, paths in _USAGE_PATHS.items()}
    prompt, completion = count["prompt_tokens"], count["completion_tokens"]
    if "prompt_tokens" not in reported and "input_tokens" in reported:
        # Anthropic counts what it reads from its cache and writes to it beside the input.
        prompt += _count(reported.get("cache_read_input_tokens"))
        prompt += _count(reported.get("cache_creation_input_tokens"))
    # xAI and Gemini leave thoughts out of the completion, and count them in the total.
    beside = _count(reported.get("total_tokens")) - prompt - completion
    if beside > 0 and count["reasoning_tokens"] in (0, beside):
        count["reasoning_tokens"] = beside
        completion += beside
    read: Usage = {
        "calls": 1,
        "prompt_tokens": prompt,
        "cached_tokens": min(count["cached_tokens"], prompt),
        "completion_tokens": completion,
        "reasoning_tokens": min(count["reasoning_tokens"], completion),
    }
    if count["cache_write_tokens"]:
        read["cache_write_tokens"] = count["cache_write_tokens"]
    return read


def _first_count(usage: dict[str, Any], paths: tuple[tuple[str, str], ...]) -> int:
    for name, inner in paths:
        value = usage.get(name)
        if inner:
            value = value.get(inner) if isinstance(value, dict) else None
        if value is not None and (value := _count(value)):
            return int(value)
    return 0


def _count(reported: Any) -> int:
    """A count of tokens; a value that cannot be one counts as not reported."""
    if isinstance(reported, str) and reported.strip().isdecimal():
        reported = int(reported[:20])
    number = isinstance(reported, int | float) and not isinstance(reported, bool)
    return int(reported) if number and 0 <= reported < MAX_TOKEN_COUNT else 0


def _first_token_odds(logprobs: Any) -> dict[str, float] | None:
    """The probabilities of the first token's candidates, by token without case and spaces."""
    odds: dict[str, float] = {}
    for token, logprob in _first_token_candidates(logprobs):
        if isinstance(logprob, int | float) and not math.isnan(logprob):
            token = str(token).strip().casefold()
            odds[token] = odds.get(token, 0.0) + math.exp(min(logprob, 0.0))
    return odds or None


def _first_token_candidates(logprobs: Any) -> Iterator[tuple[Any, Any]]:
    """Tokens with their logarithms: of a chat completion, or of a completion as it used to be."""
    if isinstance(logprobs, dict):
        content = logprobs.get("content")
        tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
        top = logprobs.get("top_logprobs")
    else:
        content, tokens, values, top = logprobs, None, None, None
    if isinstance(content, list) and content and isinstance(content[0], dict):
        tokens, values = [content[0].get("token", "")], [content[0].get("logprob")]
        top = [content[0].get("top_logprobs")]
    candidates = top[0] if isinstance(top, list) and top else None
    if isinstance(top, list) and top and isinstance(top[0], dict) and "logprob" in top[0]:
        candidates = top
    if isinstance(candidates, dict) and candidates:
        yield from candidates.items()
    elif isinstance(candidates, list) and candidates:
        yield from ((c.get("token", ""), c.get("logprob")) for c in candidates if type(c) is dict)
    elif isinstance(tokens, list) and isinstance(values, list) and tokens and values:
        yield tokens[0], values[0]


def read_event_stream(content: bytes) -> dict[str, Any]:
    """The completion that the chunks of an event stream make up, or the error in the stream.

    A stream that ends before its answer does is an error too: half an answer is none.
    """
    text = content.decode("utf-8", "replace")
    chunks = list(_chunks(text))
    whole: dict[str, Any] = {}
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant"}, "finish_reason": None}
    for chunk in chunks:
        if _error_in(chunk):
            return {"error": chunk["error"]}
        if "choices" not in chunk and chunk.keys() & {"message", "detail"}:
            return chunk
        whole |= {name: value for name, value in chunk.items() if value is not None}
        for part in chunk.get("choices") or []:
            if isinstance(part, dict) and part.get("index", 0) in (0, None):
                _add_part(choice, part)
    if not chunks:
        return {"error": {"message": text[:300]}}
    if choice["finish_reason"] is None and "[DONE]" not in text[-200:]:
        return {"error": {"message": "the event stream ended before the answer did"}}
    return whole | {"object": "chat.completion", "choices": [choice]}


def _chunks(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of an event stream; one may be spread over several lines of data."""
    pending = ""
    for line in re.split(r"\r\n|\n|\r", text):
        if not line.startswith("data:"):
            pending = pending if line else ""
            continue
        pending += line[5:].strip()
        try:
            chunk = loads(pending)
        except ValueError:
            continue
        pending = ""
        if isinstance(chunk, dict):
            yield chunk


def _add_part(choice: dict[str, Any], part: dict[str, Any]) -> None:
    """Add a chunk's part to the choice that it is of."""
    if isinstance(part.get("message"), dict):
        # The whole message, as some send it at the end.
        choice["message"] = part["message"]
    message = choice["message"]
    delta = part.get("delta") or {}
    if isinstance(part.get("text"), str):
        choice["text"] = choice.get("text", "") + part["text"]
    for name, value in delta.items():
        if name == "tool_calls":
            _add_tool_calls(message.setdefault("tool_calls", []), value)
        elif name == "function_call" and isinstance(value, dict):
            call = message.setdefault("function_call", {})
            message["function_call"] = _joined(call, value)
        elif name != "role" and value:
            message[name] = _joined(message.get(name), value)
    if isinstance(part.get("logprobs"), dict):
        choice["logprobs"] = _joined(choice.get("logprobs"), part["logprobs"])
    for name in (*_FINISH_FIELDS, "error", "usage"):
        if part.get(name):
            choice[name] = part[name]


def _add_tool_calls(calls: list[dict[str, Any]], deltas: Any) -> None:
    """Add to the tool calls what their deltas say, by index."""
    for delta in deltas if isinstance(deltas, list) else []:
        if isinstance(delta, dict):
            index = delta.get("index")
            at = index if isinstance(index, int) and index >= 0 else len(calls)
            while len(calls) <= min(at, 100):
                calls.append({})
            at = min(at, 100)
            function = delta.get("function") or {}
            calls[at] = {"function": _joined(calls[at].get("function"), function)}


def _joined(before: Any, more: Any) -> Any:
    """What a stream has said so far, and what it says next."""
    if before is None:
        return more
    if isinstance(before, str) and isinstance(more, str):
        return before + more
    if isinstance(before, dict) and isinstance(more, dict):
        joined = {name: _joined(before.get(name), value) for name, value in more.items()}
        return before | joined
    if isinstance(before, list) and isinstance(more, list):
        return before + more
    if isinstance(before, list) or isinstance(more, list):
        return [*(before if isinstance(before, list) else [before]),
                *(more if isinstance(more, list) else [more])]  # fmt: skip
    return before if more is None else more
