"""Asking about rows that are made: whose settings count, what is kept, how many at once."""

from __future__ import annotations

import asyncio

import pytest
from fakes import ScriptedModel
from runs import finish_run

from nodes.compare import compare
from nodes.context import Context
from nodes.llm import CallFailed, CallOrigin
from refloom.errors import BudgetSpent, JournalError
from refloom.evaluation.judging import (
    gather_bounded,
    judge_session,
    judge_settings_over,
    unique_names,
)
from refloom.runs.outputs import read_status
from refloom.settings import Settings

RUN = {"settings": {"model": "m", "judge_model": "j", "base_url": "http://run.example/v1"}}


@pytest.mark.parametrize(
    ("flags", "environment", "judge", "address"),
    [
        ({}, {}, "j", "http://run.example/v1"),
        ({"judge_model": "mine"}, {}, "mine", "http://run.example/v1"),
        ({}, {"REFLOOM_JUDGE_MODEL": "theirs"}, "theirs", "http://run.example/v1"),
        ({}, {"OPENAI_BASE_URL": "http://now.example/v1"}, "j", "http://now.example/v1"),
        ({"base_url": "http://flag.example/v1"}, {"OPENAI_BASE_URL": "http://now.example/v1"}, "j",
         "http://flag.example/v1"),
    ],
)  # fmt: skip
def test_what_is_given_counts_then_the_environment_then_the_run(
    monkeypatch, flags, environment, judge, address
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = judge_settings_over(RUN["settings"], flags)
    assert (found.model, found.judge, found.base_url) == ("m", judge, address)


async def test_a_judge_of_its_own_needs_no_endpoint_of_the_writer(tmp_path):
    await finish_run(tmp_path, ScriptedModel())
    settings = Settings(model="m", judge_model="j", judge_base_url="http://127.0.0.1:9/v1")
    async with judge_session(tmp_path, settings):
        pass


async def test_a_directory_is_held_while_its_judge_is_asked(tmp_path):
    await finish_run(tmp_path, ScriptedModel())
    async with judge_session(tmp_path, Settings(model="m"), ScriptedModel()):
        with pytest.raises(JournalError, match="at work here"):
            async with judge_session(tmp_path, Settings(model="m"), ScriptedModel()):
                pass


async def test_a_budget_that_is_spent_ends_it_and_what_was_paid_is_kept(tmp_path):
    await finish_run(tmp_path, ScriptedModel())
    before = read_status(tmp_path)["calls"]["paid"]
    settings, model = Settings(model="m", max_tokens=6000, concurrency=1), ScriptedModel()

    async def ask(calls, number: int) -> None:
        texts = {"instruction": "ask", "first": f"a{number}", "second": f"b{number}"}
        await compare(calls, Context(model="m"), CallOrigin("compare", str(number)), **texts)

    with pytest.raises(BudgetSpent):
        async with judge_session(tmp_path, settings, model) as calls:
            for number in range(500):
                await ask(calls, number)
    paid = read_status(tmp_path)["calls"]["paid"] - before
    assert 0 < paid == len(model.calls)
    async with judge_session(tmp_path, Settings(model="m"), model) as calls:
        await ask(calls, 0)
    assert len(model.calls) == paid


async def test_half_of_a_comparison_that_fails_is_kept(tmp_path):
    await finish_run(tmp_path, ScriptedModel())

    async def one_order(call):
        if "first text" in call.messages[1]["content"].split('id="B"')[1]:
            raise CallFailed("compare", "refused", "no")
        await asyncio.sleep(0.05)
        return await model(call)

    model = ScriptedModel()
    async with judge_session(tmp_path, Settings(model="m"), one_order) as calls:
        for _ in range(2):
            with pytest.raises(CallFailed):
                await compare(
                    calls, Context(model="m"), CallOrigin("compare"),
                    instruction="ask", first="first text", second="other",
                )  # fmt: skip
    assert len(model.calls) == 1


async def test_work_is_bounded_keeps_its_order_and_ends_with_the_first_error():
    under_way = most = 0

    async def work(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (7 - number % 7))
        under_way -= 1
        if number == 30:
            raise ValueError("thirty")
        return number

    assert await gather_bounded(list(range(20)), work, limit=4) == list(range(20))
    assert most == 4
    with pytest.raises(ValueError, match="thirty"):
        await gather_bounded(list(range(90)), work, limit=4)


def test_runs_are_called_by_their_folder_unless_two_share_it(tmp_path):
    one, other = tmp_path / "a" / "rows", tmp_path / "b" / "rows"
    assert unique_names([one, tmp_path / "more"]) == ["rows", "more"]
    assert unique_names([one, other]) == [str(one), str(other)]
