"""One name for node, file, function and prompt; nothing installed shadows the project."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from fakes import ScriptedModel, letters

from graph.builder import build_graph

ROOT = Path(__file__).parent.parent
NODES = ["retrieve", "extract", "propose", "sample", "generate", "critique", "refine"]
PROMPTED = ["extract", "propose", "generate", "critique", "refine"]


def test_the_graph_has_these_nodes():
    drawn = build_graph(complete=ScriptedModel(), embed=letters).get_graph(xray=True)
    names = {n.removeprefix("sample:") for n in drawn.nodes} - {"__start__", "__end__"}
    assert names | {"sample"} == set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_the_function_of_its_file(name):
    assert callable(getattr(importlib.import_module(f"nodes.{name}"), name))


@pytest.mark.parametrize("name", PROMPTED)
def test_a_node_that_asks_a_model_has_a_prompt_of_its_name(name):
    assert (ROOT / "prompts" / f"{name}.jinja").is_file()


@pytest.mark.parametrize("name", ["graph", "nodes", "memory", "prompts", "refloom"])
def test_the_plain_package_names_are_the_projects_own(name):
    found = importlib.import_module(name)
    assert Path(found.__file__).parent == ROOT / name


def test_another_package_of_the_same_name_is_refused_by_name(tmp_path):
    import subprocess
    import sys

    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import refloom"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the package 'prompts' is" in done.stderr.splitlines()[-1]


def test_importing_refloom_loads_no_torch_and_no_faiss():
    import subprocess
    import sys

    code = (
        "import sys, refloom; print([m for m in ('torch','faiss','langgraph') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_files_and_functions_stay_short():
    import ast

    long = []
    for path in ROOT.rglob("*.py"):
        if {".venv", "tests", "build"} & set(path.relative_to(ROOT).parts):
            continue
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 250:
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and node.end_lineno - node.lineno >= 40:
                long.append(f"{path}:{node.name}")
    assert long == []
