"""One name for node, file, function and prompt; nothing installed shadows the project."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from fakes import ScriptedModel, letters

from graph.builder import build_graph, build_indexer, build_sample

ROOT = Path(__file__).parent.parent
SYNTHESIZER = ["retrieve", "extract", "propose", "screen"]
SYNTHESIZER += ["sample", "generate", "critique", "refine", "answer", "review"]
SAMPLE = ["begin", "generate", "critique", "refine", "answer", "review"]
INDEXER = ["add"]
NODES = sorted({*SYNTHESIZER, *SAMPLE, *INDEXER})
PROMPTED = ["extract", "propose", "screen", "generate", "critique", "refine"]


def drawn(graph) -> tuple[set[str], set[tuple[str, str]]]:
    """The nodes and edges of a graph's drawing, by their plain names."""
    found = graph.get_graph(xray=True)
    plain = {id_: id_.removeprefix("sample:").strip("_") for id_ in found.nodes}
    edges = {(plain[e.source], plain[e.target]) for e in found.edges}
    return set(plain.values()) - {"start", "end"}, edges


def test_the_synthesizer_is_drawn_with_these_nodes_and_edges():
    names, edges = drawn(build_graph(complete=ScriptedModel(), embed=letters))
    assert names | {"sample"} == set(SYNTHESIZER)
    assert edges == {
        *(("start", "retrieve"), ("retrieve", "extract"), ("extract", "propose")),
        *(("propose", "screen"), ("screen", "propose"), ("screen", "generate")),
        *(("propose", "generate"), ("generate", "critique"), ("critique", "refine")),
        *(("critique", "end"), ("refine", "critique")),
        *(("critique", "answer"), ("answer", "critique")),
        *(("end", "review"), ("end", "end"), ("review", "end")),
    }


def test_the_graph_sample_is_drawn_with_these_nodes_and_edges():
    names, edges = drawn(build_sample(complete=ScriptedModel(), embed=letters))
    assert names == set(SAMPLE)
    assert edges == {
        *(("start", "begin"), ("begin", "generate"), ("generate", "critique")),
        *(("critique", "refine"), ("critique", "review"), ("critique", "end")),
        *(("refine", "critique"), ("review", "end")),
        *(("critique", "answer"), ("answer", "critique")),
    }


def test_the_indexer_is_drawn_with_these_nodes_and_edges():
    names, edges = drawn(build_indexer())
    assert names == set(INDEXER)
    assert edges == {("start", "add"), ("add", "end")}


@pytest.mark.parametrize(
    "graph",
    [
        build_graph(complete=ScriptedModel(), embed=letters),
        build_sample(complete=ScriptedModel(), embed=letters),
        build_indexer(),
    ],
    ids=lambda graph: graph.name,
)
def test_every_node_says_what_it_does(graph):
    for node in graph.get_graph().nodes.values():
        said = (node.metadata or {}).get("description", "")
        assert node.id.startswith("__") or (len(said) > 20 and said.endswith(".")), node


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


def test_the_command_line_begins_without_what_only_runs_and_figures_need():
    import subprocess
    import sys

    heavy = ("torch", "faiss", "langgraph", "langchain_core", "numpy", "pandas", "aiohttp")
    code = f"import sys, refloom.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["xyzzy"], ["--xyzzy"]])
def test_what_names_no_command_imports_no_settings(arguments):
    import subprocess
    import sys

    slow = ("pydantic", "asyncio", "jinja2", "rapidfuzz", "numpy", "refloom.settings")
    code = (
        "import sys; from refloom.cli import main\n"
        f"try: main({arguments})\n"
        f"finally: print([m for m in {slow} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_no_test_imports_another():
    imports = re.compile(r"^\s*(?:from|import) test_", re.MULTILINE)
    paths = sorted((ROOT / "tests").glob("*.py"))
    assert [path.name for path in paths if imports.search(path.read_text(encoding="utf-8"))] == []
