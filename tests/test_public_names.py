"""The names that other programs rely on: none goes, and none comes unnoticed.

`data/public_names.json` lists commands with their flags, settings with their values, the fields of
the graph's context, the files of a run's directory, the keys of its rows and of run.json, graphs
and nodes, environment variables. A name that is gone is a break; a new one is added on purpose, by

    PUBLIC_NAMES_ADD=1 python -m pytest tests/test_public_names.py -n 0

which takes nothing from the list. Exit status 130 is tested in test_cli.py, which sends signals.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import Endpoint, error, stage_of
from processes import refloom
from varied_model import BASE_URL, proxied, respond

import refloom as package
from graph.builder import build_graph
from memory.novelty import novel
from nodes.context import Context

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
LIST = DATA / "public_names.json"
VARIABLE = re.compile(r"\b(?:REFLOOM|OPENAI|JUDGE)_[A-Z]+(?:_[A-Z]+)*\b")
STATUSES = ("accepted", "rejected", "failed")
RUN = (
    "run", "--references", "references.jsonl", "--model", "m", "--base-url", BASE_URL, "--quiet",
)  # fmt: skip
# Of this random seed there are rows of every status.
ROWS = (*RUN, "--references-per-seed", "1", "--per-seed", "4", "--random-seed", "2")


def check(section: str, names: Iterable[str]) -> None:
    """Hold names against a section of the list."""
    found = sorted(set(names))
    known = json.loads(LIST.read_text(encoding="utf-8")) if LIST.exists() else {}
    if os.environ.get("PUBLIC_NAMES_ADD"):
        known[section] = sorted({*known.get(section, ()), *found})
        text = json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False)
        LIST.write_text(f"{text}\n", encoding="utf-8")
    gone = sorted(set(known.get(section, ())) - set(found))
    new = sorted(set(found) - set(known.get(section, ())))
    assert not gone, f"{section}: these names are gone, and other programs use them: {gone}"
    assert not new, (
        f"{section}: these names are not in {LIST.name}, see this file's docstring: {new}"
    )


def key_paths(value: Any, depth: int, path: str = "") -> Iterator[str]:
    """The keys of JSON with those above them: `attempts[].verdicts[].reason`."""
    if isinstance(value, list):
        for one in value:
            yield from key_paths(one, depth, f"{path}[]")
    elif isinstance(value, dict) and depth:
        for name, one in value.items():
            below = f"{path}.{name}" if path else name
            yield below
            yield from key_paths(one, depth - 1, below)


def help_of(*command: str) -> str:
    ended = refloom(*command, "--help", cwd=ROOT, COLUMNS="200")
    assert ended.returncode == 0
    return ended.stdout


def commands(*above: str) -> Iterator[tuple[str, ...]]:
    """Every command and subcommand, by the help of what is above it."""
    for name in re.findall(r"^    ([a-z][a-z-]+)(?:  .*)?$", help_of(*above), re.MULTILINE):
        yield (*above, name)
        if not re.search(r"^usage: .*\.\.\.$", help_of(*above, name), re.MULTILINE):
            continue
        yield from commands(*above, name)


def signs(text: str) -> Iterator[str]:
    """The flags and places of a command's help, with the values they are limited to."""
    for line in re.findall(r"^  (-\S.*?|[A-Z][A-Z_.]*)(?:  .*)?$", text, re.MULTILINE):
        flag = re.findall(r"--[a-z][a-z-]*|^[A-Z][A-Z_.]*", line)
        values = re.findall(r"\{([^}]*)\}", line)
        for name in flag:
            yield name
            yield from (f"{name} {value}" for part in values for value in part.split(","))


def test_commands_and_flags():
    names = [f"{' '.join(command)}" for command in commands()]
    assert {"run", "export", "index build", "model pull"} <= set(names)
    found = [f"refloom {sign}" for sign in signs(help_of())]
    for name in names:
        found += [name, *(f"{name} {sign}" for sign in signs(help_of(*name.split())))]
    check("commands", found)


def test_settings_and_context():
    check("settings", package.Settings.model_fields)
    check("context", Context.model_fields)
    for preset in ("quick", "thorough", "refed"):
        assert package.Settings(model="m", preset=preset).preset == preset


def test_values_of_settings():
    fields = package.Settings.model_json_schema()["properties"].items()
    check("values", (f"{name}={one}" for name, schema in fields for one in enums(schema)))


def enums(schema: dict[str, Any]) -> Iterator[str]:
    for part in (schema, *schema.get("anyOf", ())):
        yield from part.get("enum", ())


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("REFLOOM_MAX_ATTEMPTS", "7")
    assert package.Settings(model="m").max_attempts == 7


def test_environment_variables():
    """Those named in texts of the code, but for `REFLOOM_` and the name of a setting."""
    found: set[str] = set()
    for room in ("graph", "nodes", "memory", "prompts", "refloom"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found |= set(VARIABLE.findall(node.value))
    settings = {f"REFLOOM_{name.upper()}" for name in package.Settings.model_fields}
    check("environment", found - settings)


def test_what_python_programs_import():
    assert package.__version__
    assert list(inspect.signature(package.synthesize).parameters) == [
        *("references", "seeds", "settings", "out", "progress")
    ]
    threshold = inspect.signature(novel).parameters["threshold"]
    assert list(inspect.signature(novel).parameters) == ["texts", "threshold"]
    assert threshold.default == 0.7
    assert list(novel(["one two three four", "one two three four", "five six"])) == [0, 2]
    assert "complete" in inspect.signature(build_graph).parameters


def test_graphs_and_what_goes_in_and_out():
    served = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))["graphs"]
    graph = build_graph()
    check("graphs", served)
    check("nodes of the graph", graph.get_graph(xray=True).nodes)
    check("input of the graph", graph.get_input_jsonschema()["properties"])
    check("output of the graph", graph.get_output_jsonschema()["properties"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, `new`, that has rows of every status, and an old one, `whole`."""
    folder = tmp_path_factory.mktemp("names")
    shutil.copy(DATA / "half_done_run" / "references.jsonl", folder)
    shutil.copytree(DATA / "finished_run" / "out", folder / "whole")

    def filtering(body: dict[str, Any], number: int) -> Any:
        """Some refinements are filtered, so that there are failed rows as well."""
        if stage_of(body) == "refine" and body["seed"] % 3 == 0:
            return error(400, "no", "content_filter")
        return respond(body, number)

    # Each reference is its own seed, so nothing has to be embedded.
    with Endpoint(filtering) as endpoint:
        ended = refloom(*ROWS, "--out", "new", cwd=folder, **proxied(endpoint.url))
    assert ended.returncode == 0, ended.stderr
    return folder


def test_files_of_a_run(folder):
    check("files of a run", (p.name for p in (folder / "new").iterdir() if p.name[0] != "."))


def test_keys_of_rows_and_of_run_json(folder):
    for status in STATUSES:
        rows = (folder / "new" / f"{status}.jsonl").read_text(encoding="utf-8").splitlines()
        assert rows
        check(f"{status}.jsonl", (path for row in rows for path in key_paths(json.loads(row), 9)))
    run = json.loads((folder / "new" / "run.json").read_text(encoding="utf-8"))
    assert set(run["settings"]) == set(package.Settings.model_fields)
    others = ("settings.", "cost_by_model.", "cost_by_stage.")
    check("run.json", (path for path in key_paths(run, 2) if not path.startswith(others)))


def test_keys_of_what_commands_print(folder):
    status = refloom("status", "new", "--json", cwd=folder)
    check("status --json", key_paths(json.loads(status.stdout), 1))
    # Two runs of the same texts: nobody is asked which is better.
    shutil.copytree(folder / "whole", folder / "copy")
    pairs = refloom("compare", "copy", "whole", "--json", cwd=folder)
    check("compare --json", key_paths(json.loads(pairs.stdout), 2))


def test_exit_statuses(tmp_path):
    shutil.copy(DATA / "half_done_run" / "references.jsonl", tmp_path)
    with Endpoint(respond) as endpoint:

        def status(*command: str) -> int:
            return refloom(*command, cwd=tmp_path, **proxied(endpoint.url)).returncode

        own = (*RUN, "--references-per-seed", "1", "--feedback", "none", "--out")
        assert status("--version") == 0
        assert status("run", "--no-such-flag") == 2
        assert status(*own, "out", "--limit", "0") == 2
        assert status("status", "nowhere") == 2
        assert status(*own, "short", "--target", "50", "--max-candidates", "2") == 3
        assert endpoint.bodies
        assert status(*own, "poor", "--max-tokens", "20") == 4
    stopped = ("run", "--references", "references.jsonl", "--model", "m", "--out", "none")
    assert refloom(*stopped, cwd=tmp_path).returncode == 4


def test_the_benchmark_of_own_cost_takes_what_it_took():
    line = (sys.executable, "benchmarks/own_cost.py", "--help")
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    check("own_cost.py", signs(ended.stdout))
