"""Checks in a run: where they are made, what becomes of bad ones, and that each is made once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedModel
from runs import CountingModel, all_rows, build_run, finish_run, rows, stable_rows

from refloom.errors import CheckUnusable, InputError, JournalError
from refloom.runs import checks as run_checks
from refloom.runs import outputs

MODULE = """
import os, random, time

def note():
    with open(os.environ["NOTES"], "a") as file:
        file.write("x")

def lots(response, instruction, reference):
    note()
    return None if random.random() < 0.5 else f"lot {random.random()}"

def careful(response, instruction, reference):
    note()
    assert sorted(reference) == ["id", "instruction", "response"], reference
    return "It has an odd number of letters." if len(response) % 2 else None

def throws(response, instruction, reference):
    note()
    raise ValueError("no such thing\\nsecond line")

def leaves(response, instruction, reference):
    raise SystemExit

def odd(response, instruction, reference):
    return 3

def much(response, instruction, reference):
    print("y" * (100 << 20))
    return "long " * (20 << 20)

def hangs(response, instruction, reference):
    note()
    while True:
        pass

def hangs_once(response, instruction, reference):
    note()
    if not os.path.exists(os.environ["NOTES"] + ".once"):
        open(os.environ["NOTES"] + ".once", "w").close()
        time.sleep(60)

def ends(response, instruction, reference):
    os._exit(7)
"""


@pytest.fixture
def notes(tmp_path, monkeypatch) -> Path:
    """The module `checks_of_mine`, and the file in which its functions note their calls."""
    path = tmp_path / "notes"
    path.write_text("", encoding="utf-8")
    (tmp_path / "checks_of_mine.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NOTES", str(path))
    return path


def file_of(folder: Path, *checks: str, must: bool = True) -> Path:
    file = folder / "criteria.jsonl"
    lines = [
        json.dumps({"id": f"c{i}", "text": "is fine", "check": check, "must": must})
        for i, check in enumerate(checks)
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def verdicts_of(out: Path, id_: str = "c0") -> list[tuple[str, str]]:
    return [
        (v["verdict"], v["reason"])
        for row in all_rows(out)
        for attempt in row["attempts"]
        for v in attempt["verdicts"]
        if v["criterion_id"] == id_
    ]


def count_responses(out: Path) -> int:
    """How many different responses there are to an instruction, of all."""
    return len({(r["instruction"], a["response"]) for r in all_rows(out) for a in r["attempts"]})


async def run_told(out: Path, model: Any, **more: Any) -> list[str]:
    """Run to the end; the lines that were told."""
    told: list[str] = []
    run = build_run(out, model, **more)
    run.on_notice = told.append
    async with asyncio.timeout(60):
        await run.run()
    return told


async def test_a_function_of_ones_own_decides(tmp_path, notes):
    file = file_of(tmp_path, "checks_of_mine:careful")
    seeds = [f"a seed about {i} rivers" for i in range(8)]
    await finish_run(tmp_path / "out", ScriptedModel(), seeds, criteria=file)
    assert {v for v, _ in verdicts_of(tmp_path / "out")} == {"pass", "fail"}
    for row in all_rows(tmp_path / "out"):
        for attempt in row["attempts"]:
            (mine,) = [v for v in attempt["verdicts"] if v["criterion_id"] == "c0"]
            assert (mine["verdict"] == "fail") == (len(attempt["response"]) % 2 == 1)
    assert len(notes.read_text()) == count_responses(tmp_path / "out")


async def test_a_function_that_throws_or_answers_nonsense_is_unknown_and_told_once(tmp_path, notes):
    names = [f"checks_of_mine:{name}" for name in ("throws", "leaves", "odd")]
    told = await run_told(
        tmp_path / "out", ScriptedModel(), criteria=file_of(tmp_path, *names, must=False)
    )
    assert told == [
        "the check checks_of_mine:throws could not be made: ValueError: no such thing",
        "the check checks_of_mine:leaves could not be made: SystemExit",
        "the check checks_of_mine:odd could not be made: it returned int, neither None nor a text",
    ]
    assert {v for i in range(3) for v, _ in verdicts_of(tmp_path / "out", f"c{i}")} == {"unknown"}


async def test_a_function_that_writes_and_returns_100_MB_is_cut_short(tmp_path, notes):
    file = file_of(tmp_path, "checks_of_mine:much", must=False)
    await finish_run(tmp_path / "out", ScriptedModel(), seeds=["one seed"], criteria=file)
    ((verdict, reason),) = set(verdicts_of(tmp_path / "out"))
    assert verdict == "fail"
    assert len(reason) == 1000


@pytest.mark.parametrize(("name", "why"), [("hangs", "it took over 0 s"), ("ends", "its process")])
async def test_a_function_that_is_ended_three_times_stops_the_run(
    tmp_path, notes, monkeypatch, name, why
):
    monkeypatch.setattr(run_checks, "CHECK_TIMEOUT_S", 0.3)
    file = file_of(tmp_path, f"checks_of_mine:{name}", must=False)
    told: list[str] = []
    run = build_run(tmp_path / "out", ScriptedModel(), criteria=file, max_attempts=1)
    run.on_notice = told.append
    with pytest.raises(CheckUnusable, match=f"checks_of_mine:{name} was ended 3 times") as caught:
        async with asyncio.timeout(60):
            await run.run()
    assert caught.value.exit_status == 4
    assert len(told) == 1
    assert why in told[0]


async def test_a_function_that_is_ended_once_is_unknown_and_stays_so(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(run_checks, "CHECK_TIMEOUT_S", 0.5)
    file = file_of(tmp_path, "checks_of_mine:hangs_once", must=False)
    more: Any = {"criteria": file, "max_attempts": 1}
    await run_told(tmp_path / "out", ScriptedModel(), **more)
    found = verdicts_of(tmp_path / "out")
    assert sorted(v for v, _ in found) == ["pass", "pass", "unknown"]
    # Another run that reuses this one asks nobody again.
    called = notes.read_text()
    await run_told(tmp_path / "again", ScriptedModel(), reuse=tmp_path / "out", **more)
    assert stable_rows(tmp_path / "again") == stable_rows(tmp_path / "out")
    assert notes.read_text() == called


@pytest.mark.parametrize("at", [4, 8, 12])
async def test_a_function_that_draws_lots_makes_the_same_rows_when_resumed(tmp_path, notes, at):
    more: Any = {"criteria": file_of(tmp_path, "checks_of_mine:lots"), "concurrency": 4}
    seeds = [f"a seed about {i} rivers" for i in range(6)]
    model = CountingModel(ScriptedModel(), at, lambda: task.cancel())
    run = build_run(tmp_path / "out", model, seeds, **more)
    task = asyncio.ensure_future(run.run())
    with pytest.raises(asyncio.CancelledError):
        await task
    before = all_rows(tmp_path / "out")
    await finish_run(tmp_path / "out", model, seeds, **more)
    after = {tuple(row["slot"]): row for row in all_rows(tmp_path / "out")}
    assert all(after[tuple(row["slot"])] == row for row in before)
    assert max(model.answered.values()) == 1
    # Each response was judged once in all.
    responses = count_responses(tmp_path / "out")
    assert responses <= len(notes.read_text()) <= responses + 4
    await finish_run(tmp_path / "twin", ScriptedModel(), seeds, reuse=tmp_path / "out", **more)
    assert stable_rows(tmp_path / "twin") == stable_rows(tmp_path / "out")


async def test_a_pattern_and_a_schema_are_checked(tmp_path):
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "object", "required": ["why"]}', encoding="utf-8")
    file = file_of(tmp_path, "regex:^[{]", f"json_schema:{schema}")
    said = iter(["So it is.", '{"a": 1}', '{"why": "round"}'] * 3)
    model = ScriptedModel(
        generate=lambda call: {"response": next(said)}, refine=lambda call: {"response": next(said)}
    )
    await finish_run(tmp_path / "out", model, seeds=["one seed"], criteria=file)
    (row,) = rows(tmp_path / "out", "accepted")
    assert row["response"] == '{"why": "round"}'
    assert [v for v, _ in verdicts_of(tmp_path / "out", "c0")] == ["fail", "pass", "pass"]
    found = verdicts_of(tmp_path / "out", "c1")
    assert [v for v, _ in found] == ["fail", "fail", "pass"]
    assert found[1][1] == "At $: 'why' is a required property"


async def test_a_pattern_that_takes_for_ever_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(run_checks, "CHECK_TIMEOUT_S", 0.3)
    file = file_of(tmp_path, "regex:(a+)+$", must=False)
    model = ScriptedModel(generate=lambda call: {"response": "a" * 60 + "!"})
    told = await run_told(tmp_path / "out", model, seeds=["one seed"], criteria=file)
    assert [v for v, _ in verdicts_of(tmp_path / "out")] == ["unknown"]
    assert len(told) == 1


async def test_answers_are_compared_as_expressions(tmp_path):
    pytest.importorskip("math_verify")
    reference = {"id": "r", "instruction": "Factor it?", "response": r"So \boxed{x^2 - 1}."}
    model = ScriptedModel(generate=lambda call: {"response": r"It is \boxed{(x-1)(x+1)}."})
    more: Any = {"given": [reference], "criteria": file_of(tmp_path, "math")}
    await finish_run(tmp_path / "out", model, seeds=["one seed"], **more)
    assert verdicts_of(tmp_path / "out") == [("pass", "")]


async def test_other_rules_are_refused_when_a_run_is_resumed(tmp_path, monkeypatch):
    out = tmp_path / "out"
    await finish_run(out, ScriptedModel())
    versions = outputs.rule_versions()
    monkeypatch.setattr(
        outputs, "rule_versions", lambda: {**versions, "length": "other", "new-rule": "one"}
    )
    with pytest.raises(JournalError, match="a run with other rules: length, new-rule"):
        await build_run(out, ScriptedModel()).run()


# What a model wrote, run.


def program(code: str) -> str:
    return f"Here:\n\n```python\n{code}\n```\n"


GOOD = program("def double(x):\n    return 2 * x\n\nassert double(2) == 4").strip()
BAD = program("def double(x):\n    return x\n\nassert double(2) == 4, 'two times two'")


async def test_code_is_run_only_where_it_is_permitted(tmp_path):
    with pytest.raises(InputError, match=r"criteria.jsonl: a criterion asks .* give --run-code"):
        await build_run(
            tmp_path / "out", ScriptedModel(), criteria=file_of(tmp_path, "python_tests")
        ).run()
    assert not (tmp_path / "out" / "journal.sqlite").exists()


async def test_where_code_cannot_be_shut_in_it_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_checks, "find_obstacle", lambda: "unshare: not permitted")
    file = file_of(tmp_path, "python_tests")
    with pytest.raises(InputError, match="cannot be shut in on this machine"):
        await build_run(tmp_path / "out", ScriptedModel(), criteria=file, run_code=True).run()


async def test_code_passes_its_own_asserts_or_is_mended(tmp_path):
    model = ScriptedModel(
        generate=lambda call: {"response": BAD}, refine=lambda call: {"response": GOOD}
    )
    more: Any = {"criteria": file_of(tmp_path, "python_tests"), "run_code": True}
    await finish_run(tmp_path / "out", model, seeds=["one seed"], **more)
    assert verdicts_of(tmp_path / "out") == [
        (
            "fail",
            "Its code fails by its own asserts: AssertionError: two times two (line 4 of its "
            "code).",
        ),
        ("pass", ""),
    ]
    assert [row["response"] for row in rows(tmp_path / "out", "accepted")] == [GOOD]


async def test_a_response_without_asserts_is_not_run(tmp_path):
    model = ScriptedModel(generate=lambda call: {"response": program("x = 1")})
    more: Any = {"criteria": file_of(tmp_path, "python_tests"), "run_code": True}
    await finish_run(tmp_path / "out", model, seeds=["one seed"], **more)
    assert [v for v, _ in verdicts_of(tmp_path / "out")] == ["not_applicable"]
