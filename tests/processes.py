"""The command line, in this process or in one of its own, and the lines it writes."""

from __future__ import annotations

import asyncio
import atexit
import gc
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from refloom.cli import main


@dataclass(frozen=True)
class CommandResult:
    """What a command left: its exit status and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def refloom(*arguments: object, cwd: Path, **environment: str) -> CommandResult:
    """Run a command in this process: a tenth of the time of a new one.

    What it changes in the process is put back. A fault of refloom's own is raised here, where a
    process would end with a traceback. Signals, start-up and other encodings need `run_process`.
    """
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with (
        _process_state(),
        pytest.MonkeyPatch.context() as patch,
        chdir(cwd),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        pytest.raises(SystemExit) as ended,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        _call([str(argument) for argument in arguments])
    return CommandResult(int(ended.value.code or 0), _text(stdout), _text(stderr))


def run_process(
    *arguments: object, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env_of(environment),
        timeout=120,
    )


def command(*arguments: object) -> list[str]:
    """The command line that starts refloom with this interpreter."""
    return [sys.executable, "-m", "refloom", *map(str, arguments)]


def env_of(extra: dict[str, str]) -> dict[str, str]:
    root = Path(__file__).parent.parent
    return {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "error", **extra}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _call(arguments: list[str]) -> None:
    """Call the command line; in another thread if this one runs an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    else:
        running = True
    if not running:
        main(arguments)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(main, arguments).result()


@contextmanager
def _process_state() -> Iterator[None]:
    """Put back the collector's thresholds, the signal handlers and what `main` does at exit."""
    thresholds = gc.get_threshold()
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        atexit.unregister(gc.freeze)
        for name, handler in handlers.items():
            signal.signal(name, handler)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8")
