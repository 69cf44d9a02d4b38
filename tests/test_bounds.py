"""What the server's first door lets in: sizes, runs, keys, and who may ask without one."""

from __future__ import annotations

import asyncio
import json
import re
from hashlib import sha256
from itertools import cycle
from typing import Any

import pytest

from graph.routing import after_propose
from refloom.serve.api_keys import BadKeys, create_key, find_holder, identify, load_key_hashes
from refloom.serve.request_limits import MAX_BODY_BYTES, MAX_RECURSION, MAX_RUNS, RequestLimits

LOCAL = ("127.0.0.1", 5000)
STRANGER = ("10.0.0.1", 5000)
HOST = ("Host", "localhost:2024")
SEED = {"seed": {"instruction": "How waves form at sea"}}


class Downstream:
    """The app behind the door: keeps what reaches it."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.after: list[dict[str, Any]] = []

    async def __call__(self, scope, receive, send) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request", "the body was cut short"
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        self.after.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


class Asked:
    """One request through the door: its answer, what got behind it, how much was read."""

    def __init__(self, status: int, body: bytes, down: Downstream, read: int) -> None:
        self.status, self.down, self.read = status, down, read
        self.said = json.loads(body or b"{}").get("detail", "")

    @property
    def passed(self) -> bool:
        return bool(self.down.scopes)


def ask(
    path: str,
    body: Any = None,
    method: str = "POST",
    *headers: tuple[str, str],
    client: tuple[str, int] | None = LOCAL,
    chunks: list[bytes] | None = None,
    gone: bool = False,
    length: str | None = "",
    **more: Any,
) -> Asked:
    """Call the door as a server would; `chunks` are a body in pieces, `gone`: it never ends."""
    if chunks is None:
        chunks = [body if isinstance(body, bytes) else b"" if body is None else _json(body)]
        length = str(len(chunks[0])) if length == "" else length
    named = [] if any(name.lower() == "host" for name, _ in headers) else [HOST]
    sized = [("content-length", length)] if length else []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": b"",
        "client": client,
        "headers": [(n.encode(), v.encode()) for n, v in (*named, *sized, *headers)],
        **more,
    }
    return asyncio.run(_ask(scope, chunks, gone))


async def _ask(scope: dict[str, Any], chunks: list[bytes], gone: bool) -> Asked:
    read, sent = 0, []

    async def receive():
        nonlocal read
        if read >= len(chunks):
            return {"type": "http.disconnect"}
        read += 1
        more = gone or read < len(chunks)
        return {"type": "http.request", "body": chunks[read - 1], "more_body": more}

    async def send(message):
        sent.append(message)

    down = Downstream()
    await RequestLimits(down)(scope, receive, send)
    start = next((m for m in sent if m["type"] == "http.response.start"), {"status": 0})
    body = b"".join(m.get("body", b"") for m in sent)
    return Asked(start["status"], body, down, read)


def _json(said: Any) -> bytes:
    return json.dumps(said).encode()


def pairs(some: list[str], others: list[str]) -> list[tuple[str, str]]:
    """Each of `some` once, with one of `others`, which come round again."""
    return list(zip(some, cycle(others), strict=False))


@pytest.fixture
def keys(monkeypatch) -> dict[str, str]:
    """Two users with a key each."""
    made = {name: create_key(name) for name in ("alice", "bob")}
    monkeypatch.setenv("REFLOOM_API_KEYS", ", ".join(entry for _, entry in made.values()))
    return {name: key for name, (key, _) in made.items()}


# --- sizes ---------------------------------------------------------------------------------------


def test_a_body_that_says_it_is_too_large_is_refused_unread():
    asked = ask("/threads", chunks=[b"x"], length=str(MAX_BODY_BYTES + 1))
    assert (asked.status, asked.said) == (413, "the body is over 8 MB")
    assert not asked.passed and asked.read == 0


@pytest.mark.parametrize("length", ["-1", "+5", "0x10", "1e3", "", "abc", "1 2", "9" * 40, "²"])
def test_a_length_that_is_none_is_refused(length):
    asked = ask("/threads", chunks=[b"{}"], length=length or " ")
    assert asked.status == 413 and not asked.passed


def test_a_length_of_ten_thousand_digits_is_refused_as_any_other():
    assert ask("/threads", chunks=[b"{}"], length="9" * 10_000).status == 413


def test_a_body_in_chunks_is_stopped_while_it_is_read():
    chunk = b"x" * (1 << 20)
    asked = ask("/threads/t/history", chunks=[chunk] * 100)
    assert asked.status == 413 and not asked.passed
    assert asked.read == 9


def test_a_length_that_lies_is_found_out():
    asked = ask("/threads/t/history", chunks=[b"x" * (1 << 20)] * 100, length="10")
    assert asked.status == 413 and asked.read == 9


def test_a_body_of_exactly_the_most_passes():
    asked = ask("/store/items", b"x" * MAX_BODY_BYTES)
    assert asked.status == 200 and len(asked.down.bodies[0]) == MAX_BODY_BYTES


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "QUERY", "post"])
def test_every_method_that_writes_is_bounded(method):
    assert ask("/x", method=method, chunks=[b"x" * (1 << 20)] * 10).status == 413


def test_a_body_in_pieces_arrives_whole_and_the_end_of_the_client_is_seen():
    body = _json({"assistant_id": "a", "input": SEED})
    asked = ask("/runs", chunks=[body[:10], b"", body[10:20], body[20:]])
    assert asked.status == 200
    assert asked.down.bodies == [body]
    assert asked.down.after == [{"type": "http.disconnect"}]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_requests_that_read_are_handed_on_untouched(method):
    asked = ask("/threads/t/state", method=method, chunks=[b""])
    assert asked.passed and asked.down.bodies == [b""]


def test_an_empty_body_passes():
    assert ask("/threads/t/runs/r/cancel", b"").status == 200
    assert ask("/runs", b"").passed


def test_a_client_that_goes_away_while_it_sends_starts_nothing():
    body = _json({"assistant_id": "a", "input": SEED})
    assert not ask("/runs", chunks=[body], gone=True).passed


# --- what runs may ask ---------------------------------------------------------------------------

STARTING = [
    "/runs",
    "/runs/",
    "/runs/wait",
    "/runs/stream",
    "/runs/batch",
    "/runs/crons",
    "/runs/crons/c1",
    "/threads/t/runs",
    "/threads/t/runs/",
    "/threads/t/runs/wait",
    "/threads/t/runs/stream",
    "/threads/t/runs/crons",
    "/assistants",
    "/assistants/",
    "/assistants/a",
]
BAD = [
    ({"webhook": "http://127.0.0.1/x"}, "webhook: "),
    ({"webhook": ["http://x"]}, "webhook: "),
    ({"context": {"max_attempts": -1}}, "context.max_attempts: "),
    ({"context": {"max_attempts": 11}}, "context.max_attempts: "),
    ({"context": {"max_attempts": 10**9}}, "context.max_attempts: "),
    ({"context": {"memory": "/etc"}}, "context.memory: "),
    ({"context": {"per_seed": 51}}, "context.per_seed: "),
    ({"context": {"novelty_threshold": 0}}, "context.novelty_threshold: "),
    ({"context": {"feedback": "all"}}, "context.feedback: "),
    ({"context": {"base_url": "http://evil.example"}}, "context.base_url: "),
    ({"context": {"model": "m" * 201}}, "context.model: "),
    ({"context": {"generate_prompt": "{{ 9**9**9 }}"}}, "context.generate_prompt: "),
    ({"config": {"configurable": {"max_attempts": -1}}}, "config.configurable.max_attempts: "),
    ({"config": {"recursion_limit": 0}}, "config.recursion_limit must be 1 to 1000"),
    ({"config": {"recursion_limit": MAX_RECURSION + 1}}, "config.recursion_limit "),
    ({"config": {"recursion_limit": 1e3}}, "config.recursion_limit "),
    ({"config": {"recursion_limit": "25"}}, "config.recursion_limit "),
    ({"config": {"recursion_limit": [1]}}, "config.recursion_limit "),
    ({"input": {"seed": {}}}, "input.seed.instruction: "),
    ({"input": {"seed": "Tides"}}, "input.seed: "),
    ({"input": {"seed": {"instruction": "x" * 200_001}}}, "input.seed.instruction: "),
    ({"input": {**SEED, "references": [{"instruction": "a"}]}}, "input.references.0.response: "),
    ({"input": {**SEED, "references": [{}] * 21}}, "input.references: "),
    ({"input": {"instruction": 5}}, "input.instruction: "),
    ({"input": {"instruction": "a", "criteria": [1]}}, "input.criteria.0: "),
    ({"input": {"instruction": "a", "criteria": ["x"] * 31}}, "input.criteria: "),
    ({"input": {"references": [{"response": "a"}]}}, "input.references.0.instruction: "),
    ({"input": {"references": [{}] * 1001}}, "input.references has 1001 entries; at most 1000"),
    ({"input": {"references": []}}, "input.references: "),
]


@pytest.mark.parametrize(("path", "method"), pairs(STARTING, ["POST", "PATCH", "PUT"]))
def test_every_way_to_start_runs_is_looked_at(path, method):
    asked = ask(path, {"context": {"max_attempts": -1}}, method)
    assert asked.status == 422 and not asked.passed
    assert asked.said.startswith("context.max_attempts: ")


@pytest.mark.parametrize(("said", "why"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_a_run_that_asks_for_too_much_is_refused_with_the_field_named(said, why):
    asked = ask("/runs/wait", {"assistant_id": "a", **said})
    assert asked.status == 422 and not asked.passed
    assert asked.said.startswith(why) and "\n" not in asked.said


@pytest.mark.parametrize(("said", "why"), BAD[::6], ids=lambda x: x if isinstance(x, str) else "")
def test_one_such_run_among_many_is_refused_as_well(said, why):
    asked = ask(
        "/runs/batch", [{"assistant_id": "a", "input": SEED}, {"assistant_id": "a", **said}]
    )
    assert asked.status == 422 and asked.said.startswith(why)


def test_a_hundred_runs_in_a_request_are_the_most():
    one = {"assistant_id": "a", "input": SEED}
    assert ask("/runs/batch", [one] * MAX_RUNS).passed
    asked = ask("/runs/batch", [one] * (MAX_RUNS + 1))
    assert (asked.status, asked.said) == (422, "101 runs in a request; send at most 100 at a time")


@pytest.mark.parametrize(
    "said",
    [
        {"input": SEED},
        {"input": None},
        {"input": {}},
        {"input": {**SEED, "references": [{"instruction": "a", "response": "b"}] * 20}},
        {"input": {"instruction": "a", "criteria": ["is short"]}},
        {"input": {"references": [{"instruction": "a", "response": "b"}] * 1000}},
        {"command": {"resume": {"decision": "accept"}}},
        {"context": {"max_attempts": 1, "model": "m"}},
        {"context": {}},
        {"context": None},
        {"config": {"recursion_limit": MAX_RECURSION, "configurable": {"thread_id": "t", "x": 1}}},
        {"config": {"configurable": {"model": "m"}}},
        {"webhook": None},
        {"metadata": {"context": {"max_attempts": -1}}},
        {"stream_mode": ["custom"], "stream_subgraphs": True},
    ],
)
def test_good_runs_pass_unchanged(said):
    body = _json({"assistant_id": "a", **said})
    asked = ask("/threads/t/runs/stream", body)
    assert asked.status == 200 and asked.down.bodies == [body]


def test_a_query_behind_the_path_changes_nothing():
    asked = ask("/runs", {"webhook": "http://x"}, query_string=b"a=/ok&b=1")
    assert asked.status == 422


@pytest.mark.parametrize("path", ["/assistants", "/assistants/a", "/threads", "/threads/"])
def test_assistants_and_threads_hold_no_settings_that_runs_may_not(path):
    said = {"config": {"configurable": {"per_seed": 10**6}}}
    assert ask(path, said, "PATCH").status == ask(path, said).status == 422


@pytest.mark.parametrize(
    "path", ["/assistants/search", "/assistants/count", "/assistants/a/latest"]
)
def test_searching_for_assistants_is_let_through(path):
    assert ask(path, {"graph_id": "sample", "limit": 10, "metadata": {}}).passed


@pytest.mark.parametrize(
    "body",
    [b"nonsense", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000],
    ids=["words", "open", "bytes", "lists", "objects", "digits"],
)
def test_a_body_that_is_no_json_is_refused(body):
    asked = ask("/runs", body)
    assert (asked.status, asked.said, asked.passed) == (422, "the body is not valid JSON", False)


@pytest.mark.parametrize("deep", [65, 500, 900])
def test_json_that_is_deep_is_refused(deep):
    """LangGraph and pydantic go down into it by recursion."""
    body = b'{"assistant_id": "a", "metadata": ' + b"[" * deep + b"]" * deep + b"}"
    asked = ask("/runs", body)
    assert asked.status == 422 and not asked.passed


@pytest.mark.parametrize(
    ("name", "number"),
    [("should_share", b"NaN"), ("novelty_threshold", b"Infinity"), ("per_seed", b"-Infinity"),
     ("random_seed", b"1e999"), ("per_seed", b"NaN"), ("random_seed", b"Infinity")],
)  # fmt: skip
def test_what_is_no_number_is_no_setting(number, name):
    asked = ask("/runs", b'{"context": {"' + name.encode() + b'": ' + number + b"}}")
    assert asked.status == 422
    assert asked.said.startswith(f"context.{name}: ")


def test_no_number_of_steps_is_no_number():
    assert ask("/runs", b'{"config": {"recursion_limit": NaN}}').status == 422
    assert ask("/runs", b'{"config": {"recursion_limit": Infinity}}').status == 422


@pytest.mark.parametrize("body", [b"null", b"1", b'"text"', b"[]", b"[1, null]", b'[["a"]]'])
def test_json_that_is_no_run_is_left_to_the_server(body):
    assert ask("/runs", body).passed


def test_a_value_of_a_secret_s_length_is_not_said_back():
    asked = ask("/runs", {"context": {"model": "secret " * 100}})
    assert "secret" not in asked.said


def test_half_a_surrogate_pair_is_refused():
    body = b'{"input": {"seed": {"instruction": "\\ud800"}}}'
    assert ask("/runs", body).status == 422


# --- ways around ---------------------------------------------------------------------------------


def starting(**params: Any) -> dict[str, Any]:
    """How the newer protocol of LangGraph's server starts a run."""
    return {"id": 1, "method": "run.start", "params": {"assistant_id": "synthesizer", **params}}


@pytest.mark.parametrize(
    "params",
    [
        {"context": {"max_attempts": -1}},
        {"config": {"recursion_limit": 10**9}},
        {"config": {"configurable": {"per_seed": 10**6}}},
        {"input": {"seed": {"instruction": "x" * 300_000}}},
        {"input": {"seed": {}}},
    ],
)
def test_runs_started_by_a_command_are_bounded_too(params):
    """POST /threads/ID/commands is on by default in langgraph_api and starts runs."""
    asked = ask("/threads/t/commands", starting(**params))
    assert asked.status in (404, 422) and not asked.passed


@pytest.mark.parametrize("key", [None, "rk_wrong"])
def test_a_socket_is_opened_to_nobody_without_a_key(keys, key):
    headers = [] if key is None else [("x-api-key", key)]
    assert not socket(headers).scopes


def test_a_socket_is_opened_to_this_machine_only():
    assert not socket([], client=STRANGER).scopes
    assert not socket([("host", "evil.example")]).scopes


def test_a_socket_is_not_opened_to_another_site_s_page():
    """Browsers let any page open a socket to localhost; only the server can refuse its origin."""
    assert not socket([("origin", "http://evil.example")]).scopes


def socket(headers: list[tuple[str, str]], client: Any = LOCAL) -> Downstream:
    """Open a web socket, by which runs are started as well; bring what got behind the door."""
    named = [] if any(name == "host" for name, _ in headers) else [("host", "localhost:2024")]
    scope = {
        "type": "websocket",
        "path": "/threads/t/stream/events",
        "root_path": "",
        "query_string": b"",
        "client": client,
        "headers": [(n.encode(), v.encode()) for n, v in (*named, *headers)],
    }

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        pass

    down = Downstream()
    asyncio.run(RequestLimits(down)(scope, receive, send))
    return down


@pytest.mark.parametrize("content", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_site_s_page_starts_no_runs_here(content):
    """A browser sends such a request to localhost without asking; no CORS holds it back."""
    headers = [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")]
    headers += [("content-type", content)] if content else []
    assert not ask("/runs", {"assistant_id": "a", "input": SEED}, "POST", *headers).passed


def test_langgraphs_own_names_are_nobodys_to_set():
    said = {"assistant_id": "a", "config": {"configurable": {"__pregel_runtime": {}}}}
    assert ask("/runs", said).status == 422


def test_a_command_sends_no_more_than_the_settings_may():
    sends = [{"node": "sample", "input": {"instruction": str(i)}} for i in range(1000)]
    said = {"assistant_id": "synthesizer", "command": {"goto": sends}}
    assert ask("/runs", said).status == 422


def test_state_that_was_written_makes_no_more_samples_than_a_seed_may_have():
    """Studio writes state behind every check of the input, so the graph itself has a bound."""
    state = {"seed": {}, "references": [], "criteria": [], "instructions": ["x"] * 1000}
    assert len(after_propose(state)) == 50


def test_an_input_that_is_a_list_of_inputs_is_left_to_the_graph_which_refuses_it():
    assert ask("/runs", {"assistant_id": "a", "input": [SEED]}).passed


def test_the_server_s_own_calls_are_known_by_what_no_client_can_set(keys):
    assert ask("/threads", {}, root_path="/noauth", client=None).passed
    assert ask("/noauth/threads", {}).status == 401
    assert ask("/noauth/threads", {}, "POST", ("x-forwarded-prefix", "/noauth")).status == 401
    assert ask("/threads", {}, root_path="/app").status == 401


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", "Bearer {}"),
        ("Authorization", "Bearer {}"),
        ("AUTHORIZATION", "bearer {}"),
        ("Authorization", "BEARER   {}  "),
        ("x-api-key", "{}"),
        ("X-Api-Key", "{}"),
        ("X-API-KEY", "  {} "),
    ],
)
def test_a_key_opens_in_either_header_however_it_is_written(keys, header):
    for key in keys.values():
        asked = ask("/threads", {}, "POST", (header[0], header[1].format(key)), client=STRANGER)
        assert asked.status == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        ("authorization", ""),
        ("authorization", "Bearer"),
        ("authorization", "Bearer "),
        ("authorization", "{}"),
        ("authorization", "Basic {}"),
        ("authorization", "Token {}"),
        ("x-api-key", ""),
        ("x-api-key", "  "),
        ("x-key", "{}"),
        ("cookie", "x-api-key={}"),
    ],
)
def test_without_a_key_the_answer_is_401_and_says_how_to_give_one(keys, header):
    headers = [] if header is None else [(header[0], header[1].format(keys["alice"]))]
    asked = ask("/threads", {}, "POST", *headers)
    assert asked.status == 401 and not asked.passed
    assert "Authorization: Bearer KEY" in asked.said


@pytest.mark.parametrize("wrong", ["rk_wrong", "{}x", "x{}", "{} {}", "{}\x00", "é", "{}é", "None"])
def test_a_wrong_key_is_refused_and_not_said_back(keys, wrong):
    key = wrong.format(keys["alice"], keys["bob"])
    for header in (("x-api-key", key), ("authorization", f"Bearer {key}")):
        asked = ask("/threads", {}, "POST", header)
        assert (asked.status, asked.said) == (401, "unknown API key")


def test_a_hash_is_no_key(keys):
    hashed = sha256(keys["alice"].encode()).hexdigest()
    assert ask("/threads", {}, "POST", ("x-api-key", hashed)).status == 401
    assert ask("/threads", {}, "POST", ("x-api-key", f"alice:{hashed}")).status == 401


def test_a_key_in_the_query_or_the_body_is_none(keys):
    query = f"api_key={keys['alice']}&x-api-key={keys['alice']}".encode()
    assert ask("/threads", {"x-api-key": keys["alice"]}, query_string=query).status == 401


def test_a_wrong_key_beside_a_right_one_opens_nothing(keys):
    headers = ("x-api-key", "rk_wrong"), ("authorization", f"Bearer {keys['alice']}")
    assert ask("/threads", {}, "POST", *headers).status == 401


def test_with_keys_this_machine_needs_one_too(keys):
    assert ask("/threads", {}).status == 401


def test_a_refused_stranger_s_body_is_not_read(keys):
    assert ask("/runs", chunks=[b"x"] * 100).read == 0


def test_a_key_says_whose_it_is(keys):
    known = load_key_hashes()
    assert set(known) == {"alice", "bob"}
    assert find_holder(keys["bob"], known) == "bob"
    assert find_holder("", known) is find_holder("\ud800", known) is None
    assert identify([(b"X-Api-Key", keys["bob"].encode())], None, known) == "bob"
    assert identify([("x-api-key", keys["alice"])], "10.0.0.1", known) == "alice"


def test_new_keys_are_long_random_and_kept_as_hashes_only():
    made = {create_key("a")[0] for _ in range(20)}
    assert len(made) == 20 and all(re.fullmatch(r"rk_[\w-]{43}", key) for key in made)
    key, entry = create_key("alice")
    assert entry == f"alice:{sha256(key.encode()).hexdigest()}"
    assert load_key_hashes(entry) == {"alice": entry.split(":")[1]}


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_no_keys_mean_this_machine_alone(monkeypatch, text):
    monkeypatch.setenv("REFLOOM_API_KEYS", text)
    assert load_key_hashes() == {}
    assert ask("/threads", {}).passed
    assert ask("/threads", {}, client=STRANGER).status == 403


GOOD = "alice:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("hunter2", 1),
        ("alice:hunter2", 1),
        (f"{GOOD},hunter2", 2),
        (f"{GOOD},bob:hunter2,{GOOD}", 2),
        (f"{GOOD};bob:{'b' * 64}", 1),
        ("hunter2:" + "a" * 63, 1),
        ("hunter2:" + "a" * 65, 1),
        ("hunter2:" + "A" * 64, 1),
        ("hunter2:" + "g" * 64, 1),
        ("hunter2 x:" + "a" * 64, 1),
        (":" + "a" * 64, 1),
        ("n" * 65 + ":" + "a" * 64, 1),
        (f"{GOOD}\nhunter2", 1),
        ("rk_hunter2", 1),
    ],
)
def test_keys_nobody_can_read_stop_the_server_and_are_not_said(monkeypatch, text, number):
    monkeypatch.setenv("REFLOOM_API_KEYS", text)
    with pytest.raises(BadKeys) as caught:
        RequestLimits(Downstream())
    said = str(caught.value)
    assert said.startswith(f"REFLOOM_API_KEYS: entry {number} is not NAME:HASH")
    assert "hunter2" not in said and "a" * 60 not in said and "\n" not in said


@pytest.mark.parametrize("text", [",", " , ,", ",,\n"])
def test_commas_alone_leave_nothing_open(text):
    with pytest.raises(BadKeys, match="has no NAME:HASH entry"):
        load_key_hashes(text)


def test_two_keys_of_one_name_both_open(monkeypatch):
    """While a key is replaced, its holder has two; neither may vanish without a word."""
    (old, first), (new, second) = create_key("alice"), create_key("alice")
    try:
        known = load_key_hashes(f"{first},{second}")
    except BadKeys:
        return
    assert find_holder(old, known) == find_holder(new, known) == "alice"


# --- this machine alone --------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["127.0.0.1", "127.0.0.2", "::1", "127.255.255.254"])
def test_this_machine_is_served(client):
    assert ask("/threads", {}, client=(client, 1)).status == 200


@pytest.mark.parametrize(
    "client",
    [None, ("10.0.0.1", 1), ("192.168.0.1", 1), ("0.0.0.0", 1), ("::", 1), ("fe80::1", 1),
     ("8.8.8.8", 1), ("", 1), ("evil.example", 1), ("127.0.0.1.evil.example", 1), ("::2", 1)],
)  # fmt: skip
def test_other_machines_are_not(client):
    asked = ask("/threads", {}, client=client)
    assert asked.status == 403 and not asked.passed
    assert "set REFLOOM_API_KEYS" in asked.said


@pytest.mark.parametrize(
    ("path", "method"),
    pairs(["/ok", "/readyz", "/review", "/docs", "/runs"], ["GET", "POST", "OPTIONS"]),
)
def test_other_machines_reach_nothing_at_all_without_keys(path, method):
    assert ask(path, method=method, client=STRANGER).status == 403


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:2024", "LOCALHOST:2024", "127.0.0.1", "127.0.0.1:2024", "[::1]:2024",
     "[::1]", "127.0.0.2:80"],
)  # fmt: skip
def test_names_of_this_machine_are_known(host):
    assert ask("/threads", {}, "POST", ("Host", host)).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:2024", "localhost.evil.example", "127.0.0.1.evil.example",
     "evil.localhost", "0.0.0.0", "0.0.0.0:2024", "10.0.0.1", "", ":2024", "127.1", "2130706433",
     "localhost@evil.example", "evil.example#localhost", "evil.example:localhost", "[::2]:2024",
     "[::1", "[::1]evil.example", "localhost:evil.example", "localhost:2024:80"],
)  # fmt: skip
def test_other_names_are_refused_so_that_no_page_gets_in_by_dns(host):
    assert ask("/threads", {}, "POST", ("Host", host)).status == 403
    assert ask("/ok", None, "GET", ("Host", host)).status == 403


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host"])
def test_headers_of_proxies_make_nobody_local(name):
    headers = ((name, "127.0.0.1"), ("x-forwarded-host", "localhost"))
    assert ask("/threads", {}, "POST", *headers, client=STRANGER).status == 403
    assert ask("/threads", {}, "POST", *headers, ("Host", "evil.example")).status == 403


# --- what is open without a key ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method"),
    pairs(
        ["/ok", "/readyz", "/health", "/review", "/review/", "/review/config", "/review/main.js",
         "/review/review.css", "/review/icon.svg"],
        ["GET", "HEAD"],
    ),
)  # fmt: skip
def test_health_and_the_page_s_own_files_are_open(keys, path, method):
    assert ask(path, method=method, client=STRANGER).passed


@pytest.mark.parametrize(
    ("method", "path"),
    pairs(
        ["POST", "PUT", "PATCH", "DELETE", "get", "TRACE", "CONNECT"],
        ["/ok", "/readyz", "/review", "/review/config", "/review/main.js"],
    ),
)
def test_they_are_open_to_read_only(keys, path, method):
    assert ask(path, method=method).status == 401


CLOSED = [
    "/", "", "/docs", "/openapi.json", "/metrics", "/threads", "/threads/t", "/threads/t/state",
    "/threads/t/history", "/threads/t/stream", "/runs", "/runs/crons/c", "/assistants/a",
    "/assistants/a/schemas", "/store/items", "/ui/synthesizer", "/mcp", "/mcp/", "/a2a/x",
    "/.well-known/agent-card.json", "/profile", "/internal/truncate",
    "/review/queue", "/review/queue/", "/review/items", "/review/items/x", "/review/items/x.js",
    "/review/items/../main.js", "/review/shown", "/review/shown/", "/review/shown.js/x",
    "/review/../threads", "/review/..", "/review/./queue", "/review//queue", "//review/queue",
    "//threads", "/ok/../threads", "/ok/threads", "/ok?x", "/ok;/threads", "/ok\n", "/ok\x00",
    "/okay", "/readyz/x", "/health/x", "/healthz", "/OK", "/Review", "/REVIEW/QUEUE",
    "/review/main.js/x", "/review/main.js/../queue", "/review/main.js\n", "/review/main.py",
    "/review/MAIN.js", "/review/a.b.js", "/review/.js", "/review/.env", "/review/config/x",
    "/x/review", "/x/ok", "/threads/ok", "/review/%2e%2e/threads", "/noauth/ok"
]  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_everything_else_needs_a_key(keys, path):
    asked = ask(path, method="GET", client=STRANGER)
    assert asked.status == 401 and not asked.passed


@pytest.mark.parametrize(("path", "method"), pairs(CLOSED[::6], ["HEAD", "POST"]))
def test_it_needs_one_by_every_method(keys, path, method):
    asked = ask(path, method=method, client=STRANGER)
    assert asked.status == 401 and not asked.passed


def test_every_file_of_the_page_is_open_and_nothing_of_a_sample_is(keys):
    from refloom.serve.review_page import PAGE_DIR

    paths = [f"/review/{path.name}" for path in PAGE_DIR.iterdir() if path.suffix != ".html"]
    assert len(paths) > 10
    for path in ("/review", "/review/config", *paths):
        assert ask(path, method="GET", client=STRANGER).passed, path
    asked = ("shown", "queue", "decided", "search", "figures", "items/x", "items/x/marks")
    for path in asked:
        for method in ("GET", "POST", "DELETE"):
            assert not ask(f"/review/{path}", method=method, client=STRANGER).passed, path


def test_a_browser_may_ask_first_whether_it_may_ask(keys):
    assert ask("/threads", method="OPTIONS", client=STRANGER).passed
