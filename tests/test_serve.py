"""The server: `langgraph dev` started for real as `make dev` does, asked through its SDK."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Endpoint, stage_of, verdicts
from langgraph_sdk import get_sync_client
from processes import refloom
from served import ROOT, Server, serving

REFERENCE = {
    "instruction": "Why are there two tides a day?",
    "response": "The Moon pulls on the near side most, so there are two bulges. The Earth turns "
    "through both of them in a day.",
}
INPUT = {"seed": {"instruction": "How waves form at sea"}, "references": [REFERENCE]}
BETTER = "Wind pushes on the water, and gravity pulls it back."
# Writes down whatever this process and its children look up, connect to or start.
WATCH = """
import os, sys

LOCAL = ("127.", "localhost", "::1", "0.0.0.0")

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event == "socket.connect":
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and not host.startswith(LOCAL):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{event} {host}\\n")

if "WATCHED" in os.environ:
    sys.addaudithook(watch)
"""


def poor(body, number):
    """A judge that fails the first draft of an instruction that asks for it."""
    prompt = body["messages"][-1]["content"]
    if stage_of(body) == "critique" and "FAIL" in prompt:
        return verdicts(prompt, lambda id_: "fail")
    return None


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(poor) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """An index of the demo's references, as `make dev` makes one."""
    folder = tmp_path_factory.mktemp("index")
    references = ROOT / "refloom" / "resources" / "demo" / "references.jsonl"
    assert refloom("index", "build", references, "--out", folder, cwd=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def server(endpoint, index, tmp_path_factory) -> Iterator[Server]:
    """A server as `make dev` starts it, from whose environment a LangSmith key is kept."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "sitecustomize.py").write_text(WATCH)
    with pytest.MonkeyPatch.context() as patch:
        # Set before what `make dev` sets, which has to win.
        patch.setenv("LANGSMITH_API_KEY", "lsv2_pt_not_for_this_server")
        with serving(
            folder,
            OPENAI_BASE_URL=endpoint.url,
            OPENAI_API_KEY="k",
            REFLOOM_INDEX=str(index),
            PYTHONPATH=str(folder),
            WATCHED=str(folder / "watched"),
        ) as server:
            yield server


@pytest.fixture(scope="module")
def client(server):
    client = get_sync_client(url=server.url)
    yield client
    client.http.client.close()


def get(server: Server, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def of(client, graph: str) -> str:
    return client.assistants.search(graph_id=graph)[0]["assistant_id"]


# --- what Studio reads ---------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["synthesizer", "sample", "indexer"])
def test_each_graph_is_served_with_a_description(client, graph):
    (found,) = client.assistants.search(graph_id=graph)
    assert found["description"].startswith("Give it ")


def test_the_input_of_each_graph_is_a_described_form(client):
    seed = client.assistants.get_schemas(of(client, "synthesizer"))["input_schema"]
    assert seed["required"] == ["seed"]
    given = seed["$defs"]["SeedInput"]
    assert given["required"] == ["instruction"]
    assert given["properties"]["instruction"]["title"] == "Seed"
    sample = client.assistants.get_schemas(of(client, "sample"))["input_schema"]
    assert sample["required"] == ["instruction"]
    indexer = client.assistants.get_schemas(of(client, "indexer"))["input_schema"]
    assert indexer["properties"]["references"]["maxItems"] == 1000
    for schema in (seed, sample, indexer):
        for name, one in schema["properties"].items():
            assert one.get("title") or "$ref" in one, name
            assert one["description"].endswith("."), name


def test_what_comes_back_is_described_too(client):
    schemas = client.assistants.get_schemas(of(client, "synthesizer"))
    out = schemas["output_schema"]["properties"]
    assert set(out) == {"samples", "references", "criteria"}
    assert all(one["description"] for one in out.values())


def test_every_setting_has_a_title_a_range_and_the_nodes_it_belongs_to(client):
    schemas = client.assistants.get_schemas(of(client, "synthesizer"))
    settings = schemas["context_schema"]["properties"]
    assert {"model", "judge_method", "references_per_seed", "feedback", "review"} <= set(settings)
    assert not {"base_url", "api_key", "memory"} & set(settings)
    nodes = {"retrieve", "extract", "propose", "screen"}
    nodes |= {"sample", "generate", "critique", "refine", "answer"}
    for name, setting in settings.items():
        assert setting["title"], name
        assert setting["description"], name
        assert set(setting["langgraph_nodes"]) <= nodes | {"review"}, name
        bounds = json.dumps(setting)
        ranged = any(w in bounds for w in ("maximum", "exclusiveMax", "enum", "maxLength"))
        assert ranged or setting.get("type") == "boolean", name


def test_prompts_are_settings_that_studio_opens_an_editor_for(client):
    schemas = client.assistants.get_schemas(of(client, "synthesizer"))
    settings = schemas["context_schema"]["properties"]
    prompts = {n for n, s in settings.items() if s.get("langgraph_type") == "prompt"}
    assert prompts == {
        *(f"{n}_prompt" for n in ("extract", "propose", "screen", "screen_question")),
        *(f"{n}_prompt" for n in ("generate", "critique", "question", "refine")),
    }
    assert "{{ fence(" in settings["generate_prompt"]["default"]


def test_the_drawing_shows_the_loop_and_says_what_nodes_do(client):
    drawn = client.assistants.get_graph(of(client, "synthesizer"), xray=True)
    names = {node["id"]: node for node in drawn["nodes"]}
    in_sample = {"sample:critique", "sample:refine", "sample:answer"}
    assert {"retrieve", "extract", "propose", "screen", "review", *in_sample} <= set(names)
    assert names["retrieve"]["metadata"]["description"].startswith("Retrieve the references")
    # Nothing is drawn to lead from every node to every other.
    assert len(drawn["edges"]) == 16, drawn["edges"]


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_is_streamed_step_by_step_in_words_a_person_can_follow(client):
    parts = list(
        client.runs.stream(
            None,
            of(client, "synthesizer"),
            input=INPUT,
            context={"model": "m"},
            stream_mode=["updates", "custom"],
            stream_subgraphs=True,
        )
    )
    steps = [n for p in parts if p.event.startswith("updates") for n in p.data]
    ahead = ["retrieve", "extract", "propose", "screen"]
    assert steps == [*ahead, "generate", "critique", "sample"]
    told = [p.data for p in parts if p.event.startswith("custom")]
    seen = list(dict.fromkeys(one["event"] for one in told))
    assert seen == [
        *("references", "criteria", "screen", "instructions"),
        *("candidate", "verdict", "decision", "sample"),
    ]
    assert "given with the seed" in told[0]["message"]


def test_a_seed_alone_is_enough_and_its_references_come_from_the_index(client):
    out = client.runs.wait(
        None,
        of(client, "synthesizer"),
        input={"seed": {"instruction": "How do tides work?"}},
        context={"model": "m", "try_criteria": False},
    )
    assert len(out["references"]) == 3
    assert "vector" not in json.dumps(out)
    assert [s["status"] for s in out["samples"]] == ["accepted"]


def test_a_run_brings_samples_and_what_was_learned_is_kept_by_the_server(client, endpoint):
    context = {"model": "m", "random_seed": 3}
    graph = of(client, "synthesizer")
    client.runs.wait(None, graph, input=INPUT, context=context)
    before = len(endpoint.bodies)
    out = client.runs.wait(None, graph, input=INPUT, context={**context, "random_seed": 4})
    assert [s["status"] for s in out["samples"]] == ["accepted"]
    assert endpoint.stages()[before:] == ["propose", "screen", "generate", "critique"]


@pytest.mark.parametrize(
    ("graph", "given", "said"),
    [
        ("synthesizer", {"seed": {}}, "input.seed.instruction"),
        ("synthesizer", {"seed": {"instruction": " "}}, "input.seed.instruction"),
        ("sample", {"instruction": 7}, "input.instruction"),
        ("indexer", {"references": []}, "input.references"),
    ],
)
def test_input_that_is_none_is_refused_with_the_field_named(client, server, graph, given, said):
    body = json.dumps({"assistant_id": graph, "input": given}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/runs/wait", body, headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    with refused.value as answer:
        assert answer.code == 422
        assert said in json.loads(answer.read())["detail"]


def test_input_that_gets_past_the_door_is_refused_by_the_first_node(client):
    out = client.runs.wait(None, of(client, "sample"), input={}, raise_error=False)
    assert "instruction: Field required" in str(out["__error__"])


# --- a person in the loop ------------------------------------------------------------------------


def test_a_run_stops_to_ask_and_goes_on_with_the_answer(client):
    graph, context = of(client, "synthesizer"), {"model": "m", "review": "all"}
    thread = client.threads.create()["thread_id"]
    out = client.runs.wait(thread, graph, input=INPUT, context=context)
    (asked,) = out["__interrupt__"]
    assert set(asked["value"]) == {"question", "sample", "references"}
    found = client.threads.search(status="interrupted", limit=100)
    assert thread in [t["thread_id"] for t in found]
    answer = {asked["id"]: {"decision": "edit", "response": BETTER}}
    done = client.runs.wait(thread, graph, command={"resume": answer}, context=context)
    (sample,) = done["samples"]
    assert (sample["status"], sample["response"]) == ("accepted", BETTER)
    assert sample["review"]["by"] == "local"


def test_many_questions_are_answered_each_by_itself(client):
    graph = of(client, "synthesizer")
    context = {"model": "m", "review": "all", "per_seed": 3, "random_seed": 8}
    thread = client.threads.create()["thread_id"]
    client.runs.wait(thread, graph, input=INPUT, context=context)
    for decision in ("reject", "accept", "reject"):
        state = client.threads.get_state(thread)
        asked = [i for task in state["tasks"] for i in task["interrupts"]]
        answer = {asked[-1]["id"]: {"decision": decision}}
        client.runs.wait(thread, graph, command={"resume": answer}, context=context)
    samples = client.threads.get_state(thread)["values"]["samples"]
    assert [s["status"] for s in samples] == ["rejected", "accepted", "rejected"]


def test_one_goes_back_to_before_the_critique_edits_the_candidate_and_goes_on(client, endpoint):
    graph, context = of(client, "sample"), {"model": "m", "random_seed": 5}
    thread = client.threads.create()["thread_id"]
    given = {"instruction": "Explain how waves form.", "references": [REFERENCE]}
    out = client.runs.wait(thread, graph, input=given, context=context)
    assert out["response"] != BETTER
    history = client.threads.get_history(thread)
    (before,) = [s for s in history if s["next"] == ["critique"]]
    fork = client.threads.update_state(
        thread, {"candidate": BETTER}, checkpoint=before["checkpoint"]
    )
    paid = len(endpoint.bodies)
    done = client.runs.wait(
        thread, graph, input=None, checkpoint=fork["checkpoint"], context=context
    )
    assert (done["status"], done["response"]) == ("accepted", BETTER)
    assert endpoint.stages()[paid:] == ["critique"]


# --- the index -----------------------------------------------------------------------------------


def test_the_indexer_adds_references_that_the_next_run_finds(client):
    new = {
        "instruction": "How does a heat pump move heat against its will?",
        "response": "It lets a fluid boil in the cold and condense in the warm.",
        "id": "heat-pump",
    }
    graph = of(client, "indexer")
    out = client.runs.wait(None, graph, input={"references": [new]})
    assert (out["added"], out["known"]) == (1, 0)
    assert client.runs.wait(None, graph, input={"references": [new]})["known"] == 1
    found = client.runs.wait(
        None,
        of(client, "synthesizer"),
        input={"seed": {"instruction": "How does a heat pump work?"}},
        context={"model": "m", "try_criteria": False, "references_per_seed": 1},
    )
    assert [r["id"] for r in found["references"]] == ["heat-pump"]


def test_the_server_says_when_index_and_model_are_loaded(server):
    for _ in range(300):
        status, said = get(server, "/readyz")
        if status == 200:
            break
        assert status == 503
        assert json.loads(said)["why"]
        time.sleep(0.2)
    assert json.loads(said)["ready"] is True
    assert json.loads(said)["references"] >= 24


# --- the page, the client, and silence -----------------------------------------------------------


def test_the_review_page_is_there_and_lets_no_foreign_code_in(server):
    with urllib.request.urlopen(f"{server.url}/review", timeout=10) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert b"refloom" in answer.read()
    assert get(server, "/review/..%2f..%2fpyproject.toml")[0] == 404
    assert get(server, "/review/%2e%2e/graphs.py")[0] in (403, 404)


def test_the_example_client_collects_samples_and_asks_for_none_twice(server, endpoint, tmp_path):
    (tmp_path / "seeds.txt").write_text("How rivers bend\nWhy bread rises\nFAIL this one\n")
    flags = ["--url", server.url, "--review", "rejected"]
    flags += ["--context", '{"model": "m", "try_criteria": false, "max_attempts": 1}']
    command = [sys.executable, str(ROOT / "examples" / "client.py"), "seeds.txt", "out.jsonl"]
    done = subprocess.run(
        [*command, *flags], cwd=tmp_path, capture_output=True, text=True, input="r dull\n" * 3
    )
    assert done.returncode == 0, done.stderr
    samples = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(samples) == 3
    assert "references: " in done.stderr
    paid = len(endpoint.bodies)
    again = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(endpoint.bodies) == paid
    assert (tmp_path / "out.jsonl").read_text().count("\n") == 3


def test_nothing_blocks_the_loop_and_nothing_is_looked_up_or_sent_out(server):
    """Runs last, over what all tests before it did."""
    log = server.log.read_text()
    assert "BlockingError" not in log
    assert "lsv2_pt" not in log
    watched = server.log.parent / "watched"
    assert not watched.exists(), watched.read_text()
