"""What the kill test and the fault test share: made-up references, and both processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faulty_answers import ROOT, words

ENDS = (0, 3)
LONGEST_S = 900.0
FILES = ("accepted", "rejected", "failed")
# Why a proposed instruction is no candidate.
DROPS = ("duplicates", "screened", "unfit", "surplus")


def write_references(path: Path, n: int) -> None:
    """Made-up pairs, no two alike."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            pair = {
                "id": f"r{i}",
                "instruction": words(f"ask {i}", 13).capitalize() + "?",
                "response": words(f"say {i}", 60).capitalize() + ".",
            }
            file.write(json.dumps(pair) + "\n")


def start(line: list[str]) -> subprocess.Popen[str]:
    """Start a run; the settings of whoever tests are not the run's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("REFLOOM_", "OPENAI_"))}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, env=kept, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str], within: float = LONGEST_S) -> tuple[int, str]:
    """The exit status of a run and what it said; one that does not end is a failure."""
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        sys.exit(f"a run did not end within {within:.0f} s\n{out}{err}")
    return process.returncode, out + err


def answered(url: str) -> int:
    """How many calls the endpoint at `url` has answered."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/count", timeout=30) as reply:
        return int(reply.read())


def wait_for(process: subprocess.Popen[str], url: str, count: int) -> bool:
    """Whether the endpoint comes to have answered so many calls before the run ends."""
    begun = time.monotonic()
    while answered(url) < count:
        if process.poll() is not None:
            return False
        if time.monotonic() - begun > LONGEST_S:
            process.kill()
            sys.exit("a run stopped asking without coming to an end")
        time.sleep(0.004)
    return process.poll() is None


def lines_of(log: Path) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file."""
    with log.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@contextmanager
def started(log: Path, *flags: str) -> Iterator[str]:
    """The endpoint as a process of its own, ended afterwards; gives its URL."""
    command = [sys.executable, str(ROOT / "benchmarks" / "faulty.py"), "--log", str(log), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if there is no file."""
    return lines_of(path) if path.is_file() else []
