"""A person in the loop, through the real graphs with a checkpointer."""

from __future__ import annotations

import pytest
from fakes import ScriptedModel, letters, prompt_of, verdicts
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from markdown_it import MarkdownIt

from graph.builder import build_graph, build_sample
from nodes.context import Context
from nodes.criteria import ANSWERS_ID
from nodes.decisions import is_borderline, needs_review
from nodes.hooks import RunHooks

REFERENCE = {
    "instruction": "Why are there two tides a day?",
    "response": "The Moon pulls on the near side most. The Earth is pulled from the far side.",
}
GIVEN = {"seed": {"instruction": "How waves form at sea"}, "references": [REFERENCE]}
AT = {"configurable": {"thread_id": "one"}}
BETTER = "Wind pushes on the water, and gravity pulls it back."


def context(**more) -> Context:
    return Context(**{"model": "m", "try_criteria": False, "max_attempts": 1} | more)


def failing(*ids: str) -> ScriptedModel:
    """A judge that fails these criteria (c for those of references)."""

    def critique(call):
        return verdicts(prompt_of(call), lambda id_: "fail" if id_.startswith(ids) else "pass")

    return ScriptedModel(critique=critique)


async def asked(model=None, given=GIVEN, **more):
    """A graph that has stopped to ask, and what it asks."""
    graph = build_graph(
        complete=model or ScriptedModel(), embed=letters, checkpointer=InMemorySaver()
    )
    out = await graph.ainvoke(given, AT, context=context(**more))
    return graph, out


async def answer(graph, out, said, **more):
    return await graph.ainvoke(
        Command(resume={i.id: said for i in out["__interrupt__"]}), AT, context=context(**more)
    )


async def test_nobody_is_asked_unless_told():
    _, out = await asked()
    assert "__interrupt__" not in out
    assert "review" not in out["samples"][0]


async def test_a_person_is_asked_with_the_sample_its_verdicts_and_its_references():
    _, out = await asked(review="all")
    (interrupt,) = out["__interrupt__"]
    said = interrupt.value
    assert said["sample"]["status"] == "accepted"
    assert said["sample"]["attempts"][0]["verdicts"]
    assert said["references"][0]["response"] == REFERENCE["response"]
    assert '"decision": "edit"' in said["question"]
    assert out["samples"][0]["status"] == "pending"


async def test_an_accepted_sample_is_accepted():
    graph, out = await asked(failing("a"), review="rejected")
    assert out["samples"][0]["review"]["proposed"] == "rejected"
    done = await answer(graph, out, {"decision": "accept"}, review="rejected")
    (sample,) = done["samples"]
    assert (sample["status"], sample["reason"]) == ("accepted", None)
    assert sample["review"]["decision"] == "accept"
    assert sample["review"]["proposed_reason"] == "criteria"


async def test_a_rejected_sample_keeps_the_reason():
    graph, out = await asked(review="all")
    said = {"decision": "reject", "reason": "It is about ponds."}
    (sample,) = (await answer(graph, out, said, review="all"))["samples"]
    assert (sample["status"], sample["reason"]) == ("rejected", "reviewer")
    assert sample["review"]["reason"] == "It is about ponds."


async def test_an_edit_becomes_the_last_attempt_which_no_judge_has_seen():
    graph, out = await asked(review="all")
    before = out["samples"][0]["response"]
    said = {"decision": "edit", "response": BETTER}
    (sample,) = (await answer(graph, out, said, review="all"))["samples"]
    assert sample["status"] == "accepted"
    assert sample["response"] == sample["attempts"][-1]["response"] == BETTER
    assert sample["attempts"][0]["response"] == before
    found = {v["criterion_id"]: v["verdict"] for v in sample["attempts"][-1]["verdicts"]}
    assert found[ANSWERS_ID] == "unknown"
    assert found["not-empty"] == "pass"


@pytest.mark.parametrize("asks", [True, False])
async def test_an_edit_may_change_the_instruction_too(asks):
    said = {"decision": "edit", "response": BETTER, "instruction": "Say how waves form."}
    if asks:
        graph, out = await asked(review="all")
        before = out["samples"][0]["instruction"]
        (sample,) = (await answer(graph, out, said, review="all"))["samples"]
    else:
        graph = build_sample(complete=ScriptedModel(), embed=letters, checkpointer=InMemorySaver())
        before = "Explain how waves form at sea."
        await graph.ainvoke({"instruction": before}, AT, context=context(review="all"))
        await graph.ainvoke(Command(resume=said), AT, context=context(review="all"))
        sample = (await graph.aget_state(AT)).values
    assert (sample["instruction"], sample["instruction_before"]) == (said["instruction"], before)
    assert sample["response"] == BETTER and len(sample["attempts"]) == 2


async def test_nothing_is_paid_again_for_an_answer():
    model = ScriptedModel()
    graph, out = await asked(model, review="all")
    paid = len(model.calls)
    await answer(graph, out, "accept", review="all")
    assert len(model.calls) == paid


@pytest.mark.parametrize(
    "said", ["perhaps", None, 7, {}, {"decision": "edit"}, {"decision": "edit", "response": " \0 "}]
)
async def test_an_answer_that_decides_nothing_is_asked_for_again(said):
    graph, out = await asked(review="all")
    again = await answer(graph, out, said, review="all")
    assert again["__interrupt__"][0].value["question"] != out["__interrupt__"][0].value["question"]
    assert again["samples"][0]["status"] == "pending"
    done = await answer(graph, again, "accept", review="all")
    assert done["samples"][0]["status"] == "accepted"


INBOX_EDIT = {"action": "review_sample", "args": {"response": BETTER}}
CHAT_EDIT = {"name": "review_sample", "args": {"response": BETTER}}


@pytest.mark.parametrize(
    ("said", "status", "reason"),
    [
        ([{"type": "accept", "args": {"action": "review_sample", "args": {}}}], "accepted", None),
        ([{"type": "edit", "args": INBOX_EDIT}], "accepted", None),
        ([{"type": "response", "args": "It is dull."}], "rejected", "It is dull."),
        ({"decisions": [{"type": "approve"}]}, "accepted", None),
        ({"decisions": [{"type": "edit", "edited_action": CHAT_EDIT}]}, "accepted", None),
        ({"decisions": [{"type": "reject", "message": "It is dull."}]}, "rejected", "It is dull."),
        ({"decisions": [{"type": "reject"}]}, "rejected", None),
        ({"decisions": [{"type": "respond", "message": "No."}]}, "rejected", "No."),
        ({"type": "approve"}, "accepted", None),
        ("approve", "accepted", None),
    ],
)
async def test_the_answers_of_agent_inbox_and_of_langchain_are_understood(said, status, reason):
    graph, out = await asked(review="all")
    (sample,) = (await answer(graph, out, said, review="all"))["samples"]
    assert sample["status"] == status
    assert sample["review"]["reason"] == reason
    if "edit" in str(said):
        assert sample["response"] == BETTER


async def test_an_ignored_sample_stays_pending_and_the_thread_ends():
    graph, out = await asked(review="all")
    done = await answer(graph, out, [{"type": "ignore", "args": None}], review="all")
    assert "__interrupt__" not in done
    assert done["samples"][0]["status"] == "pending"
    assert done["samples"][0]["review"]["decision"] is None


async def test_a_client_of_langchain_edits_the_instruction_too():
    graph, out = await asked(review="all")
    edited = {"response": BETTER, "instruction": "Why are some tides higher than others?"}
    action = {"name": "review_sample", "args": edited}
    given = {"decisions": [{"type": "edit", "edited_action": action}]}
    (sample,) = (await answer(graph, out, given, review="all"))["samples"]
    assert (sample["instruction"], sample["response"]) == (edited["instruction"], BETTER)
    assert sample["instruction_before"] and sample["status"] == "accepted"


async def test_the_question_has_the_form_that_langchains_clients_read():
    _, out = await asked(review="all")
    (interrupt,) = out["__interrupt__"]
    (request,), (config,) = interrupt.value["action_requests"], interrupt.value["review_configs"]
    sample = interrupt.value["sample"]
    assert request["name"] == config["action_name"] == "review_sample"
    texts = {"response": sample["response"], "instruction": sample["instruction"]}
    assert request["args"] == request["arguments"] == texts
    assert config["allowed_decisions"] == ["approve", "edit", "reject"]
    assert "**Instruction**" in request["description"]
    assert REFERENCE["response"] in request["description"]
    assert interrupt.response_schema["required"] == ["decision"]


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"decisions": []}, "the answer has 0"),
        ([{"type": "accept"}, {"type": "accept"}], "the answer has 2"),
        ([{"type": "edit", "args": None}], "needs the edited text"),
        ({"decisions": [{"type": "edit", "edited_action": {"args": []}}]}, "could not be read"),
        ([{"type": ["accept"]}], "could not be read"),
        ([7], "could not be read"),
    ],
)
async def test_what_is_wrong_with_an_answer_is_said_where_each_client_shows_it(said, wrong):
    graph, out = await asked(review="all")
    again = await answer(graph, out, said, review="all")
    value = again["__interrupt__"][0].value
    assert wrong in value["question"]
    assert wrong in value["action_requests"][0]["description"]


async def test_no_text_of_the_data_is_markdown_of_the_question():
    hostile = "```\n![x](http://127.0.0.1/steal)\n````\n<img src=x>"
    given = {**GIVEN, "references": [{**REFERENCE, "id": "a`b\n# c", "response": hostile}]}
    _, out = await asked(given=given, review="all")
    text = out["__interrupt__"][0].value["action_requests"][0]["description"]
    html = MarkdownIt("js-default").render(text)
    assert "<img" not in html
    assert "<h1" not in html


async def test_several_questions_are_answered_each_by_itself():
    graph, out = await asked(review="all", per_seed=3)
    first, second, third = out["__interrupt__"]
    some = Command(resume={second.id: "reject"})
    out = await graph.ainvoke(some, AT, context=context(review="all", per_seed=3))
    assert [i.id for i in out["__interrupt__"]] == [first.id, third.id]
    rest = Command(resume={third.id: "accept", first.id: {"decision": "accept"}})
    out = await graph.ainvoke(rest, AT, context=context(review="all", per_seed=3))
    assert "__interrupt__" not in out
    assert [s["status"] for s in out["samples"]] == ["accepted", "rejected", "accepted"]
    assert len({s["id"] for s in out["samples"]}) == 3


async def test_going_back_to_before_the_question_asks_it_again_and_pays_nothing():
    model = ScriptedModel()
    graph, out = await asked(model, review="all")
    before = await graph.aget_state(AT)
    await answer(graph, out, "reject", review="all")
    paid = len(model.calls)
    again = await graph.ainvoke(None, before.config, context=context(review="all"))
    assert again["samples"][0]["status"] == "pending"
    done = await answer(graph, again, "accept", review="all")
    assert done["samples"][0]["status"] == "accepted"
    assert len(model.calls) == paid


async def test_the_graph_sample_asks_too():
    graph = build_sample(complete=ScriptedModel(), embed=letters, checkpointer=InMemorySaver())
    given = {"instruction": "Explain how waves form at sea."}
    out = await graph.ainvoke(given, AT, context=context(review="all"))
    said = {"decision": "edit", "response": BETTER}
    done = await answer(graph, out, said, review="all")
    assert (done["status"], done["response"]) == ("accepted", BETTER)
    assert done["review"]["decision"] == "edit"
    assert len(done["attempts"]) == 2


async def test_a_thread_that_is_used_again_begins_anew():
    graph, _ = await asked(failing("a"))
    out = await graph.ainvoke(GIVEN, AT, context=context(random_seed=5))
    assert len(out["samples"]) == 1
    assert out["samples"][0]["usage"]["calls"] == 2


async def test_without_anybody_to_ask_a_sample_stays_pending():
    graph = build_graph(complete=ScriptedModel(), embed=letters, hooks=RunHooks(interrupts=False))
    out = await graph.ainvoke(GIVEN, context=context(review="all"))
    assert out["samples"][0]["status"] == "pending"


CRITERIA = [
    {"id": "a", "must": True, "judged_by": "judge", "bar": 1.0},
    {"id": "b", "must": True, "judged_by": "judge"},
    {"id": "c", "must": False, "judged_by": "judge"},
    {"id": "r", "must": True, "judged_by": "rule"},
]


def attempt(scores=None, **found):
    outcomes = {"a": "pass", "b": "pass", "c": "pass", "r": "pass"} | found
    return {
        "response": "x",
        "verdicts": [
            {"criterion_id": id_, "verdict": v, "reason": "", "evidence": "",
             "score": (scores or {}).get(id_)}
            for id_, v in outcomes.items()
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "one", "expected"),
    [
        ("accepted", attempt(), False),
        ("accepted", attempt(c="fail"), True),
        ("accepted", attempt(c="unknown"), True),
        ("accepted", attempt(c="not_applicable"), False),
        ("rejected", attempt(a="fail"), True),
        ("rejected", attempt(r="fail"), True),
        ("rejected", attempt(a="fail", b="unknown"), False),
        ("rejected", attempt(c="fail"), False),
        ("accepted", attempt({"a": 3.0, "c": 0.1}, c="fail"), False),
        ("accepted", attempt({"a": 1.4}), True),
        ("rejected", attempt({"a": 0.7}, a="fail", r="fail"), True),
    ],
)
def test_borderline_is_what_one_verdict_decides(status, one, expected):
    assert is_borderline(status, CRITERIA, one) is expected


@pytest.mark.parametrize("when", ["rejected", "borderline", "all"])
def test_failed_and_contaminated_samples_are_shown_to_nobody(when):
    assert not needs_review("failed", None, CRITERIA, attempt(), when)
    assert not needs_review("rejected", "contaminated", CRITERIA, attempt(r="fail"), when)
    assert not needs_review("rejected", "criteria", CRITERIA, None, when)


async def test_a_chat_client_is_shown_the_seed_as_a_message():
    """Without any message agent-chat-ui fails on a thread that waits."""
    graph, out = await asked(review="all")
    assert "messages" not in out
    (message,) = (await graph.aget_state(AT)).values["messages"]
    assert (message["type"], message["content"]) == ("human", GIVEN["seed"]["instruction"])
    alone = build_sample(complete=ScriptedModel(), embed=letters, checkpointer=InMemorySaver())
    await alone.ainvoke({"instruction": "Say."}, AT, context=context(review="all"))
    assert (await alone.aget_state(AT)).values["messages"][0]["content"] == "Say."
