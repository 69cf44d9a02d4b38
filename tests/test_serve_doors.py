"""Whoever has no business with the server is told so, by a real one with two users."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from fakes import Endpoint
from httpx import HTTPStatusError
from langgraph_sdk import get_sync_client
from served import Server, serving

from refloom.serve.api_keys import create_key

ALICE, ALICES = create_key("alice")
BOB, BOBS = create_key("bob")
STRANGER, _ = create_key("stranger")
GIVEN = {
    "seed": {"instruction": "How waves form at sea"},
    "references": [{"instruction": "Why tides?", "response": "The Moon pulls."}],
}
CONTEXT = {"model": "m", "try_criteria": False, "review": "all"}
ANYONE = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with (
        Endpoint() as endpoint,
        serving(
            tmp_path_factory.mktemp("doors"),
            OPENAI_BASE_URL=endpoint.url,
            OPENAI_API_KEY="k",
            REFLOOM_API_KEYS=f"{ALICES},{BOBS}",
        ) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def alice(server):
    client = get_sync_client(url=server.url, api_key=ALICE)
    yield client
    client.http.client.close()


@pytest.fixture(scope="module")
def bob(server):
    client = get_sync_client(url=server.url, api_key=BOB)
    yield client
    client.http.client.close()


@pytest.fixture(scope="module")
def asked(alice) -> dict:
    """A thread of Alice's that waits for an answer."""
    thread = alice.threads.create()["thread_id"]
    out = alice.runs.wait(thread, "synthesizer", input=GIVEN, context=CONTEXT)
    run = alice.runs.list(thread)[0]["run_id"]
    return {"thread": thread, "run": run, "interrupt": out["__interrupt__"][0]["id"]}


def ask(server: Server, path: str, said=None, method=None, **headers) -> tuple[int, str]:
    """One request as it stands: its status and what was said."""
    body = said if isinstance(said, bytes) or said is None else json.dumps(said).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(server.url + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def own(key: str = ALICE) -> dict[str, str]:
    return {"X-Api-Key": key}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/threads/search", {}),
        ("/runs/wait", own(STRANGER)),
        ("/review/shown", own("")),
        ("/runs/batch", {"Authorization": f"Basic {ALICE}"}),
        ("/assistants/search", {"X-Auth-Scheme": "langsmith"}),
    ],
    ids=["none", "a stranger's", "empty", "another scheme", "Studio's own scheme"],
)
def test_without_a_known_key_nothing_is_answered(server, path, headers):
    status, said = ask(server, path, {}, **headers)
    assert status == 401
    assert "key" in json.loads(said)["detail"]


@pytest.mark.parametrize("path", ["/ok", "/readyz", "/review", "/review/main.js", "/info"])
def test_whether_it_is_well_and_the_empty_page_are_for_everybody(server, path):
    assert ask(server, path)[0] in (200, 503)


def test_both_ways_to_show_a_key_do(server):
    assert ask(server, "/threads/search", {}, **own())[0] == 200
    bearer = {"Authorization": f"Bearer {BOB}"}
    assert ask(server, "/threads/search", {}, **bearer)[0] == 200


def test_the_graphs_own_assistants_are_everybodys_to_read_and_nobodys_to_change(alice, bob):
    for client in (alice, bob):
        found = client.assistants.search()
        assert {a["graph_id"] for a in found} == {"synthesizer", "sample", "indexer"}
        with pytest.raises(HTTPStatusError) as refused:
            client.assistants.update(found[0]["assistant_id"], metadata={"mine": 1})
        assert refused.value.response.status_code in (403, 404)


def test_an_assistant_is_its_makers_even_if_it_claims_to_be_everybodys(alice, bob):
    made = alice.assistants.create(
        "sample", context={"max_attempts": 2}, metadata={"created_by": "system", "owner": "bob"}
    )
    id_ = made["assistant_id"]
    assert id_ in [a["assistant_id"] for a in alice.assistants.search(limit=100)]
    assert id_ not in [a["assistant_id"] for a in bob.assistants.search(limit=100)]
    for attempt in (
        lambda: bob.assistants.get(id_),
        lambda: bob.assistants.get_schemas(id_),
        lambda: bob.assistants.update(id_, context={"max_attempts": 9}),
        lambda: bob.runs.wait(None, id_, input={"instruction": "Say."}, context={"model": "m"}),
        lambda: bob.assistants.delete(id_),
    ):
        with pytest.raises(HTTPStatusError) as refused:
            attempt()
        assert refused.value.response.status_code in (403, 404)


def test_a_thread_is_its_makers_alone(alice, bob, asked):
    thread, run = asked["thread"], asked["run"]
    assert bob.threads.search(limit=100) == []
    resume = {"resume": {asked["interrupt"]: {"decision": "accept"}}}
    for attempt in (
        lambda: bob.threads.get(thread),
        lambda: bob.threads.get_state(thread),
        lambda: bob.threads.get_history(thread),
        lambda: bob.threads.update(thread, metadata={"owner": "bob"}),
        lambda: bob.threads.update_state(thread, {"samples": []}),
        lambda: bob.threads.copy(thread),
        lambda: bob.runs.list(thread),
        lambda: bob.runs.get(thread, run),
        lambda: bob.runs.join(thread, run),
        lambda: bob.runs.cancel(thread, run),
        lambda: bob.runs.wait(thread, "synthesizer", command=resume, context=CONTEXT),
        lambda: list(bob.runs.stream(thread, "synthesizer", input=GIVEN, context=CONTEXT)),
        lambda: bob.threads.create(thread_id=thread, if_exists="do_nothing"),
        lambda: bob.threads.delete(thread),
    ):
        with pytest.raises(HTTPStatusError) as refused:
            attempt()
        assert refused.value.response.status_code in (403, 404, 409)
    assert alice.threads.get(thread)["status"] == "interrupted"


def test_who_answered_is_written_down(alice, asked):
    resume = {"resume": {asked["interrupt"]: {"decision": "accept"}}}
    out = alice.runs.wait(asked["thread"], "synthesizer", command=resume, context=CONTEXT)
    assert out["samples"][0]["review"]["by"] == "alice"


def test_an_owner_cannot_be_given_away(alice, bob):
    thread = alice.threads.create(metadata={"owner": "bob"})["thread_id"]
    alice.threads.update(thread, metadata={"owner": "bob"})
    assert bob.threads.search(limit=100) == []
    assert alice.threads.get(thread)["metadata"]["owner"] == "alice"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/store/items/search", {"namespace_prefix": []}),
        ("/store/namespaces", {}),
        ("/runs/crons/search", {}),
        ("/runs/crons", {"assistant_id": "sample", "schedule": "* * * * *", "input": {}}),
    ],
)
def test_store_and_crons_are_nobodys(server, path, said):
    assert ask(server, path, said, **own())[0] in (403, 404, 422)


BREAKS = "{% block system %}{% endblock %}{% block user %}{{ fence('i', instruction) }}"
REACHES = "{% block system %}{{ instruction.__class__.__mro__ }}{% endblock %}" + BREAKS[35:]


@pytest.mark.parametrize(
    ("path", "said", "why"),
    [
        ("/runs/wait", {"context": {"max_attempts": -1}}, "context.max_attempts"),
        ("/runs/stream", {"context": {"memory": "/etc"}}, "context.memory"),
        ("/runs", {"context": {"generate_prompt": BREAKS}}, "context.generate_prompt"),
        ("/runs/wait", {"context": {"generate_prompt": REACHES}}, "context.generate_prompt"),
        ("/threads/{}/runs/wait", {"config": {"recursion_limit": 10**7}}, "recursion_limit"),
        ("/runs/wait", {"webhook": "http://127.0.0.1:1/steal"}, "webhook"),
        ("/runs/stream", {"input": {"seeds": ["a seed"] * 10_000}}, "input.seeds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nobody_may_ask_for_is_refused_with_the_field_named(server, path, said, why):
    body = {"assistant_id": "synthesizer", "input": GIVEN} | said
    status, answer = ask(server, path.format(ANYONE), body, **own())
    assert status == 422
    assert why in json.loads(answer)["detail"]


def test_ten_thousand_seeds_at_once_are_too_many(server):
    body = [{"assistant_id": "synthesizer", "input": {"seed": {"instruction": "x"}}}] * 10_000
    status, said = ask(server, "/runs/batch", body, **own())
    assert status == 422
    assert "at most 100" in said


def test_fifty_megabytes_are_too_many(server):
    try:
        status, said = ask(server, "/runs/wait", b"x" * (50 << 20), **own())
    except urllib.error.URLError:
        # Refused before all of it was sent.
        status, said = 413, "over 8 MB"
    assert status == 413
    assert "over 8 MB" in said


@pytest.mark.parametrize("name", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "synthesizer/../x"])
def test_a_name_that_climbs_finds_nothing(server, name):
    for path in (f"/assistants/{name}/schemas", f"/threads/{name}/state", f"/review/{name}"):
        assert ask(server, path, **own())[0] in (401, 404, 422), path
    body = {"assistant_id": name, "input": GIVEN}
    assert ask(server, "/runs/wait", body, **own())[0] in (404, 422)


def test_no_key_is_in_the_log(server):
    """Runs last, over what all tests before it did."""
    log = server.log.read_text()
    for key in (ALICE, BOB, STRANGER):
        assert key not in log
    assert "BlockingError" not in log
