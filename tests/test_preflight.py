"""The preflight: one small call to each model before a run begins, and what ends the run there."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes import Endpoint, ScriptedModel, completion, error, letters
from processes import command, env_of, refloom
from runs import build_run, finish_run, references, rows, summary_of

from memory.index import ReferenceIndex
from memory.references import distinct
from memory.store import write_references
from memory.weights import DEFAULT_MODEL
from nodes.llm import Call, Reply
from nodes.llm.capabilities import Capabilities
from refloom.errors import BudgetSpent
from refloom.runs import rate_limit
from refloom.runs.client import Endpoints, open_client
from refloom.runs.cost import Prices
from refloom.runs.journal import Journal
from refloom.runs.preflight import preflight_calls
from refloom.settings import Settings

# What a start must not wait for.
SLOW_IMPORTS = ("torch", "faiss", "langgraph", "langchain_core", "sentence_transformers", "pandas")
# Runs the command line, and says at its end how long it took and what it had imported.
WATCHED = f"""
import json, sys, time
from refloom.cli import main
begun = time.perf_counter()
try:
    main(sys.argv[1:])
finally:
    slow = [name for name in {SLOW_IMPORTS!r} if name in sys.modules]
    print(json.dumps({{"seconds": time.perf_counter() - begun, "slow": slow}}))
"""


def preflights_of(out: Path) -> int:
    """How many preflights a run has paid for, by its run.json."""
    count: int = summary_of(out)["calls"]["by_stage"].get("preflight", 0)
    return count


def settings_for(endpoint: Endpoint, **more: Any) -> Settings:
    return Settings(**{"model": "m", "base_url": endpoint.url, **more})


def flags_for(folder: Path, url: str, *more: object) -> tuple[object, ...]:
    path = folder / "references.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in references(3)), encoding="utf-8")
    return (
        *("--references", path, "--out", folder / "out", "--model", "m", "--base-url", url),
        *("--answer-seeds", "--no-try-criteria", "--references-per-seed", "1", *more),
    )


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


# --- one call ----------------------------------------------------------------------------------


async def test_it_is_one_small_plain_call_before_all_others_and_counted_with_them(tmp_path):
    before = []
    prices = tmp_path / "prices.toml"
    prices.write_text("[m]\ninput = 100.0\noutput = 1000.0\n")
    with Endpoint(
        preflight=lambda body, n: before.append(len(endpoint.bodies)) or "ok"
    ) as endpoint:
        said = await finish_run(
            tmp_path / "out", None, base_url=endpoint.url, prices=prices, max_cost=100.0
        )
    assert said["status"] == "done"
    assert before == [0]
    (body,) = endpoint.preflights
    assert set(body) == {"model", "messages", "temperature", "max_tokens", "seed"}
    assert body["max_tokens"] <= 64
    assert 0 <= body["seed"] < 2**31
    assert "<" not in json.dumps(body["messages"])
    assert said["calls"]["by_stage"]["preflight"] == 1
    assert said["calls"]["paid"] == len(endpoint.bodies) + 1 == said["usage"]["calls"]
    assert said["cost_by_stage"]["preflight"] == pytest.approx((10 * 100 + 5 * 1000) / 1e6)


@pytest.mark.parametrize(
    ("judge", "asked"),
    [({}, [("m", "w")]), ({"judge_model": "j"}, [("m", "w"), ("j", "w")]),
     ({"judge_base_url": "other"}, [("m", "w"), ("m", "o")])],
    ids=["one for both", "a judge of its own", "one model at two addresses"],
)  # fmt: skip
async def test_each_model_is_asked_once_at_each_address_and_never_again(tmp_path, judge, asked):
    with Endpoint() as writer, Endpoint() as other:
        if "judge_base_url" in judge:
            judge = {"judge_base_url": other.url}

        def sent() -> list[tuple[str, str]]:
            return [(b["model"], "w") for b in writer.preflights] + [
                (b["model"], "o") for b in other.preflights
            ]

        more = {"base_url": writer.url, **judge}
        await finish_run(tmp_path, None, target=1, **more)
        assert sent() == asked
        said = await finish_run(tmp_path, None, target=3, **more)
    assert sent() == asked
    assert said["calls"]["by_stage"]["preflight"] == len(asked)
    assert said["counts"]["accepted"] == 3


def forget(out: Path, *stages: str) -> None:
    """Take a run's calls of some stages out of its journal."""
    with closing(sqlite3.connect(out / "journal.sqlite")) as journal, journal:
        for stage in stages:
            journal.execute("DELETE FROM calls WHERE stage = ?", (stage,))


async def test_a_run_begun_without_one_makes_none_where_its_model_has_answered(tmp_path):
    with Endpoint() as endpoint:
        await finish_run(tmp_path, None, target=1, base_url=endpoint.url)
        forget(tmp_path, "preflight")
        await finish_run(tmp_path, None, target=3, base_url=endpoint.url)
    assert (len(endpoint.preflights), preflights_of(tmp_path)) == (1, 0)


async def test_which_of_two_addresses_has_answered_is_told_by_the_stage(tmp_path):
    with Endpoint() as writer, Endpoint() as judge:
        more = {"base_url": writer.url, "judge_base_url": judge.url}
        await finish_run(tmp_path, None, target=1, **more)
        assert set(judge.stages()) == {"critique"}
        forget(tmp_path, "preflight", "critique")
        await finish_run(tmp_path, None, target=2, **more)
    assert (len(writer.preflights), len(judge.preflights)) == (1, 2)


async def test_a_run_that_reuses_another_at_the_same_address_makes_none(tmp_path):
    with Endpoint() as endpoint:
        await finish_run(tmp_path / "one", None, base_url=endpoint.url)
        asked = len(endpoint.bodies)
        said = await finish_run(
            tmp_path / "two", None, base_url=endpoint.url, reuse=tmp_path / "one"
        )
        assert (len(endpoint.preflights), len(endpoint.bodies)) == (1, asked)
        assert said["calls"]["paid"] == 0
        # One that was made before there were preflights answers for its own address alone.
        forget(tmp_path / "one", "preflight")
        more = {"reuse": tmp_path / "one"}
        await finish_run(tmp_path / "three", None, base_url=endpoint.url, **more)
        assert len(endpoint.preflights) == 1
        with Endpoint() as other:
            await finish_run(tmp_path / "four", None, base_url=other.url, **more)
    assert len(other.preflights) == 1


def test_an_experiment_makes_one_and_a_dry_run_none(tmp_path):
    with Endpoint() as endpoint:
        flags = flags_for(tmp_path, endpoint.url)
        dry = refloom("run", *flags, "--dry-run", cwd=tmp_path)
        assert (dry.returncode, endpoint.preflights, endpoint.bodies) == (0, [], [])
        done = refloom("experiment", "--arms", "none", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(endpoint.preflights) == 1
    assert [preflights_of(tmp_path / "out" / arm) for arm in ("reference", "none")] == [1, 0]


def test_a_model_inside_this_process_and_a_scripted_one_are_not_asked(tmp_path):
    two = ("http://a/v1", "http://b/v1")
    assert preflight_calls(Settings(model="local"), two) == []
    (call,) = preflight_calls(Settings(model="local", judge_model="j"), two)
    assert (call.model, call.judge) == ("j", True)
    model = ScriptedModel()
    asyncio.run(build_run(tmp_path, model).run())
    assert "preflight" not in {call.stage for call in model.calls}


async def test_with_workers_the_run_itself_sends_it(tmp_path):
    async def worker(call: Call, known: Capabilities) -> Reply:
        raise AssertionError("no worker has begun")

    with Endpoint() as endpoint, closing(Journal(tmp_path)) as journal:
        settings = settings_for(endpoint)
        endpoints = Endpoints(settings)
        (call,) = preflight_calls(settings, endpoints.addresses)
        caps = {"prior_cost": 0.0, "prior_tokens": 0, "attempt": worker}
        async with open_client(settings, journal, endpoints, Prices({}), **caps) as calls:
            assert (await calls(call)).text == "ok"
    assert len(endpoint.preflights) == 1


# --- what lets the run go on -------------------------------------------------------------------


def _reply(text: str | None, finish: str) -> Callable[[dict[str, Any], int], web.Response]:
    return lambda body, number: completion(text, body, finish)


@pytest.mark.parametrize(
    "answer",
    [
        _reply("", "stop"),
        _reply(None, "stop"),
        _reply("o", "length"),
        _reply(None, "length"),
        _reply("", "content_filter"),
        lambda body, number: error(400, "the content_filter has refused the prompt"),
        lambda body, number: error(400, "could not finish: max_tokens was reached"),
    ],
    ids=["empty", "null", "cut", "cut and null", "filtered", "refused prompt", "no room"],
)
async def test_any_answer_will_do(tmp_path, answer):
    with Endpoint(preflight=answer) as endpoint:
        said = await finish_run(tmp_path, None, base_url=endpoint.url)
    assert (said["status"], said["counts"]["accepted"]) == ("done", 3)


@pytest.mark.parametrize(("status", "times"), [(503, 7), (429, 2), (500, 2)])
async def test_what_passes_is_waited_for(tmp_path, monkeypatch, status, times):
    # The pauses of an endpoint that is down, but for the first, take no seconds here.
    monkeypatch.setattr(rate_limit, "MAX_COOLDOWN_S", 0.05)

    def loading(body: dict[str, Any], number: int) -> Any:
        return "ok" if number == times else error(status, "loading", **{"retry-after": "0.01"})

    with Endpoint(preflight=loading) as endpoint:
        said = await finish_run(tmp_path, None, base_url=endpoint.url)
    assert (said["status"], said["counts"]["accepted"]) == ("done", 3)
    assert len(endpoint.preflights) == times + 1
    assert preflights_of(tmp_path) == 1


# --- what ends it ------------------------------------------------------------------------------

ENDS = {
    "a wrong key": (401, "Incorrect API key provided", "OPENAI_API_KEY"),
    "a wrong model": (404, "The model `m` does not exist", "--model"),
    "no credit": (402, "Insufficient balance", "quota"),
}


@pytest.mark.parametrize("case", ENDS)
def test_it_ends_the_run_before_any_sample_and_the_mended_command_goes_on(tmp_path, case):
    status, message, says = ENDS[case]
    mended = False
    with Endpoint(preflight=lambda *_: "ok" if mended else error(status, message)) as endpoint:
        flags = ("run", *flags_for(tmp_path, endpoint.url, "--quiet"))
        ended = refloom(*flags, cwd=tmp_path)
        assert ended.returncode == 4
        assert says in ended.stderr
        assert ended.stderr.count("\n") == 1
        assert (len(endpoint.preflights), endpoint.bodies) == (1, [])
        said = summary_of(tmp_path / "out")
        assert (said["status"], said["counts"]["candidates"]) == ("stopped", 0)
        assert rows(tmp_path / "out", "failed") == []
        assert not (tmp_path / "out" / "README.md").exists(), "there is nothing to describe"
        mended = True
        done = refloom(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.preflights) == 2
    assert summary_of(tmp_path / "out")["counts"]["accepted"] == 3
    assert (tmp_path / "out" / "README.md").exists()


async def test_a_judge_that_waits_does_not_hold_up_the_end(tmp_path):
    def answer(body: dict[str, Any], number: int) -> Any:
        return error(401 if body["model"] == "m" else 503, "no", **{"retry-after": "60"})

    with Endpoint(preflight=answer) as endpoint:
        begun = time.monotonic()
        with pytest.raises(RuntimeError, match="OPENAI_API_KEY"):
            await finish_run(tmp_path, None, base_url=endpoint.url, judge_model="j")
        assert time.monotonic() - begun < 3


async def test_it_is_within_the_budget(tmp_path):
    with Endpoint() as endpoint:
        with pytest.raises(BudgetSpent, match="max-tokens"):
            await finish_run(tmp_path, None, base_url=endpoint.url, max_tokens=10)
        assert endpoint.preflights == []


def _closed() -> str:
    return f"http://127.0.0.1:{closed_port()}/v1"


@pytest.mark.parametrize("case", ["a closed port", "a host without a name", "a wrong key"])
def test_from_start_to_exit_takes_seconds_and_imports_nothing_slow(tmp_path, case):
    with Endpoint(preflight=lambda *_: error(401, "no such key")) as endpoint:
        url = {"a wrong key": endpoint.url, "a closed port": _closed()}.get(
            case, "http://no-such-host.invalid/v1"
        )
        arguments = ("run", *flags_for(tmp_path, url, "--quiet"))
        ended = subprocess.run(
            [sys.executable, "-c", WATCHED, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env_of({}),
            timeout=120,
        )
    assert ended.returncode == 4, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["slow"] == []
    # Three seconds on an idle machine; the tests run beside one another.
    assert told["seconds"] < 10
    assert ended.stderr.count("\n") == 1


PATHS: dict[str, tuple[str, ...]] = {
    "seeds that are references": (),
    "seeds that retrieve": ("--seeds", "seeds.txt", "--references-per-seed", "3"),
    "a stored index": ("--seeds", "seeds.txt", "--memory", "memory"),
    "answered seeds": ("--seeds", "seeds.txt", "--answer-seeds", "--no-screen"),
    "log-odds": ("--judge-method", "logodds"),
    "contamination": ("--benchmark", "benchmark.jsonl"),
    "reasoning": ("--reasoning",),
    "Ray": ("--engine", "ray", "--workers", "2"),
}


@pytest.mark.parametrize("path", PATHS)
def test_the_first_call_leaves_before_anything_slow_is_imported(tmp_path, path):
    # The first call is refused, which ends the run: what it has imported came before that call.
    lines = "".join(json.dumps(r) + "\n" for r in references(3))
    (tmp_path / "references.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "benchmark.jsonl").write_text('{"question": "How old is the old oak now?"}\n')
    (tmp_path / "seeds.txt").write_text("the sea\nthe moon\n")
    if path == "a stored index":
        stored = write_references(tmp_path / "memory", distinct(references(3)))
        index = ReferenceIndex(stored, letters, tmp_path / "memory", DEFAULT_MODEL)
        asyncio.run(index.build())
    with Endpoint(preflight=lambda *_: error(401, "no such key")) as endpoint:
        arguments = ("run", "--references", "references.jsonl", "--out", "out", "--model", "m")
        ended = subprocess.run(
            [sys.executable, "-c", WATCHED, *arguments, "--base-url", endpoint.url, *PATHS[path]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env_of({}),
            timeout=120,
        )
    assert ended.returncode == 4, ended.stderr
    assert len(endpoint.preflights) == 1
    assert json.loads(ended.stdout.splitlines()[-1])["slow"] == []


def test_an_address_that_takes_no_connection_is_given_up_once(tmp_path):
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        # A queue of length 0 holds one connection; the system drops what comes after.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        begun = time.monotonic()
        ended = refloom("run", *flags_for(tmp_path, url, "--quiet"), cwd=tmp_path)
    assert ended.returncode == 4
    assert "cannot be reached" in ended.stderr
    assert time.monotonic() - begun < 4


# --- signals -----------------------------------------------------------------------------------


def test_a_signal_in_the_middle_of_it_repeats_no_call(tmp_path):
    with Endpoint() as endpoint:
        flags = ("run", *flags_for(tmp_path, endpoint.url))
        endpoint.latency = 1.0
        process = subprocess.Popen(
            command(*flags),
            cwd=tmp_path,
            env=env_of({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not endpoint.preflights and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130, told
        said = summary_of(tmp_path / "out")
        assert (said["status"], said["calls"]["paid"]) == ("interrupted", 1)
        endpoint.latency = 0.0
        done = refloom(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (len(endpoint.preflights), preflights_of(tmp_path / "out")) == (1, 1)
