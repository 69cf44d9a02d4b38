import math
from typing import Any

import pytest
from fakes import USAGE, ScriptedModel, criterion_ids, prompt_of, tagged, verdicts
from hypothesis import given
from hypothesis import strategies as st

from nodes.context import Context
from nodes.criteria import ANSWERS_ID, answers_instruction, rule_criteria
from nodes.judge import (
    Critiqued,
    JudgeResult,
    fold_text,
    judge,
    judge_by_log_odds,
    judge_by_verdict,
    log_odds,
)
from nodes.llm import Call, CallFailed, CallOrigin, ProviderStopped, Reply, draw_seed
from nodes.state import Criterion, Usage

ASK = "Why do tides come twice a day?"
RESPONSE = (
    "The Moon pulls the sea.  “Twice a day”, said she,\n"
    " the turning Earth meets a high tide: it's so."
)
WRITTEN = Context(model="writer", judge_model="judge", judge_method="verdict")
BY_ODDS = Context(model="writer", judge_model="judge", judge_method="logodds")
PLACE = CallOrigin("seed", "0/0")


def criterion(id_: str, bar: float | None = None) -> Criterion:
    return {
        "id": id_,
        "text": f"does {id_}",
        "must": True,
        "reference_id": "r",
        "quote": "q",
        "judged_by": "judge",
        "bar": bar,
    }


CRITERIA = [answers_instruction(None), criterion("c1"), criterion("c2")]
FINE = {
    "reason": "It gives the cause.",
    "evidence": "The Moon pulls the sea",
    "verdict": "pass",
}


def times(n: int) -> Usage:
    return {
        "calls": n,
        "prompt_tokens": 10 * n,
        "cached_tokens": 4 * n,
        "completion_tokens": 5 * n,
        "reasoning_tokens": 2 * n,
    }


def said(*rounds: dict[str, Any]) -> ScriptedModel:
    """A judge that says, round by round, something else of some criteria; `FINE` of the others.

    A criterion whose saying is None is left out of the answer.
    """
    left = list(rounds)

    def critique(call: Call) -> dict[str, Any]:
        odd = left.pop(0) if len(left) > 1 else left[0]
        found = []
        for id_ in criterion_ids(prompt_of(call)):
            one = odd.get(id_, {})
            if one is not None:
                found.append(one if isinstance(one, str) else {"criterion_id": id_, **FINE, **one})
        return {"verdicts": found}

    return ScriptedModel(critique=critique)


async def judged(model: ScriptedModel, draw: int = 0, response: str = RESPONSE) -> JudgeResult:
    return await judge_by_verdict(model, WRITTEN, PLACE, ASK, response, CRITERIA, draw)


def outcomes(found: JudgeResult) -> dict[str, str]:
    return {v["criterion_id"]: v["verdict"] for v in found.verdicts}


# Which way


async def test_rules_are_not_put_to_the_judge() -> None:
    model = ScriptedModel()
    found = await judge(
        model, WRITTEN, PLACE, instruction=ASK, response=RESPONSE, criteria=rule_criteria()
    )
    assert found == JudgeResult([], times(0))
    assert model.calls == []


@pytest.mark.parametrize(("context", "calls"), [(WRITTEN, 1), (BY_ODDS, 3)])
async def test_the_context_says_how_to_judge(context: Context, calls: int) -> None:
    model = ScriptedModel()
    found = await judge(
        model,
        context,
        PLACE,
        instruction=ASK,
        response=RESPONSE,
        criteria=[*CRITERIA, *rule_criteria()],
    )
    assert [v["criterion_id"] for v in found.verdicts] == [ANSWERS_ID, "c1", "c2"]
    assert outcomes(found) == {ANSWERS_ID: "pass", "c1": "pass", "c2": "pass"}
    assert len(model.calls) == calls
    assert found.usage == times(calls)
    assert all(call.judge and call.model == "judge" for call in model.calls)
    assert all(call.stage == "critique" and call.temperature == 0 for call in model.calls)


# Written verdicts


async def test_verdicts_come_in_the_order_of_the_criteria_and_as_they_were_written() -> None:
    def backwards(call: Call) -> dict[str, Any]:
        answer = verdicts(prompt_of(call), lambda id_: "fail" if id_ == "c1" else "pass")
        return {"verdicts": answer["verdicts"][::-1]}

    found = await judged(ScriptedModel(critique=backwards))
    assert [v["criterion_id"] for v in found.verdicts] == [ANSWERS_ID, "c1", "c2"]
    assert found.verdicts[1] == {
        "criterion_id": "c1",
        "verdict": "fail",
        "reason": "about c1",
        "evidence": "The Moon pulls",
        "score": None,
    }
    assert found.usage == times(1)


async def test_all_criteria_are_judged_in_one_call_with_the_candidate_last() -> None:
    model = ScriptedModel()
    await judged(model)
    (prompt,) = model.asked("critique")
    assert criterion_ids(prompt) == [ANSWERS_ID, "c1", "c2"]
    assert tagged(prompt, "instruction") == [ASK]
    assert tagged(prompt, "response")[-1] == RESPONSE
    assert model.calls[0].answer is Critiqued


UNTRUSTED: dict[str, Any] = {
    "missing": None,
    "misspelt verdict": {"verdict": "perhaps"},
    "empty verdict": {"verdict": ""},
    "unknown is not theirs to say": {"verdict": "unknown"},
    "verdict of another type": {"verdict": True},
    "verdict in a list": {"verdict": ["pass"]},
    "null verdict": {"verdict": None},
    "invented evidence": {"evidence": "The Sun pulls the sea"},
    "evidence from the instruction": {"evidence": ASK},
    "no evidence for a pass": {"evidence": ""},
    "only marks for evidence": {"evidence": ' "..." '},
    "null evidence": {"evidence": None},
    "invented evidence for a failure": {"verdict": "fail", "evidence": "The Sun pulls"},
    "null reason": {"reason": None},
    "numbered id": {"criterion_id": 1},
    "unknown id": {"criterion_id": "c9"},
    "no object": "c1: pass",
}


@pytest.mark.parametrize("odd", UNTRUSTED.values(), ids=UNTRUSTED)
async def test_a_verdict_that_cannot_be_trusted_is_asked_again_by_itself(odd: Any) -> None:
    model = said({"c1": odd}, {})
    found = await judged(model)
    assert outcomes(found) == {ANSWERS_ID: "pass", "c1": "pass", "c2": "pass"}
    assert [criterion_ids(prompt) for prompt in model.asked("critique")] == [
        [ANSWERS_ID, "c1", "c2"],
        ["c1"],
    ]
    assert found.usage == times(2)


@pytest.mark.parametrize("odd", UNTRUSTED.values(), ids=UNTRUSTED)
async def test_a_verdict_that_can_never_be_trusted_is_unknown_and_costs_no_other(odd: Any) -> None:
    model = said({"c1": odd})
    found = await judged(model)
    assert outcomes(found) == {ANSWERS_ID: "pass", "c1": "unknown", "c2": "pass"}
    unknown = found.verdicts[1]
    assert (unknown["criterion_id"], unknown["evidence"], unknown["score"]) == ("c1", "", None)
    assert unknown["reason"]
    assert len(model.calls) == 2


TRUSTED: dict[str, tuple[dict[str, Any], str]] = {
    "other case and room": ({"verdict": " Pass\n"}, "pass"),
    "capitals": ({"verdict": "FAIL"}, "fail"),
    "a failure for lack of something": ({"verdict": "fail", "evidence": ""}, "fail"),
    "a failure with evidence": ({"verdict": "fail"}, "fail"),
    "not applicable": ({"verdict": "not_applicable", "evidence": ""}, "not_applicable"),
    "not applicable, for some words": (
        {"verdict": "not_applicable", "evidence": "nothing of the kind"},
        "not_applicable",
    ),
    "white space": ({"evidence": "pulls  the\nsea. "}, "pass"),
    "over a line break": ({"evidence": "said she, the turning Earth"}, "pass"),
    "straight for curly quotes": ({"evidence": '"Twice a day", said she'}, "pass"),
    "other quotes": ({"evidence": "«Twice a day», said she"}, "pass"),
    "curly apostrophe": ({"evidence": "high tide: it’s so"}, "pass"),
    "in quotes": ({"evidence": '"The Moon pulls the sea."'}, "pass"),
    "with dots at the end": ({"evidence": "The Moon pulls ..."}, "pass"),
    "other case": ({"evidence": "the moon PULLS"}, "pass"),
    "more keys": ({"confidence": 0.9}, "pass"),
    "no reason": ({"reason": ""}, "pass"),
}


@pytest.mark.parametrize(("odd", "expected"), TRUSTED.values(), ids=TRUSTED)
async def test_a_verdict_is_read_as_kindly_as_it_is_safe(
    odd: dict[str, Any], expected: str
) -> None:
    model = said({"c1": odd})
    found = await judged(model)
    assert outcomes(found)["c1"] == expected
    assert len(model.calls) == 1


async def test_the_built_in_criterion_always_applies() -> None:
    away = {"verdict": "not_applicable"}
    model = said({ANSWERS_ID: away, "c1": away})
    found = await judged(model)
    assert outcomes(found) == {ANSWERS_ID: "unknown", "c1": "not_applicable", "c2": "pass"}
    assert [criterion_ids(prompt) for prompt in model.asked("critique")][1] == [ANSWERS_ID]


async def test_the_first_of_two_verdicts_on_a_criterion_counts() -> None:
    def twice(call: Call) -> dict[str, Any]:
        answer = verdicts(prompt_of(call), "fail")
        return {"verdicts": answer["verdicts"] + verdicts(prompt_of(call), "pass")["verdicts"]}

    found = await judged(ScriptedModel(critique=twice))
    assert set(outcomes(found).values()) == {"fail"}


async def test_a_second_ask_changes_nothing_that_was_settled() -> None:
    def critique(call: Call) -> dict[str, Any]:
        ids = criterion_ids(prompt_of(call))
        first = len(ids) == 3
        keep = [ANSWERS_ID, "c2"] if first else [ANSWERS_ID, "c1", "c2"]
        fine = {**FINE, "verdict": "pass" if first else "fail"}
        return {"verdicts": [{"criterion_id": id_, **fine} for id_ in keep]}

    found = await judged(ScriptedModel(critique=critique))
    assert outcomes(found) == {ANSWERS_ID: "pass", "c1": "fail", "c2": "pass"}


@pytest.mark.parametrize(
    "answer",
    ["I cannot judge this.", {"verdicts": "all pass"}, {"criteria": []}, ""],
    ids=["prose", "no list", "other key", "empty"],
)
async def test_a_judge_that_cannot_be_read_leaves_all_unknown(answer: Any) -> None:
    model = ScriptedModel(critique=lambda call: answer)
    found = await judged(model)
    assert set(outcomes(found).values()) == {"unknown"}
    assert len(model.calls) == 3
    assert found.usage == times(3)


async def test_a_judge_that_is_cut_leaves_all_unknown() -> None:
    model = ScriptedModel(critique=lambda call: Reply('{"verd', "length", dict(USAGE)))
    found = await judged(model)
    assert set(outcomes(found).values()) == {"unknown"}
    # It was asked for three times more, each time with more room.
    assert found.usage == times(4)


async def test_a_second_ask_that_cannot_be_read_costs_no_other_verdict() -> None:
    def critique(call: Call) -> Any:
        if len(criterion_ids(prompt_of(call))) == 1:
            return "hm"
        return {"verdicts": verdicts(prompt_of(call))["verdicts"][:2]}

    found = await judged(ScriptedModel(critique=critique))
    assert outcomes(found) == {ANSWERS_ID: "pass", "c1": "pass", "c2": "unknown"}
    assert found.usage == times(4)


@pytest.mark.parametrize(
    ("fault", "kind", "calls"),
    [
        (CallFailed("critique", "server", "down"), "server", 1),
        (Reply(None, "stop", dict(USAGE), refusal="No."), "refused", 4),
        (Reply(None, "content_filter", dict(USAGE)), "filtered", 4),
    ],
)
async def test_a_judge_that_is_not_there_fails_the_call_with_all_it_used(
    fault: Any, kind: str, calls: int
) -> None:
    def critique(call: Call) -> Any:
        first = len(criterion_ids(prompt_of(call))) == 3
        return {"verdicts": []} if first and not any(model.calls[:-1]) else fault

    model = ScriptedModel(critique=critique)
    with pytest.raises(CallFailed) as raised:
        await judged(model)
    assert raised.value.kind == kind
    assert raised.value.usage == times(calls)


async def test_a_stopped_provider_stops_the_judge() -> None:
    with pytest.raises(ProviderStopped):
        await judged(ScriptedModel(critique=lambda call: ProviderStopped("no quota")))


async def test_each_round_and_each_ask_of_it_has_a_seed_of_its_own() -> None:
    model = said({"c1": None})
    for draw in range(3):
        await judged(model, draw)
    seeds = [call.seed for call in model.calls]
    assert seeds == [draw_seed(0, "seed", "0/0", "critique", n) for n in range(6)]


async def test_an_empty_response_can_only_fail() -> None:
    found = await judged(said({"c1": {"verdict": "fail", "evidence": ""}}), response="")
    assert outcomes(found) == {ANSWERS_ID: "unknown", "c1": "fail", "c2": "unknown"}


@given(st.text(max_size=60), st.text(max_size=20))
def test_folding_twice_is_folding_once_and_keeps_what_is_inside(text: str, more: str) -> None:
    assert fold_text(fold_text(text)) == fold_text(text)
    assert fold_text(text) in fold_text(more + " " + text + " " + more)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a  b\n\tc", "a b c"),
        ("„so“ ‘it’ «is»", "'so' \"it\" `is`"),
        ("ENDS HERE.", "ends here"),
        ("and so on …", "and so on"),
    ],
)
def test_marks_and_white_space_fold_alike(left: str, right: str) -> None:
    assert fold_text(left) == fold_text(right)


# Log-odds


async def by_odds(
    scores: dict[str, float], criteria: list[Criterion], draw: int = 0
) -> tuple[JudgeResult, ScriptedModel]:
    def odds(call: Call) -> float:
        return next(s for text, s in scores.items() if f"response {text}?" in prompt_of(call))

    model = ScriptedModel(odds=odds)
    return await judge_by_log_odds(model, BY_ODDS, PLACE, ASK, RESPONSE, criteria, draw), model


@pytest.mark.parametrize(
    ("score", "bar", "expected"),
    [
        (1.0, None, "pass"),
        (-1.0, None, "fail"),
        (0.0, None, "fail"),
        (1.0, 2.0, "fail"),
        (3.0, 2.0, "pass"),
        (-1.0, -2.0, "pass"),
        (-3.0, -2.0, "fail"),
    ],
)
async def test_log_odds_pass_above_the_criterions_bar(
    score: float, bar: float | None, expected: str
) -> None:
    found, _ = await by_odds({"does c1": score}, [criterion("c1", bar)])
    (one,) = found.verdicts
    assert one["verdict"] == expected
    assert one["score"] == pytest.approx(score, abs=0.01)
    assert f"bar {bar or 0:.2f}" in one["reason"]
    assert one["evidence"] == ""


async def test_each_criterion_is_a_question_of_one_token() -> None:
    scores = {"fully answers the instruction": 3.0, "does c1": -3.0, "does c2": 1.0}
    found, model = await by_odds(scores, CRITERIA)
    assert outcomes(found) == {ANSWERS_ID: "pass", "c1": "fail", "c2": "pass"}
    assert found.usage == times(3)
    for call in model.calls:
        assert (call.answer, call.max_tokens, call.temperature) == (None, 1, 0.0)
        assert tagged(prompt_of(call), "response") == [RESPONSE]


async def test_the_questions_share_all_but_their_end() -> None:
    scores = {"fully answers the instruction": 3.0, "does c1": -3.0, "does c2": 1.0}
    _, model = await by_odds(scores, CRITERIA)
    starts = {prompt_of(call).rpartition("Question:")[0] for call in model.calls}
    assert len(starts) == 1
    assert RESPONSE in starts.pop()


async def test_no_two_questions_of_a_sample_share_a_seed() -> None:
    seeds = []
    for draw in range(10):
        criteria = [criterion(f"c{i}") for i in range(36)]
        scores = {f"does c{i}": 1.0 for i in range(36)}
        _, model = await by_odds(scores, criteria, draw)
        seeds += [call.seed for call in model.calls]
    assert len(set(seeds)) == 360


QUESTION = Call("critique", (), None, "judge", True, 1, 0.5, 1)


@pytest.mark.parametrize(
    ("odds", "expected"),
    [
        ({"yes": 0.5, "no": 0.5}, 0.0),
        ({"yes": 0.8, "no": 0.2}, math.log(4)),
        ({"yes": 0.2, "no": 0.8}, -math.log(4)),
        ({"yes": 1.0}, 9.21),
        ({"no": 1.0}, -9.21),
        ({"well": 1.0}, 0.0),
        ({}, 0.0),
    ],
)
async def test_log_odds_weigh_yes_against_no_within_bounds(
    odds: dict[str, float], expected: float
) -> None:
    asked: list[Call] = []

    async def complete(call: Call) -> Reply:
        asked.append(call)
        return Reply("Yes", "stop", dict(USAGE), odds=odds)

    score, usage = await log_odds(complete, QUESTION)
    assert score == pytest.approx(expected, abs=0.002)
    assert usage == times(1)
    assert asked[0].temperature == 0.0


async def test_an_endpoint_without_log_probabilities_cannot_judge_by_them() -> None:
    async def complete(call: Call) -> Reply:
        return Reply("Yes", "stop", dict(USAGE))

    with pytest.raises(CallFailed, match="--judge-method verdict") as raised:
        await log_odds(complete, QUESTION)
    assert raised.value.usage == times(1)


async def test_a_question_that_fails_loses_no_usage_of_those_before() -> None:
    def odds(call: Call) -> float:
        if "does c2" in prompt_of(call):
            raise CallFailed("critique", "server", "down", times(1))
        return 1.0

    with pytest.raises(CallFailed) as raised:
        await judge_by_log_odds(
            ScriptedModel(odds=odds), BY_ODDS, PLACE, ASK, RESPONSE, CRITERIA, 0
        )
    assert raised.value.usage == times(3)
