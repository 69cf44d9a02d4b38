"""A person's criteria: a file of them, those that come with rows and inputs, and their trial."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import Endpoint, ScriptedModel, letters, prompt_of, tagged, verdicts, words
from processes import refloom
from runs import (
    CountingModel,
    all_rows,
    build_run,
    finish_run,
    references,
    rows,
    stable_rows,
    summary_of,
)

from graph.builder import build_graph, build_sample
from memory.references import reference_hash
from memory.store import load_or_write_references
from nodes.checks import DEFAULT_CHECKS
from nodes.context import Context
from nodes.inputs import BadInput
from nodes.llm import Call
from nodes.own_criteria import MAX_CRITERIA, OwnCriteria, fit_text, read_own_criterion
from nodes.own_trial import warning_of
from refloom.data.criteria import hash_criteria, load_criteria
from refloom.data.read import Source, describe_report
from refloom.errors import InputError, JournalError
from refloom.evaluation.own_criteria import check_criteria, format_check
from refloom.settings import Settings

SEEDS = [{"id": f"s{i}", "instruction": words(f"own seed {i}", 8)} for i in range(3)]


def own_file(folder: Path, *criteria: Any) -> Path:
    path = folder / "criteria.jsonl"
    path.write_text("".join(json.dumps(c) + "\n" for c in criteria), encoding="utf-8")
    return path


def texts(row: dict[str, Any], key: str = "criteria") -> list[str]:
    """The texts of a row's criteria, without those that are in every row."""
    own = (c for c in row[key] if c["judged_by"] != "rule" and c["id"] not in DEFAULT_CHECKS)
    return [c["text"] for c in own]


def criterion(row: dict[str, Any], text: str) -> dict[str, Any]:
    (found,) = [c for c in row["criteria"] if text in c["text"]]
    return found


# Texts that are made to fit.


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("The response names a source.", "names a source"),
        ("the response should name a source", "names a source"),
        ("It should always try a simple case first", "always tries a simple case first"),
        ("Should apply the rule", "applies the rule"),
        ("Should not be vague.", "is not vague"),
        ("The instruction must not name a brand", "does not name a brand"),
        ("Essential Criteria: Identifies the cause.", "identifies the cause"),
        ("Pitfall Criteria: Does not mention age", "does not mention age"),
        ("JSON comes first", "JSON comes first"),
        ("  holds\n together ", "holds together"),
        ("The response.", "the response"),
    ],
)
def test_a_text_is_made_to_fit_and_stays_so(said, text):
    assert fit_text(said) == text == fit_text(text)


def test_a_pitfall_is_asked_about_as_a_fault_and_keeps_the_words_of_the_person():
    own = read_own_criterion({"text": "Recommends a brand.", "weight": -2}, trusted=True)
    read = own["criterion"]
    assert read["text"] == "avoids this fault: recommends a brand"
    assert (read["quote"], read["weight"], read["must"]) == ("Recommends a brand.", -2, True)


# A file that cannot be used.

BAD = [
    ({"text": "is short", "colour": "red"}, "unknown key 'colour'"),
    ({"text": "is short", "check": "spelling"}, "there is no check 'spelling'"),
    ({"text": "is short", "check": "max_words:few"}, "max_words:few"),
    ({"text": "is short", "check": "json:x"}, "takes nothing after a colon"),
    ({"text": "is short", "check": "nodes.criteria:no_such"}, "no function 'no_such'"),
    ({"text": "is short", "check": "no_such_module:f"}, "no module 'no_such_module'"),
    ({"text": " . "}, "text: is missing or empty"),
    ({"must": True}, "text: is missing or empty"),
    ({"text": "x" * 1001}, "text: has 1001 characters"),
    ({"text": 5}, "text: must be a text, not a number"),
    ({"text": "is short", "must": "yes"}, "must: must be true or false, not a text"),
    ({"text": "is short", "weight": True}, "weight: must be a number"),
    ({"text": "is short", "of": "reply"}, "of: 'reply' is neither"),
    ({"text": "is short", "tags": "a"}, "tags: must be a list of texts"),
    ({"text": "is short", "tags": [1]}, "tags: must be a list of texts"),
    ({"text": "is short", "seed_id": 1}, "seed_id: must be a text"),
    ({"text": "is short", "id": "a b"}, "id: 'a b' is not"),
    ({"text": "is short", "id": "not-empty"}, "id: 'not-empty' is a criterion of refloom's own"),
    (
        {"text": "is short", "of": "instruction", "id": "instruction-is-a-request"},
        "is a criterion of refloom's own",
    ),
    ({"text": "is long", "id": "one"}, "id: 'one' is that of line 1 already"),
    ({"text": "is good"}, "the criterion is that of line 1 already"),
    ({"text": "is short", "of": "instruction", "check": "json"}, "check: is made of responses"),
    ({"text": "is short", "check": "json", "weight": -1}, "weight: a check is no pitfall"),
    (7, "a criterion is a text or an object, not a number"),
]


@pytest.mark.parametrize(("bad", "why"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_a_bad_criterion_is_told_with_file_and_line(tmp_path, bad, why):
    good = {"text": "is good", "id": "one"} if why.startswith("id: 'one'") else "is good"
    path = own_file(tmp_path, good, "is clear", bad)
    with pytest.raises(InputError) as told:
        load_criteria(path)
    assert str(told.value).startswith(f"{path}: line 3: ") and why in str(told.value)


TOML = """# Mine.
[[criteria]]
text = "names a source"

[[criteria]]
text = "is short"
%s
"""


@pytest.mark.parametrize(
    ("line", "at", "why"),
    [
        ("colour = 1", 7, "unknown key 'colour'"),
        ('check = "x"', 7, "there is no check 'x'"),
        ('text = "again"', 7, "is not valid TOML"),
        ("[other]", 7, "unknown key 'other'"),
        ("[[criteria]]", 7, "text: is missing"),
        ("weight = nan", 7, "weight: must be a finite number"),
    ],
)
def test_a_bad_line_of_toml_is_told(tmp_path, line, at, why):
    path = tmp_path / "criteria.toml"
    path.write_text(TOML % line, encoding="utf-8")
    with pytest.raises(InputError) as told:
        load_criteria(path)
    assert str(told.value).startswith(f"{path}: line {at}: ") and why in str(told.value)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2: is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n\xff\xfe', "line 2: is not UTF-8 text"),
        ("a.jsonl", b"\n\n", "holds no criteria"),
        ("a.toml", b"", "holds no criteria"),
        ("a.toml", b"criteria = 5", "line 1: criteria must be a list of tables"),
        ("a.toml", b'criteria = [{text = "a", x = 1}]', "line 1: unknown key 'x'"),
        ("a.yaml", b"- a", "is named .toml or .jsonl"),
    ],
)
def test_a_file_that_holds_no_criteria_is_told(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(why)):
        load_criteria(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        load_criteria(tmp_path / f"no-{name}")


def test_toml_and_json_lines_that_say_the_same_are_the_same(tmp_path):
    toml = tmp_path / "criteria.toml"
    toml.write_text('[[criteria]]\ntext = "is short"  # or so\nmust = false\nweight = 2\n')
    lines = own_file(tmp_path, {"text": "is short", "must": False, "weight": 2})
    assert hash_criteria(load_criteria(toml)) == hash_criteria(load_criteria(lines))


def test_the_example_of_the_documentation_can_be_read(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "criteria.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.toml").write_text(example, encoding="utf-8")
    own = load_criteria(tmp_path / "mine.toml")
    said = [one["criterion"]["text"] for one in own]
    assert said[0] == "says in its first sentence what the customer should do"
    assert said[2] == "avoids this fault: blames the customer"
    assert [one["of"] for one in own] == ["response"] * 5 + ["instruction"]


def test_a_bad_file_ends_the_command_before_any_call(tmp_path):
    file = tmp_path / "references.jsonl"
    file.write_text("\n".join(map(json.dumps, references())))
    bad = own_file(tmp_path, "is short", {"text": "is short", "check": "shell"})
    with Endpoint() as endpoint:
        for command in (
            ["run", "--out", tmp_path / "out", "--criteria", bad],
            ["run", "--out", tmp_path / "out", "--criteria", bad, "--dry-run"],
            ["criteria", bad],
        ):
            flags = ["--references", file, "--base-url", endpoint.url, "--model", "m"]
            done = refloom(*command, *flags, cwd=tmp_path)
            assert done.returncode == 2 and f"{bad}: line 2: check: " in done.stderr
            assert done.stderr.count("\n") == 1 or "--dry-run" in command
        assert endpoint.bodies == [] and endpoint.preflights == []


# Whole runs.


async def test_tagged_criteria_reach_only_their_rows(tmp_path):
    given = [{**r, "tags": ["law"]} if r["id"] == "r1" else r for r in references()]
    seeds = [{"id": r["id"], "instruction": r["instruction"]} for r in given]
    seeds[2]["tags"] = ["lab"]
    path = own_file(
        tmp_path,
        "names who says so",
        {"text": "cites the act", "tags": ["law", "court"], "must": False, "weight": 3},
        {"text": "gives units", "tags": ["lab"]},
        {"text": "greets r0", "seed_id": "r0"},
        {"text": "asks for one thing", "of": "instruction"},
    )
    await finish_run(
        tmp_path / "out",
        ScriptedModel(),
        seeds,
        given=given,
        criteria=path,
        references_per_seed=1,
    )
    by_seed = {row["seed_id"]: row for row in all_rows(tmp_path / "out")}
    extracted = ["gives a reason for every claim", "closes with a short summary"]
    built_in = "fully answers the instruction"
    assert texts(by_seed["r0"]) == [built_in, "names who says so", "greets r0", *extracted]
    assert texts(by_seed["r1"]) == [built_in, "names who says so", "cites the act", *extracted]
    assert texts(by_seed["r2"]) == [built_in, "names who says so", "gives units", *extracted]
    cited = criterion(by_seed["r1"], "cites")
    assert (cited["must"], cited["weight"], cited["reference_id"]) == (False, 3, None)
    assert criterion(by_seed["r0"], "names who")["must"] is True


async def test_drafts_see_a_persons_criteria_but_those_of_an_experiment(tmp_path):
    path = own_file(tmp_path, "names who says so")
    for paired in (False, True):
        model = ScriptedModel()
        await finish_run(tmp_path / str(paired), model, criteria=path, paired=paired)
        shown = ["names who says so" in prompt for prompt in model.asked("generate")]
        assert shown == [not paired] * 3
        assert all("names who says so" in prompt for prompt in model.asked("critique"))


@pytest.mark.parametrize("arm", ["reference", "swapped", "sample", "none", "generic"])
async def test_judged_ones_stand_in_two_arms_and_checks_in_all(tmp_path, arm):
    path = own_file(tmp_path, "names who says so", {"text": "is brief", "check": "max_words:900"})
    own = [read["criterion"] for read in load_criteria(path)]
    graph = build_graph(
        complete=ScriptedModel(),
        embed=letters,
        draw_other=another,
        own_criteria=OwnCriteria(load_criteria(path)),
    )
    context = Context(model="m", try_criteria=False, feedback=arm)
    found = await graph.ainvoke({"seed": SEEDS[0], "references": references(1)}, context=context)
    (row,) = found["samples"]
    ids = [c["id"] for c in row["criteria"]]
    judged = arm in ("reference", "swapped")
    assert (own[0]["id"] in ids) == judged and own[1]["id"] in ids
    first = "not-empty" if arm in ("none", "sample") else "answers-instruction"
    start = {own[0]["id"], own[1]["id"]} & set(ids)
    assert ids[0] == (own[1]["id"] if first == "not-empty" else first)
    assert set(ids[1 : len(start) + 1]) == start or first == "not-empty"


async def another(reference: Any, avoid: Any, random_seed: int) -> Any:
    return references(3)[2]


async def test_no_extracted_criteria_are_asked_for_if_none_are_wanted(tmp_path):
    model = ScriptedModel()
    path = own_file(tmp_path, "names who says so")
    more = {"max_criteria": 0, "try_criteria": True}
    await finish_run(tmp_path / "out", model, criteria=path, **more)
    assert model.asked("extract") == []
    own = ["fully answers the instruction", "names who says so"]
    assert [texts(row) for row in all_rows(tmp_path / "out")] == [own] * 3


async def test_a_pitfall_is_mended_away_from(tmp_path):
    path = own_file(
        tmp_path, {"text": "The response recommends a brand", "weight": -1, "id": "no-brand"}
    )

    def generate(call: Call) -> Any:
        return {"response": "Buy the quiver by Acme, it is amber."}

    def refine(call: Call) -> Any:
        said = tagged(prompt_of(call), "verdict")
        assert any("avoids this fault: recommends a brand" in text for text in said)
        return {"plan": ["name none"], "response": "Buy any quiver, so long as it is amber."}

    def critique(call: Call) -> Any:
        prompt = prompt_of(call)
        assert "The response avoids this fault: recommends a brand." in prompt
        if "Acme" in tagged(prompt, "response")[-1]:
            return verdicts(prompt, lambda id_: "fail" if id_ == "no-brand" else "pass")
        # Who avoids a fault leaves nothing to quote.
        said = verdicts(prompt)
        for verdict in said["verdicts"]:
            verdict["evidence"] *= verdict["criterion_id"] != "no-brand"
        return said

    model = ScriptedModel(generate=generate, refine=refine, critique=critique)
    await finish_run(tmp_path / "out", model, SEEDS[:1], criteria=path, references_per_seed=1)
    (row,) = rows(tmp_path / "out", "accepted")
    assert row["response"] == "Buy any quiver, so long as it is amber."
    outcomes = [
        {v["criterion_id"]: v["verdict"] for v in attempt["verdicts"]}["no-brand"]
        for attempt in row["attempts"]
    ]
    assert outcomes == ["fail", "pass"] and len(model.asked("critique")) == 2
    kept = criterion(row, "brand")
    assert (kept["weight"], kept["quote"]) == (-1, "The response recommends a brand")


# Criteria of rows.

RUBRIC = [
    {
        "title": "Cause",
        "description": "Essential Criteria: Identifies the cause.",
        "weight": 5,
    },
    {"title": "Tone", "description": "Optional Criteria: Is kind to the reader.", "weight": 1},
    {"title": "Brand", "description": "Pitfall Criteria: Recommends a brand.", "weight": -1},
]


async def test_a_row_with_a_rubric_holds_the_seeds_that_retrieve_it(tmp_path):
    first, second, third = references()
    given = [
        {**first, "rubric": RUBRIC},
        {**second, "rubrics": [{"criterion": "Asks for the age", "points": 7, "tags": ["axis:x"]}]},
        {**third, "criteria": ["names who says so", {"text": "is brief", "check": "max_words:90"}]},
    ]
    model = ScriptedModel()
    await finish_run(tmp_path / "out", model, None, given=given, references_per_seed=1)
    by_seed = {row["seed_id"]: row for row in all_rows(tmp_path / "out")}
    found = {id_: texts(row)[1:-2] for id_, row in by_seed.items()}
    assert found == {
        "r0": [
            "identifies the cause",
            "is kind to the reader",
            "avoids this fault: recommends a brand",
        ],
        "r1": ["asks for the age"],
        "r2": ["names who says so", "is brief"],
    }
    report = Source(given, as_reference=True).scan()
    lines = describe_report("references", "given", report, takes_first=True)
    assert "  3 carry criteria, for the seeds that retrieve them" in lines
    cause, tone = (criterion(by_seed["r0"], text) for text in ("the cause", "is kind"))
    assert (cause["must"], cause["weight"], cause["reference_id"]) == (True, 5, "r0")
    assert (tone["must"], tone["weight"]) == (False, 1)
    assert criterion(by_seed["r2"], "is brief")["judged_by"] == "check"


@pytest.mark.parametrize("check", ["python_tests", "os:system", "regex:.*", "json_schema:/etc/x"])
def test_a_row_may_name_no_check_that_runs_or_reads(tmp_path, check):
    given = references()
    given[1]["criteria"] = [{"text": "is right", "check": check}]
    path = tmp_path / "references.jsonl"
    path.write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    source = Source(path, as_reference=True)
    with pytest.raises(InputError) as told:
        source.scan()
    assert str(told.value).startswith(f"{path}: line 2: criterion 1: check: the check {check!r}")
    skipping = Source(path, as_reference=True, skip_bad_lines=True)
    assert skipping.scan().taken == 2
    assert [skipped["line"] for skipped in skipping.report.skipped] == [2]


@pytest.mark.parametrize("bad", [{"text": ""}, {"text": "a", "x": 1}, "", {"text": "a", "must": 1}])
def test_a_bad_criterion_of_a_row_is_told(bad):
    source = Source([{**references()[0], "criteria": ["is good", bad]}], as_reference=True)
    with pytest.raises(InputError, match="rows given: line 1: criterion 2: "):
        source.scan()
    many = Source([{**references()[0], "criteria": ["a b"] * 51}], as_reference=True)
    with pytest.raises(InputError, match=f"at most {MAX_CRITERIA}"):
        many.scan()


@pytest.mark.parametrize(
    "column",
    [
        {"criteria": "be kind and brief"},
        {"rubric": "Is it kind?"},
        {"rubric": {"criteria": "kind"}},
        {"criteria": [{"name": "kindness", "score": 3}]},
        {"criteria": []},
        # Of a row that was made by refloom.
        {"criteria": [{"id": "a", "text": "b", "must": True, "judged_by": "rule"}]},
    ],
)
def test_what_is_no_list_of_criteria_is_left_aside(column):
    source = Source([{**references()[0], **column}], as_reference=True)
    (reference,) = list(source)
    assert "criteria" not in reference
    holds_text = column != {"criteria": []}
    assert list(source.report.unread) == (list(column) if holds_text else [])


def test_criteria_travel_with_the_reference_and_change_no_key(tmp_path):
    plain, *others = references()
    carrying = {**plain, "criteria": [{"text": "is brief", "weight": 2}]}
    assert reference_hash(plain) == reference_hash(carrying)
    stored = load_or_write_references(tmp_path, lambda: [carrying, *others])
    assert list(stored) == [carrying, *others] and stored[0] == carrying
    assert load_or_write_references(tmp_path, lambda: [carrying, *others]).path == stored.path
    assert load_or_write_references(tmp_path, lambda: [plain, *others]).path != stored.path


def test_two_references_may_give_two_criteria_one_name():
    first, second, third = references()
    first["criteria"] = [{"text": "is brief", "id": "a"}]
    second["criteria"] = [{"text": "is long", "id": "a"}]
    third["criteria"] = [{"text": "is brief", "id": "a"}]
    chosen, _ = OwnCriteria().select({"instruction": "x"}, [first, second, third])
    assert [c["text"] for c in chosen] == ["is brief", "is long"]
    assert len({c["id"] for c in chosen}) == 2


# Criteria of an input.


async def test_an_input_may_carry_criteria():
    model = ScriptedModel()
    graph = build_graph(complete=model, embed=letters)
    given = ["The response is brief.", {"text": "Names a brand", "weight": -1, "must": False}]
    asked = {"seed": SEEDS[0], "references": references(1), "criteria": given}
    context = Context(model="m", try_criteria=False)
    found = await graph.ainvoke(asked, context=context)
    (row,) = found["samples"]
    assert texts(row)[1:3] == ["is brief", "avoids this fault: names a brand"]
    assert [c["must"] for c in row["criteria"][1:3]] == [True, False]


async def test_a_thread_that_is_used_again_forgets_the_criteria_of_before():
    from langgraph.checkpoint.memory import InMemorySaver

    graph = build_graph(complete=ScriptedModel(), embed=letters, checkpointer=InMemorySaver())
    context = Context(model="m", try_criteria=False)
    asked = {"seed": SEEDS[0], "references": references(1)}
    config = {"configurable": {"thread_id": "t"}}
    for criteria, own in ((["is brief"], ["is brief"]), (None, [])):
        more = {} if criteria is None else {"criteria": criteria}
        found = await graph.ainvoke(asked | more, context=context, config=config)
        assert texts(found["samples"][0])[1:-2] == own


@pytest.mark.parametrize(
    ("criterion", "why"),
    [
        ({"text": "is right", "check": "python_tests"}, "criteria.0: check: the check"),
        ({"text": "is right", "check": "os:system"}, "criteria.0: check: the check"),
        ({"text": "is right", "x": 1}, "criteria.0: unknown key 'x'"),
        ("", "criteria.0: text: is missing"),
        (5, "criteria.0: a criterion is"),
    ],
)
async def test_a_bad_criterion_of_an_input_is_refused(criterion, why):
    model = ScriptedModel()
    context = Context(model="m")
    with pytest.raises(BadInput, match=why):
        await build_graph(complete=model, embed=letters).ainvoke(
            {"seed": SEEDS[0], "references": references(1), "criteria": [criterion]},
            context=context,
        )
    with pytest.raises(BadInput, match=why):
        await build_sample(complete=model, embed=letters).ainvoke(
            {"instruction": "Why tides?", "criteria": [criterion]}, context=context
        )
    assert model.calls == []


async def test_the_graph_of_one_instruction_takes_objects_too():
    sample = build_sample(complete=ScriptedModel(), embed=letters)
    given = [{"text": "Should be brief", "must": False}, {"text": "parses", "check": "json"}]
    found = await sample.ainvoke(
        {"instruction": "Why tides?", "criteria": given}, context=Context(model="m")
    )
    first, own, check, *_ = found["criteria"]
    assert (own["text"], own["must"], check["check"]) == ("is brief", False, "json")
    with pytest.raises(BadInput, match=r"criteria\.0: of: the graph `sample` screens no"):
        await sample.ainvoke(
            {"instruction": "a", "criteria": [{"text": "b", "of": "instruction"}]},
            context=Context(model="m"),
        )
    assert first["id"] == "answers-instruction"


# The trial.


def half_failing(call: Call) -> Any:
    """References whose second letter is odd fail the criterion `odd`; spoiled ones fail `told`."""
    prompt = prompt_of(call)
    response = tagged(prompt, "response")[-1]
    own = [r for r in references(8) if r["response"] == response]

    def outcome(id_: str) -> str:
        if id_ == "odd" and own and int(own[0]["id"][1:]) % 2:
            return "fail"
        return "fail" if id_ == "told" and not own else "pass"

    return verdicts(prompt, outcome)


async def test_a_trial_is_told_kept_and_made_once(tmp_path):
    path = own_file(
        tmp_path,
        {"text": "Is even", "id": "odd"},
        {"text": "is told", "id": "told", "must": False},
    )
    chosen = sorted(references(8), key=reference_hash)[:5]
    failing = sum(int(r["id"][1:]) % 2 for r in chosen)
    assert 0 < failing < 5
    given, more = references(8), {"criteria": path, "max_criteria": 0, "try_criteria": True}
    model, notices = ScriptedModel(critique=half_failing), list[str]()
    run = build_run(tmp_path / "out", model, given=given, **more, concurrency=8)
    run.on_notice = notices.append
    await run.run()
    assert notices == [f'criterion "Is even": fails on {failing} of 5 of your references']
    trials = [p for p in model.asked("critique") if 'id="odd"' in p and "answers-ins" not in p]
    assert len(trials) == 20
    for row in all_rows(tmp_path / "out"):
        odd, told = criterion(row, "is even"), criterion(row, "is told")
        assert (odd["must"], told["must"]) == (True, False)
        spoiled = {"cut": 5, "shuffled": 5, "another": 5}
        assert odd["trial"] == {"references": 5, "own": 5 - failing, "spoiled": spoiled}
        none = dict.fromkeys(spoiled, 0)
        assert told["trial"] == {"references": 5, "own": 5, "spoiled": none}
    # What the memory has is not paid for again, and told again.
    model, notices = ScriptedModel(critique=half_failing), []
    memory = tmp_path / "out" / "memory"
    run = build_run(tmp_path / "two", model, given=given, **more, memory=memory, random_seed=1)
    run.on_notice = notices.append
    await run.run()
    trials = [p for p in model.asked("critique") if "answers-instruction" not in p]
    assert trials == [] and len(notices) == 1


async def test_no_trial_is_made_if_none_is_wanted(tmp_path):
    path = own_file(tmp_path, {"text": "Is even", "id": "odd"})
    model = ScriptedModel(critique=half_failing)
    await finish_run(tmp_path / "out", model, criteria=path, max_criteria=0)
    assert all("answers-instruction" in prompt for prompt in model.asked("critique"))
    assert all(criterion(row, "is even")["trial"] is None for row in all_rows(tmp_path / "out"))


async def test_the_criteria_of_a_reference_are_tried_on_it_alone(tmp_path):
    given = references(2)
    given[0]["criteria"] = [{"text": "Is even", "id": "odd"}]
    model = ScriptedModel(critique=half_failing)
    await finish_run(
        tmp_path / "out",
        model,
        None,
        given=given,
        max_criteria=0,
        try_criteria=True,
        references_per_seed=1,
    )
    trials = [p for p in model.asked("critique") if "answers-instruction" not in p]
    assert len(trials) == 4
    row = next(row for row in all_rows(tmp_path / "out") if row["seed_id"] == "r0")
    assert criterion(row, "is even")["trial"]["references"] == 1


async def test_by_log_odds_a_criterion_gets_its_bar_and_stays_a_must(tmp_path):
    own = {r["response"] for r in references()}

    def odds(call: Call) -> float:
        prompt = prompt_of(call)
        if "is even" not in prompt:
            return 2.0
        response = tagged(prompt, "response")[-1]
        return 3.0 if response in own else 1.0

    path = own_file(tmp_path, "Is even")
    model = ScriptedModel(odds=odds)
    more = {"criteria": path, "try_criteria": True, "max_attempts": 1}
    await finish_run(
        tmp_path / "out", model, SEEDS[:1], judge_method="logodds", **more, max_criteria=0
    )
    (row,) = all_rows(tmp_path / "out")
    even = criterion(row, "is even")
    assert even["must"] and even["trial"]["own"] == 3
    assert even["trial"]["spoiled"] == {"cut": 0, "shuffled": 0, "another": 0}
    # The candidate is over 0 and under the bar.
    (verdict,) = [v for v in row["attempts"][0]["verdicts"] if v["criterion_id"] == even["id"]]
    assert verdict["score"] == pytest.approx(1.0, abs=0.01) and verdict["verdict"] == "fail"


async def test_by_log_odds_a_pitfall_is_asked_for_and_no_is_what_passes(tmp_path):
    own = {r["response"] for r in references()}

    def odds(call: Call) -> float:
        prompt = prompt_of(call)
        response = tagged(prompt, "response")[-1]
        if "recommends a brand" not in prompt:
            return 2.0 if response in own or "Buy" in response else -2.0
        assert "Is it true that the response recommends a brand?" in prompt
        return -3.0 if "Acme" not in response else -1.0

    def generate(call: Call) -> Any:
        asked = tagged(prompt_of(call), "instruction")[-1]
        return {"response": f"{asked[:-1]}. Buy it from Acme."}

    def refine(call: Call) -> Any:
        said = tagged(prompt_of(call), "verdict")
        assert any("avoids this fault: recommends a brand" in text for text in said)
        asked = tagged(prompt_of(call), "instruction")[-1]
        return {"plan": ["name none"], "response": f"{asked[:-1]}. Buy it anywhere."}

    path = own_file(tmp_path, {"text": "recommends a brand", "weight": -1})
    model = ScriptedModel(odds=odds, generate=generate, refine=refine)
    more = {"criteria": path, "try_criteria": True, "max_criteria": 0}
    await finish_run(tmp_path / "out", model, SEEDS[:1], judge_method="logodds", **more)
    (row,) = rows(tmp_path / "out", "accepted")
    brand = criterion(row, "brand")
    assert brand["trial"] == {
        "references": 3,
        "own": 3,
        "spoiled": {"cut": 3, "shuffled": 3, "another": 3},
    }
    scores = [
        next(v["score"] for v in attempt["verdicts"] if v["criterion_id"] == brand["id"])
        for attempt in row["attempts"]
    ]
    # The bar is halfway between 3 and even odds.
    assert scores == pytest.approx([1.0, 3.0], abs=0.01)


def test_examples_are_those_with_a_tag_or_any():
    given = references(20)
    for reference in given[:7]:
        reference["tags"] = ["law"]
    read = [{"text": "a b"}, {"text": "c d", "tags": ["law"]}, {"text": "e f", "tags": ["lab"]}]
    own = [read_own_criterion(value, trusted=True) for value in read]
    known = OwnCriteria(own)
    known.choose_examples(reversed(given))
    first = sorted(given, key=reference_hash)[:5]
    assert [known.examples_of(one) for one in own] == [
        first,
        sorted(given[:7], key=reference_hash)[:5],
        first,
    ]
    again = OwnCriteria(**json.loads(json.dumps(known.to_dict())))
    assert again.examples_of(own[1]) == known.examples_of(own[1])


def test_a_criterion_that_passes_is_not_warned_about():
    read = read_own_criterion("is brief", trusted=True)["criterion"]
    passed = {"references": 5, "own": 5, "spoiled": {}}
    assert warning_of(read) is None and warning_of({**read, "trial": passed}) is None


# Going on with a run.


async def test_a_run_goes_on_with_what_says_the_same_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    path = own_file(tmp_path, "names who says so")
    first = await finish_run(out, ScriptedModel(), criteria=path)
    other = tmp_path / "moved.toml"
    other.write_text('[[criteria]]\ntext = "names who says so"\n')
    again = await finish_run(out, ScriptedModel(), criteria=other)
    assert first["fingerprint"] == again["fingerprint"]
    for changed in ({"criteria": own_file(tmp_path, "names nobody")}, {}):
        with pytest.raises(JournalError, match="other criteria"):
            await finish_run(out, ScriptedModel(), **changed)
    plain = await finish_run(tmp_path / "plain", ScriptedModel())
    assert plain["fingerprint"] != first["fingerprint"]
    with pytest.raises(JournalError, match="other criteria"):
        await finish_run(tmp_path / "plain", ScriptedModel(), criteria=path)


@pytest.mark.parametrize("concurrency", [1, 16])
async def test_a_run_that_is_stopped_in_its_trials_makes_the_same_rows(tmp_path, concurrency):
    given = references(8)
    given[3]["criteria"] = ["names who says so", {"text": "is calm", "weight": -1}]
    path = own_file(tmp_path, {"text": "Is even", "id": "odd"}, {"text": "is told", "tags": ["x"]})
    seeds = [*SEEDS, {**SEEDS[0], "id": "t", "instruction": words("tagged", 8), "tags": ["x"]}]
    more = {"given": given, "criteria": path, "try_criteria": True, "concurrency": concurrency}
    whole = CountingModel(ScriptedModel(critique=half_failing))
    await finish_run(tmp_path / "whole", whole, seeds, **more)
    stopped = CountingModel(ScriptedModel(critique=half_failing))
    out, at = tmp_path / "stopped", 0
    while not at or summary_of(out)["status"] == "interrupted":
        at += 13
        run = build_run(out, stopped, seeds, **more)
        stopped.at, stopped.then = at, run.stop
        await run.run()
    assert at > 52
    assert stable_rows(out) == stable_rows(tmp_path / "whole")
    assert stopped.answered == whole.answered and set(stopped.answered.values()) == {1}


# The command that tries a file.


async def test_a_file_is_tried_without_rows(tmp_path):
    given = [{**r, "tags": ["law"]} if i < 2 else r for i, r in enumerate(references(8))]
    path = own_file(
        tmp_path,
        {"text": "Is even", "id": "odd"},
        {"text": "is told", "id": "told", "tags": ["law"]},
        {"text": "is right", "check": "json", "id": "parses"},
        {"text": "asks one thing", "of": "instruction", "id": "one"},
        {"text": "is lab", "tags": ["lab"], "id": "lab"},
    )
    model = ScriptedModel(critique=half_failing)
    source = Source(given, as_reference=True)
    settings = Settings(model="m", memory=tmp_path / "memory")
    checked = await check_criteria(load_criteria(path), source, settings, model)
    assert (checked["references"], checked["calls"]) == (8, 20 + 8 + 20)
    by_id = {one["id"]: one for one in checked["criteria"]}
    assert [one["applies_to"] for one in checked["criteria"]] == [8, 2, 8, 8, 0]
    assert by_id["told"]["trial"] == {
        "references": 2,
        "own": 2,
        "spoiled": {"cut": 0, "shuffled": 0, "another": 0},
    }
    assert by_id["told"]["warnings"] == []
    failing, blind = by_id["odd"]["warnings"]
    assert re.fullmatch(r"fails on \d of 5 of your references", failing)
    assert blind.startswith("every spoiled answer passes it too")
    assert by_id["parses"]["trial"] is None and by_id["one"]["trial"] is None
    assert "no reference has its tags" in by_id["lab"]["warnings"][0]
    said = format_check(checked)
    assert "told: the response is told (must)" in said
    assert "2 of 2 references pass it; spoiled answers caught: cut 2 of 2" in said
    # A run with the same memory pays nothing for it.
    again = await check_criteria(load_criteria(path), source, settings, ScriptedModel())
    assert again["calls"] == 0 and again["criteria"] == checked["criteria"]


def test_the_command_says_what_it_found(tmp_path):
    file = tmp_path / "references.jsonl"
    file.write_text("\n".join(map(json.dumps, references())))
    path = own_file(tmp_path, "names who says so")
    with Endpoint() as endpoint:
        flags = ["--references", file, "--base-url", endpoint.url, "--model", "m"]
        said = refloom("criteria", path, *flags, cwd=tmp_path)
        as_json = refloom("criteria", path, *flags, "--json", cwd=tmp_path)
    assert said.returncode == 0 and "3 of 3 references pass it" in said.stdout, said.stderr
    assert json.loads(as_json.stdout)["criteria"][0]["applies_to"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["criteria.jsonl", "references.jsonl"]


def test_a_dry_run_counts_the_trial_once(tmp_path):
    file = tmp_path / "references.jsonl"
    file.write_text("\n".join(map(json.dumps, references())))
    flags = ["run", "--references", file, "--out", tmp_path / "out", "--model", "m", "--dry-run"]
    flags += ["--base-url", "http://127.0.0.1:9/v1", "--references-per-seed", 1]
    plain = refloom(*flags, cwd=tmp_path).stdout
    own = refloom(*flags, "--criteria", own_file(tmp_path, "is brief"), cwd=tmp_path).stdout
    assert "calls_of_own_trials = 0:" in plain and "calls_of_own_trials = 12:" in own


async def test_a_criterion_whose_tags_or_seed_nothing_carries_is_told(tmp_path):
    path = own_file(
        tmp_path,
        {"text": "names a price", "tags": ["shop", "shopp"]},
        {"text": "names a day", "tags": ["shopp"]},
        {"text": "names a place", "seed_id": "nowhere"},
    )
    given = [{**row, "tags": ["shop"]} for row in references()]
    notices: list[str] = []
    run = build_run(tmp_path / "out", ScriptedModel(), given=given, criteria=path)
    run.on_notice = notices.append
    await run.run()
    assert notices == [
        "criterion 'names a day': no reference or seed has tags shopp; it holds for nothing",
        "criterion 'names a place': no reference or seed has seed_id nowhere; it holds for nothing",
    ]
