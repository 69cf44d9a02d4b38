"""The graphs called by plain code: in a script, in a notebook's running loop, in threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import Endpoint, ScriptedModel, letters
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from graph.builder import build_graph, build_indexer, build_sample
from memory.index import AddResult
from nodes.context import Context
from nodes.inputs import BadInput

REFERENCE = {
    "instruction": "Why are there two tides a day?",
    "response": "The Moon pulls on the near side most. The Earth is pulled from the far side.",
}
GIVEN = {"seed": {"instruction": "How waves form at sea"}, "references": [REFERENCE]}


def built(**more):
    return build_graph(complete=ScriptedModel(), embed=letters, **more)


def test_a_script_calls_it_without_a_loop():
    out = built().invoke(GIVEN, context=Context(model="m"))
    assert out["samples"][0]["status"] == "accepted"


async def test_a_notebook_calls_it_inside_its_running_loop():
    out = built().invoke(GIVEN, context=Context(model="m"))
    assert out["samples"][0]["status"] == "accepted"


def test_connections_to_an_endpoint_serve_one_call_after_another(monkeypatch):
    with Endpoint() as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        graph = build_graph(embed=letters)
        for _ in range(2):
            out = graph.invoke(GIVEN, context=Context(model="m"))
            assert out["samples"][0]["status"] == "accepted"


def test_several_threads_call_it_at_once():
    graph = built()
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda _: graph.invoke(GIVEN, context=Context(model="m")), range(4)))
    assert [out["samples"][0]["status"] for out in outs] == ["accepted"] * 4


def test_it_streams_and_ends_when_nobody_listens():
    graph = built()
    stream = graph.stream(GIVEN, context=Context(model="m"), stream_mode=["custom", "values"])
    parts = list(stream)
    assert any(mode == "custom" for mode, _ in parts)
    assert parts[-1][1]["samples"][0]["status"] == "accepted"
    early = graph.stream(GIVEN, context=Context(model="m"), stream_mode="updates")
    next(iter(early))
    early.close()


def test_it_asks_a_person_and_goes_on():
    graph = built(checkpointer=InMemorySaver())
    at, context = {"configurable": {"thread_id": "one"}}, Context(model="m", review="all")
    out = graph.invoke(GIVEN, at, context=context)
    assert out["__interrupt__"]
    out = graph.invoke(Command(resume={"decision": "accept"}), at, context=context)
    assert out["samples"][0]["status"] == "accepted"
    assert graph.get_state(at).next == ()


def test_errors_come_through():
    with pytest.raises(BadInput, match="seed"):
        built().invoke({"seed": {"instruction": " "}})
    with pytest.raises(BadInput, match="the input has none"):
        list(built().stream({"references": [REFERENCE]}))


def test_the_other_graphs_are_called_so_too():
    sample = build_sample(complete=ScriptedModel(), embed=letters)
    out = sample.invoke({"instruction": "Say why bread rises."}, context=Context(model="m"))
    assert out["status"] == "accepted"

    async def add(references):
        return AddResult(len(references), 0, len(references))

    indexer = build_indexer(add_to_index=add)
    assert indexer.invoke({"references": [REFERENCE]})["added"] == 1


async def test_a_fastapi_handler():
    app, graph = FastAPI(), built()

    @app.post("/samples")
    async def make(seed: str):
        out = await graph.ainvoke(
            GIVEN | {"seed": {"instruction": seed}}, context=Context(model="m")
        )
        return out["samples"]

    @app.post("/samples-in-a-thread")
    def make_in_a_thread(seed: str):
        return graph.invoke(GIVEN | {"seed": {"instruction": seed}}, context=Context(model="m"))[
            "samples"
        ]

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        for path in ("/samples", "/samples-in-a-thread"):
            answer = await client.post(path, params={"seed": "Why bread rises"})
            assert answer.json()[0]["status"] == "accepted"
