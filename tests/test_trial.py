from collections.abc import Callable
from typing import Any

import pytest
from fakes import ScriptedModel, letters, prompt_of, screened, tagged, verdicts

from memory.references import Reference
from nodes.context import Context
from nodes.criteria import ANSWERS_ID
from nodes.llm import Call, CallFailed, CallOrigin
from nodes.state import Criterion, Usage
from nodes.trial import (
    NOISE_LOG_ODDS,
    InstructionTrial,
    TrialResult,
    corruptions,
    off_topic_response,
    spoil_instruction,
    try_criteria,
    try_instruction_criteria,
)

REFERENCE: Reference = {
    "id": "r1",
    "instruction": "How does a sundial tell the hour?",
    "response": "A sundial turns the path of the Sun into an angle. Its rod throws a shadow. The "
    "shadow moves evenly. So marks at equal angles stand for equal hours.",
}
OWN = REFERENCE["response"]
SPOILED = corruptions(REFERENCE["instruction"], OWN)
WRITTEN = Context(model="m", judge_method="verdict")
BY_ODDS = Context(model="m", judge_method="logodds")
PLACE = CallOrigin("reference r1")


def criterion(id_: str, must: bool = True) -> Criterion:
    return {
        "id": id_,
        "text": f"does {id_}",
        "must": must,
        "reference_id": "r1",
        "quote": "Its rod throws a shadow",
        "judged_by": "judge",
    }


def times(n: int) -> Usage:
    return {
        "calls": n,
        "prompt_tokens": 10 * n,
        "cached_tokens": 4 * n,
        "completion_tokens": 5 * n,
        "reasoning_tokens": 2 * n,
    }


def response_of(call: Call) -> str:
    """Which response a call judges: `own`, or how it was spoiled."""
    response = tagged(prompt_of(call), "response")[-1]
    return "own" if response == OWN else {v: k for k, v in SPOILED.items()}[response]


def writing(judgement: Callable[[str, str], str]) -> ScriptedModel:
    """A judge by a function of which response it is and the criterion's id."""

    def critique(call: Call) -> dict[str, Any]:
        return verdicts(prompt_of(call), lambda id_: judgement(response_of(call), id_))

    return ScriptedModel(critique=critique)


def weighing(score: Callable[[str, str], float]) -> ScriptedModel:
    """A judge of log-odds by a function of which response it is and the criterion's text."""

    def odds(call: Call) -> float:
        text = prompt_of(call).rpartition("the response ")[2].partition("?")[0]
        return score(response_of(call), text)

    return ScriptedModel(odds=odds)


async def tried(
    model: ScriptedModel, context: Context, *criteria: Criterion, reference: Reference = REFERENCE
) -> TrialResult:
    return await try_criteria(model, letters, context, PLACE, reference, criteria)


# Written verdicts


@pytest.mark.parametrize(
    ("own", "spoiled_ones", "outcome"),
    [
        ("pass", {"cut": "fail", "shuffled": "fail", "another": "fail"}, "earned"),
        ("pass", {"cut": "pass", "shuffled": "pass", "another": "fail"}, "earned"),
        ("pass", {"cut": "pass", "shuffled": "pass", "another": "not_applicable"}, "earned"),
        ("pass", {"cut": "pass", "shuffled": "pass", "another": "pass"}, "demoted"),
        ("fail", {"cut": "fail", "shuffled": "fail", "another": "fail"}, "dropped"),
        ("fail", {"cut": "pass", "shuffled": "pass", "another": "pass"}, "dropped"),
        ("not_applicable", {"cut": "fail", "shuffled": "fail", "another": "fail"}, "dropped"),
        ("nonsense", {"cut": "fail", "shuffled": "fail", "another": "fail"}, "dropped"),
    ],
)
async def test_a_criterion_has_to_earn_its_place(
    own: str, spoiled_ones: dict[str, str], outcome: str
) -> None:
    said = {"own": own, **spoiled_ones}
    model = writing(lambda response, id_: said[response] if id_ == "c1" else "pass")
    trial = await tried(model, WRITTEN, criterion("c1"))
    passed = {name: int(verdict == "pass") for name, verdict in spoiled_ones.items()}
    tested = {**criterion("c1"), "bar": None}
    tested["trial"] = {"references": 1, "own": 1, "spoiled": passed}
    expected = {
        "earned": [{**tested, "must": True}],
        "demoted": [{**tested, "must": False}],
        "dropped": [],
    }
    assert trial.criteria == expected[outcome]
    assert trial.counts == {"earned": 0, "demoted": 0, "dropped": 0} | {outcome: 1}


async def test_each_criterion_is_tried_by_itself_and_keeps_its_place() -> None:
    def judgement(response: str, id_: str) -> str:
        own = response == "own"
        return ({"a": own, "b": True, "c": False, "d": own}.get(id_, own) and "pass") or "fail"

    trial = await tried(writing(judgement), WRITTEN, *map(criterion, "abcd"))
    assert [(c["id"], c["must"]) for c in trial.criteria] == [
        ("a", True),
        ("b", False),
        ("d", True),
    ]
    assert trial.counts == {"earned": 2, "demoted": 1, "dropped": 1}


async def test_a_should_stays_one_however_well_it_tells() -> None:
    model = writing(lambda response, id_: "pass" if response == "own" else "fail")
    trial = await tried(model, WRITTEN, criterion("c1", must=False))
    assert [c["must"] for c in trial.criteria] == [False]
    assert trial.counts["earned"] == 1


async def test_a_trial_judges_the_reference_and_its_spoiled_responses_once_each() -> None:
    model = ScriptedModel()
    trial = await tried(model, WRITTEN, criterion("c1"), criterion("c2"))
    assert [response_of(call) for call in model.calls] == ["own", "cut", "shuffled", "another"]
    for prompt in model.asked("critique"):
        assert tagged(prompt, "instruction") == [REFERENCE["instruction"]]
        assert f'id="{ANSWERS_ID}"' in prompt
    assert len({call.seed for call in model.calls}) == 4
    assert trial.usage == times(4)


async def test_written_verdicts_have_no_bars() -> None:
    trial = await tried(ScriptedModel(), WRITTEN, criterion("c1"))
    assert (trial.answers_bar, trial.topic_bar) == (None, None)


# Log-odds

SCORES = {"own": 4.0, "cut": -1.0, "shuffled": 3.0, "another": -8.0}
MEAN = (-1.0 + 3.0 - 8.0) / 3


@pytest.mark.parametrize(
    ("own", "spoiled_one", "outcome"),
    [
        (4.0, -4.0, "earned"),
        (NOISE_LOG_ODDS + 0.1, 0.0, "earned"),
        (NOISE_LOG_ODDS - 0.1, 0.0, "demoted"),
        (0.1, 0.0, "demoted"),
        (-2.0, -4.0, "earned"),
        (-0.1, 0.0, "dropped"),
        (-4.0, 4.0, "dropped"),
    ],
)
async def test_by_log_odds_a_criterion_has_to_tell_the_reference_from_the_spoiled(
    own: float, spoiled_one: float, outcome: str
) -> None:
    model = weighing(lambda response, text: own if response == "own" else spoiled_one)
    trial = await tried(model, BY_ODDS, criterion("c1"))
    assert trial.counts == {"earned": 0, "demoted": 0, "dropped": 0} | {outcome: 1}
    assert [c["must"] for c in trial.criteria] == ([] if outcome == "dropped" else [False])


async def test_equal_scores_tell_nothing() -> None:
    trial = await tried(weighing(lambda response, text: 2.0), BY_ODDS, criterion("c1"))
    assert trial.criteria == []
    assert trial.counts["dropped"] == 1


async def test_a_bar_is_the_midpoint_of_own_and_spoiled_scores() -> None:
    def score(response: str, text: str) -> float:
        return SCORES[response] + (1.0 if text.startswith("fully answers") else 0.0)

    trial = await tried(weighing(score), BY_ODDS, criterion("c1"))
    (one,) = trial.criteria
    assert one["bar"] == pytest.approx((SCORES["own"] + MEAN) / 2, abs=0.05)
    assert trial.answers_bar == pytest.approx((SCORES["own"] + MEAN) / 2 + 1.0, abs=0.05)


async def test_the_built_in_criterion_is_tried_even_alone() -> None:
    trial = await tried(weighing(lambda response, text: SCORES[response]), BY_ODDS)
    assert trial.criteria == []
    assert trial.answers_bar == pytest.approx((SCORES["own"] + MEAN) / 2, abs=0.05)
    assert trial.counts == {"earned": 0, "demoted": 0, "dropped": 0}


async def test_by_log_odds_a_trial_asks_one_token_a_criterion_and_response() -> None:
    model = weighing(lambda response, text: SCORES[response])
    trial = await tried(model, BY_ODDS, criterion("c1"), criterion("c2"))
    assert len(model.calls) == 4 * 3
    assert len({call.seed for call in model.calls}) == 12
    assert trial.usage == times(12)


async def test_the_topic_bar_lies_between_the_own_and_a_mismatched_response() -> None:
    trial = await tried(weighing(lambda response, text: SCORES[response]), BY_ODDS)
    ask, own, other = await letters(
        [REFERENCE["instruction"], OWN, off_topic_response(REFERENCE["instruction"], OWN)]
    )
    low, high = sorted([float(ask @ own), float(ask @ other)])
    assert trial.topic_bar == pytest.approx((low + high) / 2, abs=1e-3)


# Without a trial


@pytest.mark.parametrize("must", [True, False])
async def test_untried_written_criteria_stand_as_they_are(must: bool) -> None:
    model = ScriptedModel()
    context = WRITTEN.model_copy(update={"try_criteria": False})
    trial = await tried(model, context, criterion("c1", must))
    assert trial.criteria == [{**criterion("c1", must), "bar": None}]
    assert (trial.answers_bar, trial.topic_bar) == (None, None)
    assert trial.counts == {"earned": 0, "demoted": 0, "dropped": 0}
    assert trial.usage == times(0)
    assert model.calls == []


async def test_untried_criteria_of_log_odds_are_no_musts_and_the_topic_bar_is_free() -> None:
    model = ScriptedModel()
    context = BY_ODDS.model_copy(update={"try_criteria": False})
    trial = await tried(model, context, criterion("c1"))
    assert [(c["must"], c["bar"]) for c in trial.criteria] == [(False, None)]
    assert trial.answers_bar is None
    assert trial.topic_bar is not None
    assert model.calls == []


# What goes wrong


@pytest.mark.parametrize("response", ["Yes", "42", "One sentence only, of no great length."])
@pytest.mark.parametrize("context", [WRITTEN, BY_ODDS], ids=["written", "log-odds"])
async def test_a_short_reference_can_be_tried(response: str, context: Context) -> None:
    reference: Reference = {"id": "r", "instruction": "What is it?", "response": response}
    trial = await tried(ScriptedModel(), context, criterion("c1"), reference=reference)
    assert sum(trial.counts.values()) == 1


async def test_a_trial_without_its_judge_fails() -> None:
    down = CallFailed("critique", "server", "down", times(1))
    with pytest.raises(CallFailed) as raised:
        await tried(ScriptedModel(critique=lambda call: down), WRITTEN, criterion("c1"))
    assert raised.value is down


async def test_a_trial_that_fails_half_way_loses_no_usage() -> None:
    def critique(call: Call) -> Any:
        if response_of(call) == "shuffled":
            return CallFailed("critique", "server", "down", times(1))
        return verdicts(prompt_of(call))

    with pytest.raises(CallFailed) as raised:
        await tried(ScriptedModel(critique=critique), WRITTEN, criterion("c1"))
    assert raised.value.usage == times(3)


def filtering(*refused: str) -> ScriptedModel:
    """A judge that passes only the reference's own response, behind a content filter."""

    def critique(call: Call) -> Any:
        if response_of(call) in refused:
            return CallFailed("critique", "filtered", "not that", times(1))
        return verdicts(prompt_of(call), "pass" if response_of(call) == "own" else "fail")

    return ScriptedModel(critique=critique)


async def test_a_spoiled_response_that_a_content_filter_refuses_is_left_out() -> None:
    trial = await tried(filtering("cut"), WRITTEN, criterion("c1"))
    assert [(c["id"], c["must"]) for c in trial.criteria] == [("c1", True)]
    assert trial.counts == {"earned": 1, "demoted": 0, "dropped": 0}
    assert trial.usage == times(4)


async def test_criteria_nobody_could_judge_are_no_musts() -> None:
    for refused in (("own",), ("cut", "shuffled", "another")):
        trial = await tried(filtering(*refused), WRITTEN, criterion("c1"))
        assert [(c["id"], c["must"]) for c in trial.criteria] == [("c1", False)]
        assert trial.counts == {"earned": 0, "demoted": 1, "dropped": 0}


# Criteria of instructions

ASK: Reference = {
    "id": "r2",
    "instruction": "I teach a class of nine: sort these numbers, and say why each step is needed.",
    "response": "Compare neighbours first. Swap them if they are in the wrong order.",
}
OWN_ASK = ASK["instruction"]
SPOILED_ASKS = spoil_instruction(OWN_ASK, ASK["response"])


def ask_of(call: Call) -> str:
    """Which instruction a call judges: `own`, or how it was spoiled."""
    instruction = tagged(prompt_of(call), "instruction")[-1]
    return "own" if instruction == OWN_ASK else {v: k for k, v in SPOILED_ASKS.items()}[instruction]


def screening(judgement: Callable[[str, str], str], *refused: str) -> ScriptedModel:
    """A judge by a function of which instruction it is and the criterion's id.

    Its content filter refuses some of the instructions.
    """

    def screen(call: Call) -> dict[str, Any] | CallFailed:
        which = ask_of(call)
        if which in refused:
            return CallFailed("screen", "filtered", "not that", times(1))
        return screened(prompt_of(call), lambda id_, _: judgement(which, id_))

    return ScriptedModel(screen=screen)


async def tried_on_ask(
    model: ScriptedModel, *criteria: Criterion, context: Context = WRITTEN
) -> InstructionTrial:
    return await try_instruction_criteria(model, context, PLACE, ASK, criteria)


def own_only(which: str, id_: str) -> str:
    return "pass" if which == "own" else "fail"


async def test_criteria_of_instructions_are_shoulds_and_those_that_tell_most_come_first() -> None:
    def judgement(which: str, id_: str) -> str:
        return {"a": "pass", "b": own_only(which, id_), "c": "fail"}[id_]

    model = screening(judgement)
    trial = await tried_on_ask(model, *map(criterion, "abc"))
    assert [(c["id"], c["must"]) for c in trial.criteria] == [("b", False), ("a", False)]
    assert trial.counts == {"earned": 1, "demoted": 1, "dropped": 1}
    assert trial.criteria[0]["trial"] == {
        "references": 1,
        "own": 1,
        "spoiled": dict.fromkeys(SPOILED_ASKS, 0),
    }
    assert sorted(map(ask_of, model.calls)) == sorted(["own", *SPOILED_ASKS])


async def test_a_spoiled_instruction_that_a_content_filter_refuses_is_left_out() -> None:
    trial = await tried_on_ask(screening(own_only, "first_clause"), criterion("c1"))
    (earned,) = trial.criteria
    assert "first_clause" not in earned["trial"]["spoiled"]
    assert trial.counts == {"earned": 1, "demoted": 0, "dropped": 0}


async def test_criteria_of_an_instruction_nobody_could_judge_tell_nothing() -> None:
    for refused in (("own",), tuple(SPOILED_ASKS)):
        trial = await tried_on_ask(screening(own_only, *refused), criterion("c1"))
        assert [c["id"] for c in trial.criteria] == ["c1"]
        assert trial.counts == {"earned": 0, "demoted": 1, "dropped": 0}


@pytest.mark.parametrize(
    ("refused", "bar"),
    [((), -1.0), (("first_clause",), -1.0), (("own",), None), (tuple(SPOILED_ASKS), None)],
)
async def test_a_content_filter_costs_the_bar_of_a_question_and_no_reference(
    refused: tuple[str, ...], bar: float | None
) -> None:
    def odds(call: Call) -> float | CallFailed:
        which = ask_of(call)
        if which in refused:
            return CallFailed("screen", "filtered", "not that", times(1))
        return 2.0 if which == "own" else -1.0

    trial = await tried_on_ask(ScriptedModel(odds=odds), context=BY_ODDS)
    assert trial.answerable_bar == pytest.approx(bar, abs=0.01)
    assert trial.criteria == []
