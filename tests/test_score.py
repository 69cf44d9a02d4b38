"""Scoring responses: one by one, whole files, and files of scores compared."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes import (
    USAGE,
    Endpoint,
    ScriptedModel,
    completion,
    error,
    letters,
    prompt_of,
    tagged,
    verdicts,
    words,
)
from processes import command, env_of, lines, refloom
from runs import build_run, finish_run, references

from nodes.checks import run_safe_check
from nodes.context import Context
from nodes.llm import Call, CallFailed, ProviderStopped, Reply
from nodes.own_criteria import read_own_criterion
from nodes.state import Criterion
from refloom.data.responses import Responses
from refloom.data.rubrics import rubric_of
from refloom.evaluation.judging import judge_settings
from refloom.evaluation.score import Scorer, open_scorer
from refloom.evaluation.score_file import ScoreRun, ScoreSummary, format_summary
from refloom.evaluation.stats import mean_interval, sign_test
from refloom.runs.journal import Journal
from refloom.settings import Settings


def criterion(text: str, **fields: Any) -> Criterion:
    return read_own_criterion({"text": text, **fields}, trusted=True)["criterion"]


MUST = criterion("names the cause", id="a")
SHOULD = criterion("is short", must=False, id="b")
PITFALL = criterion("blames the reader", weight=-3, id="c")
WORDS = criterion("has few words", check="max_words:3", id="d", must=False)
ALL = [MUST, SHOULD, PITFALL, WORDS]


def judging(**by_id: str) -> ScriptedModel:
    """A judge that says the same of every response: a verdict for each criterion."""
    return ScriptedModel(
        critique=lambda call: verdicts(prompt_of(call), lambda id_: by_id.get(id_, "pass"))
    )


def scorer_of(model: Any, **options: Any) -> Scorer:
    context = Context(**{"model": "m", "judge_model": "j", **options})
    return Scorer(model, context, run_check=run_safe_check)


def outcomes(scored: Any) -> dict[str, str]:
    return {one["criterion_id"]: one["verdict"] for one in scored.verdicts}


# --- one response ------------------------------------------------------------------------------


async def test_checks_and_judge_add_up_to_a_score():
    model = judging(b="fail", c="fail")
    scored = await scorer_of(model).score("Why?", "It is the wind.", ALL)
    assert outcomes(scored) == {"a": "pass", "b": "fail", "c": "fail", "d": "fail"}
    assert scored.value == pytest.approx((5 - 3) / 9)
    assert (scored.unknown, scored.fault, scored.usage["calls"]) == (0, None, 1)
    assert len(model.calls) == 1
    assert model.calls[0].stage == "critique"


async def test_rules_are_no_part_of_a_score():
    rule: Criterion = {**MUST, "id": "rule", "judged_by": "rule"}
    scored = await scorer_of(judging()).score("Why?", "The wind.", [rule, MUST])
    assert outcomes(scored) == {"a": "pass"}


async def test_an_empty_response_is_not_asked_about():
    model = judging()
    scored = await scorer_of(model).score("Why?", " \n", ALL)
    assert outcomes(scored) == {"a": "fail", "b": "fail", "c": "pass", "d": "fail"}
    assert (scored.value, scored.unknown, model.calls) == (0.0, 0, [])
    assert {one["reason"] for one in scored.verdicts} == {"The response is empty."}


@pytest.mark.parametrize("kind", ["filtered", "refused", "too_long", "bad_request", "timeout"])
async def test_a_call_that_fails_leaves_its_verdicts_unknown(kind):
    model = ScriptedModel(critique=lambda call: CallFailed("critique", kind, "no such answer"))
    scored = await scorer_of(model).score("Why?", "The wind.", ALL)
    assert outcomes(scored) == {"a": "unknown", "b": "unknown", "c": "unknown", "d": "pass"}
    assert (scored.value, scored.unknown) == (None, 3)
    assert scored.fault is not None
    assert "no such answer" in scored.verdicts[0]["reason"]


async def test_a_judge_that_answers_nonsense_leaves_a_score_unknown():
    scored = await scorer_of(ScriptedModel(critique=lambda call: "no JSON")).score(
        "Why?", "The wind.", [MUST]
    )
    assert (scored.value, scored.unknown) == (None, 1)


async def test_one_unknown_verdict_is_left_out_of_the_sum():
    scored = await scorer_of(judging(b="perhaps")).score("Why?", "The wind.", ALL)
    assert (scored.value, scored.unknown) == (1.0, 1)


async def test_of_criteria_with_one_id_the_first_counts():
    scored = await scorer_of(judging()).score("Why?", "The wind.", [MUST, {**SHOULD, "id": "a"}])
    assert len(scored.verdicts) == 1


async def test_the_same_response_is_the_same_call_and_another_is_another():
    model = judging()
    scorer = scorer_of(model)
    for response in ("The wind.", "The wind.", "The sea."):
        await scorer.score("Why?", response, [MUST], place=(len(model.calls),))
    seeds = [call.seed for call in model.calls]
    assert seeds[0] == seeds[1] != seeds[2]
    assert model.calls[0].messages == model.calls[1].messages


async def test_the_turns_before_the_instruction_are_shown():
    model = judging()
    history = [{"role": "user", "content": "We spoke of tides."}]
    await scorer_of(model).score("Why?", "The wind.", [MUST], history=history)
    assert "We spoke of tides." in tagged(prompt_of(model.calls[0]), "history")[0]


async def test_a_jury_votes_and_each_juror_is_told():
    def critique(call: Call) -> Any:
        return verdicts(prompt_of(call), "fail" if call.model == "y" else "pass")

    model = ScriptedModel(critique=critique)
    scored = await scorer_of(model, judge_model="x,y,z").score("Why?", "The wind.", [MUST])
    assert scored.value == 1.0
    assert [one["model"] for one in scored.verdicts[0]["jurors"]] == ["x", "y", "z"]


async def test_by_log_odds_each_criterion_is_one_token_and_has_its_bar():
    model = ScriptedModel(odds=lambda call: 1.0)
    criteria: list[Criterion] = [{**MUST, "bar": 2.0}, SHOULD, PITFALL]
    scored = await scorer_of(model, judge_method="logodds").score("Why?", "The wind.", criteria)
    assert outcomes(scored) == {"a": "fail", "b": "pass", "c": "fail"}
    assert scored.value == 0.0
    assert len(model.calls) == 3


async def test_an_endpoint_without_log_probabilities_is_told_at_once():
    fault = CallFailed("critique", "malformed", "the endpoint gave no log-probabilities")
    model = ScriptedModel(odds=lambda call: fault)
    with pytest.raises(ProviderStopped, match="log-probabilities"):
        await scorer_of(model, judge_method="logodds").score("Why?", "The wind.", [MUST])


@pytest.mark.parametrize(
    "name", ["python_tests", "regex:(a+)+b", "json_schema:/etc/passwd", "os:system", "max_words:x"]
)
async def test_a_check_that_a_stranger_may_not_name_is_not_made(name):
    check: Criterion = {**WORDS, "check": name}
    scored = await scorer_of(judging()).score("Why?", "The wind.", [MUST, check])
    assert outcomes(scored) == {"a": "pass", "d": "unknown"}
    assert "not checked" in scored.verdicts[1]["reason"]


async def test_a_trusted_check_is_made(tmp_path):
    check = criterion("names a wind", check="regex:wind", id="r")
    settings = Settings(model="m", judge_model="j")
    async with open_scorer(tmp_path / "j.sqlite", settings, complete=judging()) as session:
        for response, verdict in (("The wind.", "pass"), ("The sea.", "fail")):
            scored = await session.scorer.score("Why?", response, [check], trusted=True)
            assert outcomes(scored) == {"r": verdict}


async def test_what_was_paid_is_paid_once_and_equal_work_is_done_once(tmp_path):
    model, settings = judging(), Settings(model="m", judge_model="j")
    for paid, reused in ((1, 0), (0, 1)):
        async with open_scorer(tmp_path / "j.sqlite", settings, complete=model) as session:
            scores = await asyncio.gather(
                *(session.scorer.score("Why?", "The wind.", ALL) for _ in range(3))
            )
            assert {one.value for one in scores} == {1.0}
            assert session.client.counts["paid"] == paid
            assert bool(session.client.counts["reused"]) == bool(reused)
    assert len(model.calls) == 1


# --- a file, by the command line ---------------------------------------------------------------

ASKED = {"role": "user", "content": "Why 0?"}
ANSWERED = {"role": "assistant", "content": "So."}
RUBRIC = [
    {"description": "Essential Criteria: The response names the cause", "weight": 5},
    {"description": "Pitfall Criteria: The response blames the reader", "weight": -2},
]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rubrics(path: Path, n: int = 3, rubric: Any = RUBRIC) -> Path:
    return write(path, *({"question": f"Why {i}?", "rubric": rubric} for i in range(n)))


def answers(path: Path, n: int = 3) -> Path:
    rows = ({"instruction": f"Why {i}?", "response": f"Since {i} is so.", "n": i} for i in range(n))
    return write(path, *rows)


def by_response(body: dict[str, Any], good: Callable[[str], bool]) -> dict[str, Any]:
    prompt = body["messages"][-1]["content"]
    fine = good(tagged(prompt, "response")[-1])
    return verdicts(prompt, "pass" if fine else "fail")


def score(folder: Path, endpoint: Endpoint, *more: object, run: Any = refloom) -> Any:
    return run(
        "score", "rows.jsonl", "--criteria", "rubrics.jsonl", "--out", "scored.jsonl",
        "--judge-model", "j", "--base-url", endpoint.url, *more, cwd=folder,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    answers(tmp_path / "rows.jsonl")
    rubrics(tmp_path / "rubrics.jsonl")
    return tmp_path


def test_rows_get_a_score_and_keep_their_fields_and_order(folder):
    write(
        folder / "rows.jsonl",
        {"instruction": "Why 1?", "response": "So.", "n": 1, "extra": {"a": [None, "ü"]}},
        {"instruction": "Why  0?\n", "response": "Thus.", "score": 0.1},
        {"instruction": "Why 9?", "response": "So."},
        {"instruction": "Why 2?", "response": ""},
        {"instruction": "Why 2?", "response": None},
    )
    with Endpoint(lambda body, n: by_response(body, lambda text: text == "So.")) as endpoint:
        done = score(folder, endpoint)
    assert done.returncode == 0, done.stderr
    scored = lines(folder / "scored.jsonl")
    assert [row["score"] for row in scored] == [1.0, 0.0, None, 0.0]
    assert scored[0]["extra"] == {"a": [None, "ü"]}
    assert list(scored[0])[-5:] == ["score", "verdicts", "unknown", "judge_model", "criteria_from"]
    assert [row["criteria_from"] for row in scored] == ["instruction"] * 2 + [None, "instruction"]
    assert (scored[2]["verdicts"], scored[2]["unknown"]) == ([], 0)
    assert {row["judge_model"] for row in scored} == {"j"}
    assert [one["verdict"] for one in scored[0]["verdicts"]] == ["pass", "pass"]
    assert len(endpoint.asked()) == 2
    assert "1 left out: 1 without a response" in done.stderr
    assert "the rows had score already; they are replaced" in done.stderr
    assert "scored 4 rows: mean 0.333" in done.stdout
    assert "1 of these without criteria" in done.stdout
    assert "3 calls paid, 0 reused" in done.stdout  # One asks whether the judge is there.


def test_the_same_command_pays_nothing_again_and_changes_pay_for_what_is_new(folder):
    with Endpoint() as endpoint:
        first = score(folder, endpoint, "--json")
        assert json.loads(first.stdout)["calls"]["paid"] == 1 + 3
        before = (folder / "scored.jsonl").read_bytes()
        again = score(folder, endpoint, "--json")
        assert json.loads(again.stdout)["calls"] == {"paid": 0, "reused": 3, "retried": 0}
        assert (folder / "scored.jsonl").read_bytes() == before
        answers(folder / "rows.jsonl", 4)
        rubrics(folder / "rubrics.jsonl", 4)
        more = score(folder, endpoint, "--json")
        assert json.loads(more.stdout)["calls"]["paid"] == 1
        elsewhere = score(
            folder, endpoint, "--json", "--out", "other.jsonl", "--reuse", "scored.jsonl"
        )
        assert json.loads(elsewhere.stdout)["calls"]["paid"] == 0
        assert len(endpoint.asked()) == 4
        another = score(folder, endpoint, "--json", "--judge-model", "k")
    assert json.loads(another.stdout)["calls"]["paid"] == 1 + 4
    assert (folder / "scored.jsonl.journal.sqlite").is_file()
    assert {path.name for path in folder.iterdir() if path.suffix == ".new"} == set()


def test_what_is_said_names_the_judge_and_why_calls_failed(folder):
    with Endpoint(lambda body, number: error(400, "not this") if number == 1 else None) as endpoint:
        said = json.loads(score(folder, endpoint, "--json", "--out", "one.jsonl").stdout)
        text = score(folder, endpoint, "--quiet", "--out", "one.jsonl").stdout
    assert (said["judge_model"], said["out"], said["failed"]) == ("j", "one.jsonl", 1)
    assert "not this" in said["last_failure"]
    assert text.splitlines()[-2:] == ["judge: j", "rows: one.jsonl"]
    assert "failed" not in text, "the same command asked again"


def test_criteria_that_say_the_same_are_one_line(folder):
    summary = ScoreSummary(texts={"a": "is short", "b": "is short", "c": "rhymes"})
    summary.outcomes.update({("a", "pass"): 3, ("b", "fail"): 1, ("c", "pass"): 2})
    summary.failed, summary.last_failure = 2, "bad_request: not this"
    shown = list(format_summary(summary, 0))
    assert "  the last that failed: bad_request: not this" in shown
    assert [line.partition(") of ")[2] for line in shown[-2:]] == [
        "4 pass: The response is short",
        "2 pass: The response rhymes",
    ]


def test_a_budget_stops_it_and_more_budget_goes_on(folder):
    answers(folder / "rows.jsonl", 30)
    rubrics(folder / "rubrics.jsonl", 30)

    def script(body: dict[str, Any], number: int) -> web.Response:
        said = completion(verdicts(body["messages"][-1]["content"]), body)
        usage = {"prompt_tokens": 400, "completion_tokens": 100, "total_tokens": 500}
        return web.json_response(json.loads(said.text or "") | {"usage": usage})

    with Endpoint(script) as endpoint:
        stopped = score(folder, endpoint, "--max-tokens", "6000", "--concurrency", "1")
        assert stopped.returncode == 4
        assert not (folder / "scored.jsonl").exists()
        paid = len(endpoint.asked())
        assert 0 < paid < 30
        done = score(folder, endpoint, "--json")
        assert len(endpoint.asked()) == 30
    assert json.loads(done.stdout)["calls"] == {"paid": 30 - paid, "reused": paid, "retried": 0}


def test_a_price_is_needed_for_a_cap_and_costs_are_told(folder):
    prices = folder / "prices.toml"
    prices.write_text("j = { input = 1.0, output = 2.0 }\n")
    with Endpoint() as endpoint:
        unpriced = score(folder, endpoint, "--max-cost", "1")
        assert (unpriced.returncode, endpoint.bodies) == (2, [])
        done = score(folder, endpoint, "--max-cost", "1", "--prices", prices, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cost_usd"] > 0


def test_ctrl_c_finishes_what_is_in_flight_and_the_same_command_goes_on(folder):
    answers(folder / "rows.jsonl", 40)
    rubrics(folder / "rubrics.jsonl", 40)
    with Endpoint() as endpoint:
        endpoint.latency = 0.3
        arguments = [
            "score", "rows.jsonl", "--criteria", "rubrics.jsonl", "--out", "scored.jsonl",
            "--judge-model", "j", "--base-url", endpoint.url, "--concurrency", "4",
        ]  # fmt: skip
        process = subprocess.Popen(
            command(*arguments), cwd=folder, env=env_of({}), stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: len(endpoint.asked()) >= 6)
        refused = refloom(*arguments, cwd=folder)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, refused.returncode) == (130, 2), said
        assert f"pid {process.pid}" in refused.stderr
        assert "the same command goes on" in said
        assert not (folder / "scored.jsonl").exists()
        endpoint.latency = 0.0
        done = refloom(*arguments, "--json", cwd=folder)
        assert done.returncode == 0
        assert len(endpoint.asked()) == 40
    assert json.loads(done.stdout)["calls"]["paid"] < 40
    assert len(lines(folder / "scored.jsonl")) == 40


def wait_for(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to be")


def test_killed_and_given_again_nothing_is_paid_twice(folder):
    answers(folder / "rows.jsonl", 24)
    rubrics(folder / "rubrics.jsonl", 24)
    with Endpoint() as endpoint:
        endpoint.latency = 0.2
        for least in (4, 10):
            process = subprocess.Popen(
                command(
                    "score", "rows.jsonl", "--criteria", "rubrics.jsonl", "--out", "scored.jsonl",
                    "--judge-model", "j", "--base-url", endpoint.url, "--concurrency", "2",
                ), cwd=folder, env=env_of({}), stderr=subprocess.DEVNULL,
            )  # fmt: skip
            wait_for(lambda least=least: len(endpoint.asked()) >= least)
            process.kill()
            process.wait()
        assert list(folder.glob("scored.jsonl.*.new"))
        endpoint.latency = 0.0
        done = score(folder, endpoint)
        assert done.returncode == 0, done.stderr
        # Those in flight at a kill may be asked again, and no others.
        assert 24 <= len(endpoint.asked()) <= 24 + 2 * 2
    assert len(lines(folder / "scored.jsonl")) == 24
    assert not list(folder.glob("scored.jsonl.*.new"))


def test_a_wrong_key_ends_it_before_any_row_is_judged(folder):
    refused = web.json_response(
        {"error": {"message": "bad key", "code": "invalid_api_key"}}, status=401
    )
    with Endpoint(preflight=lambda body, n: refused) as endpoint:
        started = time.monotonic()
        done = score(folder, endpoint)
        assert (done.returncode, endpoint.bodies) == (4, [])
        assert time.monotonic() - started < 3
    assert not (folder / "scored.jsonl").exists()


def test_no_heavy_package_is_loaded_for_rubrics_and_a_remote_judge(folder):
    code = (
        "import sys\nfrom refloom.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n"
        "    heavy = {'torch', 'faiss', 'langgraph', 'pyarrow', 'datasets'} & set(sys.modules)\n"
        "    sys.stderr.write(f'heavy: {sorted(heavy)}')"
    )
    with Endpoint() as endpoint:
        arguments = [
            "score", "rows.jsonl", "--criteria", "rubrics.jsonl", "--out", "scored.jsonl",
            "--judge-model", "j", "--base-url", endpoint.url,
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=folder, env=env_of({}), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stderr


def test_why_there_is_a_wait_is_told_once(folder):
    down = {1, 2, 4}
    with Endpoint(lambda body, n: error(503, "gone for lunch") if n in down else None) as endpoint:
        done = score(folder, endpoint)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("gone for lunch") == 1


def test_what_one_row_holds_costs_that_row_alone(folder):
    def script(body, number):
        if "Since 1" in body["messages"][-1]["content"]:
            return error(400, "flagged by the content filter", "content_filter")
        return None

    with Endpoint(script) as endpoint:
        done = score(folder, endpoint, "--json")
    assert done.returncode == 0, done.stderr
    scored = lines(folder / "scored.jsonl")
    assert [row["score"] for row in scored] == [1.0, None, 1.0]
    assert scored[1]["unknown"] == 2
    assert "could not be asked" in scored[1]["verdicts"][0]["reason"]
    assert json.loads(done.stdout)["failed"] == 0


def test_where_most_calls_fail_it_stops(folder):
    answers(folder / "rows.jsonl", 60)
    rubrics(folder / "rubrics.jsonl", 60)
    with Endpoint(lambda body, n: error(400, "no such field: x")) as endpoint:
        done = score(folder, endpoint, "--concurrency", "1")
        assert done.returncode == 3, done.stderr
        assert "--max-failure-rate" in done.stderr
        assert len(endpoint.asked()) < 60
    assert not (folder / "scored.jsonl").exists()


def test_unknown_verdicts_are_counted_and_never_a_zero(folder):
    def script(body, number):
        prompt = body["messages"][-1]["content"]
        said = verdicts(prompt, "pass")
        for one in said["verdicts"]:
            one["evidence"] = "words that stand nowhere"
        return said

    with Endpoint(script) as endpoint:
        done = score(folder, endpoint, "--json")
    summary = json.loads(done.stdout)
    assert (summary["without_score"], summary["unknown"], summary["verdicts"]) == (3, 6, 6)
    assert {row["score"] for row in lines(folder / "scored.jsonl")} == {None}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Why", "input": "0?", "output": "So."},
        {"prompt": "Why 0?", "completion": "So."},
        {"messages": [ASKED, ANSWERED]},
        {"conversations": [{"from": "human", "value": "Why 0?"}, {"from": "gpt", "value": "So."}]},
        {"conversations": ["Why 0?", "So."]},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {
            "messages": [
                {"role": "user", "content": "Why not?"},
                {"role": "assistant", "content": "Never."},
                ASKED,
                ANSWERED,
            ]
        },
    ],
)  # fmt: skip
def test_rows_of_every_shape_are_read(folder, row):
    write(folder / "rows.jsonl", row)
    with Endpoint() as endpoint:
        done = score(folder, endpoint)
        assert done.returncode == 0, done.stderr
        assert tagged(endpoint.asked()[0]["messages"][-1]["content"], "response") == ["So."]
    (scored,) = lines(folder / "scored.jsonl")
    assert (scored["score"], scored["criteria_from"]) == (1.0, "instruction")
    assert {name: scored[name] for name in row} == row


def talk(first: str, *more: str) -> list[dict[str, str]]:
    """A conversation that ends in the same way, whatever it is about."""
    said = ("user", first), ("assistant", "Shall I go on?"), ("user", "Yes, please.")
    turns = [{"role": role, "content": content} for role, content in said]
    return turns + [{"role": "assistant", "content": content} for content in more]


def test_conversations_that_end_with_the_same_words_have_rubrics_of_their_own(folder):
    def rubric(text: str) -> list[dict[str, Any]]:
        return [{"criterion": text, "points": 5, "tags": []}]

    write(
        folder / "rubrics.jsonl",
        {"prompt": talk("I have a fever."), "rubrics": rubric("asks how high it is")},
        {"prompt": talk("My leg hurts."), "rubrics": rubric("asks which leg it is")},
        {"prompt": "Why?", "rubrics": rubric("gives a reason")},
        {"prompt": [*talk("Hello.")[:2], {"role": "user", "content": "Whence?"}],
         "rubrics": rubric("names the place")},
    )  # fmt: skip
    brief = {"role": "system", "content": "Be brief."}
    write(
        folder / "rows.jsonl",
        {"messages": talk("I have a fever.", "How high?")},
        {"messages": [brief, *talk("My  leg hurts.", "Which one?")]},
        {"messages": talk("I am tired.", "Sleep.")},
        {"instruction": "Yes, please.", "response": "Here it is."},
        {"messages": [brief, {"role": "user", "content": "Why?"},
                      {"role": "assistant", "content": "So."}]},
        {"instruction": "Whence?", "response": "From there."},
    )  # fmt: skip
    with Endpoint() as endpoint:
        done = score(folder, endpoint)
    assert done.returncode == 0, done.stderr
    asked = ["\n".join(tagged(body["messages"][-1]["content"], "criterion"))
             for body in endpoint.asked()]  # fmt: skip
    assert sorted(text.partition("The response ")[2].strip(" .") or text for text in asked) == [
        "asks how high it is", "asks which leg it is", "gives a reason", "names the place",
    ]  # fmt: skip
    found = [row["criteria_from"] for row in lines(folder / "scored.jsonl")]
    assert found == ["instruction", "instruction", None, None, "instruction", "instruction"]


def test_other_columns_are_mapped_and_kept(folder):
    write(folder / "rows.jsonl", {"q": "Why 0?", "a": "So.", "response": "another thing"})
    with Endpoint() as endpoint:
        done = score(folder, endpoint, "--map", "instruction=q,response=a")
        assert done.returncode == 0, done.stderr
        assert tagged(endpoint.asked()[0]["messages"][-1]["content"], "response") == ["So."]
    (scored,) = lines(folder / "scored.jsonl")
    assert (scored["q"], scored["a"], scored["response"]) == ("Why 0?", "So.", "another thing")


def test_any_script_and_odd_values_are_written(folder):
    question = "Чому 🌊 так? \u202e"
    write(folder / "rubrics.jsonl", {"question": question, "rubric": RUBRIC})
    (folder / "rows.jsonl").write_text(
        json.dumps({"instruction": question, "response": "Бо вітер."})[:-1]
        + ', "odd": NaN, "half": "\\ud800"}\n'
    )
    with Endpoint() as endpoint:
        done = score(folder, endpoint)
    assert done.returncode == 0, done.stderr
    text = (folder / "scored.jsonl").read_text(encoding="utf-8")
    row = json.loads(text, parse_constant=pytest.fail)
    assert (row["instruction"], row["odd"], row["half"]) == (question, None, "\ud800")


def test_a_jury_by_the_command_line(folder):
    with Endpoint(lambda body, n: by_response(body, lambda text: body["model"] != "y")) as endpoint:
        done = score(folder, endpoint, "--judge-model", "x,y,z", "--limit", "1")
        assert done.returncode == 0, done.stderr
        assert sorted(body["model"] for body in endpoint.asked()) == ["x", "y", "z"]
    (row,) = lines(folder / "scored.jsonl")
    assert (row["score"], row["judge_model"]) == (1.0, "x,y,z")


def test_what_a_rubric_may_not_name_is_told_before_any_call(folder):
    item = {"criterion_id": "t", "description": "The response runs", "weight": 2, "must": True}
    rubrics(
        folder / "rubrics.jsonl",
        rubric=[*RUBRIC, {**item, "judged_by": "check", "check": "os:system"}],
    )
    with Endpoint() as endpoint:
        done = score(folder, endpoint)
    assert done.returncode == 0, done.stderr
    assert "3 items name a check that a file of rubrics may not (os:system)" in done.stderr
    assert done.stderr.index("os:system") < done.stderr.index("rows: 3")
    assert [row["unknown"] for row in lines(folder / "scored.jsonl")] == [1, 1, 1]


def test_a_persons_criteria_hold_for_all_rows_or_those_with_a_tag(folder):
    (folder / "own.toml").write_text(
        '[[criteria]]\ntext = "names the cause"\nid = "a"\n'
        '[[criteria]]\ntext = "is short"\ncheck = "regex:^.{1,20}$"\nid = "b"\n'
        '[[criteria]]\ntext = "is calm"\ntags = ["sea"]\nid = "c"\n'
        '[[criteria]]\ntext = "asks for one thing"\nof = "instruction"\nid = "d"\n'
    )
    write(
        folder / "rows.jsonl",
        {"instruction": "Why?", "response": "So it is."},
        {"instruction": "Why?", "response": "So it is and ever was.", "tags": ["sea"]},
    )
    with Endpoint() as endpoint:
        done = score(folder, endpoint, "--criteria", "own.toml")
    assert done.returncode == 0, done.stderr
    first, second = lines(folder / "scored.jsonl")
    assert [one["criterion_id"] for one in first["verdicts"]] == ["a", "b"]
    assert [one["verdict"] for one in second["verdicts"]] == ["pass", "fail", "pass"]
    assert (first["score"], second["score"]) == (1.0, round(10 / 15, 6))
    assert first["criteria_from"] == "instruction"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--out", "nowhere/scored.jsonl"], "nowhere"),
        (["--out", "scored.parquet"], "name it .jsonl"),
        (["--out", "rows.jsonl"], "is the file of the rows"),
        (["--out", "rubrics.jsonl"], "is the file of the criteria"),
        (["--out", "."], "name it .jsonl"),
        (["--criteria", "none.jsonl"], "none.jsonl: no such file"),
        (["--criteria", "empty"], "there is no run here"),
        (["--criteria", "bad.jsonl"], "bad.jsonl: line 2"),
        (["--criteria", "tests.toml"], "--run-code"),
        (["--judge-model", "local,j"], "a jury gives written verdicts"),
        (["--judge-model", "x,y", "--judge-method", "logodds"], "jury"),
        (["--map", "instruction=nothing"], "no row to score"),
        (["--reuse", "empty"], "there is no run here"),
    ],
)
def test_what_cannot_be_used_is_told_before_any_call(folder, change, said):
    (folder / "empty").mkdir()
    write(folder / "bad.jsonl", {"question": "Why?", "rubric": RUBRIC}, {"question": "Why?"})
    (folder / "tests.toml").write_text('[[criteria]]\ntext = "runs"\ncheck = "python_tests"\n')
    with Endpoint() as endpoint:
        done = score(folder, endpoint, *change)
        assert (done.returncode, endpoint.bodies, endpoint.preflights) == (2, [], [])
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line[:5] != "rows:"]) == 1


@pytest.mark.parametrize("text", ["", '{"instruction": "Why?"}\n', '{"a": 1}\n', "not JSON\n"])
def test_a_file_without_a_row_to_score(folder, text):
    (folder / "rows.jsonl").write_text(text)
    with Endpoint() as endpoint:
        done = score(folder, endpoint)
        assert (done.returncode, endpoint.preflights) == (2, [])
    assert "rows.jsonl" in done.stderr


# --- the criteria of a run ---------------------------------------------------------------------

REFERENCES = references(4)
SEEDS = [words(f"seed {i}", 8) for i in range(4)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose criteria were tried, with a person's criteria; only to be read."""
    out = tmp_path_factory.mktemp("scored") / "run"
    own = write(
        out.parent / "own.jsonl",
        {"text": "is polite", "id": "polite", "must": False},
        {"text": "blames the reader", "id": "blame", "weight": -4},
        {"text": "is salty", "id": "salty", "tags": ["sea"]},
    )

    def critique(call: Call) -> Any:
        known = {one["instruction"]: one["response"] for one in REFERENCES}
        prompt = prompt_of(call)
        own = known.get(tagged(prompt, "instruction")[-1])
        good = own in (None, tagged(prompt, "response")[-1])
        return verdicts(prompt, "pass" if good else "fail")

    model = ScriptedModel(critique=critique)
    begun = build_run(
        out, model, SEEDS, given=REFERENCES, try_criteria=True, references_per_seed=2,
        criteria=own, judge_model="j",
    )  # fmt: skip
    asyncio.run(begun.run())
    return out


def accepted(run: Path) -> list[dict[str, Any]]:
    return lines(run / "accepted.jsonl")


async def score_by(
    run: Path, folder: Path, model: Any, *rows: Any, **settings: Any
) -> tuple[list[dict[str, Any]], ScoreRun, list[str]]:
    """Score rows by a run's criteria in this process, with an embedding of letters."""
    chosen = {"quiet": True, **settings}
    warnings: list[str] = []
    write(folder / "rows.jsonl", *rows)
    session = ScoreRun(
        Responses(str(folder / "rows.jsonl")),
        run,
        folder / "scored.jsonl",
        judge_settings(run, chosen),
        on_warning=warnings.append,
        complete=model,
        embed=letters,
    )
    async with asyncio.timeout(60):
        await session.run()
    return lines(folder / "scored.jsonl"), session, warnings


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file, with its size and the time of its last change, but for SQLite's own."""
    files = (
        path for path in folder.rglob("*") if path.suffix not in (".sqlite-shm", ".sqlite-wal")
    )
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
        if path.is_file()
    }


async def test_an_instruction_of_the_run_has_its_own_criteria(run, tmp_path):
    record = accepted(run)[0]
    before = tree(run)
    model = judging()
    scored, _, warnings = await score_by(
        run, tmp_path, model,
        {"instruction": f"  {record['instruction']}\n", "response": record["response"]},
        {"instruction": record["instruction"], "response": "Another thing."},
    )  # fmt: skip
    wanted = [one["id"] for one in rubric_of(record["criteria"])]
    for row in scored:
        assert [one["criterion_id"] for one in row["verdicts"]] == wanted
        assert row["criteria_from"] == "instruction"
        assert row["judge_model"] == "j"
    assert scored[0]["score"] == 1.0
    assert [call.stage for call in model.calls] == ["critique"] * 2
    assert {"salty"}.isdisjoint(wanted)
    assert (warnings, tree(run)) == ([], before)


async def test_another_instruction_has_those_of_the_references_retrieved_for_it(run, tmp_path):
    before, model = tree(run), judging()
    near = REFERENCES[2]
    scored, session, warnings = await score_by(
        run, tmp_path, model,
        {"instruction": near["instruction"], "response": "Of course."},
        {"instruction": words("quite another", 9), "response": "Of course."},
    )  # fmt: skip
    assert {row["criteria_from"] for row in scored} == {"retrieved"}
    first = {one["criterion_id"]: one["verdict"] for one in scored[0]["verdicts"]}
    known = {one["id"]: one for record in accepted(run) for one in record["criteria"]}
    of_reference = {id_ for id_ in first if known.get(id_, {}).get("reference_id")}
    # Each has two criteria, and those of two references that say the same are one.
    assert of_reference
    assert {known[id_]["reference_id"] for id_ in of_reference} >= {near["id"]}
    assert {"answers-instruction", "polite", "blame"} <= set(first)
    assert "salty" not in first
    # No extraction, no trial: what is asked is the judging of two responses.
    assert [call.stage for call in model.calls] == ["critique"] * 2
    assert session.summary.unlearned <= 1  # One was retrieved for no seed.
    assert (warnings, tree(run)) == ([], before)


async def test_a_reference_of_which_nothing_was_learned_has_the_built_in_criterion(run, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    for path in (copied / "memory").glob("characteristics.*"):
        path.unlink()
    (row,), session, _ = await score_by(
        copied, tmp_path, judging(), {"instruction": "Quite another?", "response": "Of course."}
    )
    ids = {one["criterion_id"] for one in row["verdicts"]}
    assert ids >= {"answers-instruction", "polite", "blame"}
    assert not any(id_.startswith("c") and id_[:5] != "check" for id_ in ids)
    assert session.summary.unlearned == 2
    assert not (copied / "memory" / "characteristics.sqlite").exists()


async def test_without_the_runs_memory_another_instruction_has_no_criteria(run, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(copied / "memory")
    record = accepted(run)[0]
    scored, _, warnings = await score_by(
        copied, tmp_path, judging(),
        {"instruction": "Quite another?", "response": "Of course."},
        {"instruction": record["instruction"], "response": record["response"]},
    )  # fmt: skip
    assert [row["criteria_from"] for row in scored] == [None, "instruction"]
    assert [row["score"] for row in scored] == [None, 1.0]
    assert "no references of the run" in warnings[0]


async def test_without_vectors_they_are_made_and_not_stored(run, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "memory" / "index.json").unlink()
    before = tree(copied)
    (row,), _, warnings = await score_by(
        copied, tmp_path, judging(), {"instruction": "Quite another?", "response": "Of course."}
    )
    assert row["criteria_from"] == "retrieved"
    assert "made now, and not stored" in warnings[0]
    assert tree(copied) == before


async def test_what_other_prompts_or_models_taught_of_a_reference_is_used(run, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    about = json.loads((copied / "run.json").read_text(encoding="utf-8"))
    about["settings"]["model"] = "of-another-version"
    (copied / "run.json").write_text(json.dumps(about), encoding="utf-8")
    row = {"instruction": REFERENCES[2]["instruction"], "response": "Of course."}
    for folder, source in (("as-it-was", run), ("now", copied)):
        (tmp_path / folder).mkdir()
        await score_by(source, tmp_path / folder, judging(), row, judge_model="j")
    then, now = (lines(tmp_path / name / "scored.jsonl")[0] for name in ("as-it-was", "now"))
    assert now == then


async def test_a_run_may_be_going_on(run, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    journal = Journal(copied)
    try:
        record = accepted(run)[0]
        (row,), _, _ = await score_by(
            copied, tmp_path, judging(), {"instruction": record["instruction"], "response": "So."}
        )
        assert row["criteria_from"] == "instruction"
        await journal.put_meta("still", "writing")
    finally:
        journal.close()


async def test_log_odds_take_the_bars_of_the_memory(tmp_path):
    out = tmp_path / "run"
    response = {one["instruction"]: one["response"] for one in REFERENCES}

    def odds(call: Call) -> float:
        instruction, said = (
            tagged(prompt_of(call), tag)[-1] for tag in ("instruction", "response")
        )
        return 6.0 if response.get(instruction, said) == said else 2.0

    await finish_run(
        out, ScriptedModel(odds=odds), SEEDS, given=REFERENCES, try_criteria=True,
        judge_method="logodds", max_criteria=0,
    )  # fmt: skip
    record = accepted(out)[0]
    row = {"instruction": record["instruction"], "response": "Something."}
    for value, verdict in ((3.0, "fail"), (5.0, "pass")):
        folder = tmp_path / verdict
        folder.mkdir()
        model = ScriptedModel(odds=lambda call, value=value: value)
        (scored,), _, _ = await score_by(out, folder, model, row)
        assert scored["verdicts"][0]["criterion_id"] == "answers-instruction"
        assert scored["verdicts"][0]["verdict"] == verdict
        assert "bar 3.98" in scored["verdicts"][0]["reason"]


async def test_rejected_rows_have_criteria_too(tmp_path):
    out = tmp_path / "run"
    model = judging(**{"answers-instruction": "fail"})
    await finish_run(out, model, SEEDS[:1], given=REFERENCES)
    (record,) = lines(out / "rejected.jsonl")
    (row,), _, _ = await score_by(
        out, tmp_path, judging(), {"instruction": record["instruction"], "response": "Other."}
    )
    assert (row["criteria_from"], row["score"]) == ("instruction", 1.0)


@pytest.mark.parametrize("name", ["rejected.jsonl", "scored.jsonl", "memory/scored.jsonl"])
def test_nothing_is_written_into_the_runs_directory(run, tmp_path, name):
    answers(tmp_path / "rows.jsonl")
    before = tree(run)
    with Endpoint() as endpoint:
        out = ("--criteria", run, "--out", run / name)
        done = score(tmp_path, endpoint, *out)
        assert (done.returncode, endpoint.preflights) == (2, [])
    assert "the run's directory is only read" in done.stderr
    assert tree(run) == before


def test_the_judge_is_the_runs_own_by_the_command_line(run, tmp_path):
    record = accepted(run)[0]
    write(tmp_path / "rows.jsonl", {"instruction": record["instruction"], "response": "Other."})
    with Endpoint() as endpoint:
        done = refloom(
            "score", "rows.jsonl", "--criteria", run, "--out", "scored.jsonl",
            "--base-url", endpoint.url, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert {body["model"] for body in endpoint.bodies + endpoint.preflights} == {"j"}
    assert lines(tmp_path / "scored.jsonl")[0]["judge_model"] == "j"


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """What is held of a row once it is written: its score and a hash, not its text."""

    async def model(call: Call) -> Reply:
        return Reply(json.dumps(verdicts(prompt_of(call))), "stop", dict(USAGE))

    text = "word " * 3000
    rubrics(tmp_path / "rubrics.jsonl", 1)
    peaks = []
    # Both more than the rows that are read ahead.
    for n in (200, 400):
        write(
            tmp_path / "rows.jsonl",
            *({"instruction": "Why 0?", "response": f"{i} {text}", "more": text} for i in range(n)),
        )
        session = ScoreRun(
            Responses(str(tmp_path / "rows.jsonl")),
            tmp_path / "rubrics.jsonl",
            tmp_path / f"{n}.jsonl",
            Settings(model="j", quiet=True, concurrency=4),
            complete=model,
        )
        tracemalloc.start()
        asyncio.run(session.run())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2e6


# --- files of scores ---------------------------------------------------------------------------


def scored_row(instruction: str, value: float | None, **fields: Any) -> dict[str, Any]:
    verdict = {"criterion_id": "a", "reason": "", "evidence": "", "score": None}
    outcome = "unknown" if value is None else "pass" if value > 0.5 else "fail"
    return {
        "instruction": instruction,
        "response": "So.",
        "score": value,
        "verdicts": [{**verdict, "verdict": outcome}],
        "unknown": int(value is None),
        "judge_model": "j",
        "criteria_from": "instruction",
        **fields,
    }


def compared(folder: Path, *more: object) -> dict[str, Any]:
    done = refloom("compare", "a.jsonl", "b.jsonl", "--json", *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_files_are_compared_row_by_row(tmp_path):
    write(
        tmp_path / "a.jsonl",
        *(scored_row(f"Why {i}?", 1.0) for i in range(8)),
        scored_row("Why 8?", 0.2), scored_row("Why 9?", 0.5), scored_row("Why 10?", None),
        scored_row("Only here?", 1.0),
    )  # fmt: skip
    write(
        tmp_path / "b.jsonl",
        *(scored_row(f"Why \n{i}?", 0.5) for i in range(11)),
        scored_row("Only there?", 1.0), scored_row("Nor here?", 1.0),
    )  # fmt: skip
    found = compared(tmp_path)
    assert (found["n"], found["wins"], found["losses"], found["ties"]) == (10, 8, 1, 1)
    assert found["difference"]["value"] == pytest.approx(0.37)
    assert 0 < found["difference"]["low"] < 0.37 < found["difference"]["high"] < 0.6
    assert (found["without_score"], found["only_a"], found["only_b"]) == (1, 1, 2)
    assert found["sign_p"] == pytest.approx(0.0391)
    assert found["mean_a"]["value"] == pytest.approx(0.87)
    assert found["criteria"][0]["a"]["n"] == 10
    text = refloom("compare", "a.jsonl", "b.jsonl", cwd=tmp_path).stdout
    assert "difference +0.370" in text
    assert "left out: 1 without a score, 1 only in a.jsonl, 2 only in b.jsonl" in text


@pytest.mark.parametrize(("ids", "difference"), [("xy", 0.0), ("pq", -1.0)])
def test_several_rows_of_one_instruction_are_paired_by_id_or_order(tmp_path, ids, difference):
    write(tmp_path / "a.jsonl", scored_row("Why?", 0.0, id="x"), scored_row("Why?", 1.0, id="y"))
    b = [scored_row("Why?", 1.0, id=ids[1]), scored_row("Why?", 0.0, id=ids[0])]
    write(tmp_path / "b.jsonl", *b)
    found = compared(tmp_path)
    assert (found["n"], found["instructions"]) == (2, 1)
    assert found["difference"]["value"] == 0.0
    assert (found["wins"], found["losses"]) == ((0, 0) if difference == 0.0 else (1, 1))


def test_conversations_that_end_with_the_same_words_are_no_pair(tmp_path):
    def row(first: str, value: float, id_: str) -> dict[str, Any]:
        of_it = [{**scored_row("", value)["verdicts"][0], "criterion_id": id_}]
        row = {**scored_row("", value), "messages": talk(first, "Well."), "verdicts": of_it}
        return {key: value for key, value in row.items() if key not in ("instruction", "response")}

    fever, leg = ("I have a fever.", 1.0, "a"), ("My leg hurts.", 0.0, "b")
    write(tmp_path / "a.jsonl", row(*fever), row(*leg))
    write(tmp_path / "b.jsonl", row(*leg), row(*fever))
    found = compared(tmp_path)
    assert (found["n"], found["instructions"], found["ties"]) == (2, 2, 2)


def test_equal_files_differ_by_nothing(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", *(scored_row(f"Why {i}?", 0.5) for i in range(4)))
    found = compared(tmp_path)
    assert (found["difference"]["value"], found["ties"], found["sign_p"]) == (0.0, 4, 1.0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (scored_row("Why?", 1.0, judge_model="k"), "different judges"),
        (scored_row("Why?", 1.0, verdicts=[]), "different criteria"),
        (scored_row("Whence?", 1.0), "no instruction in common"),
        ({"instruction": "Why?", "response": "So."}, "line 1: is no scored row"),
        ({**scored_row("Why?", 1.0), "response": None}, "are not found"),
        (scored_row("Why?", 1.0, score="1"), "line 1: 'score'"),
        (scored_row("Why?", 1.0, score=True), "line 1: 'score'"),
        (scored_row("Why?", 1.0, score=7), "line 1: 'score'"),
        (scored_row("Why?", float("nan")), "line 1: 'score'"),
        (scored_row("Why?", 1.0, verdicts=None), "line 1: 'verdicts'"),
        (scored_row("Why?", 1.0, verdicts="none"), "line 1: 'verdicts'"),
        (scored_row("Why?", 1.0, verdicts=["a"]), "line 1: 'verdicts'"),
        (scored_row("Why?", 1.0, verdicts=[{"verdict": "pass"}]), "line 1: 'verdicts'"),
        (scored_row("Why?", 1.0, verdicts=[{"criterion_id": [], "verdict": "pass"}]), "'verdicts'"),
        (scored_row("Why?", 1.0, verdicts=[{"criterion_id": "a", "verdict": 5}]), "'verdicts'"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, row, said):
    write(tmp_path / "a.jsonl", scored_row("Why?", 1.0))
    write(tmp_path / "b.jsonl", row)
    done = refloom("compare", "a.jsonl", "b.jsonl", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


def test_a_page_is_not_made_of_what_is_no_score(tmp_path):
    write(tmp_path / "a.jsonl", scored_row("Why?", 1.0), scored_row("Why?", 1.0, score="1"))
    done = refloom("report", "a.jsonl", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "line 2: 'score'" in done.stderr


def test_a_file_and_a_directory_are_not_compared(tmp_path):
    write(tmp_path / "a.jsonl", scored_row("Why?", 1.0))
    for paths in (["a.jsonl", "."], ["a.jsonl"], ["a.jsonl", "a.jsonl"], ["a.jsonl", "none.jsonl"]):
        done = refloom("compare", *paths, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), paths


def test_what_was_scored_is_compared_and_shown_with_the_words_of_criteria(folder):
    nasty = "<script>alert(1)</script>"
    write(
        folder / "rows.jsonl",
        *({"q": f"Why {i}?", "a": f"{nasty} {i}"} for i in range(3)),
    )
    flags = ["--map", "instruction=q,response=a"]
    with Endpoint(lambda body, n: by_response(body, lambda text: text[-1] == "1")) as endpoint:
        assert score(folder, endpoint, *flags, "--out", "b.jsonl").returncode == 0
        write(folder / "rows.jsonl", *({"q": f"Why {i}?", "a": f"{i} 1"} for i in range(3)))
        assert score(folder, endpoint, *flags, "--out", "a.jsonl").returncode == 0
    found = compared(folder, "--out", "page.html")
    assert (found["wins"], found["ties"], found["criteria"][0]["criterion"]) == (
        2, 1, "The response names the cause",
    )  # fmt: skip
    pages = [(folder / "page.html").read_text(encoding="utf-8")]
    done = refloom("report", "b.jsonl", cwd=folder)
    assert done.returncode == 0, done.stderr
    pages.append((folder / "b.html").read_text(encoding="utf-8"))
    for page in pages:
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)" in page
        assert "The response names the cause" in page
    assert "+0.667" in pages[0]
    assert "Comparison of scores" in pages[0]
    assert "Comparison of scores" not in pages[1]


def test_a_page_is_not_written_over_the_rows(folder):
    write(folder / "a.jsonl", scored_row("Why?", 1.0))
    done = refloom("report", "a.jsonl", "--out", "a.jsonl", cwd=folder)
    assert done.returncode == 2
    assert json.loads((folder / "a.jsonl").read_text())["score"] == 1.0


def test_many_rows_have_an_interval_too():
    values = [0.25, 0.75] * 3000
    few, many = mean_interval(values[:1000], range(1000)), mean_interval(values, range(6000))
    assert few.value == many.value == 0.5
    assert many.high - many.low == pytest.approx((few.high - few.low) / 6**0.5, rel=0.1)
    by_pair = mean_interval(values, [i // 2 for i in range(6000)])
    assert by_pair.high - by_pair.low < 0.001
    assert sign_test(1600, 1400) == pytest.approx(0.0003, abs=1e-4)
