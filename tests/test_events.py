"""What a run tells while it goes on, through the real graphs."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from fakes import ScriptedModel, letters, prompt_of, screened, verdicts
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from graph.builder import build_graph, build_sample
from nodes.context import Context
from nodes.criteria import ANSWERS_ID
from nodes.llm import Call, Reply
from nodes.screening import ANSWERABLE_ID

REFERENCE = {
    "id": "tides",
    "instruction": "Why are there two tides a day?",
    "response": "The Moon pulls on the near side most. The Earth is pulled from the far side.",
}
SEED = {"instruction": "How waves form at sea"}
GIVEN = {"seed": SEED, "references": [REFERENCE]}
ALONE = {"instruction": "How do waves form?", "criteria": ["gives a reason for every claim"]}
Event = dict[str, Any]
# What each event holds beside its name and its sentence.
SHAPES = {
    "references": {"references"},
    "criteria": {"criteria"},
    "screen": {"instruction", "verdicts"},
    "instructions": {"instructions"},
    "candidate": {"instruction"},
    "verdict": {"criterion_id", "verdict", "reason", "evidence", "score"},
    "decision": {"reason"},
    "refinement": {"plan", "changes"},
    "sample": {"id", "status"},
    "review": {"id"},
}


def mending() -> ScriptedModel:
    """A judge whom the first draft does not satisfy, and the refined one does."""

    def judged(call: Call) -> dict[str, Any]:
        bad = "My draft" in prompt_of(call)
        return verdicts(
            prompt_of(call), lambda id_: "fail" if bad and id_ == ANSWERS_ID else "pass"
        )

    return ScriptedModel(
        generate=lambda call: {"response": "My draft is that wind makes all the waves at sea."},
        refine=lambda call: {
            "plan": ["name the wind's drag"],
            "response": "My answer is that wind drags on the water and makes waves at sea.",
        },
        critique=judged,
    )


async def told(
    graph: Any, given: Any, context: Context, config: Any = None, subgraphs: bool = True
) -> list[Event]:
    """The events of a run, in their order."""
    stream = graph.astream(
        given, config, context=context, stream_mode="custom", subgraphs=subgraphs
    )
    found = [part[1] if subgraphs else part async for part in stream]
    for event in found:
        assert_well_made(event)
    return found


def assert_well_made(event: Event) -> None:
    """A name, one sentence, JSON and nothing of vectors."""
    kind = event["event"]
    assert set(event) == {"event", "message", *SHAPES[kind]}
    message = event["message"]
    assert isinstance(message, str) and message == message.strip() != ""
    assert "\n" not in message and len(message) < 2000
    assert json.loads(json.dumps(event, allow_nan=False)) == event
    assert not list(vectors_in(event))


def vectors_in(said: Any):
    """Every list of numbers: no event has a use for one."""
    if isinstance(said, dict):
        for one in said.values():
            yield from vectors_in(one)
    elif isinstance(said, list):
        if said and all(isinstance(one, int | float) for one in said):
            yield said
        for one in said:
            yield from vectors_in(one)


def of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def kinds(events: list[Event]) -> list[str]:
    """The names in their order, repetitions once."""
    names = [event["event"] for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def synthesizer(model: ScriptedModel | None = None, **more: Any) -> Any:
    return build_graph(complete=model or ScriptedModel(), embed=letters, **more)


async def test_every_step_of_a_run_is_told_in_its_order():
    events = await told(synthesizer(mending()), GIVEN, Context(model="m"))
    assert kinds(events) == [
        "references", "criteria", "screen", "instructions", "candidate", "verdict", "decision",
        "refinement", "verdict", "decision", "sample",
    ]  # fmt: skip


async def test_the_loop_by_itself_tells_of_its_own_steps():
    graph = build_sample(complete=mending(), embed=letters)
    events = await told(graph, ALONE, Context(model="m"))
    assert kinds(events) == [
        "candidate", "verdict", "decision", "refinement", "verdict", "decision",
    ]  # fmt: skip


async def test_without_subgraphs_the_inner_loop_is_silent():
    events = await told(synthesizer(), GIVEN, Context(model="m"), subgraphs=False)
    assert kinds(events) == ["references", "criteria", "screen", "instructions", "sample"]


async def test_events_of_the_loop_come_from_the_sample_they_belong_to():
    stream = synthesizer().astream(
        GIVEN, context=Context(model="m", per_seed=2), stream_mode="custom", subgraphs=True
    )
    found = [(where, event["event"]) async for where, event in stream]
    inner = {where for where, kind in found if kind in ("candidate", "verdict", "decision")}
    assert len(inner) == 2
    assert all(where[0].startswith("sample:") for where in inner)
    assert {where for where, kind in found if kind not in ("candidate", "verdict", "decision")} == {
        ()
    }


# --- each of them --------------------------------------------------------------------------------


async def test_given_references_are_told_as_given():
    events = await told(synthesizer(), GIVEN, Context(model="m"))
    (event,) = of(events, "references")
    assert event["references"] == [
        {"id": "tides", "instruction": REFERENCE["instruction"], "why": "given with the seed"}
    ]
    assert event["message"] == "1 references: tides (given with the seed)"


async def test_retrieved_references_are_told_with_their_cosine():
    given = {"seed": SEED}
    events = await told(synthesizer(), given, Context(model="m", references_per_seed=2))
    (event,) = of(events, "references")
    assert len(event["references"]) == 2
    for one in event["references"]:
        assert set(one) == {"id", "instruction", "why"}
        assert one["why"].startswith("cosine 0.") and one["why"].endswith(" with the seed")
        assert f"{one['id']} ({one['why']})" in event["message"]


async def test_a_seed_that_is_a_reference_itself_is_told_as_such():
    from graph.defaults import default_references

    seed = default_references()[0][4]
    given = {"seed": {"instruction": seed["instruction"]}}
    events = await told(synthesizer(), given, Context(model="m", references_per_seed=2))
    first, second = of(events, "references")[0]["references"]
    assert (first["id"], first["why"]) == (seed["id"], "it is the seed itself")
    assert second["why"].startswith("cosine ")


async def test_a_long_reference_is_told_in_short():
    long = {**REFERENCE, "instruction": "Why " + "so " * 1000 + "?"}
    events = await told(synthesizer(), {"seed": SEED, "references": [long]}, Context(model="m"))
    assert len(of(events, "references")[0]["references"][0]["instruction"]) == 200


async def test_no_references_are_told_where_none_are_needed():
    graph = build_sample(complete=ScriptedModel(), embed=letters)
    events = await told(graph, ALONE, Context(model="m"))
    assert of(events, "references") == []


async def test_criteria_are_told_with_where_they_came_from():
    events = await told(synthesizer(), GIVEN, Context(model="m"))
    (event,) = of(events, "criteria")
    assert event["message"] == "2 criteria from 1 references."
    assert {c["reference_id"] for c in event["criteria"]} == {"tides"}
    assert [c["text"] for c in event["criteria"]] == [
        "gives a reason for every claim",
        "closes with a short summary",
    ]
    assert all(c["quote"] in REFERENCE["response"] for c in event["criteria"])


async def test_new_instructions_are_told():
    model = ScriptedModel()
    out = await synthesizer(model).ainvoke(GIVEN, context=Context(model="m", per_seed=3))
    events = await told(synthesizer(), GIVEN, Context(model="m", per_seed=3))
    (event,) = of(events, "instructions")
    assert event["message"] == "3 new instructions, 0 dropped."
    assert event["instructions"] == [s["instruction"] for s in out["samples"]]


async def test_what_was_said_of_each_proposed_instruction_is_told():
    def screen(call: Call) -> dict[str, Any]:
        return screened(
            prompt_of(call),
            lambda id_, text: "fail" if "vague" in text and id_ == ANSWERABLE_ID else "pass",
        )

    def propose(call: Call) -> dict[str, Any]:
        return {"instructions": ["How do umber fjords form?", "Say more of that vague amber?"]}

    model = ScriptedModel(propose=propose, screen=screen)
    events = await told(synthesizer(model), GIVEN, Context(model="m", per_seed=2))
    good, poor = of(events, "screen")
    assert good["message"] == "pass: How do umber fjords form?"
    assert poor["message"].startswith("fail: can be answered in text from what it holds")
    assert f"(about {ANSWERABLE_ID})" in poor["message"]
    assert poor["message"].endswith(": Say more of that vague amber?")
    assert {v["criterion_id"]: v["verdict"] for v in poor["verdicts"]}[ANSWERABLE_ID] == "fail"
    # Asked once more, the model proposed the same again.
    assert of(events, "instructions")[0]["message"] == "1 new instructions, 3 dropped."


async def test_an_instruction_that_is_no_news_is_not_told():
    model = ScriptedModel(propose=lambda call: {"instructions": ["Why do waves break?"] * 3})
    events = await told(synthesizer(model), GIVEN, Context(model="m", per_seed=3))
    assert of(events, "instructions")[0]["instructions"] == ["Why do waves break?"]


async def test_a_draft_is_told_by_its_length_and_instruction():
    events = await told(synthesizer(), GIVEN, Context(model="m"))
    (event,) = of(events, "candidate")
    assert event["message"] == "A draft of 40 words."
    assert event["instruction"] == of(events, "instructions")[0]["instructions"][0]


async def test_each_verdict_is_told_with_what_it_rests_on():
    events = await told(synthesizer(), GIVEN, Context(model="m"))
    found = of(events, "verdict")
    criteria = {c["id"]: c["text"] for c in of(events, "criteria")[0]["criteria"]}
    assert {v["criterion_id"] for v in found} == {ANSWERS_ID, *criteria}
    for one in found:
        assert one["verdict"] == "pass" and one["evidence"]
        text = criteria.get(one["criterion_id"], "fully answers the instruction")
        assert one["message"].startswith(f"pass: the response {text}. about ")


async def test_a_rule_that_fails_is_told_and_the_judge_is_not_asked():
    model = ScriptedModel(generate=lambda call: {"response": "As an AI model, I cannot do that."})
    graph = build_sample(complete=model, embed=letters)
    events = await told(graph, ALONE, Context(model="m", max_attempts=1))
    (one,) = of(events, "verdict")
    assert (one["criterion_id"], one["verdict"]) == ("no-refusal", "fail")
    assert one["evidence"] == "As an AI model"
    assert model.asked("critique") == []
    assert of(events, "decision")[0]["message"] == "Attempt 1: rejected."


async def test_rules_that_pass_are_not_told():
    events = await told(synthesizer(), GIVEN, Context(model="m"))
    assert not {"not-empty", "finished"} & {v["criterion_id"] for v in of(events, "verdict")}


async def test_a_verdict_that_could_not_be_read_is_told_as_unknown():
    model = ScriptedModel(critique=lambda call: {"verdicts": []})
    graph = build_sample(complete=model, embed=letters)
    events = await told(graph, ALONE, Context(model="m", max_attempts=1))
    assert {v["verdict"] for v in of(events, "verdict")} == {"unknown"}
    assert all(v["message"].startswith("unknown: the response ") for v in of(events, "verdict"))


async def test_a_criterion_that_does_not_apply_is_told_in_words():
    model = ScriptedModel(
        critique=lambda call: verdicts(
            prompt_of(call), lambda id_: "pass" if id_ == ANSWERS_ID else "not_applicable"
        )
    )
    graph = build_sample(complete=model, embed=letters)
    events = await told(graph, ALONE, Context(model="m"))
    (one,) = [v for v in of(events, "verdict") if v["verdict"] == "not_applicable"]
    assert one["message"].startswith("not applicable: the response gives a reason")


class Waiting(ScriptedModel):
    """A judge who answers a question only when the verdict before it was heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Semaphore(1)

    async def __call__(self, call: Call) -> Reply:
        if call.kind == "question":
            await asyncio.wait_for(self.heard.acquire(), 5)
        return await super().__call__(call)


async def test_by_log_odds_each_verdict_is_told_before_the_next_question_is_asked():
    model = Waiting()
    graph = build_sample(complete=model, embed=letters)
    given = {**ALONE, "criteria": ["is short", "names the wind", "ends with a summary"]}
    context = Context(model="m", judge_method="logodds")
    asked = []
    async for event in graph.astream(given, context=context, stream_mode="custom"):
        if event["event"] == "verdict":
            asked.append(sum(call.kind == "question" for call in model.calls))
            model.heard.release()
    assert asked == [1, 2, 3, 4]


async def test_by_log_odds_a_verdict_is_told_with_its_score_and_bar():
    model = ScriptedModel(odds=lambda call: -1.5 if "names the wind" in prompt_of(call) else 3.0)
    graph = build_sample(complete=model, embed=letters)
    given = {**ALONE, "criteria": ["is short", "names the wind"]}
    context = Context(model="m", judge_method="logodds", max_attempts=1)
    events = await told(graph, given, context)
    *_, last = of(events, "verdict")
    assert last["verdict"] == "fail" and math.isclose(last["score"], -1.5, abs_tol=0.01)
    assert last["message"] == "fail: the response names the wind. log-odds -1.50, bar 0.00"


async def test_verdicts_of_a_trial_are_not_told_as_those_of_a_sample():
    events = await told(synthesizer(), GIVEN, Context(model="m", try_criteria=True))
    first = next(i for i, event in enumerate(events) if event["event"] == "verdict")
    assert "candidate" in kinds(events[:first])
    assert len(of(events, "verdict")) == 3


async def test_each_decision_is_told_with_its_attempt():
    events = await told(synthesizer(mending()), GIVEN, Context(model="m"))
    said = [event["message"] for event in of(events, "decision")]
    assert said == ["Attempt 1: to be refined.", "Attempt 2: accepted."]
    assert [event["reason"] for event in of(events, "decision")] == [None, None]


async def test_a_rejection_is_told_with_its_reason():
    model = ScriptedModel(critique=lambda call: verdicts(prompt_of(call), "fail"))
    graph = build_sample(complete=model, embed=letters)
    events = await told(graph, ALONE, Context(model="m", max_attempts=1))
    (event,) = of(events, "decision")
    assert (event["message"], event["reason"]) == ("Attempt 1: rejected.", "criteria")


async def test_a_refinement_is_told_with_its_plan_and_its_changes():
    events = await told(synthesizer(mending()), GIVEN, Context(model="m"))
    (event,) = of(events, "refinement")
    assert event["plan"] == ["name the wind's drag"]
    changed = event["changes"]
    assert changed and all(set(one) == {"removed", "added"} for one in changed)
    assert any("draft" in one["removed"] for one in changed)
    assert any("drags on" in one["added"] for one in changed)
    assert event["message"].startswith(f"Refined in {len(changed)} places, so that the response ")
    assert "fully answers the instruction" in event["message"]


async def test_a_refinement_that_changes_everything_is_told_in_short():
    model = mending()
    model.stages["refine"] = lambda call: {"plan": [], "response": "Other words. " * 20_000}
    graph = build_sample(complete=model, embed=letters)
    events = await told(graph, ALONE, Context(model="m", max_attempts=2))
    (event,) = of(events, "refinement")
    assert len(event["changes"]) <= 20 and len(json.dumps(event)) < 30_000


async def test_what_became_of_each_sample_is_told():
    out = await synthesizer().ainvoke(GIVEN, context=Context(model="m", per_seed=2))
    events = await told(synthesizer(), GIVEN, Context(model="m", per_seed=2))
    found = {event["id"]: event for event in of(events, "sample")}
    assert set(found) == {s["id"] for s in out["samples"]}
    for one in out["samples"]:
        event = found[one["id"]]
        assert event["status"] == "accepted"
        assert event["message"] == f"accepted: {one['instruction']}"


async def test_a_sample_that_is_rejected_or_failed_is_told_with_why():
    model = ScriptedModel(critique=lambda call: verdicts(prompt_of(call), "fail"))
    context = Context(model="m", max_attempts=1, try_criteria=False)
    (event,) = of(await told(synthesizer(model), GIVEN, context), "sample")
    assert event["status"] == "rejected"
    assert event["message"].startswith("rejected (criteria): ")
    model = ScriptedModel(generate=lambda call: "<think>nonsense</think>")
    (event,) = of(await told(synthesizer(model), GIVEN, context), "sample")
    assert event["status"] == "failed" and event["message"].startswith("failed: ")


async def test_a_seed_from_which_nothing_comes_is_told_by_itself():
    model = ScriptedModel(extract=lambda call: "nonsense")
    events = await told(synthesizer(model), GIVEN, Context(model="m"))
    assert kinds(events) == ["references", "sample"]
    assert of(events, "sample")[0]["message"] == f"failed: {SEED['instruction']}"


@pytest.mark.parametrize(
    "instruction",
    ["Explain this:\n\n1. wind\n2. waves\nand why?", "Explain\r\nwaves"],
)
async def test_an_instruction_of_several_lines_leaves_its_message_one(instruction):
    model = ScriptedModel(propose=lambda call: {"instructions": [instruction]})
    events = await told(synthesizer(model), GIVEN, Context(model="m"))
    (event,) = of(events, "sample")
    assert len(event["message"].splitlines()) == 1


async def test_what_a_judge_writes_leaves_a_message_one_line():
    def judged(call: Call) -> dict[str, Any]:
        said = verdicts(prompt_of(call))
        for one in said["verdicts"]:
            one["reason"] = "It is.\n\nReally. " + "So " * 5000
        return said

    graph = build_sample(complete=ScriptedModel(critique=judged), embed=letters)
    events = await told(graph, ALONE, Context(model="m"))
    assert all("\n" not in event["message"] for event in events)


async def test_a_person_s_word_is_told():
    graph = synthesizer(checkpointer=InMemorySaver())
    context, config = Context(model="m", review="all"), {"configurable": {"thread_id": "t"}}
    events = await told(graph, GIVEN, context, config)
    assert of(events, "sample")[0]["status"] == "pending"
    assert of(events, "review") == []
    for number, said in enumerate(({"decision": "perhaps"}, {"decision": "accept"})):
        events = await told(graph, Command(resume=said), context, config)
        assert len(events) == number
    (event,) = events
    assert event["message"] == "A person said accept."
    assert event["id"] == (await graph.aget_state(config)).values["samples"][0]["id"]


async def test_a_person_s_word_is_told_in_the_loop_by_itself():
    graph = build_sample(complete=ScriptedModel(), embed=letters, checkpointer=InMemorySaver())
    context, config = Context(model="m", review="all"), {"configurable": {"thread_id": "t"}}
    await told(graph, ALONE, context, config)
    resume = Command(resume={"decision": "reject", "reason": "Too dull."})
    (event,) = await told(graph, resume, context, config)
    assert (event["event"], event["message"]) == ("review", "A person said reject.")


@pytest.mark.parametrize("feedback", ["generic", "none"])
async def test_other_arms_tell_of_their_steps_too(feedback):
    events = await told(synthesizer(), GIVEN, Context(model="m", feedback=feedback))
    assert kinds(events)[0] == "references" and kinds(events)[-1] == "sample"
    drawn = [c for event in of(events, "criteria") for c in event["criteria"]]
    assert all(c["reference_id"] for c in drawn)


async def test_answering_the_seeds_themselves_is_told_as_well():
    events = await told(synthesizer(), GIVEN, Context(model="m", answer_seeds=True))
    assert of(events, "candidate")[0]["instruction"] == SEED["instruction"]


async def test_nobody_who_listens_changes_what_comes_of_a_run():
    context = Context(model="m", per_seed=2)
    out = await synthesizer().ainvoke(GIVEN, context=context)
    last: dict[str, Any] = {}
    async for mode, said in synthesizer().astream(
        GIVEN, context=context, stream_mode=["custom", "values"]
    ):
        last = said if mode == "values" else last
    for one in (*out["samples"], *last["samples"]):
        del one["created"]
    assert last["samples"] == out["samples"]
