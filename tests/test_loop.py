"""The loop through the real graphs, with a scripted model."""

from __future__ import annotations

import pytest
from fakes import ScriptedModel, letters, prompt_of, tagged, verdicts
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver

from graph.builder import build_graph, build_loop, build_sample, loop_steps
from nodes.context import Context
from nodes.inputs import BadInput
from nodes.llm import Call, CallFailed

REFERENCE = {
    "id": "tides",
    "instruction": "Why are there two tides a day?",
    "response": "The Moon pulls on the near side most. The Earth is pulled from the far side. "
    "So there are two bulges, and the Earth turns through both in a day.",
}
SEED = {"instruction": "How waves form at sea"}


async def run(model: ScriptedModel, seed=None, references=None, **context):
    context = {"model": "scripted", "try_criteria": False} | context
    graph = build_graph(complete=model, embed=letters)
    given_ = {"seed": seed or SEED, "references": references or [REFERENCE]}
    return await graph.ainvoke(given_, context=Context(**context))


def drafts(*texts: str) -> ScriptedModel:
    """A model whose candidates are these, in turn; verdicts fail until told otherwise."""
    left = list(texts)

    def write(call: Call) -> dict:
        return {"plan": [], "response": left.pop(0)}

    return ScriptedModel(generate=write, refine=write)


def judged_by(rule):
    """A critique whose verdict on each criterion is `rule(criterion id, response)`."""

    def critique(call: Call) -> dict:
        prompt = prompt_of(call)
        response = tagged(prompt, "response")[-1]
        return verdicts(prompt, lambda id_: rule(id_, response))

    return critique


async def test_it_stops_at_the_first_pass():
    model = ScriptedModel()
    out = await run(model)
    assert [s["status"] for s in out["samples"]] == ["accepted"]
    stages = [c.stage for c in model.calls]
    assert stages == ["extract", "propose", "screen", "generate", "critique"]


async def test_only_failed_verdicts_are_fed_back():
    model = drafts(
        "One draft of a fitting length is here.", "Another draft of that length is here."
    )
    model.stages["critique"] = judged_by(
        lambda id_, response: (
            "fail" if id_ == "answers-instruction" and response.startswith("One") else "pass"
        )
    )
    out = await run(model)
    assert out["samples"][0]["status"] == "accepted"
    assert out["samples"][0]["response"] == "Another draft of that length is here."
    (refined,) = model.asked("refine")
    assert refined.count("<verdict criterion_id=") == 1
    assert '<verdict criterion_id="answers-instruction">' in refined
    assert "about answers-instruction" in tagged(refined, "verdict")[0]


async def test_it_goes_back_to_the_best_candidate():
    model = drafts("Good one here.", "Worse one here.", "Last one here.")

    def rule(id_: str, response: str) -> str:
        if id_ == "answers-instruction":
            return "fail"
        return "pass" if response.startswith("Good") else "fail"

    model.stages["critique"] = judged_by(rule)
    out = await run(model, max_attempts=3)
    assert [tagged(p, "response")[-1] for p in model.asked("refine")] == ["Good one here."] * 2
    assert out["samples"][0]["status"] == "rejected"
    assert out["samples"][0]["response"] == "Good one here."
    assert len(out["samples"][0]["attempts"]) == 3


async def test_a_refinement_that_breaks_a_passed_criterion_does_not_replace_the_best():
    model = drafts("First one here.", "Second one here.")
    ids: list[str] = []

    def rule(id_: str, response: str) -> str:
        if id_ not in ids:
            ids.append(id_)
        if id_ == "answers-instruction":
            return "fail"
        return "pass" if (ids.index(id_) == 1) == response.startswith("First") else "fail"

    model.stages["critique"] = judged_by(rule)
    out = await run(model, max_attempts=2)
    assert out["samples"][0]["response"] == "First one here."


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_it_stops_at_the_limit_and_rejects(most):
    model = ScriptedModel(critique=judged_by(lambda *_: "fail"))
    out = await run(model, max_attempts=most)
    sample = out["samples"][0]
    assert (sample["status"], sample["reason"]) == ("rejected", "criteria")
    assert len(sample["attempts"]) == most


async def test_it_stops_when_two_rounds_bring_no_progress():
    model = ScriptedModel(critique=judged_by(lambda *_: "fail"))
    out = await run(model, max_attempts=10)
    sample = out["samples"][0]
    assert (sample["status"], sample["reason"]) == ("rejected", "no_progress")
    assert len(sample["attempts"]) == 3


async def test_an_unreadable_verdict_is_unknown_and_never_a_pass():
    model = ScriptedModel(critique=lambda call: {"verdicts": [{"criterion_id": 7}]})
    out = await run(model)
    sample = out["samples"][0]
    assert sample["status"] == "rejected"
    by_judge = {c["id"] for c in sample["criteria"] if c["judged_by"] == "judge"}
    judged = [v for v in sample["attempts"][0]["verdicts"] if v["criterion_id"] in by_judge]
    assert {v["verdict"] for v in judged} == {"unknown"}
    assert len(model.asked("critique")) == 2, "asked again once, then given up"
    assert not model.asked("refine"), "there is nothing to feed back"


async def test_a_failing_rule_saves_the_judge_and_is_fed_back():
    model = drafts("As an AI language model I pass.", "A sound answer here.")
    out = await run(model)
    assert out["samples"][0]["status"] == "accepted"
    assert len(model.asked("critique")) == 1
    assert 'criterion_id="no-refusal"' in model.asked("refine")[0]


async def test_copying_a_reference_is_named_as_the_reason():
    model = drafts(*[REFERENCE["response"]] * 3)
    out = await run(model)
    assert (out["samples"][0]["status"], out["samples"][0]["reason"]) == ("rejected", "copied")


async def test_a_failed_call_is_one_samples_failure_and_its_siblings_go_on():
    seeds: list[int] = []

    def generate(call: Call):
        seeds.append(call.seed)
        bad = len(seeds) == 2
        return CallFailed("generate", "refused", "no") if bad else {"response": "A sound answer."}

    model = ScriptedModel(generate=generate)
    out = await run(model, per_seed=3)
    assert sorted(s["status"] for s in out["samples"]) == ["accepted", "accepted", "failed"]
    lost = next(s for s in out["samples"] if s["status"] == "failed")
    assert lost["error"] == {"stage": "generate", "kind": "refused", "message": "no"}
    assert lost["instruction"] and lost["response"] is None


async def test_a_failure_in_a_later_round_keeps_what_there_was():
    model = drafts("A first draft here.")
    model.stages["critique"] = judged_by(lambda *_: "fail")
    model.stages["refine"] = lambda call: CallFailed("refine", "filtered", "withheld")
    out = await run(model)
    sample = out["samples"][0]
    assert sample["status"] == "failed"
    assert sample["response"] == "A first draft here."
    assert len(sample["attempts"]) == 1
    assert sample["usage"]["calls"] == 2


async def test_a_trial_that_fails_loses_no_usage_of_the_extraction():
    model = ScriptedModel(critique=lambda call: CallFailed("critique", "bad_request", "no"))
    out = await run(model, try_criteria=True)
    (sample,) = out["samples"]
    assert (sample["status"], sample["error"]["stage"]) == ("failed", "critique")
    assert sample["usage"]["calls"] == 1


async def test_a_seed_whose_references_cannot_be_learned_from_fails_without_an_instruction():
    model = ScriptedModel(extract=lambda call: CallFailed("extract", "refused", "no"))
    out = await run(model)
    (sample,) = out["samples"]
    assert (sample["status"], sample["instruction"]) == ("failed", None)
    assert sample["error"]["stage"] == "extract"


async def test_one_reference_that_cannot_be_learned_from_does_not_cost_the_seed():
    other = {**REFERENCE, "id": "other", "instruction": "Why is the sea salty at all?"}
    failing = [True, False]

    def extract(call: Call):
        if failing.pop(0):
            return CallFailed("extract", "refused", "no")
        quote = "The Moon pulls"
        text = "gives its reasons"
        return {
            "subject_areas": [],
            "relevant_skills": [],
            "characteristics": [{"text": text, "quote": quote, "must": True}],
        }

    out = await run(ScriptedModel(extract=extract), references=[REFERENCE, other])
    assert out["samples"][0]["status"] == "accepted"


async def test_without_feedback_no_response_is_judged():
    model = ScriptedModel()
    out = await run(model, feedback="none")
    assert [c.stage for c in model.calls] == ["propose", "screen", "generate"]
    assert out["samples"][0]["status"] == "accepted"


async def test_the_generic_arm_judges_by_one_checklist():
    model = ScriptedModel()
    out = await run(model, feedback="generic")
    ids = [c["id"] for c in out["samples"][0]["criteria"] if c["judged_by"] == "judge"]
    assert ids == ["answers-instruction", "generic-1", "generic-2", "generic-3", "generic-4"]
    assert not model.asked("extract")


async def test_answer_seeds_takes_the_seed_as_it_is():
    model = ScriptedModel()
    out = await run(model, answer_seeds=True)
    assert out["samples"][0]["instruction"] == SEED["instruction"]
    assert not model.asked("propose")


async def test_proposals_near_the_seed_a_reference_or_each_other_are_asked_again():
    rounds = [
        [REFERENCE["instruction"], "How waves form at sea?", "What makes a storm surge rise?"],
        ["What makes storm surges rise?", "Where does foam on a beach come from?", "x?"],
    ]
    model = ScriptedModel(propose=lambda call: {"instructions": rounds.pop(0)})
    out = await run(model, per_seed=3)
    made = [s["instruction"] for s in out["samples"]]
    assert made == [
        "What makes a storm surge rise?",
        "Where does foam on a beach come from?",
        "x?",
    ]
    again = model.asked("propose")[1]
    assert "What makes a storm surge rise?" in tagged(again, "instruction")


@pytest.mark.parametrize(
    ("seed", "says"),
    [
        ({}, "seed.instruction"),
        ({"instruction": ""}, "seed.instruction"),
        ({"instruction": 5}, "seed.instruction"),
        (None, "seed"),
    ],
)
async def test_the_first_node_refuses_input_that_is_no_seed(seed, says):
    graph = build_graph(complete=ScriptedModel(), embed=letters)
    with pytest.raises(BadInput, match=says):
        await graph.ainvoke({"seed": seed, "references": [REFERENCE]}, context=Context(model="m"))


async def test_a_reference_without_a_response_is_refused():
    with pytest.raises(BadInput, match=r"references\.0\.response"):
        await run(ScriptedModel(), references=[{"instruction": "Why?"}])


async def test_state_and_output_are_plain_json():
    import json

    out = await run(ScriptedModel(), per_seed=2)
    assert json.loads(json.dumps(out)) == out


async def test_both_graphs_draw_with_the_loop_inside():
    drawn = build_graph(complete=ScriptedModel(), embed=letters).get_graph(xray=True)
    names = set(drawn.nodes)
    assert {"retrieve", "extract", "propose", "sample:generate", "sample:critique"} <= names
    edges = {(e.source, e.target) for e in drawn.edges}
    assert ("sample:critique", "sample:refine") in edges
    assert ("sample:refine", "sample:critique") in edges
    assert ("sample:critique", "sample:generate") not in edges


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 6))
def test_for_any_run_of_verdicts_it_ends_at_the_first_pass_or_the_limit(passes, most):
    import asyncio

    left = list(passes)
    model = ScriptedModel(
        critique=lambda call: verdicts(
            prompt_of(call), "pass" if (left.pop(0) if left else True) else "fail"
        )
    )
    state = {
        "seed": {"id": "s", **SEED},
        "slot": 0,
        "instruction": "How do waves form?",
        "references": [REFERENCE],
        "criteria": [
            {
                "id": "answers-instruction",
                "text": "fully answers",
                "must": True,
                "reference_id": None,
                "quote": None,
                "judged_by": "judge",
            }
        ],
    }
    graph = build_loop(loop_steps(complete=model, embed=letters))
    final = asyncio.run(graph.ainvoke(state, context=Context(model="m", max_attempts=most)))
    first = next((i for i, p in enumerate([*passes, True], 1) if p), 99)
    # Two rounds without progress end it too: nothing ever gets better here but to a pass.
    ends = min(first, most, 3)
    assert len(final["attempts"]) == ends
    assert final["status"] == ("accepted" if first <= ends else "rejected")


@pytest.mark.parametrize(
    ("after", "written"),
    [
        ("retrieve", {"references": [REFERENCE] * 21}),
        ("retrieve", {"references": 7}),
    ],
)
async def test_state_that_was_written_into_a_thread_costs_no_more_than_a_run_may(after, written):
    model, at = ScriptedModel(), {"configurable": {"thread_id": "one"}}
    graph = build_graph(complete=model, embed=letters, checkpointer=InMemorySaver())
    await graph.aupdate_state(at, {"seed": SEED, **written}, as_node=after)
    with pytest.raises(BadInput, match="references: must be a list of at most 20"):
        await graph.ainvoke(None, at, context=Context(model="m"))
    assert model.calls == []


async def test_criteria_that_were_written_into_a_thread_are_bounded():
    model, at = ScriptedModel(), {"configurable": {"thread_id": "one"}}
    graph = build_sample(complete=model, embed=letters, checkpointer=InMemorySaver())
    written = {"instruction": "Say.", "references": [], "criteria": [{}] * 20_000, "seed": {}}
    await graph.aupdate_state(at, written, as_node="begin")
    with pytest.raises(BadInput, match="criteria: must be a list of at most 100"):
        await graph.ainvoke(None, at, context=Context(model="m"))
    assert model.calls == []
