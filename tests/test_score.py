"""Scoring responses: one by one, whole files, and files of scores compared."""

from __future__ import annotations

import asyncio

from typing import Any

import pytest
from fakes import ScriptedModel, prompt_of, tagged, verdicts

from nodes.checks import run_safe_check
from nodes.context import Context
from nodes.llm import Call, CallFailed, ProviderStopped
from nodes.own_criteria import read_own_criterion
from nodes.state import Criterion
from refloom.evaluation.score import Scorer, open_scorer
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
