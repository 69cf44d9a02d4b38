"""The command line as a process, and the lines it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def refloom(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "refloom", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env_of(environment),
        timeout=120,
    )


def env_of(extra: dict[str, str]) -> dict[str, str]:
    root = Path(__file__).parent.parent
    return {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "error", **extra}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
