"""What goes into an image: files, packages, weights; `docker/rehearse.py` tries it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rehearse():
    """The module of docker/, which is a script and in no package."""
    sys.path.insert(0, str(ROOT / "docker"))
    try:
        import rehearse

        yield rehearse
    finally:
        sys.path.remove(str(ROOT / "docker"))


@pytest.mark.parametrize(
    "path",
    [
        ".env", ".venv/bin/python", "rows/journal.sqlite", "demo-run/accepted.jsonl", "pairs.jsonl",
        "tests/fakes.py", "docs/run.md", ".git/config", "graph/__pycache__/builder.pyc",
        "docker/rehearse.py", "dev-index/index.json", ".langgraph_api/x",
    ],
)  # fmt: skip
def test_a_users_own_files_stay_out(rehearse, path):
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    assert rehearse.ignored(path, [line for line in patterns if line[:1] not in ("", "#")])


def test_everything_the_packages_need_goes_in(rehearse):
    inside = set(rehearse.context_files(ROOT))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in project["tool"]["setuptools"]["packages"]:
        folder = ROOT / package.replace(".", "/")
        files = {p.relative_to(ROOT).as_posix() for p in folder.iterdir() if p.is_file()}
        assert files - inside == set(), package
    assert {"refloom/resources/demo/references.jsonl", "langgraph.json", "LICENSE"} <= inside
    assert {"README.md", "pyproject.toml", "Makefile", "docker/prepare.sh"} <= inside


def test_a_pattern_is_read_as_docker_reads_it(rehearse):
    patterns = ["*", "!a", "!b/c.txt", "**/cache", "a/no*"]
    left = ["a/x", "a/deep/x", "b/c.txt"]
    out = ["x", "b/d.txt", "a/cache/x", "a/deep/cache", "a/nothing", "c/a"]
    assert [p for p in [*left, *out] if not rehearse.ignored(p, patterns)] == left


def test_the_servers_image_is_prepared_before_the_project_is_added(tmp_path):
    langgraph = Path(sys.executable).parent / "langgraph"
    command = [langgraph, "dockerfile", "-c", ROOT / "langgraph.json", tmp_path / "Dockerfile"]
    environment = {**os.environ, "LANGGRAPH_CLI_NO_ANALYTICS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    text = (tmp_path / "Dockerfile").read_text(encoding="utf-8")
    steps = ["ENV XDG_CACHE_HOME", "RUN sh /opt/prepare/prepare.sh app", "\nADD . /deps/", "-e ."]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)


@pytest.mark.parametrize("text", [(ROOT / "Dockerfile").read_text(), None])
def test_what_is_copied_is_there(rehearse, text):
    lines = json.loads((ROOT / "langgraph.json").read_text())["dockerfile_lines"]
    inside = set(rehearse.context_files(ROOT))
    for name, rest in rehearse.instructions(text or "\n".join(lines)):
        sources = rest.split()[:-1] if name == "COPY" else []
        assert [s for s in sources if s != "." and s not in inside] == []


def test_the_address_of_an_index_stands_in_the_makefile_and_the_readme_alone():
    index = re.search(r"^TORCH_CPU_INDEX := https://(.+)$", MAKEFILE, re.MULTILINE)
    assert index is not None
    listed = subprocess.run(
        ["git", "grep", "-l", index[1]], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        assert listed.stdout.split() == ["Makefile", "README.md"]


def prepared(folder: Path, *extras: str, **environment: str) -> list[str]:
    """What prepare.sh does, with a `uv` and a `python` that only say how they were called."""
    (folder / "bin").mkdir()
    for name in ("uv", "python"):
        (folder / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\n')
        (folder / "bin" / name).chmod(0o755)
    (folder / "cache" / "refloom").mkdir(parents=True)
    for name in ("Makefile", "docker/prepare.sh"):
        (folder / Path(name).name).write_text((ROOT / name).read_text())
    path = f"{folder}/bin:/usr/bin:/bin"
    environment |= {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run(["sh", folder / "prepare.sh", *extras], check=True, env=environment)
    return (folder / "calls").read_text().splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="an image is made by a shell")
def test_the_image_has_the_makefiles_torch_the_extras_and_the_weights(tmp_path):
    torch, packages, weights = prepared(tmp_path, "app", "local")
    version = re.search(r"^TORCH := (.+)$", MAKEFILE, re.MULTILINE)
    index = re.search(r"^TORCH_CPU_INDEX := (.+)$", MAKEFILE, re.MULTILINE)
    assert version and index
    assert f"--index-url {index[1]} torch=={version[1]}+cpu" in torch
    assert "--extra app --extra local -r pyproject.toml" in packages
    assert "minilm_path" in weights


@pytest.mark.skipif(sys.platform == "win32", reason="an image is made by a shell")
def test_another_index_or_none_may_be_named_and_no_extra(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    other, packages, _ = prepared(tmp_path / "a", TORCH_INDEX="http://127.0.0.1:9/torch")
    none, _, _ = prepared(tmp_path / "b", TORCH_INDEX="")
    assert "--index-url http://127.0.0.1:9/torch" in other and "--index-url" not in none
    assert "--extra" not in packages and "-r pyproject.toml" in packages
