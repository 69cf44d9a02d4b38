"""A jury: several models judge, through the real graph and through whole runs."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from fakes import Endpoint, ScriptedModel, criterion_ids, letters, prompt_of, tagged, verdicts
from processes import refloom
from pydantic import ValidationError
from runs import (
    SEEDS,
    CountingModel,
    all_rows,
    build_run,
    finish_run,
    references,
    rows,
    stable_rows,
)

from graph.builder import build_graph
from memory.references import Reference
from nodes.context import Context
from nodes.criteria import ANSWERS_ID, verdict
from nodes.judge import combine, judge
from nodes.learn import learned_key
from nodes.llm import Call, CallFailed, CallOrigin, Reply, draw_seed, make_call
from nodes.state import Criterion, Usage, Verdict
from refloom.data.read import ReadReport
from refloom.data.record_stats import JuryVotes
from refloom.errors import InputError
from refloom.evaluation.agreement import jury_agreement
from refloom.evaluation.judge_check import judge_check
from refloom.evaluation.judge_check.tables import format_judge_check
from refloom.evaluation.judging import judge_settings_over
from refloom.evaluation.report import report
from refloom.evaluation.report.samples import judge_check_section
from refloom.runs.client import Endpoints
from refloom.runs.cost import Price, Prices
from refloom.runs.doctor import examine
from refloom.runs.estimate import estimate
from refloom.runs.preflight import preflight_calls
from refloom.runs.retry import DrawLog
from refloom.serve.request_limits import RequestRefused, _check_settings
from refloom.settings import Settings

JURY = "a,b,c"
REFERENCE: Reference = {
    "id": "tides",
    "instruction": "Why are there two tides a day?",
    "response": "The Moon pulls on the near side most. The Earth is pulled from the far side. "
    "So there are two bulges, and the Earth turns through both in a day.",
}
ONE_CALL: Usage = {"calls": 1, "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 0}
PASS, FAIL, UNKNOWN, NEITHER = "pass", "fail", "unknown", "not_applicable"
Rule = Callable[[str, str, str], Any]


def jury_of(rule: Rule, **stages: Any) -> ScriptedModel:
    """Jurors whose verdict on a criterion is `rule(juror, criterion id, response)`.

    What is no verdict is what the call brings: a reply, or an exception.
    """

    def critique(call: Call) -> Any:
        prompt = prompt_of(call)
        response = tagged(prompt, "response")[-1]
        said = {id_: rule(call.model, id_, response) for id_ in criterion_ids(prompt)}
        odd = [one for one in said.values() if not isinstance(one, str)]
        if odd:
            return odd[0]
        found = verdicts(prompt, lambda id_: said[id_])
        for one in found["verdicts"]:
            one["reason"] = f"{call.model} on {one['criterion_id']}"
        return found

    return ScriptedModel(critique=critique, **stages)


async def run(model: ScriptedModel, **context: Any) -> dict[str, Any]:
    options = {"model": "m", "judge_model": JURY, "try_criteria": False, **context}
    graph = build_graph(complete=model, embed=letters)
    given: Any = {"seed": {"instruction": "How waves form"}, "references": [REFERENCE]}
    out = await graph.ainvoke(given, context=Context(**options))
    (sample,) = out["samples"]
    return dict(sample)


def last_verdicts(sample: dict[str, Any]) -> dict[str, Verdict]:
    return {v["criterion_id"]: v for v in sample["attempts"][-1]["verdicts"]}


# Combining


@pytest.mark.parametrize(
    ("votes", "outcome", "of"),
    [
        ([PASS, PASS, FAIL], PASS, 0),
        ([FAIL, PASS, PASS], PASS, 1),
        ([NEITHER, NEITHER, FAIL], NEITHER, 0),
        ([NEITHER, PASS, FAIL], PASS, 1),
        ([PASS, NEITHER, UNKNOWN], PASS, 0),
        ([PASS, FAIL, FAIL], FAIL, 1),
        ([PASS, UNKNOWN, FAIL], FAIL, 2),
        # A tie is no pass.
        ([PASS, FAIL], FAIL, 1),
        ([PASS, PASS, FAIL, FAIL], FAIL, 2),
        # Nobody says fail, or more than half do not know: there is nothing to mend.
        ([PASS, UNKNOWN], UNKNOWN, 1),
        ([UNKNOWN, UNKNOWN, PASS], UNKNOWN, 0),
        ([FAIL, UNKNOWN, UNKNOWN], UNKNOWN, 1),
        ([PASS, PASS, UNKNOWN, UNKNOWN], UNKNOWN, 2),
    ],
)
def test_more_than_half_must_say_pass_or_not_applicable(votes, outcome, of):
    jurors = [f"juror {n}" for n in range(len(votes))]
    said = [[verdict("c", one, f"reason {n}", f"quote {n}")] for n, one in enumerate(votes)]
    (joint,) = combine(jurors, said)
    assert joint["verdict"] == outcome
    assert (joint["reason"], joint["evidence"]) == (f"reason {of}", f"quote {of}")
    assert joint["jurors"] == [
        {"model": juror, "verdict": one, "reason": f"reason {n}", "evidence": f"quote {n}"}
        for n, (juror, one) in enumerate(zip(jurors, votes, strict=True))
    ]


def test_the_verdicts_of_one_judge_stay_as_they_are():
    said = [verdict("c", "fail", "why", "quote")]
    assert combine(["judge"], [said]) == said


# Who is asked


def test_a_jury_is_read_from_the_judges_name():
    assert Context(model="m").jurors == ("m",)
    assert Context(model="m", judge_model="j").jurors == ("j",)
    assert Context(model="m", judge_model="a, ollama:b ,c").judge_names == "a,ollama:b,c"
    assert Context(model="m", judge_model=JURY).judge == "a"
    # A single model may have a comma in its name.
    assert Context(model="x,y.gguf", judge_model="x,y.gguf").jurors == ("x,y.gguf",)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"judge_model": "a,b,a"}, "each model once"),
        ({"judge_model": "a, a"}, "each model once"),
        ({"judge_model": "a,,b"}, "a name is missing"),
        ({"judge_model": "a,"}, "a name is missing"),
        ({"judge_model": JURY, "judge_method": "logodds"}, "logodds is for one judge"),
        ({"judge_model": "local,b"}, "an embedded model judges by log-odds"),
        ({"judge_model": JURY, "judge_votes": 3}, "judge_votes is for one judge"),
        ({"judge_model": ",".join(map(str, range(10)))}, "at most 9 models"),
    ],
)
def test_what_is_no_jury_is_refused(settings, why, tmp_path):
    with pytest.raises(ValidationError, match=why):
        Context(model="m", **settings)
    given = tmp_path / "r.jsonl"
    given.write_text(json.dumps(REFERENCE))
    flags = [w for k, v in settings.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    ended = refloom(
        "run",
        "--references",
        given,
        "--out",
        tmp_path / "out",
        "--model",
        "m",
        *flags,
        cwd=tmp_path,
    )
    assert (ended.returncode, why in ended.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_jurors_judge_and_the_first_one_gives_feedback_and_compares():
    context, place = Context(model="m", judge_model=JURY), CallOrigin("seed")

    def model_of(stage: Any, **more: Any) -> str:
        return make_call(stage, [], None, context, place, **more).model

    assert model_of("critique", juror="c") == "c"
    assert [model_of(stage) for stage in ("critique", "feedback", "compare")] == ["a", "a", "a"]
    assert [model_of(stage) for stage in ("extract", "generate", "refine")] == ["m", "m", "m"]


async def test_each_jurors_verdict_stands_in_the_row():
    model = jury_of(lambda juror, id_, response: FAIL if juror == "b" else PASS)
    sample = await run(model)
    assert (sample["status"], sample["judge_model"]) == ("accepted", JURY)
    judged = last_verdicts(sample)[ANSWERS_ID]
    assert judged["verdict"] == "pass"
    assert [(j["model"], j["verdict"], j["reason"]) for j in judged["jurors"]] == [
        ("a", "pass", f"a on {ANSWERS_ID}"),
        ("b", "fail", f"b on {ANSWERS_ID}"),
        ("c", "pass", f"c on {ANSWERS_ID}"),
    ]
    asked = [call for call in model.calls if call.stage == "critique"]
    assert [call.model for call in asked] == ["a", "b", "c"]
    # All are asked the same.
    assert len({(prompt_of(call), call.seed) for call in asked}) == 1
    assert "jurors" not in last_verdicts(sample)["not-empty"]


async def test_a_refinement_is_told_what_the_first_juror_says_who_fails_it():
    drafts = iter(("One draft of a fitting length is here.", "Another draft is here now."))
    model = jury_of(
        lambda juror, id_, response: FAIL if juror != "a" and response[0] == "O" else PASS,
        generate=lambda call: {"response": next(drafts)},
        refine=lambda call: {"plan": [], "response": next(drafts)},
    )
    sample = await run(model)
    assert (sample["status"], len(sample["attempts"])) == ("accepted", 2)
    (refined,) = model.asked("refine")
    assert f"b on {ANSWERS_ID}" in refined
    assert f"c on {ANSWERS_ID}" not in refined


async def test_a_tie_is_no_pass():
    model = jury_of(lambda juror, id_, response: FAIL if juror == "b" else PASS)
    sample = await run(model, judge_model="a,b", max_attempts=1)
    assert (sample["status"], sample["reason"]) == ("rejected", "criteria")


async def test_a_trial_is_the_jurys():
    """One juror who is wrong of a reference, or of spoiled ones, drops and demotes nothing."""
    own = REFERENCE["response"]

    def rule(juror: str, id_: str, response: str) -> str:
        right = PASS if response == own else FAIL
        wrong = FAIL if right == PASS else PASS
        return wrong if juror == "c" else right

    def all_pass(juror: str, id_: str, response: str) -> str:
        return PASS if juror != "c" or response == own else FAIL

    sample = await run(jury_of(rule), try_criteria=True, max_attempts=1)
    tried = [c for c in sample["criteria"] if c["reference_id"]]
    assert [c["must"] for c in tried] == [True, False]
    sample = await run(jury_of(all_pass), try_criteria=True, max_attempts=1)
    assert [c["must"] for c in sample["criteria"] if c["reference_id"]] == [False, False]


# Calls that fail


@pytest.mark.parametrize(
    "brought",
    [
        Reply(None, "content_filter", ONE_CALL),
        CallFailed("critique", "too_long", "the prompt is too long"),
        Reply("no JSON", "stop", ONE_CALL),
    ],
    ids=["filtered", "too long", "malformed"],
)
async def test_a_juror_whose_call_fails_for_its_content_does_not_know(brought):
    model = jury_of(lambda juror, id_, response: brought if juror == "b" else PASS)
    sample = await run(model)
    judged = last_verdicts(sample)[ANSWERS_ID]
    assert sample["status"] == "accepted"
    assert [j["verdict"] for j in judged["jurors"]] == ["pass", "unknown", "pass"]
    # With two jurors it takes both.
    sample = await run(
        jury_of(lambda juror, id_, response: brought if juror == "b" else PASS), judge_model="a,b"
    )
    assert (sample["status"], last_verdicts(sample)[ANSWERS_ID]["verdict"]) == (
        "rejected",
        "unknown",
    )


async def test_if_no_juror_may_judge_it_is_as_with_one_judge():
    said = CallFailed("critique", "refused", "it is not to be judged")
    for jurors in ("a", JURY):
        sample = await run(jury_of(lambda *_: said), judge_model=jurors)
        assert sample["status"] == "failed"
        assert sample["error"] == {
            "stage": "critique",
            "kind": "refused",
            "message": "it is not to be judged",
        }


async def test_trouble_of_an_endpoint_stays_what_it_is():
    trouble = CallFailed("critique", "timeout", "no answer in time")
    model = jury_of(lambda juror, id_, response: trouble if juror == "c" else PASS)
    sample = await run(model)
    assert (sample["status"], sample["error"]["kind"]) == ("failed", "timeout")
    # What the others used is counted.
    assert sample["usage"]["calls"] == 2 + 1


def test_replies_that_ended_a_sample_are_told_apart_by_juror():
    """Jurors are asked with the same seed; a later answer of one must not hide another's."""
    log, context, place = DrawLog(), Context(model="m", judge_model=JURY), CallOrigin("seed")
    for juror, finish in (("a", "length"), ("b", "stop")):
        call = make_call("critique", [], None, context, place, text=True, juror=juror)
        log.add(call, juror.encode(), Reply("text", finish, ONE_CALL))
    assert log.take_unusable(place.source) == [b"a"]


# What is learned


def test_the_memorys_key_holds_all_jurors_and_the_way_of_asking():
    def key(**more: Any) -> str:
        return learned_key(REFERENCE, Context(model="m", **more))

    assert key() == key(judge_model="m")
    keys = [key(judge_model=names) for names in ("a", "a,b", "b,a", "a,b,c")]
    keys += [key(judge_model="a", criteria_per_call=n) for n in (1, 2)]
    assert len(set(keys)) == len(keys)


# Criteria a call


def criterion(id_: str) -> Criterion:
    return {
        "id": id_,
        "text": f"does {id_}",
        "must": True,
        "reference_id": "r",
        "quote": "q",
        "judged_by": "judge",
    }


CRITERIA = [criterion(f"c{n}") for n in range(5)]


async def asked_apart(model: ScriptedModel, **context: Any) -> list[Verdict]:
    options = {"model": "m", "judge_model": "a", "judge_method": "verdict", **context}
    result = await judge(
        model,
        Context(**options),
        CallOrigin("seed", "0/0"),
        instruction="Why?",
        response="So that it is so.",
        criteria=CRITERIA,
        draw=3,
    )
    assert result.usage["calls"] == len(model.calls)
    return result.verdicts


@pytest.mark.parametrize(
    ("most", "parts"),
    [
        (1, [["c0"], ["c1"], ["c2"], ["c3"], ["c4"]]),
        (2, [["c0", "c1"], ["c2", "c3"], ["c4"]]),
        (5, [["c0", "c1", "c2", "c3", "c4"]]),
        (None, [["c0", "c1", "c2", "c3", "c4"]]),
    ],
)
async def test_criteria_are_asked_about_in_calls_of_at_most_so_many(most, parts):
    model = jury_of(lambda juror, id_, response: FAIL if id_ == "c3" else PASS)
    found = await asked_apart(model, criteria_per_call=most)
    assert [criterion_ids(prompt_of(call)) for call in model.calls] == parts
    assert [v["criterion_id"] for v in found] == [c["id"] for c in CRITERIA]
    assert [v["verdict"] for v in found] == [PASS, PASS, PASS, FAIL, PASS]
    seeds = [call.seed for call in model.calls]
    assert len(set(seeds)) == len(seeds)
    # The first part is asked as all of them would be.
    assert seeds[0] == draw_seed(0, "seed", "0/0", "critique", 3 * 2)


async def test_parts_votes_and_attempts_share_no_draw():
    taken: Counter[int] = Counter()
    for attempt in range(10):
        for vote in range(9):
            model = ScriptedModel(critique=lambda call: {"verdicts": []})
            await judge(
                model,
                Context(model="m", judge_model="a", criteria_per_call=1),
                CallOrigin("seed", "0/0"),
                instruction="Why?",
                response="So that it is so.",
                criteria=CRITERIA[:3],
                draw=attempt + 16 * vote,
            )
            taken.update(call.seed for call in model.calls)
    # Nothing could be read, so each part was asked about twice.
    assert len(taken) == 10 * 9 * 3 * 2
    assert set(taken.values()) == {1}


async def test_each_juror_is_asked_in_parts_and_only_again_for_what_is_missing():
    asked: Counter[tuple[str, str]] = Counter()

    def rule(juror: str, id_: str, response: str) -> Any:
        asked[juror, id_] += 1
        return "what?" if (juror, id_) == ("b", "c2") and asked[juror, id_] == 1 else PASS

    model = jury_of(rule)
    found = await asked_apart(model, judge_model=JURY, criteria_per_call=2)
    assert len(model.calls) == 3 * 3 + 1
    assert all(v["verdict"] == PASS and len(v["jurors"]) == 3 for v in found)
    assert [key for key, times in asked.items() if times == 2] == [("b", "c2")]


async def test_a_part_that_one_juror_may_not_see_leaves_the_others():
    filtered = CallFailed("critique", "filtered", "no", ONE_CALL)
    model = jury_of(lambda juror, id_, r: filtered if (juror, id_) == ("a", "c1") else PASS)
    found = await asked_apart(model, judge_model=JURY, criteria_per_call=1)
    assert [v["jurors"][0]["verdict"] for v in found] == [PASS, UNKNOWN, PASS, PASS, PASS]


# Whole runs


def varied(juror: str, id_: str, response: str) -> str:
    known = any(r["response"] == response for r in references())
    return FAIL if not known and (len(response) + len(juror + id_) * ord(juror)) % 3 == 0 else PASS


async def test_a_run_by_a_jury_is_resumed_and_repeats_itself(tmp_path):
    more = {"judge_model": "a, b,c", "criteria_per_call": 2, "per_seed": 2, "try_criteria": True}
    said = await finish_run(tmp_path / "one", jury_of(varied), SEEDS, **more)
    assert said["settings"]["judge_model"] == JURY
    await finish_run(tmp_path / "two", jury_of(varied), SEEDS[:4], **more)
    resumed = jury_of(varied)
    again = await finish_run(tmp_path / "two", resumed, SEEDS, **{**more, "judge_model": JURY})
    assert stable_rows(tmp_path / "two") == stable_rows(tmp_path / "one")
    assert again["calls"]["paid"] == said["calls"]["paid"]
    found = all_rows(tmp_path / "one")
    assert {row["judge_model"] for row in found} == {JURY}
    card = (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    assert "| jury | a, b, c (more than half of them had to pass a criterion)" in card
    assert "--judge-model a,b,c" in card and "--criteria-per-call 2" in card


@pytest.mark.parametrize("in_flight", [1, 32])
async def test_a_run_by_a_jury_that_is_cut_off_ends_as_an_undisturbed_one(tmp_path, in_flight):
    more = {
        "judge_model": JURY,
        "criteria_per_call": 1,
        "try_criteria": True,
        "concurrency": in_flight,
    }
    said = await finish_run(tmp_path / "whole", jury_of(varied), SEEDS[:3], **more)
    out = tmp_path / "cut"
    for at in (5, 12, 30):
        counting = CountingModel(jury_of(varied), at)
        task = asyncio.ensure_future(build_run(out, counting, SEEDS[:3], **more).run())
        counting.then = task.cancel
        with pytest.raises(asyncio.CancelledError):
            await task
    again = await finish_run(out, jury_of(varied), SEEDS[:3], **more)
    assert stable_rows(out) == stable_rows(tmp_path / "whole")
    assert again["calls"]["paid"] == said["calls"]["paid"]


async def test_the_report_tells_how_far_jurors_agree(tmp_path):
    await finish_run(tmp_path / "out", jury_of(varied), SEEDS, judge_model=JURY, per_seed=2)
    path = await report([tmp_path / "out"], embed=letters)
    page = path.read_text(encoding="utf-8")
    assert "Krippendorff" in page
    assert all(f"{a} and {b}" in page for a, b in (("a", "b"), ("a", "c"), ("b", "c")))
    await finish_run(tmp_path / "lone", jury_of(varied), SEEDS, judge_model="a")
    path = await report([tmp_path / "lone"], embed=letters)
    assert "Krippendorff" not in path.read_text(encoding="utf-8")


def test_agreement_is_counted_for_all_each_kind_and_each_pair():
    def votes(kind: str, *said: bool | None) -> JuryVotes:
        return JuryVotes(kind, ("a", "b", "c"), said, sum(map(bool, said)) > 1)

    counts = {
        votes("built in", True, True, False): 6,
        votes("built in", False, False, False): 3,
        votes("from a reference, must", True, True, None): 1,
    }
    found = jury_agreement(counts)
    assert found is not None
    assert [(row["of"], row["verdicts"]) for row in found["kinds"]] == [
        ("built in", 9),
        ("from a reference, must", 1),
    ]
    assert found["pairs"][0]["alpha"] == 1.0
    each = {row["model"]: row for row in found["jurors"]}
    assert each["a"]["overruled"]["value"] == 0.0
    assert (each["c"]["overruled"]["value"], each["c"]["overruled"]["n"]) == (0.6667, 9)
    assert each["c"]["unknown"]["value"] == 0.1
    assert jury_agreement({}) is None


async def test_a_judge_check_takes_a_jury(tmp_path):
    out = tmp_path / "out"
    await finish_run(out, jury_of(varied), SEEDS, judge_model=JURY, judge_votes=1)
    accepted = rows(out, "accepted")
    labels = tmp_path / "human.jsonl"
    lines = [
        {"id": row["id"], "criterion_id": ANSWERS_ID, "verdict": "pass" if n % 2 else "fail"}
        for n, row in enumerate(accepted)
    ]
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = Settings(model="m", judge_model=JURY, quiet=True)
    found = await judge_check(out, settings, human=labels, complete=jury_of(varied))
    assert found["judge"] == JURY
    assert found["human"]["verdicts"] == "the run"
    assert [row["of"] for row in found["human"]["jurors"]] == ["a", "b", "c"]
    assert found["human"]["alpha"] is not None
    assert [row["of"] for row in found["jury"]["pairs"]] == ["a and b", "a and c", "b and c"]
    assert "overruled" in format_judge_check(found)
    section = judge_check_section(found)
    assert section and any("overruled" in table.columns for table in section["tables"])
    other = Settings(model="m", judge_model="a,m", quiet=True)
    found = await judge_check(out, other, human=labels, complete=jury_of(varied))
    assert found["human"]["verdicts"] == "asked anew"
    assert [row["of"] for row in found["human"]["jurors"]] == ["a", "m"]
    assert found["flags"][-1] == "judges itself: one of 2 jurors is the generator (m)"


async def test_a_jury_is_not_checked_by_log_odds(tmp_path):
    settings = Settings(model="m", judge_model=JURY, quiet=True)
    model = jury_of(varied)
    with pytest.raises(InputError, match="a jury"):
        await judge_check(tmp_path, settings, methods=["verdict", "logodds"], complete=model)
    assert model.calls == []


def test_a_jury_in_place_of_a_runs_judge_does_not_take_its_votes():
    run_settings = {"model": "m", "judge_votes": 3, "criteria_per_call": 2}
    assert judge_settings_over(run_settings, {}).judge_votes == 3
    jury = judge_settings_over(run_settings, {"judge_model": JURY})
    assert (jury.judge_votes, jury.criteria_per_call) == (1, 2)


async def test_the_package_of_each_juror_is_looked_for(tmp_path):
    more = {"judge_model": "a,perplexity:sonar", "base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(InputError, match="'perplexity:sonar' needs the package"):
        await finish_run(tmp_path, None, **more)


async def test_each_juror_is_asked_once_before_the_run(tmp_path):
    with Endpoint() as writer, Endpoint() as judges:
        more = {"base_url": writer.url, "judge_base_url": judges.url, "judge_model": "m,b,c"}
        await finish_run(tmp_path, None, target=1, **more)
        assert [b["model"] for b in writer.preflights] == ["m"]
        assert [b["model"] for b in judges.preflights] == ["m", "b", "c"]
        assert {b["model"] for b in writer.bodies} == {"m"}
        assert {b["model"] for b in judges.bodies} == {"m", "b", "c"}
    settings = Settings(model="m", judge_model="m,b", base_url="http://127.0.0.1:1/v1")
    calls = preflight_calls(settings, Endpoints(settings).addresses)
    assert [call.model for call in calls] == ["m", "b"]


def test_a_provider_s_juror_is_at_its_provider_s(monkeypatch):
    monkeypatch.setenv("GROQ_API_KEY", "k")
    settings = Settings(
        model="groq:x", judge_model="groq:x,b", base_url="http://w/v1", judge_base_url="http://j/v1"
    )
    endpoints = Endpoints(settings)
    assert endpoints.addresses == ("http://w/v1", "http://j/v1")
    assert "k" in endpoints.api_keys()
    asked = [(call.model, call.judge) for call in preflight_calls(settings, endpoints.addresses)]
    assert asked == [("groq:x", False), ("b", True)]


async def test_a_cap_in_dollars_needs_the_price_of_every_juror(tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text("".join(f"{name} = {{ input = 1, output = 2 }}\n" for name in "mab"))
    more = {"judge_model": JURY, "max_cost": 5.0, "prices": prices}
    with pytest.raises(InputError, match="there is none for 'c'"):
        await finish_run(tmp_path / "out", jury_of(varied), **more)
    with prices.open("a") as file:
        file.write("c = { input = 100, output = 200 }\n")
    said = await finish_run(tmp_path / "out", jury_of(varied), **more)
    # Each call at its own model's price.
    each = (10 * 1 + 5 * 2) / 1e6
    calls = said["calls"]["by_stage"]["critique"]
    assert said["cost_by_stage"]["critique"] == pytest.approx(calls / 3 * each * 102)


async def test_the_dry_run_counts_the_calls_of_every_juror():
    prices = Prices({"m": Price(1, 1), "a": Price(1, 1), "b": Price(2, 2), "c": Price(3, 3)})

    async def critiques(**given: Any) -> dict[str, Any]:
        settings = Settings(model="m", **given)
        found = await estimate(
            settings, ReadReport(taken=3), ReadReport(taken=3), references(3), prices
        )
        stage: dict[str, Any] = found["expected"]["by_stage"]["critique"]
        return stage

    one, three = await critiques(judge_model="a"), await critiques(judge_model=JURY)
    assert three["calls"] == 3 * one["calls"]
    assert three["model"] == JURY
    assert three["cost_usd"] == pytest.approx(one["cost_usd"] * (1 + 2 + 3), rel=0.01)
    apart = await critiques(judge_model="a", criteria_per_call=1)
    assert apart["calls"] > 2 * one["calls"]


async def test_the_doctor_looks_at_every_juror():
    with Endpoint() as endpoint:
        found = await examine(Settings(model="m", judge_model="m,b,c", base_url=endpoint.url))
    assert [(model.model, model.role) for model in found.models] == [
        ("m", "writer"),
        ("b", "judge"),
        ("c", "judge"),
    ]


def test_a_client_of_a_server_may_name_no_unlisted_juror(monkeypatch):
    monkeypatch.delenv("REFLOOM_PROVIDERS", raising=False)
    _check_settings({"context": {"model": "m", "judge_model": JURY}})
    with pytest.raises(RequestRefused, match="judge_model"):
        _check_settings({"context": {"model": "m", "judge_model": "a,groq:x"}})
    with pytest.raises(RequestRefused, match="logodds is for one judge"):
        _check_settings({"context": {"model": "m", "judge_model": JURY, "judge_method": "logodds"}})


def test_a_juror_that_writes_is_named_once(tmp_path):
    given = tmp_path / "r.jsonl"
    given.write_text("".join(json.dumps(r) + "\n" for r in references()))

    def refused(body: dict[str, Any], number: int) -> web.Response:
        return web.json_response({"error": {"message": "wrong key"}}, status=401)

    with Endpoint(preflight=refused) as endpoint:
        flags = ("run", "--references", given, "--base-url", endpoint.url, "--model", "m")
        ended = refloom(*flags, "--out", "one", "--judge-model", "m,b,c", cwd=tmp_path)
        other = refloom(*flags, "--out", "two", "--judge-model", JURY, cwd=tmp_path)
    assert (ended.returncode, other.returncode) == (4, 4)
    assert ended.stderr.count("jury: m writes and judges") == 1
    assert "writes and judges" not in other.stderr
