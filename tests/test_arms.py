"""Feedback arms through the real graph: what each asks, what it accepts, what arms share."""

from __future__ import annotations

import json

import pytest
from fakes import ScriptedModel, letters, prompt_of, tagged, verdicts, words
from pydantic import ValidationError

from graph.builder import build_graph
from memory.index import draw_other
from nodes.context import Context
from nodes.criteria import ANSWERS_ID
from nodes.critique import DRAWS_PER_VOTE
from nodes.judge import JudgeResult
from nodes.llm import CallFailed
from nodes.state import no_usage
from nodes.verdicts import vote

REFERENCES = [
    {
        "id": f"r{i}",
        "instruction": words(f"reference {i}", 10) + "?",
        "response": words(f"first {i}", 30) + ". " + words(f"then {i}", 20) + ".",
    }
    for i in range(4)
]
SEED = {"instruction": words("a seed", 8)}


def extracted(call):
    """Characteristics that say which reference they are from."""
    prompt = prompt_of(call)
    number = next(i for i, r in enumerate(REFERENCES) if r["response"] in prompt)
    quote = " ".join(REFERENCES[number]["response"].split()[:4])
    text = f"gives {('one', 'two', 'three', 'four')[number]} reasons for every claim"
    return {
        "subject_areas": ["one field"],
        "relevant_skills": ["one skill"],
        "characteristics": [{"text": text, "quote": quote, "must": True}],
    }


async def another(reference, avoid, random_seed):
    return draw_other(REFERENCES, reference, avoid, random_seed)


async def made(model, references=REFERENCES[:1], **context):
    graph = build_graph(complete=model, embed=letters, draw_other=another)
    settings = Context(model="m", try_criteria=False, **context)
    given = {"seed": SEED, "references": references}
    found = await graph.ainvoke(given, context=settings)
    return found["samples"]


def stages(model):
    return [call.stage for call in model.calls]


async def test_sample_level_feedback_is_one_criticism_and_one_refinement():
    model = ScriptedModel()
    (record,) = await made(model, feedback="sample")
    assert stages(model) == ["propose", "screen", "generate", "feedback", "refine"]
    assert (record["status"], record["feedback"]) == ("accepted", "sample")
    assert record["response"] == record["attempts"][1]["response"]
    assert len(record["attempts"][0]["feedback"]) == 2
    assert {c["judged_by"] for c in record["criteria"]} == {"check", "rule"}


async def test_the_criticism_sees_the_draft_and_no_reference_and_the_refinement_sees_it():
    model = ScriptedModel()
    (record,) = await made(model, feedback="sample")
    (criticised,), (refined,) = model.asked("feedback"), model.asked("refine")
    assert tagged(criticised, "response") == [record["attempts"][0]["response"]]
    assert "<reference" not in criticised
    assert REFERENCES[0]["response"] not in criticised + refined
    assert tagged(refined, "feedback") == record["attempts"][0]["feedback"]


async def test_a_refinement_that_breaks_a_rule_leaves_the_draft():
    model = ScriptedModel(refine=lambda call: {"plan": [], "response": "As an AI model I am not."})
    (record,) = await made(model, feedback="sample")
    assert record["status"] == "accepted"
    assert record["response"] == record["attempts"][0]["response"]


async def test_a_sample_both_of_whose_attempts_break_a_rule_is_rejected():
    model = ScriptedModel(
        generate=lambda call: {"response": "Lorem ipsum " + words("a", 30) + "."},
        refine=lambda call: {"plan": [], "response": "Lorem ipsum " + words("b", 30) + "."},
    )
    (record,) = await made(model, feedback="sample")
    assert (record["status"], record["reason"]) == ("rejected", "criteria")
    assert len(record["attempts"]) == 2


async def test_a_criticism_with_nothing_in_it_ends_with_the_draft():
    model = ScriptedModel(feedback=lambda call: {"feedback": [" "]})
    (record,) = await made(model, feedback="sample")
    assert stages(model) == ["propose", "screen", "generate", "feedback"]
    assert record["status"] == "accepted"


async def test_a_criticism_that_fails_costs_its_sample():
    model = ScriptedModel(feedback=lambda call: CallFailed("feedback", "refused", "no"))
    (record,) = await made(model, feedback="sample")
    assert (record["status"], record["error"]["stage"]) == ("failed", "feedback")


async def test_swapped_takes_the_criteria_of_a_reference_that_was_not_retrieved():
    model = ScriptedModel(extract=extracted)
    (record,) = await made(model, REFERENCES[:2], feedback="swapped")
    drawn = {c["reference_id"] for c in record["criteria"] if c["reference_id"]}
    assert drawn
    assert drawn <= {"r2", "r3"}
    assert record["reference_ids"] == ["r0", "r1"]


async def test_swapped_is_fixed_by_the_random_seed():
    drawn = []
    for seed in (0, 0, *range(1, 12)):
        (record,) = await made(
            ScriptedModel(extract=extracted), feedback="swapped", random_seed=seed
        )
        drawn.append(next(c["reference_id"] for c in record["criteria"] if c["reference_id"]))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


async def test_swapped_with_one_reference_says_what_it_needs():
    graph = build_graph(complete=ScriptedModel(), embed=letters, search=lambda *a: None)
    with pytest.raises(ValueError, match="needs another reference"):
        await graph.ainvoke(
            {"seed": SEED, "references": REFERENCES[:1]},
            context=Context(model="m", feedback="swapped", try_criteria=False),
        )


ARMS = ("reference", "sample", "none", "generic", "swapped")


async def test_paired_arms_make_the_same_calls_for_instructions_and_drafts():
    asked = {}
    for arm in ARMS:
        model = ScriptedModel(extract=extracted)
        await made(model, REFERENCES[:2], feedback=arm, paired=True)
        shared = [c for c in model.calls if c.stage in ("propose", "generate")]
        asked[arm] = [(c.messages, c.seed) for c in shared]
    assert len(asked["reference"]) == 2
    assert all(calls == asked["reference"] for calls in asked.values())
    assert "one skill" in asked["none"][0][0][1]["content"]


async def test_drafts_that_are_not_paired_know_their_criteria_and_paired_ones_do_not():
    texts = []
    for paired in (False, True):
        model = ScriptedModel(extract=extracted)
        await made(model, feedback="reference", paired=paired)
        texts += model.asked("generate")
    assert [len(tagged(text, "criterion")) for text in texts] == [1, 0]


@pytest.mark.parametrize("arm", ["none", "sample"])
async def test_an_arm_without_criteria_learns_nothing_of_references_by_itself(arm):
    model = ScriptedModel()
    await made(model, feedback=arm)
    assert "extract" not in stages(model)


def fails_once(times: int):
    """A judge that fails the built-in criterion the first so many times it is asked."""
    asked = []

    def judge(call):
        asked.append(call)
        return verdicts(prompt_of(call), lambda id_: "fail" if len(asked) <= times else "pass")

    return judge


async def test_one_verdict_that_alone_fails_a_response_is_put_to_the_vote():
    model = ScriptedModel(critique=fails_once(1))
    (record,) = await made(
        model, feedback="reference", max_criteria=0, judge_votes=3, max_attempts=1
    )
    assert stages(model).count("critique") == 3
    assert record["status"] == "accepted"
    seeds = [c.seed for c in model.calls if c.stage == "critique"]
    assert len(set(seeds)) == 3


async def test_a_majority_of_fails_stays_a_fail_and_says_so():
    model = ScriptedModel(critique=fails_once(2))
    (record,) = await made(
        model, feedback="reference", max_criteria=0, judge_votes=3, max_attempts=1
    )
    assert record["status"] == "rejected"
    (found,) = [
        v for v in record["attempts"][0]["verdicts"] if v["criterion_id"] == "answers-instruction"
    ]
    assert "(2 of 3 votes)" in found["reason"]


@pytest.mark.parametrize(("passing", "calls"), [(5, 1), (4, 3), (3, 1), (0, 1)])
async def test_only_a_verdict_that_decides_alone_is_asked_again(passing, calls):
    def judge(call):
        found = verdicts(prompt_of(call))
        for verdict in found["verdicts"][passing:]:
            verdict["verdict"] = "fail"
        return found

    model = ScriptedModel(critique=judge)
    await made(model, feedback="generic", judge_votes=3, max_attempts=1)
    # The arm `generic` has five criteria, each a must.
    assert stages(model).count("critique") == calls
    assert Context.model_fields["max_attempts"].metadata[1].le < DRAWS_PER_VOTE


async def test_a_vote_that_fails_loses_no_usage_of_the_first_verdicts():
    def critique(call):
        if stages(model).count("critique") > 1:
            return CallFailed("critique", "bad_request", "no")
        return verdicts(prompt_of(call), lambda id_: "fail" if id_ == ANSWERS_ID else "pass")

    model = ScriptedModel(critique=critique)
    (record,) = await made(model, judge_votes=3)
    # A draft and its first verdicts.
    assert (record["status"], record["usage"]["calls"]) == ("failed", 2)


async def test_by_log_odds_nothing_is_put_to_the_vote():
    async def never(criteria, number):
        raise AssertionError("asked")

    context = Context(model="m", judge_method="logodds", judge_votes=3)
    judged = JudgeResult([], no_usage())
    assert await vote(judged, [], [], context, never) is judged


# The paper's pipeline.


async def test_refed_asks_what_the_paper_asks():
    model = ScriptedModel()
    samples = await made(model, pipeline="refed", per_seed=20, novelty_threshold=1.0)
    count = {stage: stages(model).count(stage) for stage in set(stages(model))}
    assert count == {"feedback": 2, "propose": 2, "generate": 20, "refine": 20}
    assert {s["status"] for s in samples} == {"accepted"}


async def test_refed_makes_instructions_from_each_feature_by_itself():
    def said(call):
        texts = ["tides and moons", "explaining causes"]
        return {"feedback": texts if "exactly two" in prompt_of(call) else ["warmer", "deeper"]}

    model = ScriptedModel(feedback=said)
    await made(model, pipeline="refed", per_seed=6)
    one, other = model.asked("propose")
    assert ("tides and moons" in one, "explaining causes" in one) == (True, False)
    assert ("tides and moons" in other, "explaining causes" in other) == (False, True)
    assert "3 instructions" in one
    assert REFERENCES[0]["response"] not in one + other


async def test_refed_refines_by_the_references_feedback_and_keeps_the_analysis():
    def improved(call):
        return {
            "original_strengths": ["short"],
            "improvement_opportunities": ["add a reason"],
            "relevant_feedback": ["deeper"],
            "plan": ["say why"],
            "rationale": "so that it is believed",
            "response": words(prompt_of(call), 41).capitalize() + ".",
        }

    model = ScriptedModel(refine=improved)
    (record,) = await made(model, pipeline="refed")
    (prompt,) = model.asked("refine")
    assert tagged(prompt, "feedback") == record["response_feedback"] != []
    assert record["analysis"] == {
        "original_strengths": ["short"],
        "improvement_opportunities": ["add a reason"],
        "relevant_feedback": ["deeper"],
    }
    assert record["implementation_strategy"] == {
        "planned_changes": ["say why"],
        "rationale": "so that it is believed",
    }
    assert record["improved_response"] == record["response"] == record["attempts"][1]["response"]
    assert record["feature"] == "subject_areas"


async def test_refed_reads_an_endpoint_that_gives_a_plan_and_a_response_only():
    (record,) = await made(ScriptedModel(), pipeline="refed")
    assert record["status"] == "accepted"
    assert record["analysis"]["original_strengths"] == []


async def test_refed_goes_on_when_one_feature_brings_nothing():
    def proposed(call):
        if "one skill" in prompt_of(call):
            return CallFailed("propose", "refused", "no")
        return {"instructions": [words(f"{call.seed} {i}", 12) for i in range(2)]}

    def said(call):
        return {"feedback": ["one field", "one skill"]}

    model = ScriptedModel(propose=proposed, feedback=said)
    samples = await made(model, pipeline="refed", per_seed=4)
    assert [s["feature"] for s in samples] == ["subject_areas"] * 2


async def test_a_reference_without_feedback_fails_its_seed():
    model = ScriptedModel(feedback=lambda call: CallFailed("feedback", "refused", "no"))
    (record,) = await made(model, pipeline="refed")
    assert (record["status"], record["error"]["stage"]) == ("failed", "feedback")


async def test_when_one_kind_of_feedback_fails_the_usage_of_the_other_counts():
    failures = [CallFailed("feedback", "refused", "no")]
    model = ScriptedModel(
        feedback=lambda call: failures.pop() if failures else {"feedback": ["one", "two"]}
    )
    (record,) = await made(model, pipeline="refed")
    assert (record["status"], record["usage"]["calls"]) == ("failed", 1)


def test_the_schema_of_an_improvement_asks_for_every_key_and_has_no_default():
    from nodes.feedback import Improved
    from nodes.llm.protocol import schema_of

    schema = schema_of(Improved)
    assert set(schema["required"]) == set(schema["properties"])
    assert "default" not in json.dumps(schema)


def test_refed_with_another_arm_is_refused():
    with pytest.raises(ValidationError, match="pipeline refed"):
        Context(pipeline="refed", feedback="none")
