"""`refloom doctor`: what it says of endpoints that can do this and not that."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from aiohttp import web
from fakes import Endpoint, completion, error
from processes import refloom

import refloom.runs.doctor as examining

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


def examined(
    script, tmp_path, *flags: str, models: tuple[dict[str, Any], ...] = ()
) -> tuple[int, dict[str, Any], Endpoint]:
    with Endpoint(script) as endpoint:
        endpoint.models.extend(models)
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
    assert flags_of(report) == ["--prices"]


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
    flags = flags_of(report)
    assert flags == ["--prices", "--prices", "--judge-method"]


def thinking(body: dict[str, Any], number: int) -> Any:
    if body["max_tokens"] < 500:
        return completion(None, body, "length")
    return plain(body, number)


def test_a_model_that_thinks_gets_room_and_advice(tmp_path):
    status, report, _ = examined(thinking, tmp_path)
    (model,) = report["models"]
    assert (status, model["mode"], model["thinking"]["where"]) == (0, "json_schema", "hidden")
    assert "--max-tokens-per-call" in flags_of(report)


def flags_of(report: dict[str, Any]) -> list[str]:
    return [entry["flag"] for entry in report["advice"]]


def loading(body: dict[str, Any], number: int) -> Any:
    return error(503, "Loading model") if number < 1 else plain(body, number)


def test_a_model_that_loads_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(examining, "WAITS_S", (0.05, 0.05))
    status, report, endpoint = examined(loading, tmp_path)
    assert (status, report["error"]) == (0, None)
    assert len(endpoint.bodies) == report["calls"] - 1 <= 11


def test_of_a_model_that_goes_on_loading_a_run_is_said_to_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(examining, "WAITS_S", (0.05, 0.05))
    status, report, endpoint = examined(lambda body, n: error(503, "Loading model"), tmp_path)
    assert (status, len(endpoint.bodies)) == (4, 3)
    assert report["error"] == "m: loading: status 503: Loading model; a run would wait for it"
    assert "--base-url" not in flags_of(report)


def hanging(kinds: tuple[str, ...]) -> Any:
    """A script that gives no answer in time to requests of some kinds."""

    async def script(body: dict[str, Any], number: int) -> Any:
        mode = mode_of(body)
        if (mode if mode != "text" or not is_shaped(body) else "shaped text") in kinds:
            await asyncio.sleep(3)
        return plain(body, number)

    return script


def test_a_slow_model_is_not_taken_for_a_wrong_address(tmp_path, monkeypatch):
    monkeypatch.setattr(examining, "MAX_SECONDS", 0.5)
    status, report, _ = examined(hanging(("text",)), tmp_path)
    assert (status, report["models"][0]["reachable"]) == (4, None)
    assert "slow" in report["error"]
    assert "--base-url" not in flags_of(report)


def test_a_mode_that_takes_too_long_does_not_lose_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(examining, "MAX_SECONDS", 1.0)
    status, report, _ = examined(hanging(("shaped text",)), tmp_path)
    (model,) = report["models"]
    assert model["modes"]["text"] is None
    assert model["mode"] in ("json_schema", "tools", "json_object")
    assert status == 0


@pytest.mark.parametrize(("others", "window"), [((), 6144), (({"id": "other"},), None)])
def test_the_window_is_read_of_a_server_of_one_model_whatever_its_name(others, window, tmp_path):
    listed = {"id": "/models/a.gguf", "meta": {"n_ctx": 6144, "n_ctx_train": 32768}}
    _, report, _ = examined(plain, tmp_path, models=(listed, *others))
    assert report["models"][0]["window"] == window


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


def test_a_name_that_means_a_file_here_is_said_to_be_one(tmp_path):
    status, report, endpoint = examined(plain, tmp_path, "--model", "qwen.gguf")
    assert (status, endpoint.bodies) == (4, [])
    assert "another name" in report["error"]
    assert "--base-url" not in flags_of(report)
