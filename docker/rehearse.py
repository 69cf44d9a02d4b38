"""Carry out the steps of a Dockerfile in a folder, where there is no Docker to build it.

    python docker/rehearse.py FOLDER             the Dockerfile of the command line
    python docker/rehearse.py FOLDER --server    what `langgraph dockerfile` makes

FROM is a fresh virtual environment; for the server it holds LangGraph's server too, with the
runtime of `langgraph dev` in place of the licensed one, and their versions are the constraints.
COPY takes what .dockerignore leaves, RUN runs the very line, ENV and ARG stand in its environment.
Paths of the image lie in FOLDER/root. Then the command or the server is started without a network
(`unshare -n`) and with an empty home, and makes a run; a scripted endpoint stands in for the model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Paths of an image that stand in a Dockerfile's lines.
PLACES = ("/opt/prepare", "/opt/refloom", "/var/cache", "/data", "/deps", "/api")
# What the base image of a LangGraph server brings.
SERVER = ("langgraph-api", "langgraph-runtime-inmem", "langgraph-cli", "uv", "pip")


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps a path of the context out: the last pattern that fits decides."""
    parts = path.split("/")
    prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    verdict = False
    for pattern in patterns:
        bare = pattern.removeprefix("!").strip("/")
        if bare.startswith("**/"):
            fits = any(fnmatch(part, bare[3:]) for part in parts)
        else:
            fits = any(
                prefix.count("/") == bare.count("/") and fnmatch(prefix, bare)
                for prefix in prefixes
            )
        if fits:
            verdict = not pattern.startswith("!")
    return verdict


def context_files(root: Path) -> Iterator[str]:
    """The files of a build context, as Docker would send them."""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    for folder, names, files in os.walk(root):
        here = Path(folder).relative_to(root)
        # Nothing is taken back from below a folder of these names, and they are large.
        names[:] = [name for name in names if name not in (".git", ".venv", "__pycache__")]
        for file in files:
            path = (here / file).as_posix()
            if not ignored(path, patterns):
                yield path


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile and what follows each."""
    joined = re.sub(r"\\\n", " ", dockerfile)
    for line in joined.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


class Image:
    """A folder that is made as an image would be."""

    def __init__(self, folder: Path, packages: tuple[str, ...]) -> None:
        self.folder, self.root = folder.resolve(), folder.resolve() / "root"
        self.workdir = self.root
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "home").mkdir(parents=True)
        self.root.mkdir()
        bin_ = self.folder / "venv" / "bin"
        subprocess.run([sys.executable, "-m", "venv", self.folder / "venv"], check=True)
        if packages:
            subprocess.run([bin_ / "pip", "install", "-qq", *packages], check=True)
            freeze = [bin_ / "pip", "freeze"]
            pins = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
            (self.root / "api").mkdir()
            (self.root / "api" / "constraints.txt").write_text(pins)
        # pip's own folder of wheels, where it has one, is uv's too. SSL_* are how to reach them.
        passed = {k: v for k, v in os.environ.items() if k.startswith(("SSL_", "PIP_", "TORCH_"))}
        if links := os.environ.get("PIP_FIND_LINKS"):
            passed |= {"UV_FIND_LINKS": links, "TORCH_INDEX": ""}
        self.environment = passed | {
            "PATH": f"{self.folder}/shims:{bin_}:/usr/bin:/bin",
            "HOME": str(folder.resolve() / "home"),
        }
        # `--system` means the Python of the image, which is the virtual environment here.
        shim = self.folder / "shims" / "uv"
        shim.parent.mkdir()
        shim.write_text(
            f'#!/bin/sh\nfor a do shift; [ "$a" = --system ] || set -- "$@" "$a"; done\n'
            f'VIRTUAL_ENV={self.folder}/venv exec {bin_}/uv "$@"\n'
        )
        shim.chmod(0o755)

    def inside(self, text: str) -> str:
        """A line with the paths of the image in the folder instead."""
        for place in PLACES:
            text = re.sub(rf"(?<![\w.]){place}(?=[/\s'\":]|$)", str(self.root) + place, text)
        return text

    def build(self, dockerfile: str) -> None:
        """Carry out the instructions, one after the other."""
        for name, rest in instructions(dockerfile):
            print(f"{name} {rest[:150]}", flush=True)
            if name in ("ENV", "ARG"):
                self._set(rest)
            elif name in ("COPY", "ADD"):
                self._copy(*shlex.split(rest))
            elif name == "RUN" and not self._is_of_the_base(rest):
                line = re.sub(r"\s+", " ", self.inside(rest))
                command = ["sh", "-c", line]
                subprocess.run(command, check=True, env=self.environment, cwd=self.workdir)
            elif name == "WORKDIR":
                self.workdir = Path(self.inside(rest))
                self.workdir.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def _is_of_the_base(line: str) -> bool:
        """Lines that mend LangGraph's own files or take the installers out of the image."""
        return (
            ("/api" in line and "constraints" not in line)
            or "uninstall" in line
            or "rm -rf" in line
        )

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition("=")
        pairs = (
            [(name, value.strip("'"))]
            if "{" in value
            else [tuple(part.split("=", 1)) for part in shlex.split(rest) if "=" in part]
        )
        self.environment |= {k: self.inside(v) for k, v in pairs}

    def _copy(self, *parts: str) -> None:
        *sources, place = parts
        target = Path(self.inside(place))
        files = list(context_files(ROOT))
        for source in sources:
            chosen = [
                f for f in files if source == "." or f == source or f.startswith(source + "/")
            ]
            if not chosen:
                raise SystemExit(f"COPY {source}: .dockerignore leaves nothing of it")
            for file in chosen:
                name = file if source == "." else file.removeprefix(f"{Path(source).parent}/")
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, target / name)
                if file.endswith(".sh"):
                    script = (ROOT / file).read_text(encoding="utf-8")
                    (target / name).write_text(self.inside(script), encoding="utf-8")

    def command(self, *arguments: object) -> list[str]:
        """A command in a network of its own, which has a loopback and nothing else."""
        line = shlex.join(map(str, arguments))
        return ["unshare", "-n", "sh", "-c", f"ip link set lo up; exec {line}"]


# What is tried in the finished image: it holds its own endpoint, for there is no other network.
TRIAL = Path(__file__).parent / "trial.py"


def main() -> None:
    """Build and try the image that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server", action="store_true")
    given = parser.parse_args()
    image = Image(given.folder, SERVER if given.server else ())
    began = time.monotonic()
    if given.server:
        path = image.folder / "Dockerfile"
        cli = [
            image.folder / "venv/bin/langgraph",
            "dockerfile",
            "-c",
            ROOT / "langgraph.json",
            path,
        ]
        subprocess.run(cli, check=True, stdout=subprocess.DEVNULL)
        image.build(path.read_text(encoding="utf-8"))
    else:
        image.build((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    print(f"built in {time.monotonic() - began:.0f} s: {_size(image.folder)}")
    kind = "server" if given.server else "command"
    done = subprocess.run(
        image.command(image.folder / "venv/bin/python", TRIAL, kind, image.folder),
        env=image.environment,
        cwd=image.workdir,
    )
    raise SystemExit(done.returncode)


def _size(folder: Path) -> str:
    sizes = {
        "packages": folder / "venv",
        "weights": folder / "root" / "var",
        "refloom": next((folder / "root").glob("opt/refloom"), folder / "root" / "deps"),
    }
    return ", ".join(
        f"{name} {sum(f.stat().st_size for f in path.rglob('*') if f.is_file()) / 1e6:.0f} MB"
        for name, path in sizes.items()
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
