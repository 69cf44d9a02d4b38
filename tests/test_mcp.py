"""The synthesizer over MCP: what a client is answered, and what it may ask for."""

from __future__ import annotations

import asyncio
import json

import jsonschema
import pytest
from fakes import ScriptedModel, letters
from httpx import ASGITransport, AsyncClient, Response
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

from graph.builder import build_graph
from nodes.llm import ProviderStopped
from refloom.serve.api_keys import create_key
from refloom.serve.mcp import MAX_SAMPLES, McpEndpoint
from refloom.serve.request_limits import RequestLimits

REFERENCE = {
    "instruction": "Why are there two tides a day?",
    "response": "The Moon pulls on the near side most. The Earth is pulled from the far side.",
}
ARGUMENTS = {"seed": {"instruction": "How waves form at sea"}, "references": [REFERENCE]}
ALICE, ALICES = create_key("alice")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    monkeypatch.setenv("REFLOOM_MCP", "1")
    monkeypatch.setenv("REFLOOM_MODEL", "m")


async def send(body, method: str = "POST", complete=None, **headers: str) -> Response:
    graph = build_graph(complete=complete or ScriptedModel(), embed=letters)
    endpoint = McpEndpoint(graph)
    app = Starlette(
        routes=[Route("/mcp", endpoint.respond, methods=["GET", "POST", "DELETE"])],
        middleware=[Middleware(RequestLimits)],
    )
    async with AsyncClient(
        transport=ASGITransport(app, client=("127.0.0.1", 1)), base_url="http://127.0.0.1"
    ) as client:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await client.request(method, "/mcp", content=content, headers=headers)


async def ask(method: str, params=None, **more):
    body = {"jsonrpc": "2.0", "id": 0, "method": method, "params": params or {}}
    answer = (await send(body, **more)).json()
    assert answer["id"] == 0
    return answer


async def call(arguments, **more):
    params = {"name": "synthesizer", "arguments": arguments}
    return (await ask("tools/call", params, **more))["result"]


async def listed() -> dict:
    (tool,) = (await ask("tools/list"))["result"]["tools"]
    return tool


async def test_it_greets_in_the_clients_protocol_or_its_own():
    for wanted, given in (("2025-06-18", "2025-06-18"), ("1999-01-01", "2025-11-25")):
        result = (await ask("initialize", {"protocolVersion": wanted}))["result"]
        assert result["protocolVersion"] == given
        assert result["serverInfo"]["name"] == "refloom"
    assert (await ask("ping"))["result"] == {}
    note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert (await send(note)).status_code == 202


async def test_the_tool_is_described_for_an_agent():
    tool = await listed()
    assert "accepted" in tool["description"]
    for part in ("inputSchema", "outputSchema"):
        jsonschema.Draft202012Validator.check_schema(tool[part])
        assert tool[part]["type"] == "object"
    assert tool["inputSchema"]["required"] == ["seed"]


async def test_a_call_brings_typed_samples():
    result = await call(ARGUMENTS)
    assert "isError" not in result
    jsonschema.validate(result["structuredContent"], (await listed())["outputSchema"])
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
    (sample,) = result["structuredContent"]["samples"]
    assert sample["status"] == "accepted"
    assert sample["response"]
    assert {"criterion", "must", "verdict", "reason"} == set(sample["verdicts"][0])
    assert result["structuredContent"]["usage"]["calls"] > 0


async def test_an_agents_own_criteria_are_judged_and_named():
    criteria = [
        {"text": "names a lake", "must": True},
        {"text": "is short", "must": False, "check": "max_words:1"},
    ]
    result = await call(ARGUMENTS | {"criteria": criteria})
    (sample,) = result["structuredContent"]["samples"]
    verdicts = {one["criterion"]: (one["must"], one["verdict"]) for one in sample["verdicts"]}
    assert verdicts["names a lake"] == (True, "pass")
    assert verdicts["is short"] == (False, "fail")


async def hang_up(endpoint: McpEndpoint, gone: asyncio.Event) -> list[dict]:
    """Call the tool as a client that is `gone` in the midst of it; what it is sent."""
    params = {"name": "synthesizer", "arguments": ARGUMENTS}
    body = {"jsonrpc": "2.0", "id": 0, "method": "tools/call", "params": params}
    waiting = [{"type": "http.request", "body": json.dumps(body).encode()}]
    sent = []

    async def receive():
        if waiting:
            return waiting.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": [], "query_string": b""}
    response = await endpoint.respond(Request(scope, receive))
    await response(scope, receive, send)
    return sent


@pytest.mark.parametrize("stage", ["extract", "generate"])
async def test_a_client_that_hangs_up_ends_its_call_but_not_what_others_learn(stage):
    model, gone, go_on = ScriptedModel(), asyncio.Event(), asyncio.Event()

    async def complete(call):
        if call.stage == stage and not go_on.is_set():
            gone.set()
            await go_on.wait()
        return await model(call)

    endpoint = McpEndpoint(build_graph(complete=complete, embed=letters))
    async with asyncio.timeout(20):
        sent = await hang_up(endpoint, gone)
    assert sent[0]["status"] == 499
    paid = [call.stage for call in model.calls]
    assert stage not in paid
    go_on.set()
    # What was being learned of the reference is learned to its end, once.
    async with asyncio.timeout(20):
        await hang_up(endpoint, asyncio.Event())
    stages = [call.stage for call in model.calls]
    assert stages.count("extract") == 1 and stages.count("generate") == 1
    assert stages[: len(paid)] == paid


async def test_who_hung_up_while_waiting_for_a_place_costs_nothing():
    model, gone = ScriptedModel(), asyncio.Event()
    endpoint = McpEndpoint(build_graph(complete=model, embed=letters))
    endpoint._calls = asyncio.Semaphore(0)
    gone.set()
    async with asyncio.timeout(20):
        await hang_up(endpoint, gone)
    assert model.calls == []


async def test_nobody_is_asked_about_a_sample(monkeypatch):
    monkeypatch.setenv("REFLOOM_REVIEW", "all")
    (sample,) = (await call(ARGUMENTS))["structuredContent"]["samples"]
    assert sample["status"] == "accepted"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({}, "seed"),
        ({"seed": {"instruction": " "}}, "seed.instruction"),
        (ARGUMENTS | {"samples": MAX_SAMPLES + 1}, "samples"),
        (ARGUMENTS | {"references": [REFERENCE] * 21}, "references"),
        (ARGUMENTS | {"criteria": [{"text": "is fine", "check": "os:system"}]}, "criteria"),
    ],
)
async def test_bad_arguments_are_told_to_the_agent(arguments, wrong):
    result = await call(arguments)
    assert result["isError"] is True
    assert wrong in result["content"][0]["text"]


async def test_an_endpoint_that_answers_nobody_is_told_to_the_agent():
    async def stopped(call):
        raise ProviderStopped("the endpoint refused the key: check OPENAI_API_KEY")

    result = await call(ARGUMENTS, complete=stopped)
    assert result["isError"] is True
    assert "refused the key" in result["content"][0]["text"]


async def test_a_failed_sample_says_why():
    model = ScriptedModel(generate=lambda call: "")
    (sample,) = (await call(ARGUMENTS, complete=model))["structuredContent"]["samples"]
    assert sample["status"] == "failed"
    assert sample["error"].startswith("generate: ")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        ([], 400),
        ({"id": 1, "method": "ping"}, 400),
        ([{"jsonrpc": "2.0", "id": 1, "method": "ping"}] * 101, 422),
        (b"[" * 100 + b"]" * 100, 422),
        (b"x" * (9 << 20), 413),
    ],
    ids=["no JSON", "a batch", "no JSON-RPC", "many", "deep", "large"],
)
async def test_what_is_no_request_is_refused(body, status):
    assert (await send(body)).status_code == status


async def test_unknown_methods_and_tools_are_errors():
    assert (await ask("resources/list"))["error"]["code"] == -32601
    assert (await ask("tools/call", {"name": "indexer"}))["error"]["code"] == -32602


async def test_only_posts_are_answered():
    assert (await send(b"", "GET")).status_code == 405
    assert (await send(b"", "DELETE")).status_code == 405


async def test_off_it_says_how_to_switch_it_on(monkeypatch):
    monkeypatch.delenv("REFLOOM_MCP")
    got = await send({"jsonrpc": "2.0", "id": 1, "method": "ping"})
    assert got.status_code == 404
    assert "REFLOOM_MCP=1" in got.json()["detail"]


async def test_it_needs_a_key_where_others_do(monkeypatch):
    monkeypatch.setenv("REFLOOM_API_KEYS", ALICES)
    body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert (await send(body)).status_code == 401
    bearer = {"Authorization": f"Bearer {ALICE}"}
    assert (await send(body, **bearer)).json()["result"] == {}


@pytest.mark.parametrize(
    "id_", [b'"\\ud800"', b"NaN", b"Infinity", b"{}", b"[1]", b"true", b"null"]
)
async def test_an_id_that_is_no_text_or_number_gets_a_reason(id_):
    response = await send(b'{"jsonrpc": "2.0", "method": "ping", "id": ' + id_ + b"}")
    if id_ == b'"\\ud800"':
        assert response.status_code == 200
        assert response.json() == {"jsonrpc": "2.0", "id": "\ud800", "result": {}}
    else:
        assert response.status_code == 400
        assert "id" in response.json()["detail"]


async def test_lone_surrogates_in_a_seed_or_a_method_are_answered():
    answer = await send(b'{"jsonrpc": "2.0", "method": "\\ud800", "id": 1}')
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == -32601
    result = await call({"seed": {"instruction": "waves \ud800 at sea"}, "references": [REFERENCE]})
    assert "content" in result
