"""`--reasoning`: accepted instructions answered again bare, and what the model thought kept."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from fakes import (
    Endpoint,
    ScriptedModel,
    answer,
    letters,
    prompt_of,
    stage_of,
    tagged,
    verdicts,
    words,
)
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from processes import refloom
from runs import (
    SEEDS,
    CountingModel,
    MixedModel,
    all_rows,
    build_run,
    finish_run,
    number_of,
    references,
    rows,
    run_flags,
    stable_rows,
    summary_of,
)

from graph.builder import build_graph, build_sample
from nodes.context import Context
from nodes.decisions import ReviewDecision, apply_decision, mark_pending
from nodes.llm import Call, CallFailed, PlainText, ProviderStopped, Reply, ask_text
from nodes.llm.chat_model import read_message
from nodes.llm.completion import parse_reply
from nodes.llm.thoughts import find_thoughts, strip_marks
from nodes.reasoning import find_prompt_talk
from nodes.state import Attempt
from nodes.verdicts import is_as_good
from refloom.errors import BudgetSpent
from refloom.evaluation.report import report
from refloom.evaluation.report.collect import collect_run
from refloom.evaluation.report.tables import outcome_tables
from refloom.evaluation.stats import proportion
from refloom.runs.journal import open_read_only
from refloom.settings import Settings

INSTRUCTION = "Why are there two tides a day?"
BARE = (
    "The moon pulls the near sea more than the earth, and the earth more than the far sea. So the "
    "sea bulges on both sides."
)
THOUGHTS = "First the near side. Then the far side."


def full(start: str = "") -> str:
    """A response that is as long as the references'."""
    return f"{start} {BARE}".strip()


def said(start: str = "", thoughts: str | None = THOUGHTS) -> dict[str, Any]:
    return {"response": full(start)} | ({} if thoughts is None else {"thoughts": thoughts})


def each(*answers: Any) -> Any:
    """One answer after another, whatever is asked."""
    waiting = iter(answers)
    return lambda call: next(waiting)


def judging(**by_response: str) -> Any:
    """Verdicts that fail the criteria named for the response that is judged."""

    def judge(call: Call) -> Any:
        prompt = prompt_of(call)
        response = tagged(prompt, "response")[-1]
        failed = {id_ for start, id_ in by_response.items() if response.startswith(start)}
        return verdicts(prompt, lambda id_: "fail" if id_ in failed else "pass")

    return judge


async def made(model: ScriptedModel, **settings: Any) -> dict[str, Any]:
    """The record of one sample, with the setting on."""
    context = Context(model="m", reasoning=True, answer_seeds=True, try_criteria=False, **settings)
    graph = build_graph(complete=model, embed=letters)
    inputs = {"seed": {"instruction": INSTRUCTION}, "references": references(2)}
    state = await graph.ainvoke(inputs, context=context)
    (record,) = state["samples"]
    return record


def kinds(record: dict[str, Any]) -> list[str]:
    return [error["kind"] for error in record["answer_errors"]]


async def test_an_accepted_instruction_is_answered_again_and_nothing_else_is_in_view():
    model = ScriptedModel(answer=lambda call: said())
    record = await made(model)
    (call,) = [c for c in model.calls if c.stage == "answer"]
    assert call.messages == ({"role": "user", "content": INSTRUCTION},)
    assert (call.kind, call.temperature, call.max_tokens) == ("text", 0.7, 3000)
    assert (record["status"], record["response"], record["reasoning"]) == (
        *("accepted", BARE),
        THOUGHTS,
    )
    (taken,) = record["answers"]
    (before,) = record["attempts"]
    assert taken["response"] == BARE != before["response"]
    assert [v["criterion_id"] for v in taken["verdicts"]] == [
        v["criterion_id"] for v in before["verdicts"]
    ]
    assert record["answer_errors"] == []


async def test_the_answer_is_judged_with_draws_of_its_own():
    model = ScriptedModel(
        generate=lambda call: said("", None), answer=lambda call: said(), critique=None
    )
    model.stages.pop("critique")
    await made(model)
    first, second = [c for c in model.calls if c.stage == "critique"]
    assert first.messages == second.messages
    assert first.seed != second.seed


async def test_without_the_setting_nothing_is_asked_and_reasoning_is_null():
    model = ScriptedModel()
    graph = build_graph(complete=model, embed=letters)
    inputs = {"seed": {"instruction": INSTRUCTION}, "references": references(2)}
    state = await graph.ainvoke(
        inputs, context=Context(model="m", answer_seeds=True, try_criteria=False)
    )
    (record,) = state["samples"]
    assert record["reasoning"] is None
    assert not {"answers", "answer_errors"} & record.keys()
    assert not model.asked("answer")


async def test_the_earliest_answer_that_is_as_good_is_taken():
    answers = (said("Poor one."), said("Good one."), said("Never asked for."))
    model = ScriptedModel(answer=each(*answers), critique=judging(Poor="answers-instruction"))
    record = await made(model)
    assert (record["response"], record["reasoning"]) == (full("Good one."), THOUGHTS)
    assert [a["response"] for a in record["answers"]] == [full("Poor one."), full("Good one.")]
    seeds = [c.seed for c in model.calls if c.stage == "answer"]
    assert len(set(seeds)) == len(seeds) == 2


async def test_after_three_answers_the_row_keeps_its_response():
    model = ScriptedModel(
        generate=lambda call: said("The first of all.", None),
        answer=lambda call: said(f"Poor one {call.seed}."),
        critique=judging(Poor="answers-instruction"),
    )
    record = await made(model)
    assert (record["status"], record["response"]) == ("accepted", full("The first of all."))
    assert record["reasoning"] is None
    assert len(record["answers"]) == len(set(c.seed for c in model.calls if c.stage == "answer"))
    assert len(record["answers"]) == 3


def attempt(*passed: str, of: str = "abcd") -> Attempt:
    marks = [(name, "pass" if name in passed else "fail") for name in of]
    found = [
        {"criterion_id": n, "verdict": v, "reason": "", "evidence": "", "score": None}
        for n, v in marks
    ]
    return {"response": "", "verdicts": found}


@pytest.mark.parametrize(
    ("answered", "good"),
    [("ac", True), ("ad", True), ("acd", True), ("a", False), ("cd", False), ("bcd", False)],
)
def test_an_answer_is_as_good_with_every_must_and_as_many_shoulds(answered, good):
    """Of four criteria the first one is a must; the response before passed one of the others."""
    criteria: Any = [{"id": name, "must": name == "a"} for name in "abcd"]
    assert is_as_good(attempt(*answered), attempt("a", "b"), criteria) is good


def test_a_must_that_is_unknown_or_not_there_does_not_pass():
    criteria: Any = [{"id": "a", "must": True}, {"id": "b", "must": True}]
    assert not is_as_good(attempt("a", of="a"), attempt("a", "b", of="ab"), criteria)


async def test_a_rejected_sample_is_not_answered_again():
    model = ScriptedModel(critique=lambda call: verdicts(prompt_of(call), "fail"))
    record = await made(model, max_attempts=1)
    assert record["status"] == "rejected"
    assert (record["reasoning"], record["answers"], record["answer_errors"]) == (None, [], [])
    assert not model.asked("answer")


async def test_an_answer_without_thoughts_is_counted_and_neither_judged_nor_drawn_again():
    model = ScriptedModel(answer=lambda call: said("", None))
    record = await made(model)
    assert record["status"] == "accepted"
    assert record["reasoning"] is None and record["response"] != BARE
    (answered,) = record["answers"]
    judged = {c["id"] for c in record["criteria"] if c["judged_by"] == "judge"}
    by_judge = [v for v in answered["verdicts"] if v["criterion_id"] in judged]
    assert {v["verdict"] for v in by_judge} == {"unknown"}
    assert kinds(record) == ["no_thoughts"]
    assert len(model.asked("answer")) == len(model.asked("critique")) == 1


async def test_thoughts_that_speak_of_a_prompt_are_not_taken():
    talk = "The reference answer names the moon, so I do."
    model = ScriptedModel(answer=each(said("One.", talk), said("Two.", THOUGHTS)))
    record = await made(model)
    assert (record["response"], record["reasoning"]) == (full("Two."), THOUGHTS)
    assert [a["response"] for a in record["answers"]] == [full("One."), full("Two.")]
    assert kinds(record) == ["prompt_talk"]
    assert "names the moon" not in json.dumps(record)


async def test_thoughts_that_hold_a_benchmarks_prompt_are_not_kept(tmp_path):
    prompt = f"{words('a prompt of a benchmark', 30)}?"
    (tmp_path / "bench.txt").write_text(f"{prompt}\n", encoding="utf-8")
    model = ScriptedModel(
        answer=lambda call: said(str(call.seed), f"I know this: {prompt} So it is.")
    )
    benchmark = (str(tmp_path / "bench.txt"),)
    await finish_run(tmp_path / "out", model, SEEDS[:1], reasoning=True, benchmark=benchmark)
    (row,) = rows(tmp_path / "out", "accepted")
    assert row["reasoning"] is None
    assert kinds(row) == ["contaminated"] * 3
    assert prompt not in json.dumps(row)
    assert summary_of(tmp_path / "out")["answers"]["contaminated"] == 3


@pytest.mark.parametrize(
    "thoughts",
    [
        "The reference has it that the moon pulls.",
        "As in the reference response, I start with the moon.",
        "Each reference answer is short.",
        "I check it against the criteria: short, true.",
        "Every criterion is met now.",
        "The following criteria must hold.",
        "The rubric wants a summary.",
        "By the feedback, I should be brief.",
        "The example response uses a list, so do I.",
        "Let me follow the sample answer.",
        'It says <criterion id="c1"> must hold.',
        "The judge's verdict was fail on the first.",
        "The failed verdicts are two.",
        "The golden answer is longer than mine.",
    ],
)
def test_talk_of_the_prompt_is_found(thoughts):
    assert find_prompt_talk(thoughts, INSTRUCTION)


@pytest.mark.parametrize(
    ("thoughts", "instruction"),
    [
        (THOUGHTS, INSTRUCTION),
        ("The user asks for two tides. The answer should be short.", INSTRUCTION),
        ("For example, the sun pulls too. With reference to the moon: it pulls.", INSTRUCTION),
        ("Choose the reference frame of the earth, and a reference point.", INSTRUCTION),
        ("The selection criteria of such a school are strict.", INSTRUCTION),
        ("A feedback loop between ice and sea; the feedback loop grows.", INSTRUCTION),
        ("The criteria are cost and time.", "Which criteria decide a purchase?"),
        ("I will write the rubric with four rows.", "Write a rubric for an essay."),
        ("The reference should have a date.", "How do I cite references in APA?"),
        ("The feedback is kind.", "Give feedback on this poem."),
        ("An ideal answer names the sun; my improved answer does.", INSTRUCTION),
        ("The verdict is clear: the moon does it.", INSTRUCTION),
        ("The response is JSON. The model answers with 200.", INSTRUCTION),
    ],
)
def test_what_is_no_talk_of_the_prompt_stays(thoughts, instruction):
    assert find_prompt_talk(thoughts, instruction) == ""


USED = {"calls": 1, "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 7}
# What a draw may meet: the reply or fault of that kind, and whether another draw is made.
FAULTS: dict[str, tuple[Any, bool]] = {
    "empty": (Reply("", "stop", {**USED}), True),
    "cut": (Reply("Half of", "length", {**USED}), True),
    "malformed": (Reply("<think>So it is.", "stop", {**USED}), True),
    "refused": (Reply(None, "stop", {**USED}, refusal="I will not."), True),
    "filtered": (Reply("", "content_filter", {**USED}), True),
    "bad_request": (CallFailed("answer", "bad_request", "no"), False),
    "server": (CallFailed("answer", "server", "down"), False),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_draw_that_fails_costs_the_row_nothing(kind):
    fault, another = FAULTS[kind]
    model = ScriptedModel(answer=lambda call: fault)
    record = await made(model)
    assert (record["status"], record["reasoning"], record["answers"]) == ("accepted", None, [])
    assert record["response"] == record["attempts"][0]["response"]
    assert kinds(record) == [kind] * (3 if another else 1)
    assert "error" not in record
    asked = Counter(c.seed for c in model.calls if c.stage == "answer")
    assert len(asked) == len(kinds(record))
    # A cut answer has more room three times; nothing else is asked twice.
    assert set(asked.values()) == {4 if kind == "cut" else 1}
    if isinstance(fault, Reply):
        # What was paid for in vain is in the usage: the draft, its verdicts, and these.
        assert record["usage"]["calls"] == sum(asked.values()) + 2


async def test_a_failed_draw_is_followed_by_the_next_one():
    model = ScriptedModel(answer=each(Reply("", "stop", {**USED}), said("Second.")))
    record = await made(model)
    assert (record["response"], kinds(record)) == (full("Second."), ["empty"])
    assert len(record["answers"]) == 1


async def test_what_came_in_vain_stands_in_no_row():
    replies = (
        Reply("", "stop", {**USED}, refusal="I will not, says the zebra."),
        Reply("<think>zebra", "stop", {**USED}),
        Reply("upstream error: 502 Bad Gateway zebra", "stop", {**USED}),
    )
    record = await made(ScriptedModel(answer=each(*replies)))
    assert record["answer_errors"] == [
        {"stage": "answer", "kind": kind} for kind in ("refused", "malformed", "malformed")
    ]
    assert "zebra" not in json.dumps(record)


async def test_a_cut_answer_gets_more_room():
    def reply(call: Call) -> Any:
        cut = call.room == 1
        return Reply("Half", "length", {**USED}) if cut else said("Whole.")

    record = await made(ScriptedModel(answer=reply))
    assert (record["response"], kinds(record)) == (full("Whole."), [])


async def test_a_judgement_that_fails_costs_the_row_nothing():
    def judge(call: Call) -> Any:
        prompt = prompt_of(call)
        bad = tagged(prompt, "response")[-1].startswith("Odd")
        return CallFailed("critique", "filtered", "no") if bad else verdicts(prompt)

    model = ScriptedModel(answer=each(said("Odd one."), said("Even one.")), critique=judge)
    record = await made(model)
    assert (record["status"], record["response"]) == ("accepted", full("Even one."))
    assert [(e["stage"], e["kind"]) for e in record["answer_errors"]] == [("critique", "filtered")]


async def test_what_ends_a_run_goes_through():
    model = ScriptedModel(answer=lambda call: ProviderStopped("no quota"))
    with pytest.raises(ProviderStopped):
        await made(model)


@pytest.mark.parametrize("arm", ["none", "sample", "generic", "swapped"])
async def test_in_other_arms_what_decides_there_decides_here(arm):
    model = ScriptedModel(answer=each(said("[insert your name here]"), said("Sound.")))
    record = await made(model, feedback=arm)
    assert (record["response"], record["reasoning"]) == (full("Sound."), THOUGHTS)
    judged = len(model.asked("critique"))
    assert (judged > 0) == (arm in ("generic", "swapped"))
    # The draft is refined once by feedback on it, and a bare answer by none.
    assert len(model.asked("feedback")) == (arm == "sample")


async def test_by_log_odds_too():
    # By log-odds a response has to be about its instruction, by their vectors.
    on_topic = {"response": f"{INSTRUCTION} {BARE}", "thoughts": THOUGHTS}
    model = ScriptedModel(
        generate=lambda call: {"response": f"{INSTRUCTION} So it is."},
        answer=lambda call: on_topic,
        odds=lambda call: 3.0,
    )
    record = await made(model, judge_method="logodds")
    assert record["reasoning"] == THOUGHTS
    questions = [c for c in model.calls if c.kind == "question"]
    assert len({(c.messages, c.seed) for c in map(hashable, questions)}) == len(questions)


def hashable(call: Call) -> Call:
    return replace(call, messages=tuple(m["content"] for m in call.messages))  # type: ignore[arg-type]


async def test_the_graph_sample_does_it_too_and_a_used_thread_begins_anew():
    model = ScriptedModel(answer=each(said("One."), said("Two.", None)))
    graph = build_sample(complete=model, embed=letters, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    context = Context(model="m", reasoning=True)
    inputs: Any = {"instruction": INSTRUCTION, "references": references(1)}
    first = await graph.ainvoke(inputs, config, context=context)
    assert (first["response"], first["reasoning"]) == (full("One."), THOUGHTS)
    second = await graph.ainvoke(inputs, config, context=context)
    assert second["reasoning"] is None and second["response"] != full("Two.")
    assert [a["response"] for a in second["answers"]] == [full("Two.")]


async def test_a_person_who_edits_the_response_takes_its_reasoning_away():
    record = mark_pending(await made(ScriptedModel(answer=lambda call: said())))
    accepted = apply_decision(record, [], ReviewDecision(decision="accept"))
    assert (accepted["response"], accepted["reasoning"]) == (BARE, THOUGHTS)
    edited = apply_decision(record, [], ReviewDecision(decision="edit", response="My own."))
    assert (edited["response"], edited["reasoning"]) == ("My own.", None)
    assert edited["attempts"][-1]["response"] == "My own."
    assert len(edited["answers"]) == 1


@pytest.mark.parametrize(
    ("decision", "kept"),
    [("accept", True), ({"decision": "edit", "response": "My own."}, False)],
)
async def test_in_the_graph_sample_a_person_sees_the_reasoning_and_then_decides(decision, kept):
    model = ScriptedModel(answer=lambda call: said())
    graph = build_sample(complete=model, embed=letters, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    context = Context(model="m", reasoning=True, review="all")
    inputs: Any = {"instruction": INSTRUCTION, "references": references(1)}
    state = await graph.ainvoke(inputs, config, context=context)
    (asked,) = state["__interrupt__"]
    assert asked.value["sample"]["reasoning"] == THOUGHTS
    assert len(asked.value["sample"]["answers"]) == 1
    ended = await graph.ainvoke(Command(resume=decision), config, context=context)
    assert ended["reasoning"] == (THOUGHTS if kept else None)
    assert ended["response"] == (BARE if kept else "My own.")
    assert len(model.asked("answer")) == 1, "nothing is paid again"


# Where thoughts come on the wire: what stands in the message for them.
WIRES: dict[str, Any] = {
    "reasoning_content": lambda text, thought: {"content": text, "reasoning_content": thought},
    "reasoning": lambda text, thought: {"content": text, "reasoning": thought},
    "thinking": lambda text, thought: {"content": text, "thinking": thought},
    "parts": lambda text, thought: {
        "content": [{"type": "thinking", "thinking": thought}, {"type": "text", "text": text}]
    },
    "reasoning_details": lambda text, thought: {
        "content": text, "reasoning_details": [{"type": "reasoning.text", "text": thought}]
    },
    "tags": lambda text, thought: {"content": f"<think>\n{thought}\n</think>\n\n{text}"},
    "closing tag alone": lambda text, thought: {"content": f"{thought}\n</think>\n\n{text}"},
    "tags in the field": lambda text, thought: {
        "content": text, "reasoning_content": f"<think>{thought}</think>"
    },
    "harmony": lambda text, thought: {
        "content": f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant"
        f"<|channel|>final<|message|>{text}"
    },
    "thought tags": lambda text, thought: {"content": f"<thought>{thought}</thought>\n{text}"},
}  # fmt: skip


@pytest.mark.parametrize("wire", WIRES)
async def test_thoughts_are_read_in_every_form_without_their_marks(wire):
    body = {"choices": [{"message": WIRES[wire](BARE, THOUGHTS), "finish_reason": "stop"}]}

    async def complete(call: Call) -> Reply:
        return parse_reply(body, call)

    call = Call("answer", ({"role": "user", "content": INSTRUCTION},), None, "m", False, 0, 0.7,
                3000, text=True)  # fmt: skip
    result = await ask_text(complete, call, thoughts=True)
    assert result.answer == PlainText(BARE, None, THOUGHTS)
    assert (await ask_text(complete, call)).answer == PlainText(BARE)


@pytest.mark.parametrize(
    "message",
    [
        AIMessage([{"type": "reasoning", "reasoning": THOUGHTS}, {"type": "text", "text": BARE}]),
        AIMessage(
            [{"type": "thinking", "thinking": THOUGHTS}, {"type": "text", "text": BARE}],
            response_metadata={"model_provider": "anthropic"},
        ),
        AIMessage(BARE, additional_kwargs={"reasoning_content": THOUGHTS}),
        AIMessage(f"<think>{THOUGHTS}</think>\n{BARE}"),
    ],
)
async def test_thoughts_of_a_providers_model_are_read(message):
    async def complete(call: Call) -> Reply:
        return read_message(message, structured=False)

    call = Call("answer", ({"role": "user", "content": INSTRUCTION},), None, "groq:m", False, 0,
                0.7, 3000, text=True)  # fmt: skip
    assert (await ask_text(complete, call, thoughts=True)).answer == PlainText(BARE, None, THOUGHTS)


@pytest.mark.parametrize(
    "message",
    [
        {"content": BARE},
        {"content": f"<think>\n\n</think>\n{BARE}"},
        {"content": BARE, "reasoning_content": " \n"},
        {"content": BARE, "reasoning_content": BARE},
        {"content": BARE, "reasoning_details": [{"type": "reasoning.encrypted", "data": "eJx"}]},
    ],
)
async def test_no_thoughts_are_none(message):
    async def complete(call: Call) -> Reply:
        return parse_reply({"choices": [{"message": message}]}, call)

    call = Call("answer", ({"role": "user", "content": INSTRUCTION},), None, "m", False, 0, 0.7,
                3000, text=True)  # fmt: skip
    assert (await ask_text(complete, call, thoughts=True)).answer == PlainText(BARE)


async def test_an_instruction_that_speaks_of_the_marks_has_thoughts_from_a_field_alone():
    async def complete(call: Call) -> Reply:
        return parse_reply({"choices": [{"message": WIRES["reasoning"](BARE, THOUGHTS)}]}, call)

    message = {"role": "user", "content": "What does <think> mean in a model's output?"}
    call = Call("answer", (message,), None, "m", False, 0, 0.7, 3000, text=True)  # type: ignore[arg-type]
    assert (await ask_text(complete, call, thoughts=True)).answer.thoughts == THOUGHTS


@pytest.mark.parametrize(
    ("text", "thoughts"),
    [
        ("<think>One.</think>\n<think>Two.</think>\nSo.", "One. \n Two."),
        ("<think>Two?</think> No.</think>\nThree.", "Two?  No."),
        ("Only the answer.", ""),
        ("\ufeff<think>\n\nHm.\n</think>So.", "Hm."),
        ("&lt;think&gt;Hm.&lt;/think&gt;So.", "Hm."),
        ("[THINK]Hm.[/THINK]So.", "Hm."),
        ("<reasoning>Hm.</reasoning>\nSo.", "Hm."),
        ("analysisHm.assistantfinalSo.", "Hm."),
    ],
)
def test_thoughts_in_a_text(text, thoughts):
    found = find_thoughts(text)
    assert found.split() == thoughts.split()


@pytest.mark.parametrize(
    ("thoughts", "bare"),
    [
        ("<think>Hm.</think>", "Hm."),
        ("It asks about <think> and </think>.", "It asks about <think> and </think>."),
        ("Hm.\n</think>", "Hm."),
        ("<reasoning>\nHm.\n</reasoning>\n", "Hm."),
        (" Hm. ", "Hm."),
        ("</think>", ""),
        ("<think>\n<think>Hm.</think>\n</think>", "Hm."),
        ("<think>\n<think> is a tag.</think>", "<think> is a tag."),
    ],
)
def test_marks_around_thoughts_are_taken_off(thoughts, bare):
    assert strip_marks(thoughts) == bare


TOKENS = ("prompt_tokens", "completion_tokens")
MARK = "zebrafish"


def planted() -> list[dict[str, str]]:
    """References whose every sentence has a word that nothing else has."""
    return [
        {**one, "response": f"{MARK} {one['response'].replace('. ', f'. {MARK} ')}"}
        for one in references()
    ]


class Parrot(MixedModel):
    """A model that repeats whatever its prompt holds, in response and thoughts."""

    def __init__(self) -> None:
        super().__init__()
        self.stages |= {"extract": self._marked, "answer": self._repeat, "refine": self._told}
        self.stages["generate"] = self._told

    def _marked(self, call: Call) -> Any:
        said = answer("extract", prompt_of(call), call.seed)
        for one in said["characteristics"]:
            one["text"] += f" as a {MARK} would"
        return said

    def _told(self, call: Call) -> Any:
        key = words(f"{tagged(prompt_of(call), 'instruction')[-1]} {call.seed}", 30)
        seen = MARK if MARK in prompt_of(call) else "nothing"
        return {"response": f"{key.capitalize()}, and I saw {seen}."}

    def _repeat(self, call: Call) -> Any:
        text = prompt_of(call)
        said = f"{words(f'{text} {call.seed}', 30)}: {text}".capitalize() + "."
        return {"response": said, "thoughts": f"It says {text}"}


async def test_no_word_of_a_reference_or_criterion_is_in_rows_with_reasoning(tmp_path):
    model = Parrot()
    await finish_run(tmp_path, model, SEEDS, given=planted(), reasoning=True, per_seed=2)
    found = rows(tmp_path, "accepted")
    kept = [row for row in found if row["reasoning"]]
    assert len(kept) >= 4
    assert any(MARK in row["attempts"][-1]["response"] for row in kept), "the loop's show it"
    assert not any(MARK in row["reasoning"] + row["response"] for row in kept)
    assert not any(MARK in prompt for prompt in model.asked("answer"))


class Thinking(MixedModel):
    """A model of varied success, whose bare answers fail, lack thoughts or speak of criteria."""

    def __init__(self) -> None:
        super().__init__()
        self.stages["answer"] = self._answer

    def _answer(self, call: Call) -> Any:
        text = prompt_of(call)
        number = number_of(f"{text} {call.seed}")
        response = words(f"{text} {call.seed}", 40).capitalize() + "."
        if number % 7 == 0:
            return Reply("", "stop", {**USED})
        if number % 7 == 1:
            return {"response": response}
        if number % 7 == 2:
            return {"response": response, "thoughts": "The rubric asks for it."}
        return {"response": response, "thoughts": f"Let me think of {words(response, 5)}."}


@pytest.mark.parametrize("concurrency", [8, 32])
async def test_rows_do_not_depend_on_concurrency(tmp_path, concurrency):
    settings: dict[str, Any] = {"reasoning": True, "per_seed": 3}
    await finish_run(tmp_path / "one", Thinking(), SEEDS, concurrency=1, **settings)
    await finish_run(tmp_path / "many", Thinking(), SEEDS, concurrency=concurrency, **settings)
    assert stable_rows(tmp_path / "one") == stable_rows(tmp_path / "many")
    ends = Counter(
        (len(row["answers"]), bool(row["reasoning"])) for row in rows(tmp_path / "one", "accepted")
    )
    assert {(1, True), (2, True)} < set(ends), ends


async def test_run_json_counts_bare_answers(tmp_path):
    model = Thinking()
    found = await finish_run(tmp_path, model, SEEDS, reasoning=True, per_seed=3)
    accepted = rows(tmp_path, "accepted")
    errors = Counter(e["kind"] for row in accepted for e in row["answer_errors"])
    answered = [a for row in accepted for a in row["answers"]]
    # Of these, the only answer came without thoughts.
    lone = sum(len(row["answers"]) == 1 and "no_thoughts" in kinds(row) for row in accepted)
    counts = found["answers"]
    assert counts == {
        "samples": len(accepted),
        "asked": len(answered) + errors["empty"],
        "failed": errors["empty"],
        "without_thoughts": errors["no_thoughts"],
        "prompt_talk": errors["prompt_talk"],
        "contaminated": 0,
        "judged": len(answered) - errors["no_thoughts"],
        "passed": counts["passed"],
        "first_judged": sum(bool(row["answers"]) for row in accepted) - lone,
        "first_passed": counts["first_passed"],
        "taken": sum(row["reasoning"] is not None for row in accepted),
    }
    assert min(number for name, number in counts.items() if name != "contaminated") > 0
    assert counts["taken"] <= counts["passed"] <= counts["judged"]
    assert counts["first_passed"] <= min(counts["passed"], counts["first_judged"])
    asked = {c.seed for c in model.calls if c.stage == "answer"}
    assert found["calls"]["by_stage"]["answer"] == len(asked) == counts["asked"]


async def test_the_report_has_the_rate_of_bare_answers_beside_the_loops(tmp_path):
    found = (await finish_run(tmp_path, Thinking(), SEEDS, reasoning=True, per_seed=3))["answers"]
    run = collect_run("run", tmp_path)
    loop, bare, every, kept, *rest = outcome_tables(run)["answers"]
    judged = len(rows(tmp_path, "accepted")) + len(rows(tmp_path, "rejected"))
    at_once = sum(len(row["attempts"]) == 1 for row in rows(tmp_path, "accepted"))
    assert loop.share == proportion(at_once, judged)
    assert bare.share == proportion(found["first_passed"], found["first_judged"])
    assert 0 < bare.share.low < bare.share.value < bare.share.high < 1
    assert every.share == proportion(found["passed"], found["judged"])
    assert kept.share == proportion(found["taken"], found["samples"])
    assert [part.times for part in rest] == [
        found[name] for name in ("without_thoughts", "prompt_talk", "failed")
    ]
    page = (await report([tmp_path], embed=letters)).read_text(encoding="utf-8")
    assert "first bare answers as good as the accepted response" in page
    assert "What the model thought before it" in page
    assert "none taken" in page


async def test_what_the_model_thought_is_inert_on_the_page(tmp_path):
    bad = "<script>alert(1)</script> so it is"
    model = ScriptedModel(answer=lambda call: said(str(call.seed), bad))
    await finish_run(tmp_path, model, SEEDS, reasoning=True)
    page = (await report([tmp_path], embed=letters)).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page and "<script>" not in page


async def test_the_card_of_a_run_says_what_its_counts_say(tmp_path):
    found = await finish_run(tmp_path, Thinking(), SEEDS, reasoning=True, per_seed=3)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    counts, answers = found["counts"], found["answers"]
    assert f"**{answers['taken']} of {counts['accepted']} rows\nhave reasoning**" in card
    assert f"{answers['without_thoughts']} answers came without thoughts" in card


async def test_a_run_without_the_setting_counts_none(tmp_path):
    found = await finish_run(tmp_path, ScriptedModel(), SEEDS)
    assert found["answers"] is None
    assert all(row["reasoning"] is None for row in all_rows(tmp_path))


@pytest.mark.parametrize("status", ["accepted", "rejected", "failed"])
async def test_every_row_has_the_keys(tmp_path, status):
    await finish_run(tmp_path, Thinking(), SEEDS, reasoning=True, per_seed=3)
    found = rows(tmp_path, status)
    assert found
    assert all({"reasoning", "answers", "answer_errors"} <= row.keys() for row in found)


async def test_the_target_is_met_and_not_passed(tmp_path):
    model = Thinking()
    found = await finish_run(tmp_path, model, SEEDS, reasoning=True, target=5, concurrency=32)
    assert found["counts"]["accepted"] == 5
    # A slot is in flight until its last bare answer is judged.
    slots = {row["instruction"] for row in all_rows(tmp_path)}
    assert set(model.asked("answer")) <= slots


class Costly(Thinking):
    """The same, with answers so long that a cap is met by them and not by what is set aside."""

    async def __call__(self, call: Call) -> Reply:
        reply = await super().__call__(call)
        return replace(reply, usage={**reply.usage, "completion_tokens": 2500})


async def test_a_budget_that_ends_among_bare_answers_is_resumed_to_the_same_rows(tmp_path):
    settings: dict[str, Any] = {"reasoning": True, "per_seed": 2, "concurrency": 1}
    await finish_run(tmp_path / "whole", Costly(), SEEDS, **settings)
    used = summary_of(tmp_path / "whole")["usage"]
    total = used["prompt_tokens"] + used["completion_tokens"]
    stages = []
    for share in (n / 20 for n in range(5, 20)):
        model = Costly()
        run = build_run(
            tmp_path / "capped", model, SEEDS, max_tokens=int(share * total), **settings
        )
        with pytest.raises(BudgetSpent):
            await run.run()
        stages.append(model.calls[-1].stage)
        assert sum(summary_of(tmp_path / "capped")["usage"][n] for n in TOKENS) <= share * total
        for row in rows(tmp_path / "capped", "accepted"):
            assert row["answers"] or row["answer_errors"], "no row ends before it is answered"
    assert "answer" in stages
    await finish_run(tmp_path / "capped", Costly(), SEEDS, **settings)
    assert stable_rows(tmp_path / "capped") == stable_rows(tmp_path / "whole")


async def test_a_run_that_is_cut_off_ends_as_an_undisturbed_one(tmp_path):
    settings: dict[str, Any] = {"reasoning": True, "per_seed": 2, "concurrency": 8}
    whole = await finish_run(tmp_path / "whole", Thinking(), SEEDS, **settings)
    for at in (8, 12, 12, 12):
        counting = CountingModel(Thinking(), at)
        task = asyncio.ensure_future(build_run(tmp_path / "cut", counting, SEEDS, **settings).run())
        counting.then = task.cancel
        with pytest.raises(asyncio.CancelledError):
            await task
    again = await finish_run(tmp_path / "cut", Thinking(), SEEDS, **settings)
    assert stable_rows(tmp_path / "cut") == stable_rows(tmp_path / "whole")
    assert again["answers"] == whole["answers"]
    assert again["calls"]["paid"] == whole["calls"]["paid"]


async def test_reuse_pays_for_bare_answers_alone(tmp_path):
    await finish_run(tmp_path / "plain", Thinking(), SEEDS)
    model = Thinking()
    await finish_run(tmp_path / "more", model, SEEDS, reuse=tmp_path / "plain", reasoning=True)
    # What had failed is not in the journal.
    assert {c.stage for c in model.calls} - {"generate"} == {"answer", "critique"}
    plain, more = (rows(tmp_path / name, "accepted") for name in ("plain", "more"))
    assert [row["attempts"] for row in plain] == [row["attempts"] for row in more]
    again = Thinking()
    await finish_run(tmp_path / "again", again, SEEDS, reuse=tmp_path / "more", reasoning=True)
    assert {c.stage for c in again.calls} <= {"generate"}
    assert stable_rows(tmp_path / "again") == stable_rows(tmp_path / "more")


async def test_failed_samples_that_are_tried_again_are_answered_too(tmp_path):
    model = Thinking()
    spared = model.stages["generate"]
    await finish_run(tmp_path, model, SEEDS, reasoning=True)
    failed = len(rows(tmp_path, "failed"))
    assert failed
    model.stages["generate"] = lambda call: (
        {"response": words(str(call.seed), 40) + "."}
        if isinstance(said := spared(call), Exception)
        else said
    )
    await finish_run(tmp_path, model, SEEDS, reasoning=True)
    assert not rows(tmp_path, "failed")
    for row in rows(tmp_path, "accepted"):
        assert row["answers"] or row["answer_errors"]


async def test_review_of_all_keeps_the_reasoning_until_a_person_decides(tmp_path):
    found = await finish_run(tmp_path, Thinking(), SEEDS, reasoning=True, review="all")
    assert found["counts"]["pending"] > 0
    with open_read_only(tmp_path / "journal.sqlite") as connection:
        asked = [json.loads(a) for (a,) in connection.execute("SELECT asked FROM reviews")]
    samples = [entry["sample"] for entry in asked]
    assert any(sample["reasoning"] for sample in samples)
    assert all("answers" in sample for sample in samples)


def test_settings_that_cannot_have_reasoning_are_refused(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in references())
    (tmp_path / "references.jsonl").write_text(lines, encoding="utf-8")
    common = ("--references", "references.jsonl", "--model", "m", "--out", "out")
    for flags in (("--preset", "refed"), ("--pipeline", "refed")):
        ended = refloom("run", *common, "--reasoning", *flags, cwd=tmp_path)
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert "reasoning" in line and "refed" in line
    ended = refloom("experiment", *common, "--arms", "none", "--reasoning", cwd=tmp_path)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "--reasoning" in line and "same text" in line
    (tmp_path / "more.toml").write_text("reasoning = true\n", encoding="utf-8")
    ended = refloom("experiment", *common, "--arms", "none", "--config", "more.toml", cwd=tmp_path)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "reasoning" in line and "same text" in line
    ended = refloom(
        "run", *common, "--reasoning", "--max-tokens-per-call", "answer=500", cwd=tmp_path
    )
    assert ended.returncode == 2 and "at least 1000 tokens" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_off_it_changes_no_fingerprint():
    plain, on = Settings(model="m"), Settings(model="m", reasoning=True)
    assert plain.fingerprint() != on.fingerprint()
    values = {k: v for k, v in plain.row_settings().items() if k != "reasoning"}
    from hashlib import sha256

    assert (
        plain.fingerprint() == sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    )


@pytest.mark.parametrize("wire", ["reasoning_content", "reasoning", "parts", "tags"])
def test_a_run_at_an_endpoint_of_each_form(tmp_path, wire):
    """The command line against a local server; the row's thoughts are those that were sent."""
    lines = "".join(json.dumps(row) + "\n" for row in references())
    (tmp_path / "references.jsonl").write_text(lines, encoding="utf-8")

    def script(body: dict[str, Any], number: int) -> Any:
        if stage_of(body) != "answer":
            return None
        prompt = body["messages"][0]["content"]
        message = WIRES[wire](full(f"Of {prompt}"), f"Thought of {prompt}")
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return web.json_response({"choices": [choice], "model": "m", "usage": usage})

    with Endpoint(script) as endpoint:
        flags = run_flags(tmp_path / "references.jsonl", tmp_path / "out", endpoint)
        ended = refloom(*flags, "--reasoning", "--max-tokens-per-call", "answer=1234", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = rows(tmp_path / "out", "accepted")
    assert found
    for row in found:
        assert row["reasoning"] == f"Thought of {row['instruction']}"
        assert row["response"] == full(f"Of {row['instruction']}")
    asked = [body for body in endpoint.bodies if stage_of(body) == "answer"]
    assert {body["max_tokens"] for body in asked} == {1234}
    assert all(len(body["messages"]) == 1 and "seed" in body for body in asked)
    assert f"{len(found)} of {len(found)}" in ended.stdout
