import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.context import Context
from nodes.llm import Answer, Call, CallOrigin, Reply, make_call
from nodes.llm.answers import UnreadableAnswer, read_answer
from nodes.llm.completion import FINISH_REASONS, NotACompletion, parse_reply, read_event_stream

GOOD = {"response": "so"}
SAID = json.dumps(GOOD)


def reply_of(message: Any, finish: Any = "stop", **choice: Any) -> Reply:
    return parse_reply({"choices": [{"message": message, "finish_reason": finish, **choice}]})


def calling(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "extract", "arguments": arguments}}


TEXTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "text": ({"content": "so"}, "so"),
    "nothing": ({"content": None}, None),
    "empty": ({"content": ""}, ""),
    "parts": ({"content": [{"type": "text", "text": "s"}, {"type": "text", "text": "o"}]}, "so"),
    "parts of output": ({"content": [{"type": "output_text", "text": "so"}]}, "so"),
    "texts": ({"content": ["s", "o"]}, "so"),
    "parts without a type": ({"content": [{"text": "so"}]}, "so"),
    "a part with a value": ({"content": [{"type": "text", "text": {"value": "so"}}]}, "so"),
    "one part": ({"content": {"type": "text", "text": "so"}}, "so"),
    "an unknown part": ({"content": [{"type": "cite"}, {"type": "text", "text": "so"}]}, "so"),
    "an object": ({"content": GOOD}, SAID),
    "a call in parts": ({"content": [{"type": "tool_use", "name": "x", "input": GOOD}]}, SAID),
    "a call": ({"content": None, "tool_calls": [calling(SAID)]}, SAID),
    "a call and words": ({"content": "Here:", "tool_calls": [calling(SAID)]}, SAID),
    "a call with an object": ({"tool_calls": [calling(GOOD)]}, SAID),
    "calls": ({"tool_calls": [calling("{}"), calling(SAID)]}, "{},\n" + SAID),
    "a call of nothing": ({"content": "so", "tool_calls": [calling("")]}, "so"),
    "no calls": ({"content": "so", "tool_calls": []}, "so"),
    "a call without function": ({"tool_calls": [{"name": "extract", "parameters": GOOD}]}, SAID),
    "a call by itself": ({"tool_calls": calling(GOOD)}, SAID),
    "a function call": ({"content": None, "function_call": {"name": "x", "arguments": SAID}}, SAID),
    "thoughts only": ({"content": None, "reasoning_content": "so"}, None),
}  # fmt: skip


@pytest.mark.parametrize(("message", "text"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["message", "delta"])
def test_a_text_is_read_in_every_form(message: dict[str, Any], text: str, name: str) -> None:
    assert parse_reply({"choices": [{name: message, "finish_reason": "stop"}]}).text == text


def test_the_text_of_a_completion_as_it_used_to_be_is_read() -> None:
    assert parse_reply({"choices": [{"text": "so", "finish_reason": "stop"}]}).text == "so"
    assert parse_reply({"choices": [{"message": "so"}]}).text == "so"


def call_for(answer: type[Answer] | None, text: bool = False) -> Call:
    return make_call("extract", [], answer, Context(), CallOrigin("s"), text=text)


class Said(Answer):
    response: str


OTHER = json.dumps({"response": "other"})
BESIDE: dict[str, tuple[str, list[Any], str]] = {
    "words": ("Here:", [calling(SAID)], SAID),
    "another object": ('I call {"tool": 1}.', [calling(SAID)], SAID),
    "a call of something else": (SAID, [calling('{"query": "x"}')], SAID),
    "a call that is no JSON": (f"So: {SAID}", [calling("x")], f"So: {SAID}"),
    "the same": (SAID, [calling(SAID)], SAID),
    "none of both": ('{"a": 1}', [calling('{"b": 1}')], '{"b": 1}'),
    "thoughts that are not closed": (f"<think> {OTHER}", [calling(SAID)], SAID),
}


@pytest.mark.parametrize(("content", "calls", "text"), BESIDE.values(), ids=BESIDE)
def test_of_words_and_a_call_the_one_with_the_shape_counts(
    content: str, calls: list[Any], text: str
) -> None:
    message = {"content": content, "tool_calls": calls}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    assert parse_reply(body, call_for(Said)).text == text


@pytest.mark.parametrize(
    "message",
    [
        {"content": OTHER, "tool_calls": [calling(SAID)]},
        {"content": f"```json\n{OTHER}\n```", "function_call": {"name": "x", "arguments": GOOD}},
        {"content": None, "tool_calls": [calling(OTHER), calling(SAID)]},
    ],
)
def test_two_answers_of_the_shape_that_differ_are_none(message: dict[str, Any]) -> None:
    text = parse_reply({"choices": [{"message": message}]}, call_for(Said)).text
    with pytest.raises(UnreadableAnswer, match="several JSON objects fit"):
        read_answer(text or "", Said)


STRAY: dict[str, tuple[Any, str | None]] = {
    "a call": ({"content": "So.", "tool_calls": [calling(SAID)]}, "So."),
    "a function call": ({"content": "So.", "function_call": {"arguments": "{}"}}, "So."),
    "a call in parts": (
        {"content": [{"type": "text", "text": "So."}, {"type": "tool_use", "input": GOOD}]}, "So.",
    ),
    "a call and nothing else": ({"content": None, "tool_calls": [calling(SAID)]}, None),
    "a call in parts and nothing else": ({"content": [{"type": "tool_use", "input": GOOD}]}, None),
}  # fmt: skip


@pytest.mark.parametrize(("message", "text"), STRAY.values(), ids=STRAY)
def test_a_call_of_a_tool_is_no_plain_text(message: dict[str, Any], text: str | None) -> None:
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    for call in (call_for(None, text=True), call_for(None)):
        reply = parse_reply(body, call)
        assert (reply.text, reply.finish) == (text, "stop")
    apart = [{"message": {"tool_calls": [calling(SAID)]}}, {"message": {"content": "So."}}]
    assert parse_reply({"choices": apart}, call_for(None, text=True)).text == "So."


NATIVE: dict[str, tuple[dict[str, Any], str]] = {
    "Ollama": (
        {"model": "m", "message": {"role": "assistant", "content": "so", "thinking": "hm"}, "done":
         True, "done_reason": "length", "prompt_eval_count": 9, "eval_count": 3}, "hm",
    ),
    "Ollama, a prompt": (
        {"response": "so", "thinking": "hm", "done": True, "done_reason": "length",
         "prompt_eval_count": 9, "eval_count": 3}, "hm",
    ),
    "DashScope": (
        {"output": {"choices": [{"message": {"content": "so", "reasoning_content": "hm"},
                                 "finish_reason": "length"}]},
         "usage": {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}, "request_id": "1"},
        "hm",
    ),
    "DashScope, a text": (
        {"output": {"text": "so", "finish_reason": "length"},
         "usage": {"input_tokens": 9, "output_tokens": 3}}, "",
    ),
    "Anthropic": (
        {"type": "message", "role": "assistant", "stop_reason": "max_tokens", "content":
         [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}],
         "usage": {"input_tokens": 9, "output_tokens": 3}}, "hm",
    ),
    "Gemini": (
        {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "so"}],
                                     "role": "model"}, "finishReason": "MAX_TOKENS"}],
         "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 3}}, "hm",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "thought"), NATIVE.values(), ids=NATIVE)
def test_a_body_of_a_providers_own_interface_is_read(body: dict[str, Any], thought: str) -> None:
    reply = parse_reply(body)
    assert (reply.text, reply.finish, reply.reasoning or "") == ("so", "length", thought)
    usage = reply.usage
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (9, 3)


@pytest.mark.parametrize(
    "body",
    [
        {"message": {"content": "half"}, "done": False},
        {"output": {"task_status": "FAILED"}},
        {"code": "InvalidParameter", "message": "no", "request_id": "1"},
        {"candidates": []},
    ],
)
def test_a_body_of_such_an_interface_without_an_answer_is_no_completion(body: Any) -> None:
    with pytest.raises(NotACompletion):
        parse_reply(body)


def test_a_call_in_a_choice_of_its_own_is_read() -> None:
    said = {"message": {"content": "Here:"}, "finish_reason": "stop"}
    call = {"message": {"content": None, "tool_calls": [calling(SAID)]}, "finish_reason": "stop"}
    assert parse_reply({"choices": [said, call]}).text == SAID
    assert parse_reply({"choices": [said, said]}).text == "Here:"


THOUGHTS: dict[str, dict[str, Any]] = {
    "reasoning_content": {"reasoning_content": "hm"},
    "reasoning": {"reasoning": "hm"},
    "both": {"reasoning": "hm", "reasoning_content": "hm"},
    "an object": {"reasoning": {"content": "hm"}},
    "details": {
        "reasoning_details": [
            {"type": "reasoning.summary", "summary": "h"},
            {"type": "reasoning.encrypted", "data": "x"},
            {"type": "reasoning.text", "text": "m"},
        ]
    },
    "blocks": {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}]},
}


@pytest.mark.parametrize("fields", THOUGHTS.values(), ids=THOUGHTS)
def test_thoughts_are_read_from_fields_of_their_own(fields: dict[str, Any]) -> None:
    reply = reply_of({"content": "so", **fields})
    assert (reply.text, reply.reasoning) == ("so", "hm")
    reply = reply_of({"content": None, **fields})
    assert (reply.text, reply.reasoning) == (None, "hm")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "hm"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"text": "m"}]},
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "reasoning", "text": "hm"},
        {"text": "hm", "thought": True},
    ],
)
def test_thoughts_in_a_part_are_no_text(part: dict[str, Any]) -> None:
    reply = reply_of({"content": [part, {"type": "text", "text": "so"}]})
    assert (reply.text, reply.reasoning) == ("so", "hm")
    assert reply_of({"content": [part]}).text is None


def test_a_refusal_is_read_from_its_field_or_part() -> None:
    assert reply_of({"content": None, "refusal": "No."}).refusal == "No."
    assert reply_of({"content": [{"type": "refusal", "refusal": "No."}]}).refusal == "No."
    assert reply_of({"content": "so", "refusal": ""}).refusal is None


FINISHES = {
    None: "stop", "stop": "stop", "STOP": "stop", "end_turn": "stop", "eos": "stop",
    "eos_token": "stop", "stop_sequence": "stop", "tool_calls": "stop", "function_call": "stop",
    "<|eot_id|>": "stop", "COMPLETE": "stop", "length": "length", "MAX_TOKENS": "length",
    "max_output_tokens": "length", "model_length": "length", "FinishReason.MAX_TOKENS": "length",
    "max-tokens": "length", "content_filter": "content_filter", "SAFETY": "content_filter",
    "RECITATION": "content_filter", "PROHIBITED_CONTENT": "content_filter",
    "refusal": "content_filter", "sensitive": "content_filter",
}  # fmt: skip


@pytest.mark.parametrize(("told", "finish"), FINISHES.items())
def test_an_answer_ends_for_one_of_three_reasons(told: str | None, finish: str) -> None:
    assert reply_of({"content": "so"}, told).finish == finish


def test_the_reason_is_read_from_where_it_stands() -> None:
    assert reply_of({"content": "so"}, {"type": "length", "length": 5}).finish == "length"
    assert reply_of({"content": "so"}, None, stop_reason="max_tokens").finish == "length"
    assert reply_of({"content": "so"}, None, native_finish_reason="MAX_TOKENS").finish == "length"
    assert reply_of({"content": "so"}, "length", stop_reason=128009).finish == "length"


def test_no_spelling_stands_for_two_reasons() -> None:
    spellings = " ".join(FINISH_REASONS.values()).split()
    assert len(spellings) == len(set(spellings))


UPSTREAM = {"code": 502, "message": "upstream"}
NO_COMPLETIONS: dict[str, tuple[Any, Any]] = {
    "no choices": ({"choices": []}, {"choices": []}),
    "detail": ({"detail": "Not authenticated"}, {"detail": "Not authenticated"}),
    "object": ({"object": "error", "message": "no"}, {"object": "error", "message": "no"}),
    "error": ({"error": UPSTREAM, "choices": []}, {"error": UPSTREAM, "choices": []}),
    "error beside an empty choice": (
        {"error": UPSTREAM, "choices": [{"message": {"content": ""}}]},
        {"error": UPSTREAM},
    ),
    "error beside half an answer": (
        {"error": UPSTREAM, "choices": [{"message": {"content": "half"}}]},
        {"error": UPSTREAM},
    ),
    "error in a choice": (
        {"choices": [{"message": {"content": "half"}, "error": UPSTREAM}]},
        {"error": UPSTREAM},
    ),
    "error in a message": ({"choices": [{"message": {"error": UPSTREAM}}]}, {"error": UPSTREAM}),
}


@pytest.mark.parametrize(("body", "kept"), NO_COMPLETIONS.values(), ids=NO_COMPLETIONS)
def test_an_error_in_spite_of_status_200_keeps_what_came(body: Any, kept: Any) -> None:
    with pytest.raises(NotACompletion) as caught:
        parse_reply(body)
    assert caught.value.body == kept


@pytest.mark.parametrize("finish", ["error", "network_error", "insufficient_system_resource"])
def test_an_answer_that_ends_with_an_error_is_none_and_its_words_are_not_quoted(
    finish: str,
) -> None:
    with pytest.raises(NotACompletion) as caught:
        reply_of({"content": "invalid api key"}, finish)
    assert "key" not in str(caught.value.body)


def test_an_error_without_content_is_none() -> None:
    for error in (None, "", {"code": 0, "message": None}):
        body = {"error": error, "choices": [{"message": {"content": "so", "error": error}}]}
        assert parse_reply(body).text == "so"


def used(usage: Any) -> tuple[int, int, int, int]:
    reply = parse_reply({"choices": [{"message": {"content": "so"}}], "usage": usage})
    read = reply.usage
    assert read["calls"] == 1
    return (
        read["prompt_tokens"],
        read["cached_tokens"],
        read["completion_tokens"],
        read["reasoning_tokens"],
    )


USAGES: dict[str, tuple[Any, tuple[int, int, int, int]]] = {
    "nothing": (None, (0, 0, 0, 0)),
    "OpenAI": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "total_tokens": 130,
            "prompt_tokens_details": {"cached_tokens": 64},
            "completion_tokens_details": {"reasoning_tokens": 20},
        },
        (100, 64, 30, 20),
    ),
    "nulls": (
        {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": None,
         "completion_tokens_details": {"reasoning_tokens": None}},
        (9, 0, 3, 0),
    ),
    "texts": ({"prompt_tokens": "9", "completion_tokens": "3", "total_tokens": "x"}, (9, 0, 3, 0)),
    "numbers": (
        {"prompt_tokens": 9.0, "completion_tokens": -3, "cached_tokens": True},
        (9, 0, 0, 0),
    ),
    "responses": (
        {"input_tokens": 9, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4},
         "output_tokens_details": {"reasoning_tokens": 2}},
        (9, 4, 3, 2),
    ),
    "Anthropic": (
        {"input_tokens": 9, "output_tokens": 3, "cache_read_input_tokens": 50,
         "cache_creation_input_tokens": 20},
        (79, 50, 3, 0),
    ),
    "LiteLLM": (
        {"prompt_tokens": 79, "completion_tokens": 3, "cache_read_input_tokens": 50},
        (79, 50, 3, 0),
    ),
    "DeepSeek": (
        {"prompt_tokens": 100, "completion_tokens": 5, "prompt_cache_hit_tokens": 80,
         "prompt_cache_miss_tokens": 20},
        (100, 80, 5, 0),
    ),
    "Moonshot": (
        {"prompt_tokens": 100, "completion_tokens": 5, "cached_tokens": 80},
        (100, 80, 5, 0),
    ),
    "thoughts beside the completion": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40,
         "completion_tokens_details": {"reasoning_tokens": 25}},
        (10, 0, 30, 25),
    ),
    "thoughts only in the total": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40},
        (10, 0, 30, 25),
    ),
    "more cached than sent": ({"prompt_tokens": 10, "cached_tokens": 80}, (10, 10, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize(("usage", "counts"), USAGES.values(), ids=USAGES)
def test_what_was_used_is_read_in_every_form(usage: Any, counts: tuple[int, ...]) -> None:
    assert used(usage) == counts


def test_what_is_written_to_a_cache_is_told_if_there_is_any() -> None:
    for usage in (
        {"input_tokens": 9, "cache_creation_input_tokens": 20},
        {"prompt_tokens": 29, "prompt_tokens_details": {"cache_creation_tokens": 20}},
        {"prompt_tokens": 29, "prompt_tokens_details": {"cache_write_tokens": 20}},
    ):
        read = parse_reply({"choices": [{"message": {}}], "usage": usage}).usage
        assert (read["prompt_tokens"], read["cache_write_tokens"]) == (29, 20)
    assert "cache_write_tokens" not in reply_of({"content": "so"}).usage


def test_a_usage_is_found_where_it_stands() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    for places in ({"x_groq": {"usage": usage}}, {"usage": None, "x_groq": {"usage": usage}}):
        reply = parse_reply({"choices": [{"message": {"content": "so"}}], **places})
        assert reply.usage["prompt_tokens"] == 9
    assert reply_of({"content": "so"}, usage=usage).usage["completion_tokens"] == 3


ODDS: dict[str, Any] = {
    "a chat": {
        "content": [
            {
                "token": "Yes",
                "logprob": 0.0,
                "top_logprobs": [
                    {"token": " yes", "logprob": 0.0},
                    {"token": "No", "logprob": -800},
                ],
            }
        ]
    },
    "a chat without others": {"content": [{"token": "Yes", "logprob": 0, "top_logprobs": []}]},
    "a chat with others by token": {
        "content": [{"token": "Yes", "logprob": 0, "top_logprobs": {"Yes": 0.0, "No": -800}}]
    },
    "a list": [{"token": "Yes", "logprob": 0.0}],
    "a completion": {
        "tokens": ["Yes", "."],
        "token_logprobs": [0.0, -1.0],
        "top_logprobs": [{"Yes": 0.0, "No": -800}, {".": -1.0}],
    },
    "a completion with lists": {
        "tokens": ["Yes"],
        "top_logprobs": [[{"token": "Yes", "logprob": 0.0}, {"token": "No", "logprob": -800}]],
    },
    "a completion without others": {"tokens": ["Yes"], "token_logprobs": [0], "top_logprobs": None},
}  # fmt: skip


@pytest.mark.parametrize("logprobs", ODDS.values(), ids=ODDS)
def test_log_probabilities_are_read_in_every_form(logprobs: Any) -> None:
    odds = reply_of({"content": "Yes"}, logprobs=logprobs).odds
    assert odds is not None
    assert odds["yes"] == 1.0
    assert odds.get("no", 0.0) == 0.0


@pytest.mark.parametrize(
    "logprobs",
    [
        None, {}, [], {"content": []}, {"content": None}, {"content": [None]}, {"tokens": []},
        {"top_logprobs": [None]}, {"content": [{"token": "Yes"}]}, [1], "x",
        {"top_logprobs": [[1]]},
    ],
)  # fmt: skip
def test_what_are_no_log_probabilities_are_none(logprobs: Any) -> None:
    assert reply_of({"content": "Yes"}, logprobs=logprobs).odds is None


# Event streams that nobody asked for


def stream(*chunks: Any, end: str = "data: [DONE]\n\n") -> bytes:
    return ("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end).encode()


def part(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [choice]}


USAGE = {"prompt_tokens": 9, "completion_tokens": 3}


def test_a_stream_is_joined_to_one_completion() -> None:
    body = read_event_stream(
        b": a comment\r\n\r\n"
        + stream(
            {"choices": [], "prompt_filter_results": [], "id": "", "service_tier": "flex"},
            part(role="assistant", content="", reasoning_content="h"),
            part(reasoning_content="m"),
            part(content="s\u2028"),
            part(content="o\n"),
            part("length"),
            {"id": "x", "choices": [], "usage": USAGE, "service_tier": None},
        )
    )
    reply = parse_reply(body)
    assert (reply.text, reply.reasoning, reply.finish) == ("s\u2028o\n", "hm", "length")
    assert (reply.usage["prompt_tokens"], reply.usage["completion_tokens"]) == (9, 3)
    assert body["service_tier"] == "flex"


def test_a_streams_tool_call_is_joined_by_its_index() -> None:
    first = {"index": 0, "id": "1", "function": {"name": "extract", "arguments": ""}}
    deltas = [SAID[:5], SAID[5:]]
    chunks = [part(tool_calls=[first])] + [
        part(tool_calls=[{"index": 0, "function": {"arguments": piece}}]) for piece in deltas
    ]
    assert parse_reply(read_event_stream(stream(*chunks, part("tool_calls")))).text == SAID
    chunks = [part(function_call={"name": "x", "arguments": ""})]
    chunks += [part(function_call={"arguments": piece}) for piece in deltas]
    assert parse_reply(read_event_stream(stream(*chunks, part("function_call")))).text == SAID


def test_a_stream_of_parts_texts_or_a_whole_message_is_joined() -> None:
    think = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    chunks = [part(content=[think]), part(content="s"), part("stop", content="o")]
    reply = parse_reply(read_event_stream(stream(*chunks)))
    assert (reply.text, reply.reasoning) == ("so", "hm")
    texts = [{"choices": [{"text": piece}]} for piece in "so"]
    assert parse_reply(read_event_stream(stream(*texts))).text == "so"
    whole = {"choices": [{"message": {"content": "so"}, "finish_reason": "stop"}]}
    assert parse_reply(read_event_stream(stream(part(content="s"), whole))).text == "so"


def test_a_streams_log_probabilities_are_those_of_its_first_token() -> None:
    def likely(token: str) -> dict[str, Any]:
        chunk = part(content=token)
        chunk["choices"][0]["logprobs"] = {"content": [{"token": token, "logprob": 0.0}]}
        return chunk

    reply = parse_reply(read_event_stream(stream(likely("Yes"), likely("."), part("stop"))))
    assert reply.odds == {"yes": 1.0}


def test_data_without_blank_lines_or_over_several_lines_is_read() -> None:
    lines = b"".join(b"data:" + json.dumps(part(content=c)).encode() + b"\n" for c in "so")
    assert parse_reply(read_event_stream(lines + b"data: [DONE]")).text == "so"
    spread = json.dumps(part("stop", content="so"), indent=1).replace("\n", "\ndata: ")
    assert parse_reply(read_event_stream(f"data: {spread}\n\n".encode())).text == "so"


@pytest.mark.parametrize(
    "content",
    [
        stream(part(content="half"), {"error": UPSTREAM}, end=""),
        stream(part(content="so"), {**part("stop", content="."), "error": UPSTREAM}),
        stream(part(content="half"), {"object": "error", "message": "upstream"}),
        stream(part(content="half"), end="event: error\ndata: {\"message\": \"upstream\"}\n\n"),
        stream(part(content="half"), end=""),
        stream({"detail": "no"}, end=""),
        b"data: <p>upstream</p>\n\n",
        b"data: [DONE]\n\n",
    ],
    ids=[
        "an error", "an error in a part", "an object", "an event", "cut off", "detail", "a page",
        "nothing",
    ],
)  # fmt: skip
def test_a_stream_with_an_error_or_without_an_end_is_no_completion(content: bytes) -> None:
    body = read_event_stream(content)
    with pytest.raises(NotACompletion):
        parse_reply(body)


def test_a_stream_whose_answer_ends_needs_no_last_word() -> None:
    body = read_event_stream(stream(part(content="so"), part("stop"), end=""))
    assert parse_reply(body).finish == "stop"


NAMES = st.sampled_from([
    "choices", "message", "delta", "content", "text", "type", "tool_calls", "function",
    "arguments", "function_call", "refusal", "reasoning", "reasoning_content",
    "reasoning_details", "error", "usage", "x_groq", "logprobs", "top_logprobs", "tokens",
    "token_logprobs", "token", "logprob", "finish_reason", "stop_reason", "prompt_tokens",
    "total_tokens", "index", "thought", "prompt_tokens_details", "completion_tokens_details",
    "cached_tokens", "thinking", "output", "candidates", "parts", "done", "response",
])  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["", "so", "thinking"])
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(NAMES, ANYTHING, max_size=4),
    st.dictionaries(NAMES, ANYTHING, max_size=4),
    st.sampled_from([None, call_for(Said), call_for(None, text=True)]),
    st.booleans(),
)
def test_any_object_at_all_is_a_reply_or_no_completion(
    message: dict[str, Any], choice: dict[str, Any], call: Call | None, native: bool
) -> None:
    body = {**choice, "choices": [{**choice, "message": message, "delta": message}]}
    if native:
        body = {"message": message, "done": True, "type": "message", **choice}
    for read in (lambda: body, lambda: read_event_stream(stream(body, body))):
        try:
            reply = parse_reply(read(), call)
        except NotACompletion:
            continue
        assert reply.text is None or isinstance(reply.text, str)
        assert reply.reasoning is None or isinstance(reply.reasoning, str)
        assert reply.refusal is None or isinstance(reply.refusal, str)
        assert reply.finish in FINISH_REASONS
