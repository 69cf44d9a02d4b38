import asyncio
import contextlib
import gc
import json
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from fakes import Endpoint, completion, error, letters, stage_of, verdicts
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableLambda

from graph.builder import build_graph
from nodes.context import Context
from nodes.feedback import Feedback
from nodes.generate import Generated
from nodes.judge import Critiqued
from nodes.learn import Extracted
from nodes.llm import Call, CallFailed, CallOrigin, ProviderStopped, Reply, ask, ask_text, make_call
from nodes.llm.completion import parse_reply
from nodes.llm.endpoint import Endpoint as Address
from nodes.llm.endpoint import EndpointClient, resolve_from_environment
from nodes.llm.protocol import Transient, schema_of
from nodes.propose import Proposed
from nodes.state import no_usage

KEY = "sk-secret-0123456789"
CONTEXT = Context(model="writer", judge_model="judge")
MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
CALL = make_call("generate", MESSAGES, Generated, CONTEXT, CallOrigin("a", "0/0"))
QUESTION = make_call("critique", MESSAGES, None, CONTEXT, CallOrigin("a", "0/0"))
GOOD = {"response": "so"}
Script = Callable[[dict[str, Any], int], Any]

TRANSIENT = ("timeout", "connection", "rate_limit", "server", "overloaded")


@asynccontextmanager
async def connected(
    url: str, key: str = KEY, max_retries: int = 0
) -> AsyncIterator[EndpointClient]:
    async def there(model: str, judge: bool) -> Address:
        return Address(url, key)

    client = EndpointClient(there, max_retries=max_retries)
    try:
        yield client
    finally:
        await client.aclose()


async def answered(script: Script | None, call: Call = CALL) -> Reply:
    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            return await complete(call)


async def failure(script: Script, call: Call = CALL) -> Exception:
    with pytest.raises((CallFailed, ProviderStopped)) as raised:
        await answered(script, call)
    return raised.value


def mode_of(body: dict[str, Any]) -> str:
    if "tools" in body:
        return "tools"
    return str(body.get("response_format", {}).get("type", "text"))


REFUSALS = {
    "json_schema": "Invalid parameter: 'response_format' of type 'json_schema' is not supported",
    "tools": "this model does not support tools",
    "json_object": "response_format is not supported by this server",
}


def refusing(*modes: str) -> Script:
    """An endpoint that refuses some ways of asking for JSON, and says so in words."""

    def script(body: dict[str, Any], number: int) -> Any:
        mode = mode_of(body)
        return error(400, REFUSALS[mode]) if mode in modes else GOOD

    return script


# The request


async def test_an_answer_is_asked_for_by_its_schema_named_after_the_stage() -> None:
    with Endpoint(lambda body, n: GOOD) as endpoint:
        async with connected(endpoint.url) as complete:
            reply = await complete(CALL)
    assert json.loads(reply.text or "") == GOOD
    (body,) = endpoint.bodies
    assert body == {
        "model": "writer",
        "messages": list(MESSAGES),
        "temperature": CALL.temperature,
        "max_tokens": CALL.max_tokens,
        "seed": CALL.seed,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "generate", "strict": True, "schema": schema_of(Generated)},
        },
    }
    assert endpoint.keys == [f"Bearer {KEY}"]


async def test_an_answer_that_was_cut_is_asked_for_with_more_room() -> None:
    with Endpoint() as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(replace(CALL, room=2, max_tokens=70))
    assert endpoint.bodies[0]["max_tokens"] == 140


async def bounded(room: int) -> int:
    """The `max_tokens` of two calls at an endpoint whose answers have 50 tokens at most."""

    async def there(model: str, judge: bool) -> Address:
        return Address(endpoint.url, KEY, max_tokens=50)

    with Endpoint() as endpoint:
        complete = EndpointClient(there, max_retries=0)
        await complete(replace(CALL, max_tokens=70, room=room))
        await complete(replace(CALL, max_tokens=20, room=room))
        await complete.aclose()
    assert endpoint.bodies[1]["max_tokens"] == 20 * room
    return int(endpoint.bodies[0]["max_tokens"])


async def test_an_endpoint_may_bound_every_answer() -> None:
    assert await bounded(room=1) == 50


async def test_a_cut_answer_that_can_have_no_more_room_is_not_asked_for_again_as_it_was() -> None:
    with pytest.raises(CallFailed, match="cut off at 50 tokens"):
        await bounded(room=2)


async def test_extra_fields_of_a_call_are_sent_and_have_the_last_word() -> None:
    with Endpoint() as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(replace(CALL, extra_body={"top_p": 0.5, "temperature": 0.1}))
    assert endpoint.bodies[0]["top_p"] == 0.5
    assert endpoint.bodies[0]["temperature"] == 0.1


ANSWERS = {
    Extracted: ["subject_areas", "relevant_skills", "characteristics"],
    Proposed: ["instructions"],
    Generated: ["response"],
    Critiqued: ["verdicts"],
    Feedback: ["feedback"],
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_schema_is_strict_in_every_part(answer: Any) -> None:
    schema = schema_of(answer)
    assert list(schema["properties"]) == ANSWERS[answer]
    for part in (schema, *schema.get("$defs", {}).values()):
        assert part["additionalProperties"] is False
        assert sorted(part["required"]) == sorted(part["properties"])


def test_the_schema_of_verdicts_names_the_verdicts_there_are() -> None:
    judgement = schema_of(Critiqued)["$defs"]["Judgement"]["properties"]
    assert list(judgement) == ["criterion_id", "reason", "evidence", "verdict"]
    assert judgement["verdict"]["enum"] == ["pass", "fail", "not_applicable"]
    assert schema_of(Critiqued)["properties"]["verdicts"]["items"] == {"$ref": "#/$defs/Judgement"}


# Ways of asking


WAYS = {
    (): ["json_schema"],
    ("json_schema",): ["json_schema", "tools"],
    ("json_schema", "tools"): ["json_schema", "tools", "json_object"],
    ("json_schema", "tools", "json_object"): ["json_schema", "tools", "json_object", "text"],
}


@pytest.mark.parametrize("refused", WAYS)
async def test_a_refused_way_of_asking_is_found_out_once_and_remembered(
    refused: tuple[str, ...],
) -> None:
    with Endpoint(refusing(*refused)) as endpoint:
        async with connected(endpoint.url) as complete:
            replies = [await complete(CALL) for _ in range(3)]
    assert [json.loads(reply.text or "") for reply in replies] == [GOOD] * 3
    first, last = "json_schema", WAYS[refused][-1]
    again = [] if first == last else [last]
    assert [mode_of(body) for body in endpoint.asked()] == [first, *again, last, last]
    # Words are no proof: a tiny call without any of it passed, and one in each refused way did not.
    probed = [mode_of(body) for body in endpoint.bodies if body not in endpoint.asked()]
    assert probed == (["text", *WAYS[refused]] if again else [])
    assert all(body["max_tokens"] <= 64 for body in endpoint.bodies if body not in endpoint.asked())


async def test_what_many_calls_find_out_at_once_lowers_the_way_once() -> None:
    with Endpoint(refusing("json_schema")) as endpoint:
        async with connected(endpoint.url) as complete:
            await asyncio.gather(*(complete(CALL) for _ in range(12)))
            await complete(CALL)
    assert {mode_of(body) for body in endpoint.asked()} == {"json_schema", "tools"}
    assert mode_of(endpoint.bodies[-1]) == "tools"
    # All twelve share one probe.
    assert len(endpoint.bodies) - len(endpoint.asked()) == 3


async def test_what_one_model_refuses_is_not_held_against_another() -> None:
    with Endpoint(refusing("json_schema")) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
            await complete(replace(CALL, model="other"))
    assert [(body["model"], mode_of(body)) for body in endpoint.asked()] == [
        ("writer", "json_schema"),
        ("writer", "tools"),
        ("other", "json_schema"),
        ("other", "tools"),
    ]


async def test_a_tool_is_named_after_the_stage_and_has_to_be_called() -> None:
    with Endpoint(refusing("json_schema")) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
    body = endpoint.bodies[-1]
    (tool,) = body["tools"]
    assert tool["function"]["name"] == "generate"
    assert tool["function"]["parameters"] == schema_of(Generated)
    assert body["tool_choice"] == {"type": "function", "function": {"name": "generate"}}
    assert "response_format" not in body


@pytest.mark.parametrize("way", ["json_object", "text"])
async def test_where_the_request_has_no_schema_the_prompt_has_it(way: str) -> None:
    refused = ["json_schema", "tools", "json_object"]
    with Endpoint(refusing(*refused[: refused.index(way) if way in refused else 3])) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
    body = endpoint.bodies[-1]
    system, user = body["messages"]
    assert system["content"].startswith("Be brief.")
    assert "JSON object, named generate" in system["content"]
    assert json.dumps(schema_of(Generated)) in system["content"]
    assert user == MESSAGES[1]
    assert ("response_format" in body) == (way == "json_object")
    assert set(endpoint.stages()) == {"generate", "probe"}


OTHER_FAULTS = {
    "rate limit": (429, "slow down: response_format json_schema costs more", None),
    "content filter": (400, "filtered: response_format", "content_filter"),
    "azure filter": (
        400,
        "The response was filtered due to the prompt triggering Azure OpenAI's content "
        "management policy. Please modify your tools and response_format.",
        None,
    ),
    "context length": (
        400,
        "This model's maximum context length is 8192 tokens. However, you requested 9001 tokens "
        "(8190 in the messages, 811 in the completion).",
        "context_length_exceeded",
    ),
    "server, in words of the way": (500, "response_format json_schema grammar failed", None),
    "refused, in words of the way": (400, "response_format json_schema is not supported", None),
    "refused, in words of a field": (400, "Unsupported parameter: seed", None),
    "other": (400, "messages must not be empty", None),
}


@pytest.mark.parametrize("fault", OTHER_FAULTS.values(), ids=OTHER_FAULTS)
async def test_no_fault_of_one_call_lowers_the_way_of_asking(
    fault: tuple[int, str, str | None],
) -> None:
    status, message, code = fault
    with Endpoint(lambda body, n: error(status, message, code) if n == 0 else GOOD) as endpoint:
        async with connected(endpoint.url) as complete:
            with pytest.raises(CallFailed):
                await complete(CALL)
            await complete(CALL)
    assert [mode_of(body) for body in endpoint.asked()] == ["json_schema"] * 2
    assert all("seed" in body and "max_tokens" in body for body in endpoint.asked())


@settings(max_examples=25)
@given(st.text("abc seed max_tokens response_format tools json_schema `'", max_size=60))
def test_no_words_of_an_error_change_the_requests_that_follow(words: str) -> None:
    """Only a field that names a feature, or a probe that fails with it and passes without."""

    async def ask_twice() -> None:
        def script(body: dict[str, Any], number: int) -> Any:
            if number % 2 == 0 and body["messages"] == list(MESSAGES):
                return error(400, f"not supported: {words}")
            return GOOD

        with Endpoint(script) as endpoint:
            async with connected(endpoint.url) as complete:
                for _ in range(4):
                    with contextlib.suppress(CallFailed, ProviderStopped):
                        await complete(CALL)
        bodies = endpoint.asked()
        assert all(body == bodies[0] for body in bodies)

    asyncio.run(ask_twice())


async def test_a_field_that_a_detail_names_is_left_out_without_a_probe() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        if "seed" not in body:
            return GOOD
        detail = {"message": "no", "param": "seed", "code": "unsupported_parameter"}
        return web.json_response({"error": detail}, status=400)

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
            await complete(CALL)
    assert endpoint.asked() == endpoint.bodies
    assert ["seed" in body for body in endpoint.bodies] == [True, False, False]


async def test_a_refusal_of_the_last_way_is_a_failed_call() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        return error(400, "response_format, tools and json_object: nothing works here")

    assert isinstance(await failure(script), CallFailed)


FIELDS = {
    "seed": (400, "Unsupported parameter: 'seed'"),
    "temperature": (400, "Unsupported value: 'temperature' does not support 0.8 with this model."),
    "max_tokens": (422, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."),
}


@pytest.mark.parametrize("field", FIELDS)
async def test_a_refused_field_is_left_out_from_then_on(field: str) -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        return error(*FIELDS[field]) if field in body else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            for _ in range(3):
                await complete(CALL)
    assert [field in body for body in endpoint.asked()] == [True, False, False, False]
    assert {mode_of(body) for body in endpoint.asked()} == {"json_schema"}
    others = set(FIELDS) - {field}
    assert all(others <= set(body) for body in endpoint.asked())
    assert 2 <= len(endpoint.bodies) - len(endpoint.asked()) <= 3


async def test_an_endpoint_without_max_tokens_is_told_the_same_by_another_name() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        return error(400, "max_tokens is not supported") if "max_tokens" in body else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
    assert endpoint.bodies[-1]["max_completion_tokens"] == CALL.max_tokens


async def test_an_endpoint_that_refuses_everything_optional_is_still_asked() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        for field in ("temperature", "seed", "max_tokens"):
            if field in body:
                return error(400, f"unknown field {field}")
        return refusing("json_schema", "tools", "json_object")(body, number)

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            assert (await complete(CALL)).text == json.dumps(GOOD)
    assert len(endpoint.bodies) < 40
    assert set(endpoint.bodies[-1]) == {"model", "messages", "max_completion_tokens"}


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 3000. This model supports at most 2048 completion tokens.",
        "only one of temperature and top_p may be given",
        "the seed words of your request are not allowed here",
    ],
)
async def test_a_fault_that_stays_when_its_field_is_gone_fails_the_call(message: str) -> None:
    with Endpoint(lambda body, n: error(400, message) if n < 9 else GOOD) as endpoint:
        async with connected(endpoint.url) as complete:
            with pytest.raises(CallFailed):
                await complete(CALL)


# What it takes


def cut_below(tokens: int, thinks: bool = True) -> Script:
    """A model whose answers take so many tokens, thoughts among them."""

    def script(body: dict[str, Any], number: int) -> Any:
        if body["max_tokens"] < tokens:
            return completion(None if thinks else '{"resp', body, "length")
        return GOOD

    return script


async def test_a_model_that_thinks_has_room_from_then_on() -> None:
    call = replace(CALL, max_tokens=100)
    learned: list[str] = []
    with Endpoint(cut_below(350)) as endpoint:

        async def there(model: str, judge: bool) -> Address:
            return Address(endpoint.url, KEY)

        complete = EndpointClient(
            there, max_retries=0, on_learned=lambda model, sentence: learned.append(sentence)
        )
        assert (await ask(complete, call, Generated)).answer.response == "so"
        assert (await ask(complete, replace(call, seed=8), Generated)).answer.response == "so"
        # Another stage has not been seen to need it.
        await ask(complete, replace(call, stage="refine"), Generated)
        await complete.aclose()
    sizes = [body["max_tokens"] for body in endpoint.bodies]
    assert sizes == [100, 200, 400, 400, 100, 200, 400]
    assert {body["seed"] for body in endpoint.bodies[:3]} == {call.seed}
    assert "thinks before it answers" in learned[0]


async def test_a_long_answer_of_a_model_that_does_not_think_costs_the_others_nothing() -> None:
    call = replace(CALL, max_tokens=100)
    with Endpoint(cut_below(150, thinks=False)) as endpoint:
        async with connected(endpoint.url) as complete:
            await ask(complete, call, Generated)
            await ask(complete, call, Generated)
    assert [body["max_tokens"] for body in endpoint.bodies] == [100, 200, 100, 200]


async def test_an_answer_of_nothing_whose_tokens_are_used_up_is_a_cut_one() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        usage = {"prompt_tokens": 9, "completion_tokens": body["max_tokens"], "total_tokens": 9}
        return whole({"content": ""}, usage=usage)

    assert (await answered(script)).finish == "length"


LARGEST = {
    "of the answer": (
        "Invalid max_tokens value, the valid range of max_tokens is [1, 2048]",
        # The first is sent again as it was: words alone teach nothing.
        [3000, 3000, 2048, 2048],
    ),
    "of the window": (
        "This model's maximum context length is 4096 tokens. However, you requested 4600 tokens "
        "(1600 in the messages, 3000 in the completion).",
        None,
    ),
}


@pytest.mark.parametrize(("message", "sizes"), LARGEST.values(), ids=LARGEST)
async def test_a_limit_that_the_endpoint_names_is_tried_kept_and_remembered(
    message: str, sizes: list[int] | None
) -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        return error(400, message) if body["max_tokens"] > 2490 else GOOD

    if "2048" in message:

        def script(body: dict[str, Any], number: int) -> Any:
            return error(400, message) if body["max_tokens"] > 2048 else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
            await complete(CALL)
            known = complete.known()[0]
    found = [body["max_tokens"] for body in endpoint.bodies]
    if sizes:
        assert found == sizes
        assert known["largest_answer"] == 2048
    else:
        assert found[:3] == [3000, 3000, 4096 - 1600 - 32]
        assert known["window"] == 4096
        assert known["largest_answer"] is None
    assert all("max_completion_tokens" not in body for body in endpoint.bodies)


async def test_a_limit_in_words_that_passes_as_it_was_teaches_nothing() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        message = "max_tokens is too large. This model supports at most 16 completion tokens"
        return GOOD if number else error(400, message)

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
            await complete(CALL)
    assert [body["max_tokens"] for body in endpoint.bodies] == [CALL.max_tokens] * 3


async def test_a_prompt_that_leaves_no_room_says_what_to_do() -> None:
    message = "request (9000 tokens) exceeds the available context size (8192 tokens)"
    failed = await failure(lambda body, n: error(400, message))
    assert isinstance(failed, CallFailed)
    assert (failed.kind, "larger context" in failed.message) == ("too_long", True)


async def test_a_500_of_one_mode_has_it_probed() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        return error(500, "internal error") if mode_of(body) == "json_schema" else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
            await complete(CALL)
    assert [mode_of(b) for b in endpoint.asked()] == ["json_schema", "tools", "tools"]


@pytest.mark.parametrize("status", [400, 500])
async def test_an_answer_in_text_proves_nothing_of_a_mode(status: int) -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        return error(status, "Bad request") if mode_of(body) == "json_schema" else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(replace(CALL, answer=None, text=True))
            await complete(CALL)
            assert complete.known()[0]["mode"] == "tools"


async def test_a_refusal_that_a_tiny_call_refutes_is_sent_again() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        return error(403, "Forbidden") if number == 1 else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
            with pytest.raises(Transient):
                await complete(CALL)
            await complete(CALL)


async def test_a_text_that_used_up_its_tokens_is_cut_whatever_the_endpoint_says() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        usage = {"prompt_tokens": 9, "completion_tokens": body["max_tokens"], "total_tokens": 9}
        return whole({"content": "Half a te"}, usage=usage)

    assert (await answered(script)).finish == "length"


async def test_a_500_of_everything_is_trouble_of_the_endpoint() -> None:
    failed = await failure(lambda body, n: error(500, "internal error"))
    assert isinstance(failed, Transient)


async def test_a_mode_that_is_taken_and_ignored_is_given_up_after_two_unreadable_answers() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        if mode_of(body) in ("json_schema", "tools"):
            return whole({"content": "Certainly! Here is what you asked for."})
        return {"ok": True} if stage_of(body) == "probe" else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            assert (await ask(complete, CALL, Generated)).answer.response == "so"
            assert complete.known()[0]["mode"] == "json_object"
    modes = [mode_of(body) for body in endpoint.asked()]
    assert modes == ["json_schema", "json_schema", "json_object"]


async def test_two_answers_that_could_not_be_read_are_no_proof_against_a_mode() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        if stage_of(body) == "probe":
            return {"ok": True}
        return GOOD if len(body["messages"]) > 3 else whole({"content": "{}"})

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            with contextlib.suppress(CallFailed):
                await ask(complete, CALL, Generated)
            await complete(CALL)
    assert {mode_of(body) for body in endpoint.bodies} == {"json_schema"}


def in_reasoning(text: str, probed: str) -> Script:
    """An endpoint that says everything in the field for thoughts, and nothing in the content."""

    def script(body: dict[str, Any], number: int) -> Any:
        said = probed if stage_of(body) == "probe" else text
        return whole({"content": None, "reasoning_content": said})

    return script


TEXT_CALL = replace(CALL, answer=None, text=True)


async def test_an_endpoint_that_answers_in_the_field_for_thoughts_is_read_there() -> None:
    with Endpoint(in_reasoning("So it is.", "ok")) as endpoint:
        async with connected(endpoint.url) as complete:
            for _ in range(2):
                assert (await ask_text(complete, TEXT_CALL)).answer.text == "So it is."
    # One tiny call decided it, once.
    assert endpoint.stages().count("probe") == 1


async def test_thoughts_are_never_taken_for_a_text() -> None:
    with Endpoint(in_reasoning("Hm, the user wants ..", "The user wants me to say ok.")) as there:
        async with connected(there.url) as complete:
            with pytest.raises(CallFailed) as failed:
                await ask_text(complete, TEXT_CALL)
    assert failed.value.kind == "empty"


async def test_a_stray_call_of_a_tool_and_a_line_that_says_an_error_are_no_text() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        if number == 0:
            return "Error: upstream timed out"
        call = {"type": "function", "function": {"name": "search", "arguments": "{}"}}
        return whole({"content": None if number == 1 else "So it is.", "tool_calls": [call]})

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            assert (await ask_text(complete, TEXT_CALL)).answer.text == "So it is."
    assert len(endpoint.bodies) == 3


async def test_what_passes_said_with_status_400_is_transient() -> None:
    with Endpoint(lambda body, number: error(400, "CUDA out of memory")) as endpoint:
        async with connected(endpoint.url) as complete:
            with pytest.raises(Transient, match="CUDA out of memory"):
                await complete(TEXT_CALL)


async def test_words_of_a_wrong_key_after_good_answers_are_confirmed_before_all_ends() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        odd = number == 1 or revoked
        return error(400, "API key not valid. Pass a valid API key.") if odd else GOOD

    revoked = False
    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
            with pytest.raises(CallFailed):
                await complete(CALL)
            await complete(CALL)
            revoked = True
            with pytest.raises(ProviderStopped):
                await complete(CALL)


@pytest.mark.parametrize(("worst", "draws"), [(2, 1), (3, 2)])
async def test_a_generation_that_the_endpoint_threw_away_is_asked_for_again_as_it_was(
    worst: int, draws: int
) -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        detail = {"message": "Failed", "code": "json_validate_failed", "failed_generation": "{"}
        return web.json_response({"error": detail}, status=400) if number < worst else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await ask(complete, CALL, Generated)
    assert {mode_of(body) for body in endpoint.bodies} == {"json_schema"}
    assert len({body["seed"] for body in endpoint.bodies}) == draws


async def test_an_error_of_thoughts_that_took_the_room_is_met_with_more_room() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        message = "Could not finish the message because max_tokens was reached."
        return GOOD if body["max_tokens"] > 5000 else error(400, message)

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await ask(complete, CALL, Generated)
    assert [body["max_tokens"] for body in endpoint.bodies] == [3000, 6000]
    assert endpoint.bodies[0]["seed"] == endpoint.bodies[1]["seed"]


@pytest.mark.parametrize("first", [": OPENROUTER PROCESSING\n\n", "id: 1\n", ""])
async def test_an_event_stream_that_nobody_asked_for_is_read(first: str) -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        chunks = [{"content": '{"resp'}, {"content": 'onse": "so"}'}]
        lines = [f"data: {json.dumps({'choices': [{'index': 0, 'delta': c}]})}" for c in chunks]
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        stream = "\n\n".join([*lines, f"data: {json.dumps(end)}", "data: [DONE]", ""])
        return web.Response(text=first + stream, content_type="text/event-stream")

    assert (await answered(script)).text == '{"response": "so"}'


# Faults


STOPS = {
    "wrong key": (401, f"Incorrect API key provided: {KEY}", None, "OPENAI_API_KEY"),
    "forbidden": (403, f"{KEY} may not use this model", None, "OPENAI_API_KEY"),
    "no model": (404, "The model `writer` does not exist", "model_not_found", "--model"),
    "no address": (404, "Not Found", None, "--base-url"),
    "unknown model": (400, "unknown model writer", None, "--model"),
    "no quota": (429, f"You exceeded your quota, {KEY}", "insufficient_quota", "billing"),
    "billing": (429, "Your billing limit has been reached", None, "billing"),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
async def test_what_no_call_survives_says_what_to_do_and_tells_no_key(
    stop: tuple[int, str, str | None, str],
) -> None:
    status, message, code, advice = stop
    stopped = await failure(lambda body, n: error(status, message, code))
    assert isinstance(stopped, ProviderStopped)
    assert advice in str(stopped)
    assert "secret" not in f"{stopped}{stopped!r}"


async def test_the_judge_is_told_of_its_own_key() -> None:
    judging = make_call("critique", MESSAGES, Critiqued, CONTEXT, CallOrigin("a"))
    stopped = await failure(lambda body, n: error(401, "no"), judging)
    assert "JUDGE_API_KEY" in str(stopped)


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_a_key_that_the_endpoint_repeats_is_not_passed_on(status: int) -> None:
    failed = await failure(lambda body, n: error(status, f"{KEY} asked for something odd"))
    assert "secret" not in str(failed)


def test_a_key_does_not_show_in_an_address() -> None:
    assert "secret" not in repr(Address("http://there", KEY))


LOST = {
    "rate limit": (429, "slow down", None, "rate_limit"),
    "timeout": (408, "too slow", None, "timeout"),
    "conflict": (409, "busy", None, "server"),
    "server": (500, "oops", None, "server"),
    "overloaded": (529, "overloaded", None, "overloaded"),
    "bad request": (400, "messages: field required", None, "bad_request"),
    "odd status": (418, "teapot", None, "bad_request"),
    "filtered": (400, "no", "content_filter", "filtered"),
    "too long": (400, "no", "context_length_exceeded", "too_long"),
    "too long, in words": (400, "The prompt is too long: 9000 tokens", None, "too_long"),
}


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
async def test_a_lost_call_says_of_what_kind_its_fault_is(
    lost: tuple[int, str, str | None, str],
) -> None:
    status, message, code, kind = lost
    failed = await failure(lambda body, n: error(status, message, code))
    assert isinstance(failed, CallFailed)
    assert (failed.stage, failed.kind) == ("generate", kind)
    assert isinstance(failed, Transient) == (kind in TRANSIENT)


@pytest.mark.parametrize(
    ("header", "seconds"), [("3", 3.0), ("0.25", 0.25), ("-1", 0.0), ("soon", None), ("", None)]
)
async def test_the_endpoint_says_how_long_to_wait(header: str, seconds: float | None) -> None:
    failed = await failure(lambda body, n: error(429, "slow", **{"Retry-After": header}))
    assert isinstance(failed, Transient)
    assert failed.retry_after == seconds


async def test_a_connection_may_leave_retries_to_the_client() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        return error(503, "busy", **{"retry-after-ms": "1"}) if number == 0 else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url, max_retries=1) as complete:
            assert (await complete(CALL)).text == json.dumps(GOOD)
    assert len(endpoint.bodies) == 2


async def refused() -> Transient:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    async with connected(f"http://127.0.0.1:{port}/v1") as complete:
        with pytest.raises(Transient) as raised:
            await complete(CALL)
    return raised.value


async def test_a_refused_connection_is_a_transient_failure() -> None:
    assert (await refused()).kind in TRANSIENT


async def test_a_refused_connection_is_told_from_a_late_answer() -> None:
    failed = await refused()
    assert failed.kind == "connection"
    assert "127.0.0.1" in failed.message


async def test_a_broken_connection_is_a_transient_failure() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        half = web.Response(body=b'{"id": ', content_type="application/json")
        half.headers["Content-Length"] = "100000"
        half.force_close()
        return half

    failed = await failure(script)
    assert isinstance(failed, Transient)


async def test_a_body_that_is_no_json_is_a_transient_failure() -> None:
    failed = await failure(
        lambda body, n: web.Response(text="{oo", content_type="application/json")
    )
    assert isinstance(failed, Transient)
    assert failed.kind == "server"
    assert "{oo" in failed.message


# The reply


async def test_a_page_instead_of_a_completion_is_a_wrong_address() -> None:
    page = web.Response(text="<html><title>Welcome</title></html>", content_type="text/html")
    with pytest.raises(ProviderStopped, match=r"Welcome.*--base-url"):
        await answered(lambda body, n: page)


async def test_a_page_after_completions_is_a_passing_fault_of_the_server() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        page = "<html><title>Maintenance</title></html>"
        return web.Response(text=page, content_type="text/html") if number else GOOD

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
            with pytest.raises(Transient, match="Maintenance") as failed:
                await complete(CALL)
    assert failed.value.kind == "server"


@pytest.mark.parametrize(
    "raw",
    [None, "text", [1], {"error": {"message": "upstream"}}, {}, {"choices": None}, {"choices": []}],
)
def test_what_is_no_completion_is_not_read_as_one(raw: Any) -> None:
    with pytest.raises(ValueError, match="is not a chat completion"):
        parse_reply(raw)


@pytest.mark.parametrize(
    "raw",
    [
        {"choices": [{}]},
        {"choices": [{"message": None, "logprobs": None}], "usage": None},
        {"choices": [{"message": {"content": None, "tool_calls": None, "refusal": None}}]},
        {"choices": [{"message": {"content": [{"type": "text"}]}}]},
        {"choices": [{"message": {"tool_calls": [{"function": None}]}}]},
    ],
)
def test_whatever_is_missing_in_a_completion_reads_as_nothing_said(raw: Any) -> None:
    assert parse_reply(raw) == Reply(None, "stop", no_usage() | {"calls": 1})


async def test_null_content_is_no_text() -> None:
    reply = await answered(lambda body, n: completion(None, body))
    assert (reply.text, reply.finish, reply.refusal) == (None, "stop", None)


@pytest.mark.parametrize("finish", ["length", "content_filter", "stop"])
async def test_a_reply_says_why_it_ended(finish: str) -> None:
    reply = await answered(lambda body, n: completion('{"resp', body, finish))
    assert (reply.text, reply.finish) == ('{"resp', finish)


def whole(message: dict[str, Any], **more: Any) -> web.Response:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    base = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    logprobs = {"logprobs": more.pop("logprobs")} if "logprobs" in more else {}
    return web.json_response({**base, "choices": [{**choice, **logprobs}], **more})


async def test_a_refusal_is_kept() -> None:
    reply = await answered(lambda body, n: whole({"content": None, "refusal": "I will not."}))
    assert (reply.text, reply.refusal) == (None, "I will not.")


async def test_what_was_used_is_read_with_what_came_from_the_cache() -> None:
    usage = {
        "prompt_tokens": 120,
        "completion_tokens": 30,
        "total_tokens": 150,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    }
    reply = await answered(lambda body, n: whole({"content": "so"}, usage=usage))
    assert reply.usage == {
        "calls": 1,
        "prompt_tokens": 120,
        "cached_tokens": 64,
        "completion_tokens": 30,
        "reasoning_tokens": 0,
    }


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": None, "prompt_tokens_details": None}]
)
async def test_an_endpoint_that_counts_nothing_used_a_call(usage: Any) -> None:
    reply = await answered(lambda body, n: whole({"content": "so"}, usage=usage))
    assert reply.usage == no_usage() | {"calls": 1}


def token(said: str, logprob: float | None) -> dict[str, Any]:
    return {"token": said, "logprob": logprob, "bytes": None}


def one_token(*tops: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{**tops[0], "top_logprobs": list(tops)}], "refusal": None}


async def test_log_probabilities_are_asked_for_and_read_by_folded_token() -> None:
    odds = one_token(token("Yes", -0.5), token(" yes", -2.0), token("NO", -1.5), token("Well", -4))
    with Endpoint(lambda body, n: whole({"content": "Yes"}, logprobs=odds)) as endpoint:
        async with connected(endpoint.url) as complete:
            reply = await complete(QUESTION)
    (body,) = endpoint.bodies
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)
    assert "response_format" not in body
    assert reply.text == "Yes"
    assert reply.odds == pytest.approx({"yes": 0.7419, "no": 0.2231, "well": 0.0183}, abs=1e-4)


async def test_log_probabilities_without_others_hold_the_token_that_came() -> None:
    reply = await answered(
        lambda body, n: whole({"content": "No"}, logprobs={"content": [token("No", 0.0)]}), QUESTION
    )
    assert reply.odds == {"no": 1.0}


async def test_an_endpoint_that_gives_no_log_probabilities_cannot_judge_by_them() -> None:
    stopped = await failure(lambda body, n: whole({"content": "No"}), QUESTION)
    assert isinstance(stopped, ProviderStopped)
    assert "--judge-method verdict" in str(stopped)


async def test_an_endpoint_that_refuses_log_probabilities_cannot_judge_by_them() -> None:
    stopped = await failure(lambda body, n: error(400, "logprobs are not supported"), QUESTION)
    assert isinstance(stopped, ProviderStopped)
    assert "--judge-method verdict" in str(stopped)


def test_a_null_log_probability_is_no_probability() -> None:
    tops = one_token(token("Yes", -0.5), token("No", None))
    odds = parse_reply({"choices": [{"message": {"content": "Yes"}, "logprobs": tops}]}).odds
    assert odds is not None
    assert odds["yes"] == pytest.approx(0.6065, abs=1e-4)


# Loops and clients


def test_one_connection_serves_two_loops_one_after_the_other() -> None:
    async def there(model: str, judge: bool) -> Address:
        return Address(endpoint.url, KEY)

    async def twice() -> list[str | None]:
        try:
            return [(await client(CALL)).text, (await client(CALL)).text]
        finally:
            await client.aclose()

    client = EndpointClient(there, max_retries=0)
    with Endpoint(refusing("json_schema")) as endpoint:
        for _ in range(2):
            assert asyncio.run(twice()) == [json.dumps(GOOD)] * 2
    # What was found out in the first loop is known in the second.
    assert [mode_of(body) for body in endpoint.asked()] == ["json_schema", *["tools"] * 4]


def test_nothing_is_left_open_after_closing() -> None:
    async def use() -> None:
        async with connected(endpoint.url) as complete:
            await asyncio.gather(*(complete(CALL) for _ in range(3)))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Endpoint() as endpoint:
            asyncio.run(use())
        gc.collect()
    assert [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)] == []


async def test_a_connection_can_be_closed_twice_and_used_again() -> None:
    with Endpoint() as endpoint:
        async with connected(endpoint.url) as complete:
            await complete(CALL)
            await complete.aclose()
            await complete.aclose()
            await complete(CALL)
    assert len(endpoint.bodies) == 2


# Where calls go


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "JUDGE_BASE_URL", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


BASE, JUDGES = "http://writer/v1", "http://judge/v1"
PLACES = {
    "key only": ({"OPENAI_API_KEY": "w"}, (None, "w"), (None, "w")),
    "base URL without a key": ({"OPENAI_BASE_URL": BASE}, (BASE, ""), (BASE, "")),
    "both": (
        {"OPENAI_BASE_URL": BASE, "OPENAI_API_KEY": "w"},
        (BASE, "w"),
        (BASE, "w"),
    ),
    "judge's key": (
        {"OPENAI_BASE_URL": BASE, "OPENAI_API_KEY": "w", "JUDGE_API_KEY": "j"},
        (BASE, "w"),
        (BASE, "j"),
    ),
    "judge's own": (
        {"OPENAI_API_KEY": "w", "JUDGE_BASE_URL": JUDGES, "JUDGE_API_KEY": "j"},
        (None, "w"),
        (JUDGES, "j"),
    ),
}


@pytest.mark.parametrize(("named", "writer", "judge"), PLACES.values(), ids=PLACES)
async def test_the_environment_says_where_calls_go(
    named: dict[str, str],
    writer: tuple[str | None, str],
    judge: tuple[str | None, str],
    no_environment: pytest.MonkeyPatch,
) -> None:
    for name, value in named.items():
        no_environment.setenv(name, value)
    assert await resolve_from_environment("m", False) == Address(*writer)
    assert await resolve_from_environment("m", True) == Address(*judge)


async def test_without_an_endpoint_no_call_can_be_made(no_environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderStopped, match="OPENAI_BASE_URL"):
        await EndpointClient()(CALL)


async def test_a_connection_takes_the_environments_endpoint(
    no_environment: pytest.MonkeyPatch,
) -> None:
    with Endpoint(lambda body, n: GOOD) as endpoint:
        no_environment.setenv("OPENAI_BASE_URL", endpoint.url)
        client = EndpointClient(max_retries=0)
        assert (await client(CALL)).text == json.dumps(GOOD)
        no_environment.setenv("JUDGE_API_KEY", "j")
        await client(replace(CALL, judge=True))
        await client.aclose()
    assert endpoint.keys == ["Bearer none", "Bearer j"]


async def test_the_writers_key_is_not_sent_to_the_judges_address(
    no_environment: pytest.MonkeyPatch,
) -> None:
    no_environment.setenv("OPENAI_API_KEY", KEY)
    no_environment.setenv("JUDGE_BASE_URL", JUDGES)
    assert (await resolve_from_environment("m", True)).api_key != KEY


# Watched: the same calls as LangChain runs


class Watcher(BaseCallbackHandler):
    """Counts the chat model runs that begin and end."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended = 0

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.begun.append(messages[0][0].content)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ended += 1


async def watched(script: Script | None, call: Call = CALL) -> tuple[Reply, list[dict[str, Any]]]:
    """One call made inside a run with a callback; and the bodies that were sent."""
    watcher = Watcher()
    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            run: Callable[[Call], Awaitable[Reply]] = complete.__call__
            reply = await RunnableLambda(run).ainvoke(call, config={"callbacks": [watcher]})
    assert len(watcher.begun) == len(endpoint.bodies)
    return reply, endpoint.bodies


SEED = {
    "seed": {"instruction": "Why do tides come twice a day?"},
    "references": [
        {
            "instruction": "How does a sundial tell the hour?",
            "response": "A sundial turns the path of the Sun into an angle. Its rod throws a "
            "shadow that moves evenly, so marks at equal angles stand for equal hours.",
        }
    ],
}


async def test_with_a_callback_model_calls_show_as_chat_model_runs() -> None:
    watcher = Watcher()
    with Endpoint() as endpoint:
        async with connected(endpoint.url) as complete:
            out = await build_graph(complete=complete, embed=letters).ainvoke(
                SEED, context=Context(model="m"), config={"callbacks": [watcher]}
            )
    assert out["samples"][0]["status"] == "accepted"
    assert len(watcher.begun) == watcher.ended == len(endpoint.bodies) >= 4
    assert any("You judge one response" in said for said in watcher.begun)


async def test_without_a_callback_they_do_not() -> None:
    with Endpoint() as endpoint:
        async with connected(endpoint.url) as complete:
            graph = build_graph(complete=complete, embed=letters)
            # LangGraph hands on every message of a chat model run here.
            modes: Any = ["messages", "values"]
            stream = graph.astream(SEED, context=Context(model="m"), stream_mode=modes)
            parts = [part async for part in stream]
    assert {kind for kind, _ in parts} == {"values"}
    assert parts[-1][1]["samples"][0]["status"] == "accepted"
    assert len(endpoint.bodies) >= 4


async def test_a_watched_run_may_be_streamed_while_its_calls_are_not() -> None:
    with Endpoint() as endpoint:
        async with connected(endpoint.url) as complete:
            graph = build_graph(complete=complete, embed=letters)
            stream = graph.astream_events(SEED, context=Context(model="m"), version="v2")
            events = [event["event"] async for event in stream]
    assert "on_chat_model_end" in events
    assert not any(body.get("stream") for body in endpoint.bodies)


async def test_a_watched_run_makes_the_same_sample() -> None:
    made = []
    for callbacks in ([], [Watcher()]):
        with Endpoint() as endpoint:
            async with connected(endpoint.url) as complete:
                out = await build_graph(complete=complete, embed=letters).ainvoke(
                    SEED, context=Context(model="m"), config={"callbacks": callbacks}
                )
        sample = out["samples"][0]
        made.append(({**sample, "created": None}, endpoint.stages()))
    assert made[0] == made[1]


WATCHED = {
    "answer": (None, CALL),
    "refusal": (lambda body, n: whole({"content": None, "refusal": "No."}), CALL),
    "question": (
        lambda body, n: whole(
            {"content": "Yes"}, logprobs=one_token(token("Yes", -0.5), token("No", -1.0))
        ),
        QUESTION,
    ),
    "usage": (
        lambda body, n: whole(
            {"content": "{}"},
            usage={
                "prompt_tokens": 9,
                "completion_tokens": 3,
                "total_tokens": 12,
                "prompt_tokens_details": {"cached_tokens": 6},
            },
        ),
        CALL,
    ),
    "tools": (refusing("json_schema"), CALL),
    "text": (refusing("json_schema", "tools", "json_object"), CALL),
}


@pytest.mark.parametrize(("script", "call"), WATCHED.values(), ids=WATCHED)
async def test_a_watched_call_brings_the_same_reply(script: Script | None, call: Call) -> None:
    reply, _ = await watched(script, call)
    plain = await answered(script, call)
    assert replace(reply, text=reply.text or None) == plain


@pytest.mark.parametrize("status", [401, 404, 429, 500])
async def test_a_watched_call_fails_as_any_other_does(status: int) -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        return error(status, "no")

    plain = await failure(script)
    with pytest.raises(type(plain)) as raised:
        await watched(script)
    assert str(raised.value) == str(plain)


UNLIKE = {
    "cut": lambda body, n: completion('{"resp', body, "length"),
    "filtered": lambda body, n: completion('{"resp', body, "content_filter"),
    "latex in a tool call": lambda body, n: (
        error(400, REFUSALS["json_schema"])
        if mode_of(body) == "json_schema"
        else completion(r'{"response": "$\lim \sin x$"}', body)
    ),
}


@pytest.mark.parametrize("script", UNLIKE.values(), ids=UNLIKE)
async def test_a_watched_call_brings_the_same_odd_reply(script: Script) -> None:
    plain = await answered(script)
    reply, _ = await watched(script)
    assert replace(reply, text=reply.text or None) == plain


async def test_a_watched_call_sends_the_same_request() -> None:
    _, (body,) = await watched(None)
    assert body["max_tokens"] == CALL.max_tokens


async def test_verdicts_can_be_judged_at_an_endpoint_that_takes_text_only() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        mode = mode_of(body)
        if mode != "text":
            return error(400, REFUSALS[mode])
        prompt = "\n".join(m["content"] for m in body["messages"])
        return verdicts(prompt) if "named critique" in prompt else None

    with Endpoint(script) as endpoint:
        async with connected(endpoint.url) as complete:
            out = await build_graph(complete=complete, embed=letters).ainvoke(
                SEED, context=Context(model="m")
            )
    assert out["samples"][0]["status"] == "accepted"
    assert {"extract", "propose", "generate", "critique"} <= set(endpoint.stages())
