"""Whole runs in a cheaper service tier, what thinking costs, and journals from before both."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes import USAGE, Endpoint, ScriptedModel, answer, completion, error, stage_of
from processes import refloom
from runs import SEEDS, finish_run, references, rows, run_flags, stable_rows, summary_of

from nodes.context import Context
from nodes.generate import Generated
from nodes.llm import Call, CallOrigin, Reply, make_call
from nodes.llm.capabilities import Capabilities
from nodes.llm.completion import parse_reply
from nodes.llm.protocol import Transient, request_body
from nodes.state import add_usage, no_usage
from refloom.runs.journal import (
    ADDED_CALL_COLUMNS,
    ADDED_TURN_COLUMNS,
    Journal,
    columns_of,
    open_read_only,
)
from refloom.runs.outputs import read_status, usage_by_stage
from refloom.settings import Settings

DATA = Path(__file__).parent / "data"
CALL = make_call(
    "generate",
    ({"role": "user", "content": "Why?"},),
    Generated,
    Context(model="m"),
    CallOrigin("a", "0/0"),
)
FLEX = replace(CALL, tier="flex")
PRICES = (
    "[m]\ninput = 100.0\ncached_input = 50.0\noutput = 1000.0\n"
    "flex = { input = 50.0, cached_input = 25.0, output = 500.0 }\n"
)
# Of one call of the scripted model: 10 prompt tokens, 4 of them cached, and 5 written.
COST = (6 * 100 + 4 * 50 + 5 * 1000) / 1_000_000


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(PRICES)
    return path


class TieredModel(ScriptedModel):
    """A model that answers in the tier it is asked in, and has no resources at some calls."""

    def __init__(self, full: Any = lambda number: False) -> None:
        super().__init__()
        self.full = full

    async def __call__(self, call: Call) -> Reply:
        if call.tier is not None and self.full(len(self.calls)):
            self.calls.append(call)
            raise Transient(call.stage, "no_resources", "Resource Unavailable")
        return replace(await super().__call__(call), tier=call.tier)


# --- on the wire -------------------------------------------------------------------------------


def test_a_call_in_a_tier_says_so_and_others_say_nothing():
    assert request_body(FLEX, Capabilities())["service_tier"] == "flex"
    assert "service_tier" not in request_body(CALL, Capabilities())
    refused = Capabilities(refused_fields=frozenset({"service_tier"}))
    assert request_body(FLEX, refused) == request_body(CALL, refused)


@pytest.mark.parametrize(
    ("said", "tier"),
    [
        ("flex", "flex"),
        ("FLEX", "flex"),
        ("priority", "priority"),
        ("default", None),
        ("standard", None),
        ("on_demand", None),
        (None, None),
        (3, None),
        ("", None),
    ],
)
def test_the_tier_that_an_answer_names_is_read(said, tier):
    body = json.loads(completion("so", {"model": "m"}).text)
    assert parse_reply(body | {"service_tier": said}).tier == tier
    assert parse_reply(body).tier is None


@pytest.mark.parametrize(
    ("usage", "written"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 7}}, 7),
        ({"prompt_tokens_details": {"cache_creation_tokens": 7}}, 7),
        ({"cache_creation_input_tokens": 7}, 7),
        ({"cache_creation_input_tokens": None, "prompt_tokens_details": None}, None),
    ],
)
def test_what_was_written_to_the_prompt_cache_is_read_where_it_is_told(usage, written):
    body = json.loads(completion("so", {"model": "m"}).text)
    reply = parse_reply(body | {"usage": {"prompt_tokens": 10, "completion_tokens": 1, **usage}})
    assert reply.usage.get("cache_write_tokens") == written


# --- whole runs --------------------------------------------------------------------------------


async def test_dollars_are_summed_by_the_tier_that_answers_name(tmp_path, prices):
    model = TieredModel()
    said = await finish_run(tmp_path, model, prices=prices, service_tier="flex")
    paid = said["calls"]["paid"]
    assert {call.tier for call in model.calls} == {"flex"}
    assert said["calls"]["by_tier"] == {"flex": paid}
    assert said["cost_by_tier"] == {"flex": pytest.approx(COST / 2 * paid)}
    assert said["cost_usd"] == pytest.approx(COST / 2 * paid)
    assert said["settings"]["service_tier"] == "flex"
    for row in rows(tmp_path, "accepted"):
        assert row["cost_usd"] == pytest.approx(COST / 2 * row["usage"]["calls"])
    card = (tmp_path / "README.md").read_text()
    assert f"By the service tier that the endpoint's answers name: flex {paid:,} calls" in card


async def test_an_answer_in_another_tier_is_billed_as_that(tmp_path, prices):
    said = await finish_run(tmp_path, ScriptedModel(), prices=prices, service_tier="flex")
    paid = said["calls"]["paid"]
    assert said["cost_by_tier"] == {"default": pytest.approx(COST * paid)}
    assert "service tier" not in (tmp_path / "README.md").read_text()


async def test_a_call_falls_back_to_the_full_price_and_no_sample_fails(tmp_path, prices):
    model = TieredModel(lambda number: number % 3 == 0)
    said = await finish_run(tmp_path, model, prices=prices, service_tier="flex,default")
    by_tier = said["calls"]["by_tier"]
    assert set(by_tier) == {"flex", "default"}
    cost = COST * (by_tier["default"] + by_tier["flex"] / 2)
    assert said["cost_usd"] == pytest.approx(cost)
    assert sum(said["cost_by_tier"].values()) == pytest.approx(cost)
    assert said["counts"]["failed"] == 0
    assert said["calls"]["retried"] == by_tier["default"]


async def test_a_run_may_go_on_in_another_tier_and_pays_nothing_twice(tmp_path, prices):
    alone = await finish_run(tmp_path / "alone", ScriptedModel(), prices=prices)
    first, then = TieredModel(), TieredModel()
    out = tmp_path / "out"
    begun = await finish_run(out, first, SEEDS[:1], prices=prices, service_tier="flex")
    said = await finish_run(out, then, prices=prices)
    assert begun["fingerprint"] == said["fingerprint"] == alone["fingerprint"]
    assert stable_rows(out) == stable_rows(tmp_path / "alone")
    assert {call.tier for call in then.calls} == {None}
    assert said["calls"]["paid"] == alone["calls"]["paid"] == len(first.calls) + len(then.calls)
    assert said["calls"]["by_tier"] == {"flex": len(first.calls), "default": len(then.calls)}
    # What was paid in a tier is used again at the price of that tier.
    again = TieredModel()
    reused = await finish_run(tmp_path / "third", again, prices=prices, reuse=out)
    assert again.calls == []
    assert reused["calls"]["paid"] == 0
    with open_read_only(tmp_path / "third" / "journal.sqlite") as journal:
        borrowed = usage_by_stage(journal, "borrowed")
    assert sum(u.calls for u in borrowed if u.tier == "flex") == len(first.calls)
    assert sum(u.cost_usd for u in borrowed) == pytest.approx(said["cost_usd"])
    assert sum(u.reasoning_tokens for u in borrowed) == said["usage"]["reasoning_tokens"]


@pytest.mark.parametrize("tier", ["flex", "flex,default"])
async def test_a_cap_in_dollars_holds_in_every_tier(tmp_path, prices, tier):
    model = TieredModel(lambda number: number % 3 == 0)
    whole = await finish_run(tmp_path / "whole", TieredModel(), prices=prices)
    with pytest.raises(Exception, match="--max-cost is"):
        await finish_run(
            tmp_path / "out", model, prices=prices, service_tier=tier, max_cost=whole["cost_usd"]
        )
    assert summary_of(tmp_path / "out")["cost_usd"] <= whole["cost_usd"]


def test_the_field_is_sent_and_a_full_tier_is_no_outage(tmp_path):
    path = tmp_path / "references.jsonl"
    path.write_text("\n".join(map(json.dumps, references(3))))

    def script(body: dict[str, Any], number: int) -> Any:
        if body.get("service_tier") == "flex" and number % 2 == 0:
            return error(429, "later", "resource_unavailable")
        prompt = "\n".join(m["content"] for m in body["messages"])
        said = json.loads(completion(answer(stage_of(body), prompt, body["seed"]), body).text)
        return web.json_response(said | {"service_tier": body.get("service_tier", "default")})

    with Endpoint(script) as endpoint:
        flags = run_flags(path, tmp_path / "out", endpoint, "--service-tier", "flex,default")
        done = refloom(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = summary_of(tmp_path / "out")
    assert said["counts"]["failed"] == 0
    assert set(said["calls"]["by_tier"]) == {"flex", "default"}
    assert f"calls by tier: default {said['calls']['by_tier']['default']}, flex" in done.stdout
    status = refloom("status", tmp_path / "out", cwd=tmp_path).stdout
    assert f"calls by tier: default {said['calls']['by_tier']['default']}, flex" in status
    report = refloom("report", tmp_path / "out", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "in tier flex" in page
    assert "tier flex</span>" in page


# --- settings ----------------------------------------------------------------------------------


def test_a_call_in_the_cheaper_tier_may_take_longer_unless_it_is_set():
    assert Settings(model="m").call_timeout == 600
    assert Settings(model="m", service_tier="flex").call_timeout == 900
    assert Settings(model="m", service_tier="flex,default").call_timeout == 900
    assert Settings(model="m", service_tier="flex", timeout=30).call_timeout == 30


def test_the_tier_decides_no_row():
    assert (
        Settings(model="m", service_tier="flex").fingerprint() == Settings(model="m").fingerprint()
    )


# --- thinking ----------------------------------------------------------------------------------


def test_usage_from_before_thinking_was_counted_adds_up():
    old: Any = {k: v for k, v in USAGE.items() if k != "reasoning_tokens"}
    new: Any = dict(USAGE)
    assert add_usage(add_usage(no_usage(), old), new)["reasoning_tokens"] == 2
    assert add_usage(old, old)["reasoning_tokens"] == 0
    assert list(no_usage())[-1] == "reasoning_tokens"
    written: Any = {**USAGE, "cache_write_tokens": 3}
    assert add_usage(add_usage(old, written), written)["cache_write_tokens"] == 6


async def test_thinking_is_counted_in_calls_rows_run_and_card(tmp_path):
    said = await finish_run(tmp_path, ScriptedModel())
    paid = said["calls"]["paid"]
    assert said["usage"]["reasoning_tokens"] == 2 * paid
    assert said["usage"]["completion_tokens"] == 5 * paid
    for row in rows(tmp_path, "accepted"):
        assert row["usage"]["reasoning_tokens"] == 2 * row["usage"]["calls"]
    card = (tmp_path / "README.md").read_text()
    assert f"{5 * paid} completion tokens ({2 * paid} of them thinking)" in card
    status = refloom("status", tmp_path, cwd=tmp_path).stdout
    assert f"reasoning_tokens {2 * paid}" in status
    assert "cache_write_tokens" not in status
    report = refloom("report", tmp_path, cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "report.html").read_text()
    assert "of them thinking" in page
    assert '<th scope="col" class="num">thinking</th>' in page
    assert "in tier" not in page


# --- journals of earlier versions --------------------------------------------------------------


ADDED = {"calls": ADDED_CALL_COLUMNS.keys(), "turns": ADDED_TURN_COLUMNS.keys()}


def added_columns(path: Path, table: str) -> set[str]:
    """The columns of a journal's table that version 0.1.0 did not write."""
    with closing(sqlite3.connect(path)) as connection:
        return columns_of(connection, table) & ADDED[table]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "finished_run" / "out", tmp_path / "old"))


def test_a_journal_from_before_is_read_as_it_is(old):
    before = (old / "journal.sqlite").read_bytes()
    said = read_status(old)
    assert said["usage"]["reasoning_tokens"] == said["usage"]["cache_write_tokens"] == 0
    assert said["usage"]["completion_tokens"] > 0
    assert said["calls"]["by_tier"] == {"default": said["calls"]["paid"]}
    assert said["cost_by_tier"] == {"default": said["cost_usd"]}
    assert {said["counts"][name] for name in ("screened", "unfit", "surplus")} == {0}
    report = refloom("report", old, cwd=old.parent)
    assert report.returncode == 0, report.stderr
    page = (old / "report.html").read_text()
    assert "of them thinking" not in page
    assert not any(added_columns(old / "journal.sqlite", table) for table in ADDED)
    assert (old / "journal.sqlite").read_bytes() == before


async def test_a_run_that_goes_on_with_one_adds_the_columns(old):
    counted = read_status(old)["usage"]
    journal = await asyncio.to_thread(Journal, old)
    reply = {"text": "so", "finish": "stop", "usage": {**USAGE, "cache_write_tokens": 3}}
    await journal.record(b"new one..", "generate", "m", {**reply, "tier": "flex"})
    await asyncio.to_thread(journal.close)
    for table, names in ADDED.items():
        assert added_columns(old / "journal.sqlite", table) == names
    said = read_status(old)
    assert said["calls"]["by_tier"]["flex"] == 1
    more = {name: said["usage"][name] - counted[name] for name in said["usage"]}
    assert more == {**USAGE, "cache_write_tokens": 3}
    # Once more: they are there.
    await asyncio.to_thread((await asyncio.to_thread(Journal, old)).close)
    assert read_status(old) == said
