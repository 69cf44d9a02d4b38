"""Whose pages may call the server, and what a browser is told: the app's own middleware."""

from __future__ import annotations

import json
import logging

import pytest
from httpx import ASGITransport, AsyncClient, Response
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from refloom.serve.api_keys import create_key
from refloom.serve.origins import AllowedOrigins, BadOrigins, Cors
from refloom.serve.request_limits import RequestLimits

LISTED, OTHER = "http://localhost:3000", "http://evil.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
ALICE, ALICES = create_key("alice")


async def answer(request) -> JSONResponse:
    return JSONResponse({"answered": True}, headers={"Content-Location": "/runs/1"})


def config(monkeypatch, **cors) -> None:
    monkeypatch.setenv("LANGGRAPH_HTTP", json.dumps({"cors": {"allow_origins": [LISTED], **cors}}))


async def call(method: str, path: str = "/runs", **headers: str) -> Response:
    """One request to a server with the settings of the environment."""
    origins = AllowedOrigins.load()
    stack = [Middleware(Cors, origins=origins), Middleware(RequestLimits, origins=origins)]
    routes = [Route("/{path:path}", answer, methods=["GET", "POST", "OPTIONS"])]
    app = Starlette(routes=routes, middleware=stack)
    body = b"{}" if method == "POST" else None
    async with AsyncClient(
        transport=ASGITransport(app, client=("127.0.0.1", 1)), base_url="http://127.0.0.1:2024"
    ) as client:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(method, path, content=body, headers=names)


async def test_an_origin_of_langgraph_json_may_call_and_read(monkeypatch):
    config(monkeypatch, expose_headers=["content-location"])
    got = await call("OPTIONS", Origin=LISTED, **PREFLIGHT)
    assert got.status_code == 200
    assert got.headers["access-control-allow-origin"] == LISTED
    assert "x-api-key" in got.headers["access-control-allow-headers"]
    got = await call("POST", Origin=LISTED)
    assert got.json() == {"answered": True}
    assert got.headers["access-control-allow-origin"] == LISTED
    assert got.headers["access-control-expose-headers"] == "content-location"
    assert "access-control-allow-credentials" not in got.headers


async def test_a_listed_site_on_the_internet_may_call_a_server_on_this_machine(monkeypatch):
    config(monkeypatch)
    private = {"Access-Control-Request-Private-Network": "true"}
    got = await call("OPTIONS", Origin=LISTED, **PREFLIGHT, **private)
    assert got.status_code == 200
    assert got.headers["access-control-allow-private-network"] == "true"
    assert (await call("OPTIONS", Origin=OTHER, **PREFLIGHT, **private)).status_code == 403


async def test_credentials_are_allowed_if_langgraph_json_says_so(monkeypatch):
    config(monkeypatch, allow_credentials=True)
    got = await call("POST", Origin=LISTED)
    assert got.headers["access-control-allow-credentials"] == "true"


async def test_an_origin_of_the_setting_may_call_too(monkeypatch):
    config(monkeypatch)
    monkeypatch.setenv("REFLOOM_ORIGINS", f"https://one.example, {OTHER}/")
    for origin in (LISTED, "https://one.example", OTHER):
        assert (await call("POST", Origin=origin)).status_code == 200


async def test_without_langgraphs_server_the_file_is_read(monkeypatch, tmp_path):
    (tmp_path / "langgraph.json").write_text(
        json.dumps({"http": {"cors": {"allow_origins": [LISTED]}}})
    )
    monkeypatch.chdir(tmp_path)
    assert (await call("POST", Origin=LISTED)).status_code == 200
    assert (await call("POST", Origin=OTHER)).status_code == 403


@pytest.mark.parametrize("origin", [OTHER, "null", "http://127.0.0.1:9999"])
async def test_another_origin_is_refused_by_name_and_logged_once(monkeypatch, caplog, origin):
    config(monkeypatch)
    with caplog.at_level(logging.WARNING):
        got = await call("OPTIONS", Origin=origin, **PREFLIGHT)
        refused = await call("POST", Origin=origin)
    assert got.status_code == refused.status_code == 403
    assert origin in got.text
    assert origin in refused.json()["detail"]
    assert "REFLOOM_ORIGINS" in refused.json()["detail"]
    assert "\n" not in got.text
    assert "access-control-allow-origin" not in got.headers
    assert origin in caplog.text


async def test_the_servers_own_page_and_programs_may_call(monkeypatch):
    config(monkeypatch)
    assert (await call("POST", "/review/shown", Origin="http://127.0.0.1:2024")).status_code == 200
    assert (await call("POST")).status_code == 200


async def test_a_refusal_can_be_read_by_a_page_that_may_call(monkeypatch):
    config(monkeypatch)
    monkeypatch.setenv("REFLOOM_API_KEYS", ALICES)
    got = await call("POST", Origin=LISTED)
    assert got.status_code == 401
    assert got.headers["access-control-allow-origin"] == LISTED
    assert (await call("POST", Origin=LISTED, X_Api_Key=ALICE)).status_code == 200


@pytest.mark.parametrize("entry", ["*", "localhost:3000", "http://a.example/path", "http://*.a.b"])
async def test_what_is_no_origin_stops_the_server(monkeypatch, entry):
    monkeypatch.setenv("REFLOOM_ORIGINS", entry)
    with pytest.raises(BadOrigins, match="REFLOOM_ORIGINS"):
        AllowedOrigins.load()
    monkeypatch.delenv("REFLOOM_ORIGINS")
    config(monkeypatch, allow_origins=[entry])
    with pytest.raises(BadOrigins, match=r"http\.cors\.allow_origins"):
        AllowedOrigins.load()


async def test_a_chat_client_is_told_what_the_graphs_take(monkeypatch):
    config(monkeypatch)
    said = {"input": {"messages": [{"type": "human", "content": "Hello"}]}}
    origins = AllowedOrigins.load()
    app = RequestLimits(Starlette(routes=[]), origins=origins)
    async with AsyncClient(
        transport=ASGITransport(app, client=("127.0.0.1", 1)), base_url="http://127.0.0.1"
    ) as client:
        got = await client.post("/threads/1/runs/stream", json=said)
    assert got.status_code == 422
    assert "does not chat" in got.json()["detail"]
    assert '{"seed"' in got.json()["detail"]
