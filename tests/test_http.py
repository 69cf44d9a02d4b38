"""Requests as they go over the wire: addresses, headers, odd texts, proxies, connections."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from aiohttp import web
from fakes import Endpoint

from nodes.llm import Call
from nodes.llm.endpoint import Endpoint as Address
from nodes.llm.endpoint import EndpointClient, HttpSession, target_of
from nodes.llm.fast_json import dumps, loads
from nodes.llm.protocol import ErrorResponse, Transient

MESSAGES = ({"role": "user", "content": "x"},)
CALL = Call("generate", MESSAGES, None, "m", False, 0, 0.0, 1)


def good(body, number):
    return {"response": "so"}


async def posted(script, body):
    http = HttpSession()
    try:
        with Endpoint(script) as endpoint:
            target = target_of(Address(endpoint.url, "k"))
            return await http.post(target, body), endpoint.bodies
    finally:
        await http.close()


@pytest.mark.parametrize("text", ["L'été 潮汐 😀 \x00", "a\u2028b", "\\frac{1}{2}\r\n", '"]}'])
async def test_a_text_arrives_as_it_was(text):
    _, bodies = await posted(good, {"model": "m", "messages": [], "said": text})
    assert bodies[0]["said"] == text


async def test_half_a_surrogate_pair_does_not_cost_the_request():
    _, bodies = await posted(good, {"model": "m", "messages": [], "said": "half \ud83d"})
    assert bodies[0]["said"] == "half ?"


async def test_an_answer_with_half_a_surrogate_pair_is_read():
    def script(body, number):
        return web.Response(text='{"said": "\\ud83d!"}', content_type="application/json")

    (raw, _), _ = await posted(script, {"model": "m", "messages": []})
    assert raw == {"said": "\ud83d!"}


async def test_a_refusal_brings_what_was_said_and_the_headers():
    with pytest.raises(ErrorResponse) as refused:
        await posted(
            lambda body, n: web.Response(status=429, text="slow", headers={"Retry-After": "3"}),
            {"model": "m", "messages": []},
        )
    assert (refused.value.status, refused.value.content) == (429, b"slow")
    assert refused.value.headers["retry-after"] == "3"
    assert "slow" not in str(refused.value)


def test_the_address_and_headers_of_a_request(monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    target = target_of(Address("http://there/v1/", "key"))
    assert target.url == "http://there/v1/chat/completions"
    assert target.headers["Authorization"] == "Bearer key"
    assert not any(name.startswith("OpenAI") for name in target.headers)
    assert target_of(Address(None, "key")).url == "https://api.openai.com/v1/chat/completions"


def test_a_query_of_an_address_stays_behind_the_path():
    base = "https://x.openai.azure.com/openai/deployments/gpt?api-version=2024-10-21"
    target = target_of(Address(base, "key"))
    path = "https://x.openai.azure.com/openai/deployments/gpt/chat/completions"
    assert target.url == f"{path}?api-version=2024-10-21"
    # Azure takes a bearer only for a token of its directory.
    assert target.headers["api-key"] == "key"
    assert "Authorization" not in target.headers
    assert "?" not in target.name


def test_an_address_that_names_the_page_itself_is_taken_as_it_is():
    target = target_of(Address("http://there/v1/chat/completions", "key"))
    assert target.url == "http://there/v1/chat/completions"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_an_address_that_moved_on_its_host_is_followed_with_the_same_request(status):
    def script(body, number):
        if number == 0:
            return web.Response(status=status, headers={"Location": "/v1/chat/completions?b=1"})
        return good(body, number)

    http = HttpSession()
    with Endpoint(script) as endpoint:
        target = target_of(Address(endpoint.url, "k"))
        for _ in range(2):
            await http.post(target, {"model": "m", "messages": []})
    await http.close()
    # It is remembered: the second request goes there at once.
    assert [body["messages"] for body in endpoint.bodies] == [[]] * 3
    assert target.url.endswith("?b=1")


async def test_a_key_is_not_sent_on_to_another_host():
    moved = web.Response(status=301, headers={"Location": "http://elsewhere.invalid/v1"})
    with pytest.raises(ErrorResponse) as refused:
        await posted(lambda body, n: moved, {"model": "m", "messages": []})
    assert refused.value.status == 301


def test_a_user_in_an_address_becomes_a_header():
    target = target_of(Address("http://me:p%40ss@there:8/v1", "key"))
    assert target.url == "http://there:8/v1/chat/completions"
    assert target.headers["Authorization"] == "Basic bWU6cEBzcw=="


def test_the_account_of_the_openai_client_goes_with_every_request(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-2")
    headers = target_of(Address(None, "key")).headers
    assert (headers["OpenAI-Organization"], headers["OpenAI-Project"]) == ("org-1", "proj-2")


async def test_a_proxy_of_the_environment_is_used_and_what_it_spares_is_not(monkeypatch):
    with Endpoint(good) as endpoint:
        host = endpoint.url.removesuffix("/v1")
        monkeypatch.setenv("http_proxy", host)
        monkeypatch.setenv("no_proxy", "spared.invalid")
        http = HttpSession()
        assert http._proxy("http://model.invalid/v1/chat/completions") == host
        assert http._proxy("http://spared.invalid/v1/chat/completions") is None
        assert http._proxy("https://model.invalid/v1/chat/completions") is None
        target = target_of(Address("http://model.invalid/v1", "k"))
        await http.post(target, {"model": "m", "messages": []})
        await http.close()
    assert len(endpoint.bodies) == 1


async def test_an_address_without_tls_behind_it_is_no_connection():
    async def there(model, judge):
        return Address(endpoint.url.replace("http:", "https:"), "k")

    client = EndpointClient(there, max_retries=0)
    with Endpoint(good) as endpoint, pytest.raises(Transient) as failed:
        await client(CALL)
    await client.aclose()
    assert failed.value.kind == "connection"


LIGHT = """
import asyncio, sys
sys.path[:0] = [sys.argv[2]]
from nodes.llm.endpoint import Endpoint, EndpointClient
from nodes.llm import Call
async def there(model, judge):
    return Endpoint(sys.argv[1], "k")
async def go():
    client = EndpointClient(there)
    message = {"role": "user", "content": "x"}
    await client(Call("generate", (message,), None, "m", False, 0, 0.0, 1, text=True))
    await client.aclose()
asyncio.run(go())
heavy = ("openai", "langchain_openai", "faiss", "torch")
print([name for name in heavy if name in sys.modules])
"""


def test_a_call_nobody_watches_loads_no_client_library():
    from pathlib import Path

    with Endpoint(good) as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", LIGHT, endpoint.url, str(Path(__file__).parent.parent)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("value", [None, [1, 2.5, True], {"a": {"b": "é"}}, 2**70, "\ud83d"])
def test_quick_json_reads_what_it_writes(value):
    expected = "?" if value == "\ud83d" else value
    assert loads(dumps(value)) == expected
    assert json.loads(dumps(value)) == expected


@pytest.mark.parametrize("said", [b"", b"{oo", b"\xff", b'{"a":}'])
def test_quick_json_refuses_what_is_no_json(said):
    with pytest.raises(ValueError):
        loads(said)


async def test_retries_of_a_connection_end_with_the_last_fault():
    calls = []

    async def there(model, judge):
        return Address(endpoint.url, "k")

    def script(body, number):
        calls.append(number)
        return web.Response(status=500, text="no", headers={"retry-after-ms": "1"})

    with Endpoint(script) as endpoint:
        client = EndpointClient(there, max_retries=2)
        with pytest.raises(Transient):
            await client(CALL)
        await client.aclose()
    assert len(calls) == 3
    await asyncio.sleep(0)
