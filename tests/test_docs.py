"""The pages name files, functions and headings that exist, and everything a user can choose."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import sys
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, get_args

import pytest

from graph import builder
from nodes import checks, criteria
from nodes.context import FeedbackArm, Review
from nodes.llm import Stage
from refloom.data import export
from refloom.settings import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.append(ROOT / "skills" / "refloom" / "SKILL.md")
FOLDERS = "|".join(
    ["graph", "nodes", "memory", "prompts", "refloom", "tests", "benchmarks", "examples", "docs"]
)
# A path in backticks; NAME in it stands for a file of the reader's own.
NAMED_PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)")
NAME_IN_FILE = re.compile(rf"`([A-Za-z_]\w*)`\s+(?:in|from|of)\s+`((?:{FOLDERS})/[\w/.-]+\.py)`")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_is_named_exists(page: Path) -> None:
    named = {path for path in NAMED_PATH.findall(text_of(page)) if "NAME" not in path}
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_stands_in_the_file_that_is_named_with_it(page: Path) -> None:
    wrong = [
        (name, path)
        for name, path in NAME_IN_FILE.findall(text_of(page))
        if "NAME" not in path and not re.search(rf"\b{name}\b", text_of(ROOT / path))
    ]
    assert wrong == []


def test_extending_names_what_it_tells_to_change() -> None:
    named = set(NAME_IN_FILE.findall(text_of(ROOT / "docs" / "extending.md")))
    assert ("RULES", "nodes/criteria.py") in named
    assert ("FORMATS", "refloom/data/export.py") in named


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("data.md", tuple(export.FORMATS)),
        ("run.md", PRESETS),
        ("evidence.md", get_args(FeedbackArm)),
        ("review.md", get_args(Review)),
    ],
)
def test_a_page_lists_everything_there_is_to_choose(page: str, names: tuple[str, ...]) -> None:
    text = text_of(ROOT / "docs" / page)
    assert [name for name in names if f"| `{name}` |" not in text] == []


def test_every_stage_is_among_the_words() -> None:
    (line,) = re.findall(r"^\| stage \|.*$", text_of(ROOT / "docs" / "README.md"), re.MULTILINE)
    assert all(stage in line for stage in get_args(Stage))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_a_page_can_be_parsed(page: Path) -> None:
    for block in re.findall(r"^ *```python\n(.*?)^ *```", text_of(page), re.DOTALL | re.MULTILINE):
        code = dedent(block)
        # A line of a dict, as it is to be added to one.
        code = f"{{{code}}}" if code.startswith('"') else code
        ast.parse(f"async def f():\n{indent(code, '    ')}")


def recipes() -> list[str]:
    """The Python of extending.md: a rule, its line, a check, a format, its line, a node."""
    text = text_of(ROOT / "docs" / "extending.md")
    return [dedent(b) for b in re.findall(r"^   ```python\n(.*?)^   ```", text, re.DOTALL | re.M)]


def test_the_rule_of_the_recipe_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    function, line, *_ = recipes()
    names = dict(vars(criteria))
    exec(function, names)
    ((id_, rule),) = eval(f"{{{line}}}", names).items()
    monkeypatch.setitem(criteria.RULES, id_, rule)
    *_, shouted = criteria.apply_rules(criteria.RuleInput("Why?", "So! There!", []))
    *_, calm = criteria.apply_rules(criteria.RuleInput("Why?", "So.", []))
    assert (shouted["verdict"], shouted["evidence"], calm["verdict"]) == ("fail", "!", "pass")


def test_the_check_of_the_recipe_decides() -> None:
    names: dict[str, Any] = dict(vars(checks))
    exec(recipes()[2], names)
    assert names["min_words"]("one two", "", [], "2") is None
    assert names["min_words"]("one", "", [], "2") == "It has 1 words; 2 are the least."


def test_the_format_of_the_recipe_makes_a_row() -> None:
    *_, function, line, _ = recipes()
    names = dict(vars(export))
    exec(function, names)
    ((name, format_),) = eval(f"{{{line}}}", names).items()
    rows = format_.rows({"instruction": "Why?", "response": "So."})
    assert (name, rows) == ("question_answer", [{"question": "Why?", "answer": "So."}])


async def test_the_node_of_the_recipe_runs() -> None:
    names: dict[str, Any] = dict(vars(builder), Any=Any)
    exec(recipes()[-1], names)
    assert await names["tidy"]({"candidate": " So. "}, None) == {"candidate": "So."}


def load_script(name: str) -> Any:
    """A script of docs/ as a module; what it puts on the path is taken off again."""
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def scripts():
    """The modules `rooms` and `redraw` of docs/, which are scripts and in no package."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import redraw
        import rooms

        yield rooms, redraw
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_a_room_holds_each_of_its_modules_once(scripts) -> None:
    rooms, _ = scripts
    found = rooms.rooms()
    for name in ("graph", "refloom.runs", "refloom.runs.ray", "nodes.llm"):
        spec = importlib.util.find_spec(name)
        files = list(Path(spec.origin).parent.glob("*.py"))
        assert found[name].modules == len(files), name
    packages = ("graph", "nodes", "memory", "prompts", "refloom")
    every = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert sum(room.modules for room in found.values()) == len(every)


def test_the_drawing_has_the_nearest_imports_and_leaves_out_what_they_imply(scripts) -> None:
    rooms, _ = scripts
    arrows = rooms.arrows(rooms.rooms())
    assert ("graph", "nodes") in arrows
    assert ("nodes", "memory") in arrows
    assert ("graph", "memory") not in arrows
    assert "room_graph --> room_nodes;" in rooms.drawing()


def test_the_skill_names_commands_and_flags_that_there_are() -> None:
    import refloom.cli

    text = text_of(ROOT / "skills" / "refloom" / "SKILL.md")
    assert re.match(r"---\nname: refloom\ndescription: .{40,500}\n---\n", text)
    commands = set(re.findall(r"^refloom (\w[\w-]*)", text, re.MULTILINE))
    assert commands >= {"doctor", "run", "status", "judge-check", "report", "export"}
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
            refloom.cli.main([command, "--help"])
        for line in re.findall(rf"^refloom {command} (.+)$", text, re.MULTILINE):
            for flag in re.findall(r"--[a-z-]+", line.partition("#")[0]):
                assert f"{flag} " in said.getvalue() or f"{flag}]" in said.getvalue(), line
    formats = {name for name in export.FORMATS if f"`{name}`" in text}
    assert formats >= {"messages", "sharegpt", "alpaca", "preference", "kto"}


def test_a_terminal_is_read_as_it_looks_in_the_end() -> None:
    screens = load_script("screens")
    written = b"one\r\n\x1b[33mtwo\x1b[0m\r\nthree\r\x1b[2K\x1b[1A\x1b[2Kbar\r\n\x1b[?25hend"
    assert screens.screen_of(written) == ["one", "bar", "end"]
    assert screens.screen_of(b"a\x1b[1;31mb\x1b[0mc") == ["a\x1b[1;31mb\x1b[0mc"]


def test_a_part_is_drawn_between_its_marks_and_one_without_marks_is_named(scripts) -> None:
    _, redraw = scripts
    page = "before\n<!-- x -->\nold\n<!-- /x -->\nafter\n"
    fresh = redraw.redraw(page, {"x": lambda: r"new \1"})
    assert fresh == "before\n<!-- x -->\nnew \\1\n<!-- /x -->\nafter\n"
    with pytest.raises(SystemExit, match="<!-- y -->"):
        redraw.redraw(page, {"y": lambda: "new"})
