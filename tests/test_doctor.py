"""`refloom doctor`: what it says of endpoints that can do this and not that."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from aiohttp import web
from fakes import Endpoint, completion, error
from processes import refloom

PROSE = "Yeast makes gas."


def mode_of(body: dict[str, Any]) -> str:
    if "tools" in body:
        return "tools"
    return str(body.get("response_format", {}).get("type", "text"))


def is_shaped(body: dict[str, Any]) -> bool:
    return mode_of(body) != "text" or "JSON object, named" in body["messages"][0]["content"]


def plain(body: dict[str, Any], number: int) -> Any:
    """A sound endpoint with everything."""
    if body.get("logprobs"):
        tops = [{"token": t, "logprob": p} for t, p in (("Yes", -0.1), ("No", -2.4))]
        said = json.loads(completion("Yes", body).body)
        said["choices"][0]["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
        return web.json_response(said)
    return {"ok": True} if is_shaped(body) else PROSE


def examined(script, tmp_path, *flags: str) -> tuple[int, dict[str, Any], Endpoint]:
    with Endpoint(script) as endpoint:
        done = refloom(
            "doctor", "--model", "m", "--json", *flags, cwd=tmp_path, OPENAI_BASE_URL=endpoint.url,
            OPENAI_API_KEY="sk-secret-0123456789",
        )  # fmt: skip
    assert "secret" not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout), endpoint


def test_a_sound_endpoint_is_fit(tmp_path):
    status, report, endpoint = examined(plain, tmp_path)
    assert (status, report["fit"], report["error"]) == (0, True, None)
    (model,) = report["models"]
    assert (model["role"], model["model"], model["base_url"]) == ("writer", "m", endpoint.url)
    assert model["modes"] == dict.fromkeys(("json_schema", "tools", "json_object", "text"), True)
    assert (model["mode"], model["logprobs"], model["seed"]) == ("json_schema", True, True)
    assert model["thinking"] is model["window"] is model["largest_answer"] is model["price"] is None
    assert model["cache"] is False
    assert model["latency_s"]["1"] > 0 < model["latency_s"]["4"]
    assert report["calls"] <= 12
    assert [entry["flag"] for entry in report["advice"]] == ["--prices"]


def poor(body: dict[str, Any], number: int) -> Any:
    """An endpoint that refuses, ignores and bounds."""
    if "seed" in body:
        detail = {"message": "no seed", "param": "seed", "code": "unsupported_parameter"}
        return web.json_response({"error": detail}, status=400)
    if body["max_tokens"] > 4096:
        return error(
            400, "max_tokens is too large. This model supports at most 4096 completion tokens"
        )
    if body.get("logprobs"):
        return error(400, "logprobs is not supported")
    if mode_of(body) == "json_schema":
        return PROSE
    if mode_of(body) == "tools":
        return error(400, "this model does not support tools")
    return {"ok": True} if is_shaped(body) else PROSE


def test_what_an_endpoint_refuses_ignores_and_bounds_is_said(tmp_path):
    status, report, _ = examined(poor, tmp_path, "--judge-model", "j")
    assert status == 0
    writer, judge = report["models"]
    assert judge["role"] == "judge"
    assert writer["modes"] == {
        "json_schema": False, "tools": False, "json_object": True, "text": True,
    }  # fmt: skip
    assert (writer["mode"], writer["seed"], writer["logprobs"]) == ("json_object", False, False)
    assert writer["largest_answer"] == 4096
    flags = [entry["flag"] for entry in report["advice"]]
    assert flags == ["--prices", "--prices", "--judge-method"]


def thinking(body: dict[str, Any], number: int) -> Any:
    if body["max_tokens"] < 500:
        return completion(None, body, "length")
    return plain(body, number)


def test_a_model_that_thinks_gets_room_and_advice(tmp_path):
    status, report, _ = examined(thinking, tmp_path)
    (model,) = report["models"]
    assert (status, model["mode"], model["thinking"]["where"]) == (0, "json_schema", "hidden")
    assert "--max-tokens-per-call" in [entry["flag"] for entry in report["advice"]]


UNFIT = {
    "key": (lambda body, n: error(400, "API key not valid. Pass a valid API key."), "key"),
    "model": (
        lambda body, n: error(404, "The model `m` does not exist", "model_not_found"),
        "known",
    ),
    "address": (
        lambda body, n: web.Response(text="<html>Welcome</html>", content_type="text/html"),
        "reachable",
    ),
}


@pytest.mark.parametrize(("script", "field"), UNFIT.values(), ids=UNFIT)
def test_what_no_run_could_use_is_told_apart_and_exits_with_4(script, field, tmp_path):
    status, report, endpoint = examined(script, tmp_path)
    assert (status, report["fit"]) == (4, False)
    assert report["models"][0][field] is False
    assert report["error"].startswith("m: ")
    assert len(endpoint.bodies) <= 4


def test_a_closed_port_is_not_reachable(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    done = refloom("doctor", "--model", "m", "--base-url", url, cwd=tmp_path)
    assert done.returncode == 4
    assert "not fit for a run" in done.stdout
    assert "--base-url" in done.stdout
