"""The examples run as they stand: the notebook cell by cell, the handler behind a client."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes import Endpoint
from fastapi.testclient import TestClient

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture
def endpoint(monkeypatch):
    """A scripted endpoint that the environment names."""
    with Endpoint() as started:
        monkeypatch.setenv("OPENAI_BASE_URL", started.url)
        monkeypatch.setenv("REFLOOM_MODEL", "m")
        yield started


def run_shell(command: str) -> None:
    """A notebook's line with an exclamation mark."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


async def run_cell(source: str, names: dict[str, Any]) -> str:
    """Run a cell as IPython does, with `await` at the top; return what it prints."""
    source = re.sub(
        r"^!(.+)$", lambda match: f"run_shell({match[1]!r})", source, flags=re.MULTILINE
    )
    code = compile(source, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        waited_for = eval(code, names)
        if asyncio.iscoroutine(waited_for):
            await waited_for
    return said.getvalue()


async def test_the_notebook_runs_from_references_to_an_export(endpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    names: dict[str, Any] = {"run_shell": run_shell}
    said = [await run_cell("".join(cell["source"]), names) for cell in cells]
    assert [r["status"] for r in names["records"]] == ["accepted"] * 3
    assert said[1].count("accepted") == 3
    assert "attempt 1" in said[2] and "fully answers" in said[2]
    assert said[3].strip() == names["accepted"][0]["response"]
    rows = [json.loads(line) for line in (tmp_path / "quickstart.jsonl").read_text().splitlines()]
    assert [[m["role"] for m in row["messages"]] for row in rows] == [["user", "assistant"]] * 3
    # The cell that makes rows says that it may be run again.
    asked = len(endpoint.bodies)
    assert "".join(sorted(await run_cell("".join(cells[1]["source"]), names))) == "".join(
        sorted(said[1])
    )
    assert len(endpoint.bodies) == asked


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_handler_makes_samples(endpoint, monkeypatch):
    monkeypatch.setenv("REFLOOM_REFERENCES_PER_SEED", "1")
    monkeypatch.setenv("REFLOOM_TRY_CRITERIA", "false")
    with TestClient(load(EXAMPLES / "fastapi_app.py").app) as client:
        reply = client.post("/samples", json={"instruction": "How waves form at sea"})
        refused = client.post("/samples", json={"seed": "x"})
    assert reply.status_code == 200 and refused.status_code == 422
    assert [sample["status"] for sample in reply.json()] == ["accepted"]


async def test_what_the_readme_says_of_python_works(endpoint, tmp_path, monkeypatch):
    """As a script, and in a notebook's cell."""
    monkeypatch.chdir(tmp_path)
    pair = {
        "instruction": "Why two tides a day?",
        "response": "The Moon raises two bulges of water.",
    }
    Path("pairs.jsonl").write_text(json.dumps(pair))
    Path("topics.txt").write_text("waves\nships\n")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    script = script.replace("my-model", "m")
    Path("script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.count("accepted") == 2, done.stderr
    cell = script.replace("asyncio.run(main())", "await main()")
    assert cell != script
    assert (await run_cell(cell, {})).count("accepted") == 2
