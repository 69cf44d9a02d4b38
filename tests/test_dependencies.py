"""Every distribution the code imports is declared; none comes by luck of another."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("graph", "nodes", "memory", "prompts", "refloom")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = packages_distributions()
# Where an extra's distributions may be imported.
EXTRAS = {
    "local": ("refloom/local.py", "memory/weights.py"),
    "app": ("refloom/serve/", "refloom/cli/review.py"),
    "ray": ("refloom/runs/ray/",),
    "math": ("nodes/final_answer.py",),
    "providers": ("nodes/llm/chat_model.py",),
}


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def imported(path: Path) -> set[str]:
    """The distributions whose modules a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.split(".")[0])
    foreign = modules - set(sys.stdlib_module_names) - set(PACKAGES) - {"__future__"}
    # A namespace such as langgraph's is filled by several distributions.
    return {
        "|".join(sorted({d.lower().replace("_", "-") for d in DISTRIBUTIONS[m]})) for m in foreign
    }


@pytest.mark.parametrize(
    "path",
    sorted(
        p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*.py")
    ),
)
def test_what_is_imported_is_declared(path):
    declared = set(map(name_of, PROJECT["dependencies"]))
    for extra, places in EXTRAS.items():
        if path.startswith(places):
            declared |= set(map(name_of, PROJECT["optional-dependencies"][extra]))
    missing = [names for names in imported(ROOT / path) if not declared & set(names.split("|"))]
    assert missing == []
