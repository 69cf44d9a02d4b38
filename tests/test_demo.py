"""The demo: its references, seeds and criteria, and how it goes with a model that is scripted."""

from __future__ import annotations

import io
import re
import shlex
import sys
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
from fakes import ScriptedModel, prompt_of, tagged
from processes import lines

from nodes.checks import blocks_of_python, default_checks, parse_check, run_safe_check
from nodes.criteria import RuleInput, apply_rules
from nodes.own_criteria import OwnCriteria
from nodes.screening import is_request
from refloom.cli import run
from refloom.cli.run import choose_code_demo, choose_wide_demo, run_with_progress
from refloom.data.criteria import load_criteria
from refloom.data.read import read_references, read_seeds
from refloom.runs.run import Tools

DRAFT = """\
```python
def answer():
    return 2

assert answer() == 2
assert answer() > 1
```"""
MENDED = DRAFT.replace("    return", '    """Return two."""\n    return')
TEXTS = {
    "python": DRAFT,
    "explain": "It adds.\n\n```python\na = 1 + 1\nassert a == 2\n```",
}


@pytest.fixture
def folder():
    with as_file(files("refloom").joinpath("resources/demo")) as path:
        yield path


async def embed(texts):
    """Code is one topic, with a shade for each kind of task; what has none is another topic."""
    rows = [
        [1, 0.3 * text.startswith("Explain"), 0] if "`" in text else [0, 0, 1] for text in texts
    ]
    vectors = np.array(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def kind_of(prompt: str) -> str:
    asked = tagged(prompt, "instruction")[-1]
    return next(k for k in ("explain", "python") if k in asked.lower())


def write(call):
    return TEXTS[kind_of(prompt_of(call))]


def judge(call):
    return 2.0 if "`" in tagged(prompt_of(call), "response")[-1] else -2.0


@pytest.mark.parametrize("run_code", [True, False])
async def test_the_demos_references_pass_what_its_rows_are_held_to(folder, run_code):
    settings, references, seeds = choose_code_demo(folder, run_code=run_code)
    own = OwnCriteria(load_criteria(settings.criteria))
    rows = list(read_references(references, settings))
    for reference in rows:
        text = reference["response"]
        failed = [
            v
            for v in apply_rules(RuleInput(reference["instruction"], text, ()))
            if v["verdict"] == "fail"
        ]
        assert not failed, reference["id"]
        assert len(await default_checks([reference], run_safe_check)) == 2
        criteria, _ = own.select({"tags": reference["tags"]}, [reference])
        assert len(criteria) >= 2, "criteria of its own, and of the file"
        for criterion in criteria:
            parse_check(criterion["check"], trusted=True)
    tags = {tag for row in rows for tag in row["tags"]}
    asked = list(read_seeds(seeds, settings))
    assert len(asked) == 6
    for seed in asked:
        assert is_request(seed["instruction"])["verdict"] == "pass"
        assert set(seed["tags"]) <= tags, "each kind of seed has a reference"


def test_the_demos_checks_pass_its_references(folder):
    settings, references, _ = choose_code_demo(folder, run_code=True)
    own = OwnCriteria(load_criteria(settings.criteria))
    for reference in read_references(references, settings):
        text = reference["response"]
        criteria, _ = own.select({"tags": reference["tags"]}, [reference])
        for criterion in criteria:
            kind, _, argument = criterion["check"].partition(":")
            if kind == "regex":
                assert re.search(argument, text), (criterion, reference["id"])
            elif kind == "max_words":
                assert len(text.split()) <= int(argument)
            else:
                assert kind == "python_tests"
                # Our own code: it needs no sandbox.
                for block in blocks_of_python(text):
                    exec(block, {"numbers": []})


def test_the_demo_shows_refinements_in_short_lines_and_few_of_its_calls_are_trials(
    folder, tmp_path, monkeypatch
):
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    settings, references, seeds = choose_code_demo(folder, run_code=False)
    model = ScriptedModel(generate=write, refine=lambda call: MENDED, odds=judge)
    status = run_with_progress(
        settings,
        read_references(references, settings),
        read_seeds(seeds, settings),
        tmp_path / "out",
        show_rows=True,
        tools=Tools(complete=model, embed=embed),
    )
    assert status == 0
    rows = lines(tmp_path / "out" / "accepted.jsonl")
    assert len(rows) == 6
    assert [len(row["attempts"]) for row in rows].count(2) == 3, "drafts without a docstring"
    said = told.getvalue()
    assert 'failed:  "has a docstring' in said
    assert 'nothing to """"Return two."""' in said
    assert "passed:  all that it has to" in said
    assert max(map(len, said.splitlines())) < 100, said
    trials = [c for c in model.calls if c.source.startswith("reference ")]
    assert len(trials) <= 2 * 13, "an extraction, and two criteria and one on four responses"


def test_the_wide_demo_is_still_there(folder: Path):
    settings, references, seeds = choose_wide_demo(folder)
    assert read_references(references, settings).scan().taken >= 30
    assert read_seeds(seeds, settings).scan().taken == 12


def test_the_commands_to_go_on_with_can_be_pasted():
    out = Path("my rows & more")
    commands = [line.strip() for line in run._format_next_commands(out).splitlines()[2:4]]
    for command in commands:
        assert shlex.split(command)[2] == str(out)
